"""What the cases are made of: rounds in turns, ratios within a round, rows of the result."""

import contextlib
import dataclasses
import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import time

import base
import servers

# Backends of the older commit that are measured where stores are large. Its filesystem store has a
# file for each entry: to fill it and to remove it again would take longer than all else.
OLDER = ("sqlite",)

SOURCE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..")


@dataclasses.dataclass
class Row:
    """One line of the result: a figure of ours beside the others', a ratio, a target."""

    case: str
    title: str
    figure: str
    unit: str
    values: dict                 # server: median
    ratio: float = None          # median of the rounds
    low: float = None            # the range: of the ratio, or of ours where there is no ratio
    high: float = None
    against: str = ""            # the server the ratio is to
    target: float = None         # of the ratio
    ours: str = ""               # whose value has a limit
    limit: float = None          # of that value, in its unit
    larger_is_better: bool = False
    verdict: str = ""            # met, missed, not built; empty: shown for information
    note: str = ""


@dataclasses.dataclass
class Figure:
    """A figure of the load generator: its name in the JSON, how to show it, which way is better."""

    key: str
    name: str
    unit: str
    larger_is_better: bool = False


CPU = Figure("server_cpu_ns", "server CPU per request", "ns")
RATE = Figure("rate", "requests per second", "/s", True)
P50 = Figure("p50_us", "latency p50", "us")
P99 = Figure("p99_us", "latency p99", "us")
P999 = Figure("p999_us", "latency p99.9", "us")
SHARE = Figure("load_share", "load generator's share of its cores", "")
WALL = Figure("p50_us", "wall time, median", "us")
SPREAD = "server CPU, the older build against itself"
BOTH = Figure("both_cpu_ns", "CPU of client and server", "ns")


def row_of(case, title, figure, rounds, ours, others, target=None):
    """The row of one figure: the ratio is to that of the others that is hardest to beat."""
    names = [name for name in rounds[0] if all(figure.key in r[name] for r in rounds)]
    values = {name: statistics.median(r[name][figure.key] for r in rounds) for name in names}
    row = Row(case, title, figure.name, figure.unit, values, target=target,
              larger_is_better=figure.larger_is_better)
    best = None
    for other in others:
        if other not in names:
            continue
        ratios = [r[ours][figure.key] / r[other][figure.key] for r in rounds]
        ratio = statistics.median(ratios)
        harder = best is None or (ratio < best if figure.larger_is_better else ratio > best)
        if harder:
            best = ratio
            row.ratio, row.low, row.high, row.against = ratio, min(ratios), max(ratios), other
    return judged(row)


def judged(row):
    """Fills in the verdict of a row that has a ratio and a target."""
    if row.target is not None and row.ratio is not None:
        good = row.ratio >= row.target if row.larger_is_better else row.ratio <= row.target
        row.verdict = "met" if good else "missed"
    return row


def limited(case, title, figure, unit, samples, limit=None, ours="liara", larger=False):
    """The row of a figure that has to stay within a limit by itself: samples are {server: list},
    whose medians are shown, and ours' range. Others may be added to its values."""
    own = samples[ours]
    row = Row(case, title, figure, unit,
              {name: statistics.median(list_) for name, list_ in samples.items()},
              low=min(own), high=max(own), ours=ours, limit=limit, larger_is_better=larger)
    if limit is not None:
        value = row.values[ours]
        row.verdict = "met" if (value >= limit if larger else value <= limit) else "missed"
    return row


def not_built(case, title, figure, unit, target, note):
    return Row(case, title, figure, unit, {}, target=target, verdict="not built", note=note)


def run_tool(command, name):
    """What one of the C programs printed; RuntimeError with what it complained of."""
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{name}: {done.stderr.strip()}")
    return json.loads(done.stdout)


