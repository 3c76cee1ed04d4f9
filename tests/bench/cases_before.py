"""Cases against the build of an older commit: what a request costs through the socket."""

from cases import CASES, case
from cases_socket import keys_for
from measure import CPU, P50, RATE, SPREAD, row_of

NO_WORSE = 1.03  # of the CPU per request, or what the older build spreads against itself
PARTS = 3      # times that the servers are started anew: no two processes lie alike in memory


def versions(bench, backend, size, peers):
    """This build, the older one twice, and the peers; equal options, one thread each."""
    found = [bench.liara("new", backend, workers=1), bench.base("base", backend, workers=1),
             bench.base("base again", backend, workers=1)]
    if peers:
        found += bench.peers(largest=size, threads=1)
    return found


def usual_spread(rounds):
    """How far the older build is above or below itself in three rounds of four; the range would let
    one disturbed round excuse everything."""
    ratios = sorted(r["base again"][CPU.key] / r["base"][CPU.key] for r in rounds)
    return max(1 / ratios[len(ratios) // 4], ratios[len(ratios) * 3 // 4])


def compare(bench, name, backend, size, put, connections):
    title = CASES[name][0]
    keys = keys_for(size)
    arguments = ["--keys", keys, "--size", size, "--connections", connections]
    arguments += ["--put-percent", 100] if put else []
    rounds = []
    for _ in range(PARTS):
        bench.stop_all()
        for server in versions(bench, backend, size, peers=backend == "memory"):
            bench.start(server)
            bench.fill(server, size, keys)
            server.settle()
        runs = {server.name: (lambda server=server: bench.timed_load(server, arguments))
                for server in bench.running}
        rounds += bench.rounds(name, runs, count=-(-bench.settings.rounds // PARTS))
    bench.raw[name] = rounds
    bench.stop_all()
    spread = row_of(name, title, CPU, rounds, "base again", ["base"])
    spread.figure = SPREAD
    bench.rows.append(spread)
    row = row_of(name, title, CPU, rounds, "new", ["base"], max(NO_WORSE, usual_spread(rounds)))
    row.figure = f"{name}: {row.figure}"
    bench.rows.append(row)
    for figure in (P50, RATE):
        bench.rows.append(row_of(name, title, figure, rounds, "new", ["base"]))


for _backend in ("memory", "filesystem", "sqlite"):
    for _size, _text, _connections in ((100, "100 B", 50), (65536, "64 KB", 8), (1048576, "1 MB", 8)):
        if _size == 1048576 and _backend != "memory":
            continue
        for _put in (False, True):
            _name = "-".join(["before", _backend, "put" if _put else "get",
                              _text.lower().replace(" ", "").rstrip("b")])
            case(_name, f"{'PUT overwrite' if _put else 'GET'}, {_text}, {_backend}, one worker: "
                 "this build against the older one", goal=1)(
                lambda bench, name=_name, backend=_backend, size=_size, put=_put,
                connections=_connections: compare(bench, name, backend, size, put, connections))
