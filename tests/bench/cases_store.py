"""Cases of the stores: the backends, what people use instead, memory, growth, start, large values."""

import os
import statistics
import subprocess
import time

from cases import CASES, case
from cases_socket import SMALL, SMALL_KEYS
from line import Line, key_of
from measure import CPU, P50, P99, P999, RATE, Figure, Row, judged, row_of

BACKENDS = ("sqlite", "filesystem", "redis")


@case("tier", "GET hit, 100 B, 50 connections, each backend against memory")
def tier(bench):
    def make():
        return [bench.liara("memory")] + [bench.liara(name, name) for name in BACKENDS]

    keys = 4000 if bench.settings.quick else 20000

    def fill(server):
        bench.fill(server, 100, keys)
        bench.load(server, ["--keys", keys, "--in-sequence", "--count", keys])

    arguments = ["--keys", keys]
    runs = {server.name: (lambda server=server: bench.timed_load(server, arguments))
            for server in bench.lineup("tier", make, fill)}
    rounds = bench.rounds("tier", runs)
    for backend in BACKENDS:
        for figure, target in ((CPU, 1.05), (RATE, 0.95), (P50, 1.05)):
            row = row_of("tier", CASES["tier"][0], figure, rounds, backend, ["memory"], target)
            row.figure = f"{backend}: {row.figure}"
            bench.rows.append(row)


def fresh(start, step):
    """A function that returns the beginning of another range of keys each time."""
    ranges = iter(range(start, 1 << 40, step))
    return lambda: next(ranges)


@case("put-processes", "PUT of new 4 KB by 8 processes, PERSIST counted in")
def put_processes(bench):
    name, title = "put-processes", CASES["put-processes"][0]
    count = 2000 if bench.settings.quick else 16000
    servers = bench.lineup(
        name, lambda: [bench.liara(f"liara-{backend}", backend)
                       for backend in ("sqlite", "filesystem", "memory")],
        lambda server: None)
    folder = bench.own_folder()
    places = {"SQLite file": ("sqlite", os.path.join(folder, "cache.db")),
              "files": ("files", os.path.join(folder, "files"))}
    places.update({server.name: ("liara", server.socket) for server in servers})
    keys = {label: fresh(0, count) for label in places}
    def run(label, kind, place):
        result = bench.direct(kind, place, count, first=keys[label]())
        for server in servers:
            server.settle()
        return result

    runs = {label: (lambda label=label, kind=kind, place=place: run(label, kind, place))
            for label, (kind, place) in places.items()}
    rounds = bench.rounds(name, runs)
    for ours in ("liara-sqlite", "liara-filesystem"):
        for other, target in (("SQLite file", 6.0), ("files", 3.0)):
            row = row_of(name, title, RATE, rounds, ours, [other], target)
            row.figure = f"{ours}: {row.figure}"
            bench.rows.append(row)
    bench.rows.append(row_of(name, title, Figure("persist_ms", "of it PERSIST", "ms"), rounds,
                             "liara-sqlite", []))
    bench.rows.append(row_of(name, title, P99, rounds, "liara-sqlite", []))
    runs = {label: (lambda kind=kind, place=place: bench.direct(kind, place, count, get=True))
            for label, (kind, place) in places.items()}
    gets = bench.rounds("get-processes", runs)
    row = row_of(name, title, RATE, gets, "liara-sqlite", ["SQLite file", "files"])
    row.figure = "the same GET, requests per second"
    bench.rows.append(row)


PERSIST = Figure("persist_ms", "PERSIST of 100 new entries", "ms")


def persist_of_new(server, first):
    """PERSIST's time in ms with 100 entries of 100 B that are new."""
    with Line(server.socket) as line:
        line.persist()
        for number in range(100):
            line.put(key_of(first + number), b"v" * 100)
        return {"persist_ms": line.persist()}


