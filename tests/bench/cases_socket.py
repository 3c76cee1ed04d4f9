"""Cases of the socket: the same load on this daemon, memcached, Redis and the bare server."""

from cases import CASES, case
from measure import CPU, P50, P99, P999, RATE, SHARE, row_of


SMALL_KEYS = 10000  # of 100 B: the thousands of small things that one build asks for


def keys_for(size):
    """Enough values that not all of them stay in a processor's cache, few enough to be quick."""
    return max(16, min(SMALL_KEYS, 128 * 1024 * 1024 // size))


def small_lineup(bench):
    return bench.lineup(
        "small", lambda: [bench.liara(), bench.memcached(), bench.redis(), bench.bare()],
        lambda server: bench.fill(server, 100, SMALL_KEYS))


def sized_lineup(bench, size):
    return bench.lineup(
        f"sized {size}",
        lambda: [bench.liara(), bench.memcached(largest=size), bench.redis(),
                 bench.bare(size=size)],
        lambda server: bench.fill(server, size, keys_for(size)))


def compare(bench, name, lineup, arguments, cpu, cpu_bare=None, bare=True, calls=0):
    """The same load on all of a lineup: CPU, throughput and latency beside the peers'."""
    title = CASES[name][0]
    measured = [server for server in lineup if bare or server.name != "bare"]
    runs = {server.name: (lambda server=server: bench.timed_load(server, arguments))
            for server in measured}
    rounds = bench.rounds(name, runs)
    peers = ["memcached", "redis"]
    for figure, others, target in ((CPU, peers, cpu), (CPU, ["bare"], cpu_bare),
                                   (RATE, peers, 1.0), (P50, peers, None), (P99, peers, 1.0),
                                   (P999, peers, None)):
        if others == ["bare"] and not bare:
            continue
        bench.rows.append(row_of(name, title, figure, rounds, "liara", others, target))
    bench.rows.append(row_of(name, title, SHARE, rounds, "liara", []))
    if calls and bench.settings.strace:
        for server in measured:
            bench.system_calls(name, server, arguments, calls)


SMALL = ["--keys", SMALL_KEYS]


@case("get-100-c1", "GET hit, 100 B, 1 connection, one at a time")
def get_100_c1(bench):
    compare(bench, "get-100-c1", small_lineup(bench), SMALL + ["--connections", 1], 0.95, 1.15, calls=2000)


@case("get-100-c50", "GET hit, 100 B, 50 connections, one at a time")
def get_100_c50(bench):
    compare(bench, "get-100-c50", small_lineup(bench), SMALL + ["--connections", 50], 0.88, 1.15,
            calls=4000)


@case("get-100-c50-d16", "GET hit, 100 B, 50 connections, 16 in flight")
def get_100_c50_d16(bench):
    compare(bench, "get-100-c50-d16", small_lineup(bench),
            SMALL + ["--connections", 50, "--in-flight", 16, "--threads", 2], 0.60, 1.40, calls=16000)


@case("put-100-c50", "PUT overwrite, 100 B, 50 connections")
def put_100_c50(bench):
    compare(bench, "put-100-c50", small_lineup(bench),
            SMALL + ["--connections", 50, "--put-percent", 100], 0.90, bare=False, calls=4000)


@case("connect-c8", "GET by a new connection each time, 8 at once")
def connect_c8(bench):
    compare(bench, "connect-c8", small_lineup(bench),
            SMALL + ["--connections", 8, "--reconnect", "--threads", 2], 0.75, 1.25, calls=1000)


@case("growth-connections", "GET hit, 100 B, 50 busy connections among more")
def growth_connections(bench):
    name = "growth-connections"
    servers = [server for server in small_lineup(bench) if server.name != "bare"]
    if bench.settings.quick:
        servers = servers[:1]
    runs = {}
    for server in servers:
        for label, idle in (("10", 10), ("1k", 950), ("8k", 7950)):
            arguments = SMALL + ["--connections", 50, "--idle", idle]
            runs[f"{server.name} {label}"] = (lambda server=server, arguments=arguments:
                                              bench.timed_load(server, arguments))
    rounds = bench.rounds(name, runs)
    for server in servers:
        for figure in (P50, CPU):
            target = 1.25 if server.name == "liara" else None
            row = row_of(name, CASES[name][0], figure, rounds, f"{server.name} 8k",
                         [f"{server.name} 10"], target)
            row.values = {key.split()[1]: value for key, value in row.values.items()
                          if key.startswith(server.name + " ")}
            row.figure = f"{server.name}: {row.figure}"
            row.against = "that with 10 idle"
            bench.rows.append(row)


def large(name, size, put):
    def run(bench):
        arguments = ["--connections", 8, "--size", size, "--keys", keys_for(size)]
        compare(bench, name, sized_lineup(bench, size),
                arguments + (["--put-percent", 100] if put else []), 0.90, bare=not put, calls=500)
    return run


for _size, _text in ((65536, "64 KB"), (1048576, "1 MB")):
    for _put in (False, True):
        _name = f"{'put' if _put else 'get'}-{_text.lower().replace(' ', '').replace('b', '')}"
        case(_name, f"{'PUT overwrite' if _put else 'GET'}, {_text}, through the socket, "
             "8 connections")(large(_name, _size, _put))


SIZES = (100, 1024, 4096, 16384, 65536, 262144, 1048576)


def size_keys(size):
    return max(16, min(20000, 24 * 1024 * 1024 // size))


def fill_sizes(bench, server):
    for number, size in enumerate(SIZES):
        bench.fill(server, size, size_keys(size), first=number * 1000000)


@case("sizes", "GET by size of the value, 8 connections")
def sizes(bench):
    servers = bench.lineup(
        "sizes", lambda: [bench.liara(), bench.memcached(largest=SIZES[-1]), bench.redis()],
        lambda server: fill_sizes(bench, server))
    for number, size in enumerate(SIZES):
        if bench.settings.quick and size not in (100, 4096, 65536, 1048576):
            continue
        arguments = ["--connections", 8, "--size", size, "--keys", size_keys(size),
                     "--first-key", number * 1000000]
        runs = {server.name: (lambda server=server: bench.timed_load(server, arguments))
                for server in servers}
        rounds = bench.rounds(f"sizes {size}", runs, count=2 if bench.settings.quick else None)
        row = row_of("sizes", CASES["sizes"][0], RATE, rounds, "liara", ["memcached", "redis"])
        row.figure = f"{size} B, requests per second"
        bench.rows.append(row)
