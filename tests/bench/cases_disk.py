"""Cases of the stores on disk: what their writing, reading and syncing costs."""

import os
import re
import statistics
import subprocess
import time

from cases import CASES, case
from line import Line, key_of
from measure import CPU, P50, P99, RATE, OLDER, Figure, Row, limited, row_of, run_tool
from trace import requests

BACKENDS = ("sqlite", "filesystem", "redis")
DISKS = ("filesystem", "sqlite")


@case("backends", "GET hit, 100 B, 50 connections, each backend against memory")
def backends(bench):
    def make():
        return [bench.liara("memory")] + [bench.liara(name, name) for name in BACKENDS]

    keys = 4000 if bench.settings.quick else 20000

    def fill(server):
        bench.fill(server, 100, keys)
        bench.load(server, ["--keys", keys, "--in-sequence", "--count", keys])

    arguments = ["--keys", keys]
    runs = {server.name: (lambda server=server: bench.timed_load(server, arguments))
            for server in bench.lineup("backends", make, fill)}
    rounds = bench.rounds("backends", runs)
    for backend in BACKENDS:
        for figure, target in ((CPU, 1.05), (RATE, 0.95), (P50, 1.05)):
            row = row_of("backends", CASES["backends"][0], figure, rounds, backend, ["memory"], target)
            row.figure = f"{backend}: {row.figure}"
            bench.rows.append(row)


def fresh(start, step):
    """A function that returns the beginning of another range of keys each time."""
    ranges = iter(range(start, 1 << 40, step))
    return lambda: next(ranges)


def persist(server):
    """How long it took, in ms."""
    with Line(server.socket) as line:
        return line.persist()


def fill_the_disk(bench, server, entries, size=100):
    """Puts entries; those of a store with a disk lie there alone afterwards."""
    bench.fill(server, size, entries)
    if server.backend != "memory":
        persist(server)
        server.stop()
        server.start()
    server.settle()


ALL_CPU = Figure("cpu_ns", "server CPU per PUT, writing to disk included", "ns")
WORKER_CPU = Figure("worker_ns", "CPU per PUT of the workers alone", "ns")


def put_absent_cpu(bench, server, first, count):
    """The CPU that so many PUTs of new keys cost the server until all is on disk."""
    all_before, worker_before = server.cpu_ns(), server.cpu_ns("worker")
    bench.load(server, ["--put-percent", 100, "--only-absent", "--in-sequence", "--first-key", first,
                        "--keys", count, "--count", count, "--connections", 50])
    worker = server.cpu_ns("worker") - worker_before
    persist(server)
    server.settle()
    return {"cpu_ns": (server.cpu_ns() - all_before) / count, "worker_ns": worker / count}


def reads_of(trace, directory):
    """{thread: reads of the directory's files} in the output of strace -y."""
    found = {}
    with open(trace, errors="replace") as lines:
        for line in lines:
            match = re.match(r"(\d+) +(?:read|pread64|readv|preadv|preadv2)\(\d+<([^>]*)>", line)
            if match and match.group(2).startswith(directory):
                found[match.group(1)] = found.get(match.group(1), 0) + 1
    return found


READS = ["-y", "-e", "trace=read,pread64,readv,preadv,preadv2"]


def disk_reads(bench, server, first, count):
    """Reads a request, by the workers and by the writer: PUTs of new keys and over old ones, and
    DELETEs of entries that lie on disk alone. GETs of others show that reads are seen."""
    with Line(server.socket) as line:
        with bench.traced(server, READS) as trace:
            for number in range(count, count + 10):
                line.get(key_of(number * 2))
        if not reads_of(trace, server.directory()):
            raise RuntimeError(f"{server.name}: strace sees no reads of entries on disk")
        with bench.traced(server, READS) as trace:
            names = server.threads()
            for number in range(count):
                line.put_new(key_of(first + number), b"v" * 100)
                line.put(key_of(number), b"w" * 100)
                line.delete(key_of(count + number))
            line.persist()
    sums = {"worker": 0, "store-writer": 0}
    for thread, reads in reads_of(trace, server.directory()).items():
        name = names.get(thread, "")
        sums[name] = sums.get(name, 0) + reads
    return {name: reads / (3 * count) for name, reads in sums.items()}


