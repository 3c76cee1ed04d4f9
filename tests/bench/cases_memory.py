"""Cases of memory: what an entry takes, mixed sizes, entries that lie on disk alone, growth."""

import os
import random
import signal
import time

import base
from cases import CASES, case
from line import Line
from measure import CPU, OLDER, P50, Figure, Row, limited, row_of, run_tool
from servers import Missing

MB = 1000000


def memory_of_entries(bench, entries):
    """{server: bytes an entry}"""
    name, title = "memory", CASES["memory"][0]
    servers = [bench.liara()]
    if bench.has_base(name, title):
        servers.append(bench.base())
    samples = {}
    for server in servers + bench.peers():
        bench.start(server)
        bench.load(server, ["--count", 1000, "--misses"])
        before = server.all_memory()
        bench.fill(server, 100, entries)
        samples[server.name] = [(server.all_memory() - before) / entries]
        bench.stop_all()
    bench.raw[f"memory {entries}"] = [samples]
    return samples


@case("memory", "Memory per entry of 100 B, key of 20 B", goal=3)
def memory(bench):
    bench.stop_all()
    for entries in (150000, 200000) if bench.settings.quick else (1000000, 1500000):
        bench.rows.append(limited("memory", CASES["memory"][0], f"resident memory, {entries} entries",
                                  "B", memory_of_entries(bench, entries), 165))


def mixed_lengths(seed):
    """As many lengths of each power of two from 64 B to 4 MB."""
    numbers = random.Random(seed)
    while True:
        least = 1 << numbers.randrange(6, 22)
        yield least + numbers.randrange(least)


def put_mixed(line, lengths, first, volume):
    """Puts entries until their values have so many bytes; the number of the next."""
    value = random.Random(1).randbytes(4 << 20)
    number = first
    while volume > 0:
        length = next(lengths)
        line.put(f"mixed:{number:014}", value[:length])
        volume -= length
        number += 1
    return number


class Mixed:
    """A daemon whose max-size can be changed while it runs."""

    def __init__(self, bench, server, max_size):
        self.server = server
        server.config = os.path.join(server.folder, "conf")
        server.options += ["max-size="]
        self.set_max_size(max_size)
        bench.start(server)
        self.line = Line(server.socket)
        self.empty = server.settled_memory()

    def set_max_size(self, max_size):
        with open(self.server.config, "w") as out:
            out.write(f"max-size = {max_size}\n")
        if self.server.process is not None:
            self.server.process.send_signal(signal.SIGHUP)

    def grown(self):
        """Settled memory beyond the empty daemon's; the bytes of keys and values."""
        return self.server.settled_memory() - self.empty, int(self.line.inspect()["size"])


def mixed_rows(bench, mixed, max_size):
    """The rows of one build: what it holds when full, with a lower max-size, after CLEAR."""
    lengths = mixed_lengths(1)
    number = put_mixed(mixed.line, lengths, 0, 6 * max_size)
    yield "full", max_size, mixed.grown()
    mixed.set_max_size(max_size // 4)
    yield "max-size a quarter", max_size // 4, mixed.grown()
    mixed.set_max_size(max_size)
    time.sleep(1)  # until it has read that
    put_mixed(mixed.line, lengths, number, 3 * max_size)
    yield "full again", max_size, mixed.grown()
    mixed.line.clear()
    yield "after CLEAR", 0, mixed.grown()


@case("memory-mixed", "Sizes from 64 B to 4 MB in 200 MB of memory, once the allocator has settled",
      goal=4)
def memory_mixed(bench):
    name, title = "memory-mixed", CASES["memory-mixed"][0]
    max_size = 40 * MB if bench.settings.quick else 200 * MB
    bench.stop_all()
    servers = [bench.liara(workers=1)]
    if bench.has_base(name, title):
        servers.append(bench.base(workers=1))
    found = {}
    for server in servers:
        found[server.name] = list(mixed_rows(bench, Mixed(bench, server, max_size), max_size))
        bench.stop_all()
    bench.raw[name] = [found]
    for step, (what, size, _) in enumerate(found["liara"]):
        memory = {key: [steps[step][2][0]] for key, steps in found.items()}
        live = {key: [steps[step][2][1]] for key, steps in found.items()}
        bench.rows.append(limited(name, title, f"{what}: settled memory", "B", memory,
                                  1.15 * size + 16 * MB))
        bench.rows.append(limited(name, title, f"{what}: keys and values", "B", live,
                                  0.85 * size if what.startswith("full") else None, larger=True))


def filled_and_started_anew(bench, make, entries):
    """A daemon that has just loaded so many entries: all lie on disk alone."""
    server = bench.start(make())
    if entries:
        bench.fill(server, 100, entries)
        with Line(server.socket) as line:
            line.persist()
        server.stop()
        server.start()
    return server


@case("memory-disk", "Memory of an entry that lies on disk alone, 100 B, key of 20 B", goal=5)
def memory_disk(bench):
    """Of a daemon that was started anew, beside an empty one."""
    name, title = "memory-disk", CASES["memory-disk"][0]
    sizes = (50000, 100000) if bench.settings.quick else (1000000, 5000000)
    bench.stop_all()
    has_base = bench.has_base(name, title)
    for backend in ("filesystem", "sqlite"):
        makes = {"liara": lambda backend=backend: bench.liara(backend, backend)}
        if has_base and backend in OLDER:
            makes["base"] = lambda backend=backend: bench.base(backend, backend)
        empty = {}
        for key, make in makes.items():
            empty[key] = filled_and_started_anew(bench, make, 0).settled_memory()
            bench.stop_all()
        for entries in sizes:
            samples = {}
            for key, make in makes.items():
                if key == "base" and entries > 1000000:
                    continue  # it takes minutes to fill
                server = filled_and_started_anew(bench, make, entries)
                with Line(server.socket) as line:
                    there = int(line.inspect()["entries"])
                if there < entries:
                    raise RuntimeError(f"{server.name}: {there} of {entries} entries are left")
                samples[key] = [(server.settled_memory() - empty[key]) / entries]
                bench.stop_all()
            bench.raw[f"{name} {backend} {entries}"] = [samples]
            bench.rows.append(limited(name, title, f"{backend}, {entries} entries", "B", samples, 32))


ENGINE_FIGURES = (("put_full_ns", "PUT into a full store, CPU", 700),
                  ("put_new_ns", "PUT while there is room, CPU", None),
                  ("put_over_ns", "PUT over an entry, CPU", None), ("get_ns", "GET, CPU", None))


@case("engine", "PUT of a new 100 B entry, memory store in process, policy on", goal=6)
def engine(bench):
    name, title = "engine", CASES["engine"][0]
    bench.stop_all()
    programs = {"liara": bench.tool("engine")}
    if bench.has_base(name, title):
        try:
            programs["base"] = base.engine(bench.base_folder)
        except Missing as why:
            bench.rows.append(Row(name, title, "beside the older store", "", {}, note=str(why)))
    entries, size = (100000, 30 << 20) if bench.settings.quick else (1000000, 256 << 20)
    arguments = ["json", str(entries), "100", str(size)]
    rounds = bench.rounds(name, {key: (lambda program=program: run_tool([program] + arguments, key))
                                 for key, program in programs.items()})
    for key, figure, limit in ENGINE_FIGURES:
        bench.rows.append(limited(name, title, figure, "ns", {
            program: [result[program][key] for result in rounds] for program in programs}, limit))
    if "base" in programs:
        bench.rows.append(row_of(name, title, Figure("put_full_ns", "PUT into a full store, CPU", "ns"),
                                 rounds, "liara", ["base"]))


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