class Bench:
    """The settings of a run, its servers, and what it measured."""

    def __init__(self, settings, folder):
        self.settings = settings
        self.folder = folder
        self.running = []
        self.lineup_key = None
        self.rows = []
        self.raw = {}
        self.calls = {}
        self.foreign = []
        self.count = 0
        self.base_folder = None

    def tool(self, name):
        path = os.path.join(self.settings.build, "bench", name)
        if not os.access(path, os.X_OK):
            raise servers.Missing(f"{path} is not built")
        return path

    def liara(self, name="liara", backend="memory", options=(), workers=None):
        return servers.Liara(name, self.own_folder(), workers or self.settings.workers,
                             self.settings.build, backend,
                             list(self.settings.daemon_options) + list(options))

    def base(self, name="base", backend="memory", options=(), workers=None):
        """The daemon of the older commit, all else alike; Missing where there is none."""
        if self.base_folder is None:
            self.base_folder = base.built(self.settings.build, SOURCE, self.settings.base)
        server = self.liara(name, backend, options, workers)
        server.build = self.base_folder
        return server

    def has_base(self, case, title):
        """Whether there is one; else a row of the case says why not."""
        try:
            self.base()
            return True
        except servers.Missing as why:
            self.rows.append(Row(case, title, "beside the older build", "", {},
                                 note=f"left out: {why}"))
            return False

    def memcached(self, name="memcached", largest=0, threads=None, megabytes=8192):
        return servers.Memcached(name, self.own_folder(), threads or self.settings.workers, largest,
                                 megabytes)

    def redis(self, name="redis", options=()):
        return servers.Redis(name, self.own_folder(), self.settings.workers, options)

    def peers(self, **arguments):
        """memcached and redis, those that are installed."""
        found = []
        for make in (lambda: self.memcached(**arguments), self.redis):
            with contextlib.suppress(servers.Missing):
                server = make()
                server.command()
                found.append(server)
        return found

    def bare(self, name="bare", size=100, puts=False):
        return servers.Bare(name, self.own_folder(), self.settings.workers, self.settings.build,
                            size, puts)

    def own_folder(self):
        """A new folder for a server, so that no two ever share a socket or a store."""
        self.count += 1
        path = os.path.join(self.folder, str(self.count))
        os.mkdir(path, 0o700)
        return path

    def lineup(self, key, make, fill):
        """Starts what make() returns and fills each, unless exactly that is running already."""
        if key != self.lineup_key:
            self.stop_all()
            for server in make():
                self.running.append(server)
                server.start()
                fill(server)
            self.lineup_key = key
        return self.running

    def start(self, server):
        """Starts a server that stop_all() stops."""
        self.running.append(server)
        return server.start()

    def stop_all(self):
        for server in reversed(self.running):
            server.stop()
            shutil.rmtree(server.folder, ignore_errors=True)
        self.running = []
        self.lineup_key = None

    def load_command(self, server, arguments):
        command = [self.tool("load"), "--peer", server.peer]
        for pid in server.pids():
            command += ["--pid", str(pid)]
        return command + [str(argument) for argument in arguments] + [server.socket]

    def load(self, server, arguments):
        """One run of the load generator; its result, or RuntimeError with what it said."""
        return run_tool(self.load_command(server, arguments), f"load on {server.name}")

    def timed_load(self, server, arguments, alone=True):
        """A run of the usual length after a warm-up. alone: nothing else of ours runs beside."""
        settings = self.settings
        result = self.load(server, ["--warm", settings.warm, "--seconds", settings.seconds]
                           + list(arguments))
        if not alone:
            return result
        threads = arguments[arguments.index("--threads") + 1] if "--threads" in arguments else 1
        used = result["server_cores"] + result["load_share"] * threads
        self.foreign.append(max(0.0, result["machine_busy"] - used / os.cpu_count()))
        return result

    def fill(self, server, size, keys, first=0, prefix=None):
        """Puts keys 0 to keys - 1, each of size bytes."""
        if not server.own_value:
            return
        connections, batch = (64, 16) if size <= 4096 else (4, 1)
        self.load(server, ["--put-percent", 100, "--in-sequence", "--count", keys, "--keys", keys,
                           "--first-key", first, "--size", size, "--connections", connections,
                           "--in-flight", batch] + (["--prefix", prefix] if prefix else []))

    def client(self, way, server, size, keys, consume=False):
        """One run of the client, by a library or a descriptor."""
        settings = self.settings
        command = [self.tool("client"), "--size", str(size), "--keys", str(keys), "--warm",
                   str(settings.warm), "--seconds", str(settings.seconds), "--pid",
                   str(server.pid)] + (["--sum"] if consume else []) + [way, server.socket]
        return run_tool(command, f"client by {way}")

    def direct(self, kind, place, count, first=0, get=False):
        """Eight processes that PUT (or GET) values of 4 KB."""
        return run_tool([self.tool("direct"), "-n", str(count), "-f", str(first)]
                        + (["-g"] if get else []) + [kind, place], f"direct on {kind}")

    def rounds(self, case, runs, count=None):
        """Calls each of runs (name: function) once a round, in turns; a list of {name: result}."""
        results = []
        for _ in range(count or self.settings.rounds):
            results.append({name: run() for name, run in runs.items()})
        self.raw[case] = results
        return results

    @contextlib.contextmanager
    def traced(self, server, options):
        """A path to what strace with these options sees of the server meanwhile; there at the
        end."""
        out = os.path.join(self.folder, "strace.out")
        strace = subprocess.Popen([servers.program("strace"), *options, "-f", "-o", out, "-p",
                                   str(server.pid)], stderr=subprocess.PIPE, text=True)
        if "attached" not in strace.stderr.readline():
            raise RuntimeError(f"strace can't attach to {server.name}: "
                               + strace.stderr.read().strip())
        try:
            yield out
        finally:
            strace.send_signal(signal.SIGINT)
            strace.communicate()

    def system_calls(self, case, server, arguments, requests):
        """System calls a request, by name, in a short run under strace."""
        with self.traced(server, ["-c"]) as out:
            self.load(server, list(arguments) + ["--count", requests])
        self.calls.setdefault(case, {})[server.name] = read_strace(out, requests)


def read_strace(path, requests):
    """{name: calls a request, ..., "all": their sum} from a table of strace -c."""
    calls = {}
    with open(path) as table:
        for line in table:
            found = re.match(r"\s*[\d.]+\s+[\d.]+\s+\d+\s+(\d+)\s+(?:\d+\s+)?(\w+)$", line)
            if found and found.group(2) != "total":
                calls[found.group(2)] = int(found.group(1)) / requests
    calls["all"] = sum(calls.values())
    return calls
