"""Cases of the start: how long it takes until the first GET is answered."""

import time

from cases import CASES, case
from line import Line, key_of
from measure import OLDER, limited

STARTS = 5


def first_answer(server):
    """Milliseconds from the daemon's start to the first GET that hits, and those of CPU."""
    before = time.perf_counter()
    server.start()
    with Line(server.socket) as line:
        while line.get(key_of(7)) is None:
            if time.perf_counter() - before > 60:
                raise RuntimeError(f"{server.name}: no hit after its start")
    return (time.perf_counter() - before) * 1e3, server.cpu_ns() / 1e6


def put_and_kill(bench, server, number):
    """kill -9 after some more entries, most of them not persisted."""
    with Line(server.socket) as line:
        line.persist()
    bench.fill(server, 100, 5000, first=(1 << 30) + number * 5000)
    server.kill()


def start_times(bench, server):
    """What first_answer() says after ends as they should be, and after kills."""
    stopped, killed = [], []
    for number in range(STARTS):
        server.stop()
        stopped.append(first_answer(server))
        put_and_kill(bench, server, number)
        killed.append(first_answer(server))
    return stopped, killed


def start(bench, name, backend, entries, limit, overwritten=0):
    title = CASES[name][0]
    if bench.settings.quick:
        entries, overwritten = entries // 100, overwritten // 100
    bench.stop_all()
    makes = [lambda: bench.liara("liara", backend)]
    if backend in OLDER and bench.has_base(name, title):
        makes.append(lambda: bench.base("base", backend))
    after_stop, after_kill = {}, {}
    for make in makes:
        server = bench.start(make())
        bench.fill(server, 100, entries)
        if overwritten:
            bench.fill(server, 100, overwritten)
        with Line(server.socket) as line:
            line.persist()
        after_stop[server.name], after_kill[server.name] = start_times(bench, server)
        bench.stop_all()
    bench.raw[name] = [{"stopped": after_stop, "killed": after_kill}]
    for what, times in (("after a stop", after_stop), ("after kill -9", after_kill)):
        for number, figure, most in ((0, what, limit), (1, f"{what}, CPU", None)):
            samples = {key: [pair[number] for pair in list_] for key, list_ in times.items()}
            bench.rows.append(limited(name, title, f"{figure}, {entries} entries", "ms", samples,
                                      most))


for _name, _title, _arguments in (
        ("start-filesystem", "1,000,000 entries, filesystem", ("filesystem", 1000000, 150)),
        ("start-filesystem-5m", "5,000,000 entries, filesystem", ("filesystem", 5000000, 500)),
        ("start-overwritten", "1,000,000 entries, half of them overwritten, filesystem",
         ("filesystem", 1000000, 250, 500000)),
        ("start-sqlite", "1,000,000 entries, sqlite", ("sqlite", 1000000, 300))):
    case(_name, f"Start to the first hit: {_title}", goal=9)(
        lambda bench, name=_name, arguments=_arguments: start(bench, name, *arguments))