@case("put-absent", "PUT of an absent key, 100 B, 50 connections, with many entries on disk", goal=2)
def put_absent(bench):
    name, title = "put-absent", CASES["put-absent"][0]
    entries, count = (20000, 5000) if bench.settings.quick else (1000000, 50000)
    bench.stop_all()
    makes = [lambda: bench.liara("memory", workers=1)]
    makes += [lambda backend=backend: bench.liara(backend, backend, workers=1) for backend in DISKS]
    if bench.has_base(name, title):
        makes += [lambda backend=backend: bench.base("base " + backend, backend, workers=1)
                  for backend in OLDER]
    for make in makes:
        fill_the_disk(bench, bench.start(make()), entries)
    keys = fresh(1 << 30, count)
    runs = {server.name: (lambda server=server: put_absent_cpu(bench, server, keys(), count))
            for server in bench.running}
    rounds = bench.rounds(name, runs)
    for backend in DISKS:
        for figure, target in ((ALL_CPU, 1.1), (WORKER_CPU, None)):
            row = row_of(name, title, figure, rounds, backend, ["memory"], target)
            row.figure = f"{backend}: {row.figure}"
            bench.rows.append(row)
    if not bench.settings.strace:
        return
    for server in bench.running[1:1 + len(DISKS)]:
        reads = disk_reads(bench, server, keys(), 300 if bench.settings.quick else 1000)
        row = limited(name, title, f"{server.name}: reads of files in PUT and DELETE", "", {
            key: [value] for key, value in reads.items()}, 0, ours="worker")
        row.note = "a request"
        bench.rows.append(row)


WRITER_CPU = Figure("writer_us", "CPU of the writer a PUT", "us")


def put_by_processes(bench, server, first, count):
    """Eight processes put new values of 4 KB; what that cost the writer's thread."""
    before = server.cpu_ns("store-writer")
    result = bench.direct("liara", server.socket, count, first=first)
    server.settle()
    result["writer_us"] = (server.cpu_ns("store-writer") - before) / count / 1e3
    return result