@case("persist", "PERSIST after 100 new entries, by size of the store")
def persist(bench):
    sizes = (("1k", 1000), ("100k", 5000 if bench.settings.quick else 100000))
    entries = dict(sizes)
    servers = bench.lineup(
        "persist", lambda: [bench.liara(f"{backend}-{label}", backend)
                            for backend in ("sqlite", "filesystem") for label, _ in sizes],
        lambda server: bench.fill(server, 100, entries[server.name.split("-")[1]]))
    first = fresh(1 << 30, 100)
    runs = {server.name: (lambda server=server: persist_of_new(server, first()))
            for server in servers}
    rounds = bench.rounds("persist", runs, count=max(9, bench.settings.rounds))
    for backend in ("sqlite", "filesystem"):
        row = row_of("persist", CASES["persist"][0], PERSIST, rounds, f"{backend}-100k",
                     [f"{backend}-1k"], 2.0)
        row.figure = f"{backend}: {row.figure}"
        row.note = f"the larger store has {entries['100k']} entries"
        bench.rows.append(row)


@case("memory", "Memory per entry of 100 B, key of 20 B")
def memory(bench):
    entries = 200000 if bench.settings.quick else 1000000
    bench.stop_all()
    result = {}
    for server in (bench.liara(), bench.memcached(), bench.redis()):
        bench.start(server)
        bench.load(server, ["--count", 1000, "--misses"])
        before = server.memory()
        bench.fill(server, 100, entries)
        after = server.memory()
        result[server.name] = {"rss": (after[0] - before[0]) / entries,
                               "anon": (after[1] - before[1]) / entries}
        bench.stop_all()
    bench.raw["memory"] = [result]
    figure = Figure("rss", f"resident memory, {entries} entries", "B")
    for peer in ("memcached", "redis"):
        bench.rows.append(row_of("memory", CASES["memory"][0], figure, [result], "liara", [peer],
                                 1.0))


def growth_sizes(bench):
    last = ("1M", 1000000) if bench.settings.quick else ("5M", 5000000)
    return (("1k", 1000), ("100k", 100000), last)


@case("growth-entries", "GET hit, 100 B, 50 connections, by number of entries")
def growth_entries(bench):
    """Fills while latencies are measured: growth of the table must not stop anybody."""
    name, title = "growth-entries", CASES["growth-entries"][0]
    sizes = growth_sizes(bench)
    largest = sizes[-1][0]
    bench.stop_all()
    runs, fills, servers = {}, {}, ["liara"]
    if not bench.settings.quick:
        servers += ["memcached", "redis"]
    for kind in servers:
        for label, entries in sizes:
            server = bench.start(getattr(bench, kind)(f"{kind}-{label}"))
            fills[server.name] = bench.load(
                server, ["--put-percent", 100, "--in-sequence", "--count", entries, "--keys",
                         entries, "--connections", 4, "--in-flight", 16])
            arguments = ["--keys", entries]
            runs[server.name] = (lambda server=server, arguments=arguments:
                                 bench.timed_load(server, arguments))
    rounds = bench.rounds(name, runs)
    bench.raw["growth-entries fill"] = [fills]
    bench.stop_all()
    for kind in servers:
        for figure in (P50, CPU):
            row = row_of(name, title, figure, rounds, f"{kind}-{largest}", [f"{kind}-1k"],
                         1.25 if kind == "liara" else None)
            row.values = {key.split("-")[1]: value for key, value in row.values.items()
                          if key.startswith(kind + "-")}
            row.figure = f"{kind}: {row.figure}"
            row.against = "that with 1k"
            bench.rows.append(row)
    for kind in servers:
        waits = {label: fills[f"{kind}-{label}"]["max_us"] for label, _ in sizes}
        bench.rows.append(Row(name, title, f"{kind}: longest wait in the fill", "us", waits))


def first_answer(server):
    """Milliseconds from the daemon's start to the first GET that hits."""
    before = time.perf_counter()
    server.start()
    with Line(server.socket) as line:
        while line.get(key_of(7)) is None:
            if time.perf_counter() - before > 60:
                raise RuntimeError(f"{server.name}: no hit after its start")
    return {"start_ms": (time.perf_counter() - before) * 1e3}


