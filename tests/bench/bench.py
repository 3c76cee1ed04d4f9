#!/usr/bin/env python3
"""Measures liara-cached beside memcached, redis-server and a bare server, all on Unix sockets.

It starts what it measures in a temporary folder and stops it. Servers take turns within a round;
what is quoted is the median, over the rounds, of the ratio within a round, with its range.
"""

import argparse
import datetime
import os
import platform
import resource
import shutil
import signal
import statistics
import sys
import tempfile
import time

sys.dont_write_bytecode = True  # the tree stays as it is

import base
import cases
import cases_before  # the cases run in the order of these
import cases_socket
import cases_client
import cases_memory
import cases_disk
import cases_start
import cases_beside
import cases_tree
import measure
import plots
import report
import servers


def arguments():
    quick = os.environ.get("QUICK", "") not in ("", "0")
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--build", default="build", help="where liara-cached and bench/ are")
    parser.add_argument("--only", default="", help="cases, separated by commas; * at the end: all "
                        "that begin so")
    parser.add_argument("--base", default=base.COMMIT, help="a commit, built once into a folder "
                        "beside the others, or a build's folder, to measure against; default "
                        "%(default)s")
    parser.add_argument("--list", action="store_true", help="name the cases and end")
    parser.add_argument("--quick", action="store_true", default=quick, help="as QUICK=1: fewer, "
                        "shorter rounds, smaller stores")
    parser.add_argument("--rounds", type=int, help="default 9, quick 3")
    parser.add_argument("--seconds", type=float, help="of one run; default 0.5, quick 0.3")
    parser.add_argument("--workers", type=int, default=min(4, os.cpu_count()),
                        help="of this daemon, threads of memcached and the bare server")
    parser.add_argument("--daemon-option", dest="daemon_options", action="append", default=[],
                        metavar="KEY=VALUE", help="for liara-cached; may be repeated")
    parser.add_argument("--nice", type=int, default=0, help="priority of all that is started, "
                        "where others keep the machine busy; below 0 as root")
    parser.add_argument("--no-strace", dest="strace", action="store_false")
    parser.add_argument("--plots", help="a folder for the plots; default BUILD/bench")
    parser.add_argument("--json", help="default BUILD/bench/bench.json")
    settings = parser.parse_args()
    settings.build = os.path.abspath(settings.build)
    settings.rounds = settings.rounds or (3 if settings.quick else 9)
    settings.seconds = settings.seconds or (0.3 if settings.quick else 0.5)
    settings.warm = 0.1 if settings.quick else 0.2
    settings.plots = settings.plots or os.path.join(settings.build, "bench")
    settings.json = settings.json or os.path.join(settings.build, "bench", "bench.json")
    return settings


def chosen(only):
    """The cases that --only names; ValueError where a name fits none."""
    if not only:
        return list(cases.CASES)
    wanted = []
    for name in only.split(","):
        fits = [case for case in cases.CASES
                if case == name or (name.endswith("*") and case.startswith(name[:-1]))]
        if not fits:
            raise ValueError(f"no case {name}; --list names them")
        wanted += fits
    return [case for case in cases.CASES if case in wanted]


def processor():
    with open("/proc/cpuinfo") as info:
        for line in info:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()


def facts_of(settings):
    return {"date": datetime.date.today().isoformat(), "processor": processor(),
            "processors": os.cpu_count(), "kernel": platform.release(),
            "rounds": settings.rounds, "seconds": settings.seconds, "workers": settings.workers,
            "quick": settings.quick, "nice": settings.nice, "load average before": os.getloadavg()[0]}


def run(bench, names):
    for name in names:
        title, function = cases.CASES[name]
        print(f"{name}: {title} ...", end="", file=sys.stderr, flush=True)
        started = time.monotonic()
        try:
            function(bench)
            print(f" {time.monotonic() - started:.1f} s", file=sys.stderr)
        except (servers.Missing, RuntimeError, OSError) as error:
            print(f" {error}", file=sys.stderr)
            left_out = isinstance(error, servers.Missing)
            bench.rows.append(measure.Row(name, title, "left out" if left_out else "failed", "", {},
                                          verdict="" if left_out else "missed", note=str(error)))
            bench.stop_all()


def busiest(rows):
    """The largest share of its cores that the load generator used on any real server."""
    return max((share for row in rows if row.figure == measure.SHARE.name
                for name, share in row.values.items() if name != "bare"), default=None)


def draw(settings, facts, raw):
    if shutil.which("gnuplot") is None:
        print("no plots: gnuplot is not installed", file=sys.stderr)
        return
    machine = f"{facts['date']}, {facts['processors']} x {facts['processor']}"
    for path in plots.write(settings.plots, raw, machine):
        print(os.path.relpath(path))


def measured(settings, names):
    """Runs the cases, and stops and removes all they started; also whether all of them ran."""
    folder = tempfile.mkdtemp(prefix="liara-bench-")
    bench = measure.Bench(settings, folder)
    complete = False
    try:
        run(bench, names)
        complete = True
    except KeyboardInterrupt:
        print(" interrupted: what follows is what there is", file=sys.stderr)
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)  # what was started is stopped in any case
        bench.stop_all()
        shutil.rmtree(folder, ignore_errors=True)
    return bench, complete


def interrupted(*_):
    raise KeyboardInterrupt


def show(settings, facts, bench):
    print(report.table(bench.rows))
    if bench.calls:
        print("\n" + report.calls_table(bench.calls))
    if any(row.case in cases.GOALS for row in bench.rows):
        print("\n" + report.goals_table(bench.rows))
    print(f"\n{report.verdicts(bench.rows)}. " + "; ".join(f"{k} {v}" for k, v in facts.items()))
    report.write_json(settings.json, facts, bench.rows, bench.calls, bench.raw)
    draw(settings, facts, bench.raw)


def main():
    settings = arguments()
    if settings.list:
        for name, (title, _) in cases.CASES.items():
            print(f"{name:24} {title}")
        return 0
    try:
        names = chosen(settings.only)
    except ValueError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    signal.signal(signal.SIGTERM, interrupted)
    os.setpriority(os.PRIO_PROCESS, 0, settings.nice)
    facts = facts_of(settings)
    started = time.monotonic()
    bench, complete = measured(settings, names)
    facts["took seconds"] = round(time.monotonic() - started)
    facts["load generator's share, at most"] = busiest(bench.rows)
    facts["used by others"] = round(statistics.median(bench.foreign), 3) if bench.foreign else None
    show(settings, facts, bench)
    return 0 if complete else 1


if __name__ == "__main__":
    sys.exit(main())