def by_processes(bench, name, options):
    """PUTs by 8 processes to each backend, to the older build's, and where the store has room, to
    what people use instead."""
    title = CASES[name][0]
    full = "full store, " if options else ""
    count = 4000 if bench.settings.quick else 64000
    bench.stop_all()
    for backend in ("memory",) + DISKS:
        bench.start(bench.liara(backend, backend, options))
    if bench.has_base(name, title):
        for backend in OLDER:
            bench.start(bench.base("base " + backend, backend, options))
    keys = {server.name: fresh(0, count) for server in bench.running}
    runs = {server.name: (lambda server=server:
                          put_by_processes(bench, server, keys[server.name](), count))
            for server in bench.running}
    if not options:
        folder = bench.own_folder()
        places = {"SQLite file": ("sqlite", os.path.join(folder, "cache.db")),
                  "files": ("files", os.path.join(folder, "files"))}
        for label, (kind, place) in places.items():
            key = fresh(0, count)
            runs[label] = (lambda kind=kind, place=place, key=key:
                           bench.direct(kind, place, count, first=key()))
    else:
        for server in bench.running:
            put_by_processes(bench, server, keys[server.name](), count)
    rounds = bench.rounds(name, runs, count=max(3, bench.settings.rounds // 2 + 1))
    fast = row_of(name, title, RATE, rounds, "filesystem", ["memory"], 0.9)
    cheap = limited(name, title, "filesystem: " + WRITER_CPU.name, "us",
                    {backend: [r[backend]["writer_us"] for r in rounds] for backend in DISKS}, 2.0,
                    ours="filesystem")
    fast.figure = f"{full}filesystem: {fast.figure}"
    cheap.figure = full + cheap.figure
    if "met" in (fast.verdict, cheap.verdict):  # either is enough
        for row in (fast, cheap):
            row.verdict = row.verdict if row.verdict == "met" else ""
    slower = row_of(name, title, RATE, rounds, "sqlite", ["memory"], 0.65)
    slower.figure = f"{full}sqlite: {slower.figure}"
    bench.rows += [fast, cheap, slower]
    for backend in DISKS:
        for other in ("base " + backend, "SQLite file", "files"):
            if other in rounds[0]:
                row = row_of(name, title, RATE, rounds, backend, [other])
                row.figure = f"{backend}: {row.figure}"
                row.values = {}
                bench.rows.append(row)
        for figure in (Figure("persist_ms", "of it PERSIST", "ms"), P99):
            row = row_of(name, title, figure, rounds, backend, [])
            row.figure = f"{full}{backend}: {figure.name}"
            row.values = {key: value for key, value in row.values.items() if key.endswith(backend)}
            bench.rows.append(row)


@case("put-processes", "PUT of new 4 KB by 8 processes, PERSIST counted in", goal=7)
def put_processes(bench):
    by_processes(bench, "put-processes", [])


@case("put-processes-full", "PUT of new 4 KB by 8 processes into a full store, PERSIST counted in",
      goal=7)
def put_processes_full(bench):
    size = 8 if bench.settings.quick else 128
    by_processes(bench, "put-processes-full", [f"max-size={size}M"])


def run_builds(line, builds, on_stored):
    """Asks for what builds need, and stores what is missing."""
    bytes_ = os.urandom(4 << 20)
    for key, size in requests(builds):
        if line.get(key) is None:
            line.put_new(key, bytes_[:size])
            on_stored(len(key) + size)


class Written:
    """What builds store, and what that has a server write, from the time that its store is full."""

    def __init__(self, server, max_size):
        self.server = server
        self.until_full = max_size * 5 // 4
        self.before = None
        self.logical = 0

    def stored(self, size):
        if self.until_full > 0:
            self.until_full -= size
            return
        if self.before is None:
            self.before = self.server.written()
        self.logical += size

    def ratios(self):
        """Bytes to disks, and bytes of calls, for a byte that was stored."""
        if self.before is None:
            raise RuntimeError("the trace is too short: the store did not become full")
        return [(now - before) / self.logical
                for now, before in zip(self.server.written(), self.before)]


def amplification_of(bench, name, size, builds):
    """{server: the two ratios} with a store of so many MiB."""
    options = [f"max-size={size}M", f"memory-size={size // 4}M"]
    makes = [lambda backend=backend: bench.liara(backend, backend, options) for backend in DISKS]
    if bench.has_base(name, CASES[name][0]):
        makes += [lambda backend=backend: bench.base("base " + backend, backend, options)
                  for backend in OLDER]
    ratios = {}
    for make in makes:
        server = bench.start(make())
        written = Written(server, size << 20)
        with Line(server.socket) as line:
            run_builds(line, builds, written.stored)
            line.persist()
        ratios[server.name] = written.ratios()
        bench.stop_all()
    return ratios


@case("amplification", "Bytes written for a byte stored, builds that fill the store", goal=8)
def amplification(bench):
    """150 builds ask for 47,000 different objects, 1.2 GB, so that the stores have room for 5 and
    22 % of them."""
    name, title = "amplification", CASES["amplification"][0]
    bench.stop_all()
    for size, builds in ((32, 6),) if bench.settings.quick else ((64, 150), (256, 150)):
        ratios = amplification_of(bench, name, size, builds)
        bench.raw[f"{name} {size}"] = [ratios]
        for number, what, most in ((0, "whole pages, to the disk", 1.6), (1, "bytes of write()", None)):
            samples = {server: [pair[number]] for server, pair in ratios.items()}
            bench.rows.append(limited(name, title, f"max-size {size}M: {what}", "", samples, most,
                                      ours="filesystem"))


def disk_times(bench, backend, place, settings):
    """The medians over the runs of each figure of bench/disk, {"disk": {"p50_us": ..}, ..}."""
    entries, samples, temperature, runs = settings
    results = [run_tool([bench.tool("disk"), "get", backend, place, str(entries), "4096",
                         str(samples), temperature], f"disk on {backend}") for _ in range(runs)]
    bench.raw[f"get-disk {backend} {temperature}"] = results
    return results


@case("get-disk", "GET of 4 KB that lie on disk alone, in process, beside a bare pread by a thread",
      goal=10)
def get_disk(bench):
    name, title = "get-disk", CASES["get-disk"][0]
    entries, samples, runs = (20000, 500, 3) if bench.settings.quick else (200000, 4000, 9)
    bench.stop_all()
    for backend in DISKS:
        place = bench.own_folder()
        run_tool([bench.tool("disk"), "fill", backend, place, str(entries), "4096"],
                 f"disk on {backend}")
        for temperature in ("warm", "cold"):
            results = disk_times(bench, backend, place, (entries, samples, temperature, runs))
            for key in ("p50_us", "p99_us"):
                rounds = [{label: result[label] for label in ("disk", "memory", "bare")}
                          for result in results]
                figure = Figure(key, f"{backend}, page cache {temperature}: {key[:3]}", "us")
                bench.rows.append(row_of(name, title, figure, rounds, "disk", ["bare"], 1.2))
            if temperature == "warm":
                more = [result["disk"]["p50_us"] - result["memory"]["p50_us"] for result in results]
                bench.rows.append(limited(name, title, f"{backend}, warm: p50 more than memory", "us",
                                          {"disk": more}, 3.0, ours="disk"))


PERSIST = Figure("persist_ms", "PERSIST of 100 new entries", "ms")
SAMPLES = 31


def persist_of_new(server, first):
    """PERSIST's time in ms with 100 entries of 100 B that are new."""
    with Line(server.socket) as line:
        line.persist()
        for number in range(100):
            line.put(key_of(first + number), b"v" * 100)
        return {"persist_ms": line.persist()}


@case("persist", "PERSIST after 100 new entries, by size of the store", goal=11)
def persist_case(bench):
    sizes = (("1k", 1000), ("1M", 20000 if bench.settings.quick else 1000000))
    bench.stop_all()
    for backend in DISKS:
        for label, entries in sizes:
            server = bench.start(bench.liara(f"{backend}-{label}", backend))
            bench.fill(server, 100, entries)
            persist(server)
            server.settle()
    first = fresh(1 << 30, 100)
    runs = {server.name: (lambda server=server: persist_of_new(server, first()))
            for server in bench.running}
    rounds = bench.rounds("persist", runs, count=SAMPLES)
    for backend, target in (("filesystem", 1.25), ("sqlite", 1.5)):
        times = {label: [r[f"{backend}-{label}"]["persist_ms"] for r in rounds] for label, _ in sizes}
        row = row_of("persist", CASES["persist"][0], PERSIST, rounds, f"{backend}-1M",
                     [f"{backend}-1k"])
        row.figure = f"{backend}: median"
        row.target, row.ratio = target, (statistics.median(times["1M"])
                                         / statistics.median(times["1k"]))
        row.verdict = "met" if row.ratio <= target else "missed"
        row.values = {label: statistics.median(times[label]) for label, _ in sizes}
        row.against = f"that with {sizes[0][1]}; the larger has {sizes[1][1]}"
        bench.rows.append(row)


BUSY_SECONDS = 30


def persist_beside_writers(bench, server, samples):
    """Times in ms of PERSIST while 8 connections put new values of 4 KB as fast as they can."""
    command = bench.load_command(server, ["--connections", 8, "--put-percent", 100, "--size", 4096,
                                          "--in-sequence", "--keys", 1 << 28, "--windowed"])
    writers = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL,
                               stderr=subprocess.PIPE)
    times = []
    try:
        time.sleep(1)
        writers.stdin.write(b"1")
        writers.stdin.flush()
        end = time.monotonic() + BUSY_SECONDS
        with Line(server.socket) as line:
            while len(times) < samples and time.monotonic() < end:
                times.append(line.persist())
                time.sleep(0.02)
    finally:
        complaint = writers.communicate(timeout=60)[1]
    if writers.returncode != 0:
        raise RuntimeError(f"writers on {server.name}: {complaint.decode().strip()}")
    return sorted(times)


@case("persist-busy", "PERSIST beside 8 writers of 4 KB into a full store", goal=11)
def persist_busy(bench):
    name, title = "persist-busy", CASES["persist-busy"][0]
    size, samples = (16, 30) if bench.settings.quick else (256, 200)
    bench.stop_all()
    makes = [lambda backend=backend: bench.liara(backend, backend, [f"max-size={size}M"])
             for backend in DISKS]
    if bench.has_base(name, title):
        makes += [lambda backend=backend: bench.base("base " + backend, backend,
                                                     [f"max-size={size}M"]) for backend in OLDER]
    p50, p99, most = {}, {}, {}
    for make in makes:
        server = bench.start(make())
        bench.fill(server, 4096, size * 320, first=1 << 30)
        times = persist_beside_writers(bench, server, samples)
        bench.raw[f"{name} {server.name}"] = times
        p50[server.name] = times[len(times) // 2]
        p99[server.name] = times[len(times) * 99 // 100]
        most[server.name] = times[-1]
        bench.stop_all()
    for figure, values in (("p50", p50), ("p99", p99), ("longest", most)):
        bench.rows.append(Row(name, title, figure, "ms", values))