@case("start", "Start to the first hit on a store with an index")
def start(bench):
    entries = 5000 if bench.settings.quick else 1000000
    bench.stop_all()
    title = CASES["start"][0]
    for backend in ("sqlite", "filesystem"):
        server = bench.start(bench.liara(backend, backend))
        bench.fill(server, 100, entries)
        with Line(server.socket) as line:
            line.persist()
        results = []
        for _ in range(3):
            server.stop()
            results.append(first_answer(server)["start_ms"])
        bench.stop_all()
        bench.raw[f"start {backend}"] = results
        row = Row("start", title, f"{backend}, {entries} entries", "ms",
                  {"liara": statistics.median(results)}, against="1 s", target=1.0)
        row.ratio, row.low, row.high = (pick(results) / 1e3
                                        for pick in (statistics.median, min, max))
        bench.rows.append(judged(row))


def with_streams(bench, server, arguments):
    """A measured load while 16 MB values stream in and out on two other connections."""
    seconds = bench.settings.warm + bench.settings.seconds + 0.5
    command = bench.load_command(server, ["--connections", 2, "--put-percent", 50, "--size",
                                          16 << 20, "--keys", 4, "--first-key", 1 << 30, "--warm",
                                          0, "--seconds", seconds])
    streams = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        time.sleep(0.2)
        result = bench.timed_load(server, arguments, alone=False)
    finally:
        complaint = streams.communicate(timeout=60)[1]
    if streams.returncode != 0:
        raise RuntimeError(f"streams on {server.name}: {complaint.decode().strip()}")
    return result


@case("interference", "GET hit, 100 B, 50 connections, while 16 MB values stream in and out")
def interference(bench):
    name, title = "interference", CASES["interference"][0]

    def fill(server):
        bench.fill(server, 100, SMALL_KEYS)
        bench.fill(server, 16 << 20, 4, first=1 << 30)

    runs = {}
    arguments = SMALL + ["--connections", 50]
    servers = bench.lineup(
        name, lambda: [bench.liara(), bench.memcached(largest=16 << 20), bench.redis()], fill)
    for server in servers:
        runs[server.name] = lambda server=server: bench.timed_load(server, arguments)
        runs[server.name + " streams"] = lambda server=server: with_streams(bench, server,
                                                                            arguments)
    rounds = bench.rounds(name, runs)
    for server in servers:
        for figure, target in ((P99, 2.0), (P50, None), (P999, None)):
            row = row_of(name, title, figure, rounds, server.name + " streams", [server.name],
                         target if server.name == "liara" else None)
            row.values = {"quiet": row.values[server.name],
                          "streams": row.values[server.name + " streams"]}
            row.figure = f"{server.name}: {row.figure}"
            row.against = "quiet"
            bench.rows.append(row)


@case("workers", "GET hit, 100 B, 50 connections: two workers against one")
def workers(bench):
    name, title = "workers", CASES["workers"][0]
    servers = bench.lineup(
        name, lambda: [bench.liara("1-worker", workers=1), bench.liara("2-workers", workers=2)],
        lambda server: bench.fill(server, 100, SMALL_KEYS))
    # With one at a time the load generator needs as much of the two cores as the daemon.
    for label, in_flight, least in (("one at a time", 1, None), ("16 in flight", 16, 1.0),
                                    ("64 in flight", 64, 1.0)):
        arguments = SMALL + ["--connections", 50, "--in-flight", in_flight]
        runs = {server.name: (lambda server=server: bench.timed_load(server, arguments))
                for server in servers}
        rounds = bench.rounds(f"workers, {label}", runs)
        for figure, target in ((RATE, least), (CPU, None)):
            row = row_of(name, title, figure, rounds, "2-workers", ["1-worker"], target)
            row.figure = f"{label}: {row.figure}"
            bench.rows.append(row)
