"""Cases of a client: the real C libraries, values by descriptor, the command."""

import contextlib
import os
import signal
import statistics
import subprocess
import time

from cases import CASES, case
from cases_socket import SMALL_KEYS
from line import Line, key_of
from measure import BOTH, Figure, P99, WALL, not_built, row_of

LIBRARIES = {"liara": "liara", "memcached": "libmemcached", "redis": "hiredis"}
HERE = os.path.dirname(os.path.abspath(__file__))


@contextlib.contextmanager
def compiling(processes):
    """Keeps so many processors busy with a compiler."""
    source = os.path.join(HERE, "..", "..", "proto", "line.c")
    loop = f"while cc -D_GNU_SOURCE -O2 -c -o /dev/null '{source}'; do :; done"
    running = [subprocess.Popen(["sh", "-c", loop], start_new_session=True,
                                preexec_fn=lambda: os.setpriority(os.PRIO_PROCESS, 0, 0))
               for _ in range(processes)]
    try:
        time.sleep(0.3)
        yield
    finally:
        for process in running:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def library_lineup(bench):
    return bench.lineup("library", lambda: [bench.liara(), bench.memcached(), bench.redis()],
                        lambda server: bench.fill(server, 100, SMALL_KEYS))


def library(bench, name, target):
    runs = {server.name: (lambda server=server:
                          bench.client(LIBRARIES[server.name], server, 100, SMALL_KEYS))
            for server in library_lineup(bench)}
    title, peers = CASES[name][0], ["memcached", "redis"]
    rounds = bench.rounds(name, runs)
    for figure, goal in ((WALL, target), (BOTH, 1.0), (P99, None)):
        bench.rows.append(row_of(name, title, figure, rounds, "liara", peers, goal))


@case("library-idle", "GET 100 B in sequence by the C libraries, nothing else runs")
def library_idle(bench):
    library(bench, "library-idle", 0.25)


@case("library-busy", "GET 100 B in sequence by the C libraries, all cores busy compiling")
def library_busy(bench):
    library_lineup(bench)
    with compiling(os.cpu_count()):
        library(bench, "library-busy", 1.0)


FETCH = (("mmap", "liara", "descriptor-mmap"), ("pread", "liara", "descriptor-pread"),
         ("map", "liara", "liara-map"), ("get", "liara", "liara"), ("socket", "liara", "liara-bytes"),
         ("memcached", "memcached", "memcached-bytes"), ("redis", "redis", "redis-bytes"),
         ("libmemcached", "memcached", "libmemcached"), ("hiredis", "redis", "hiredis"))


def fetch(bench, name, size, keys, target):
    """Ours is the best of mapping and reading the descriptor by hand and by the library's map; the
    peers' bytes are read into a buffer that is there already, less than their libraries do."""
    servers = {server.name: server for server in bench.lineup(
        name, lambda: [bench.liara(), bench.memcached(largest=size), bench.redis()],
        lambda server: bench.fill(server, size, keys))}
    runs = {label: (lambda way=way, server=server:
                    bench.client(way, servers[server], size, keys, consume=True))
            for label, server, way in FETCH
            if not (bench.settings.quick and label in ("get", "socket"))}
    rounds = bench.rounds(name, runs)
    title = CASES[name][0]
    peers = ["memcached", "redis"]
    if all(result["mmap"]["descriptors"] == 0 for result in rounds):
        bench.rows.append(not_built(name, title, WALL.name, WALL.unit, target,
                                    "the daemon answered VALUE"))
        target = None
    best = min(("mmap", "pread", "map"), key=lambda way: sum(r[way]["p50_us"] for r in rounds))
    bench.rows.append(row_of(name, title, WALL, rounds, best, peers, target))
    bench.rows[-1].figure += f", by {best}"
    bench.rows.append(row_of(name, title, WALL, rounds, "map", ["libmemcached", "hiredis"]))
    bench.rows[-1].figure += ", by the libraries' best"
    bench.rows.append(row_of(name, title, BOTH, rounds, best, peers))


@case("fetch-1m", "GET 1 MB into the client's memory, every byte read")
def fetch_1m(bench):
    fetch(bench, "fetch-1m", 1 << 20, 32, 0.65)


@case("fetch-16m", "GET 16 MB into the client's memory, every byte read")
def fetch_16m(bench):
    fetch(bench, "fetch-16m", 16 << 20, 4, 0.65)


COMMAND = Figure("wall_ms", "wall time, median", "ms")
FILES = 4


def get_to_file(bench, server, options):
    """The median wall time of `get KEY -o FILE`, the process's start included. FILE is a new one
    each time: ext4 writes out at once what is renamed over another. Each key's first run does not
    count."""
    command = os.path.join(bench.settings.build, "liara-cache-cli")
    target = os.path.join(bench.folder, "got")
    times = []
    end = None
    while end is None or time.monotonic() < end or len(times) < FILES + 5:
        if len(times) == FILES:
            end = time.monotonic() + bench.settings.seconds
        arguments = [command, "-s", server.socket, "get", key_of(len(times) % FILES), "-o", target]
        before = time.perf_counter()
        pid = os.posix_spawn(command, arguments + options, os.environ)
        status = os.waitpid(pid, 0)[1]
        times.append((time.perf_counter() - before) * 1e3)
        if status != 0 or os.path.getsize(target) != 16 << 20:
            raise RuntimeError(f"liara-cache-cli get: status {status}")
        os.unlink(target)
    return {"wall_ms": statistics.median(times[FILES:])}


def gives_descriptor(server, key):
    """Whether the daemon has one for the key, which it makes when it is first asked."""
    end = time.monotonic() + 5
    while time.monotonic() < end:
        with Line(server.socket) as line:
            if line.gives_descriptor(key):
                return True
    return False


@case("cli-16m", "liara-cache-cli get KEY -o FILE, 16 MB")
def cli_16m(bench):
    name, title = "cli-16m", CASES["cli-16m"][0]
    server = bench.lineup(name, lambda: [bench.liara()],
                          lambda server: bench.fill(server, 16 << 20, FILES))[0]
    built = all(gives_descriptor(server, key_of(number)) for number in range(FILES))
    runs = {"by descriptor": lambda: get_to_file(bench, server, []),
            "by socket": lambda: get_to_file(bench, server, ["--no-descriptor"])}
    rounds = bench.rounds(name, runs)
    if not built:
        bench.rows.append(not_built(name, title, COMMAND.name, COMMAND.unit, 0.50,
                                    "the daemon answered VALUE"))
    bench.rows.append(row_of(name, title, COMMAND, rounds, "by descriptor", ["by socket"],
                             0.50 if built else None))
