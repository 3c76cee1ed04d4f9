"""Cases of what stands beside others: streams, other workers, CLEAR and INSPECT, full stores."""

import contextlib
import json
import subprocess
import time

from cases import CASES, case
from cases_socket import SMALL, SMALL_KEYS
from line import Line
from measure import CPU, P50, P99, P999, RATE, row_of

STORES = ("memory", "filesystem", "sqlite")
LOAD = 0.3     # of what the daemon answers at most
QUIET = 1.0    # seconds that are measured while nothing else goes on
LINGER = 0.05  # seconds for answers that wait for the end of what goes on


def paced(bench, server, rate, meanwhile, evicts=False):
    """A load of small GETs at a fixed rate, measured while meanwhile() runs; evicts: some of what
    it asks for may be gone."""
    command = bench.load_command(server, SMALL + ["--connections", 50, "--rate", rate, "--windowed"]
                                 + (["--misses"] if evicts else []))
    load = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE)
    try:
        time.sleep(0.3)
        load.stdin.write(b"1")
        load.stdin.flush()
        before = time.monotonic()
        meanwhile()
        took = time.monotonic() - before
        time.sleep(LINGER)
    finally:
        out, complaint = load.communicate(timeout=60)
    if load.returncode != 0:
        raise RuntimeError(f"load on {server.name}: {complaint.decode().strip()}")
    return dict(json.loads(out), took_ms=took * 1e3)


def quiet():
    time.sleep(QUIET)


def modest_rate(bench, server):
    return int(LOAD * bench.load(server, SMALL + ["--connections", 50])["rate"])


def beside_rows(bench, name, rounds, ours, target=2.0):
    """p99 and p50 of a load beside something, against the same load by itself."""
    for figure, goal in ((P99, target), (P50, None), (P999, None)):
        row = row_of(name, CASES[name][0], figure, rounds, ours, ["quiet"], goal)
        row.values = {key: row.values[key] for key in ("quiet", ours)}
        row.figure = f"{bench.running[0].name}, {ours}: {row.figure}"
        bench.rows.append(row)


def walk(server, verb):
    with Line(server.socket) as line:
        line.prefix("big/")
        getattr(line, verb)()


def walks(bench, name, backend):
    """CLEAR and INSPECT of a prefix with many entries."""
    entries = 20000 if bench.settings.quick else 1000000
    bench.stop_all()
    server = bench.start(bench.liara(backend, backend, workers=1))
    bench.fill(server, 100, SMALL_KEYS)
    rate = modest_rate(bench, server)

    def fill():
        bench.fill(server, 100, entries, prefix="big/")
        with Line(server.socket) as line:
            line.persist()
        server.settle()

    rounds = []
    for _ in range(3 if bench.settings.quick else 5):
        fill()
        result = {"quiet": paced(bench, server, rate, quiet)}
        for verb in ("inspect", "clear"):
            result[verb.upper()] = paced(bench, server, rate, lambda verb=verb: walk(server, verb))
        rounds.append(result)
    bench.raw[name] = rounds
    for verb in ("INSPECT", "CLEAR"):
        beside_rows(bench, name, rounds, verb)
        took = sorted(r[verb]["took_ms"] for r in rounds)
        bench.rows[-1].note = ""
        bench.rows[-3].against += f"; it took {took[len(took) // 2]:.0f} ms"


@contextlib.contextmanager
def stream_of_puts(bench, server, rate):
    """New values of 4 KB at a fixed rate, meanwhile."""
    command = bench.load_command(server, [
        "--connections", 8, "--put-percent", 100, "--size", 4096, "--in-sequence", "--first-key",
        1 << 31, "--keys", 1 << 28, "--rate", rate, "--windowed"])
    stream = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL,
                              stderr=subprocess.PIPE)
    try:
        stream.stdin.write(b"1")
        stream.stdin.flush()
        yield
    finally:
        complaint = stream.communicate(timeout=60)[1]
    if stream.returncode != 0:
        raise RuntimeError(f"stream on {server.name}: {complaint.decode().strip()}")


STREAM_RATE = 4000  # PUTs of 4 KB a second: a tenth of what 8 processes manage


def emptying(bench, name, backend):
    """The same GETs and PUTs on a store that has room and on one that is full."""
    full = 32 if bench.settings.quick else 256
    bench.stop_all()
    servers = {"quiet": bench.start(bench.liara(backend, backend, workers=1)),
               "emptying": bench.start(bench.liara(
                   backend, backend, [f"max-size={full}M", "memory-size=64M"], workers=1))}
    bench.fill(servers["emptying"], 4096, full * 320, first=1 << 30)
    for server in servers.values():
        bench.fill(server, 100, SMALL_KEYS)
    rate = modest_rate(bench, servers["quiet"])

    def run(server):
        with stream_of_puts(bench, server, STREAM_RATE):
            return paced(bench, server, rate, quiet, evicts=True)

    runs = {label: (lambda server=server: run(server)) for label, server in servers.items()}
    rounds = bench.rounds(name, runs, count=3 if bench.settings.quick else 9)
    beside_rows(bench, name, rounds, "emptying")


for _backend in STORES:
    case(f"walk-{_backend}", f"GET hit, 100 B, at 30 % load, beside INSPECT and CLEAR of a prefix, "
         f"{_backend}", goal=12)(
        lambda bench, backend=_backend: walks(bench, f"walk-{backend}", backend))
    case(f"emptying-{_backend}", "GET hit, 100 B, at 30 % load, beside PUTs of 4 KB: into a full "
         f"store against one with room, {_backend}", goal=12)(
        lambda bench, backend=_backend: emptying(bench, f"emptying-{backend}", backend))


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
