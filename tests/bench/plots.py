"""Plots of a run as SVG files, drawn by gnuplot."""

import os
import statistics
import subprocess

COLORS = {"liara": "#0b6e4f", "memcached": "#c1666b", "redis": "#4a6fa5", "bare": "#999999"}

HEAD = """set terminal svg size 760,460 enhanced font "sans,13" background "#ffffff"
set output "{path}"
set title "{title}"
set xlabel "{x}"
set ylabel "{y}"
set grid back lt 1 lw 1 lc rgb "#cccccc"
set key top left
set border 3
set tics nomirror
"""


def quoted(text):
    """As gnuplot takes it between double quotes; a line's end becomes one of its title."""
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def median(rounds, name, key):
    return statistics.median(result[name][key] for result in rounds)


def draw(folder, name, title, x, y, lines, settings=""):
    """One picture: lines is {label: [(x, y), ...]}."""
    path = os.path.join(folder, name + ".svg")
    script = HEAD.format(path=quoted(path), title=quoted(title), x=quoted(x), y=quoted(y))
    script += settings
    parts = []
    for number, (label, points) in enumerate(lines.items()):
        script += f"$data{number} << END\n"
        script += "".join(f"{a} {b}\n" for a, b in points) + "END\n"
        color = COLORS.get(label.split()[0], "#333333")
        parts.append(f'$data{number} using 1:2 with linespoints lw 2 pt 7 ps 0.5 lc rgb "{color}" '
                     f'title "{quoted(label)}"')
    script += "plot " + ", ".join(parts) + "\n"
    done = subprocess.run(["gnuplot"], input=script, text=True, capture_output=True)
    if done.returncode != 0:
        raise RuntimeError(f"gnuplot: {done.stderr.strip()}")
    return path


def by_size(raw):
    lines = {}
    for case, rounds in raw.items():
        if case.startswith("sizes "):
            size = int(case.split()[1])
            for name in rounds[0]:
                lines.setdefault(name, []).append((size, median(rounds, name, "rate")))
    return lines


def by_percentile(rounds):
    """x is how many nines there are: 0 at the best, 1 at 90 %, 2 at 99 %, ..."""
    lines = {}
    for name in rounds[0]:
        lines[name] = [(100 / (100 - float(share)),
                        statistics.median(r[name]["percentiles_us"][share] for r in rounds))
                       for share in rounds[0][name]["percentiles_us"]]
    return lines


def by_growth(rounds, separator, numbers, key, scale=1.0):
    lines = {}
    for name in rounds[0]:
        server, _, label = name.partition(separator)
        lines.setdefault(server, []).append((numbers[label], median(rounds, name, key) * scale))
    return lines


def write(folder, raw, machine):
    """Draws what there is data for; the paths."""
    os.makedirs(folder, exist_ok=True)
    paths = []
    if any(case.startswith("sizes ") for case in raw):
        paths.append(draw(
            folder, "size", f"GET by size of the value, 8 connections\n{machine}",
            "bytes of a value", "requests per second", by_size(raw),
            "set logscale xy\nset xrange [70:1500000]\nset format y '10^{%L}'\nset key top right\n"
            "set xtics ('100 B' 100, '1 KB' 1024, '4 KB' 4096, '16 KB' 16384, '64 KB' 65536, "
            "'256 KB' 262144, '1 MB' 1048576)\n"))
    if "get-100-c50" in raw:
        paths.append(draw(
            folder, "latency", f"Latency, GET of 100 B, 50 connections\n{machine}", "percentile",
            "microseconds", by_percentile(raw["get-100-c50"]),
            "set logscale xy\nset xtics ('50' 2, '90' 10, '99' 100, '99.9' 1000, "
            "'99.99' 10000)\n"))
    if "growth-entries" in raw:
        paths.append(draw(
            folder, "entries", f"Server CPU of a GET, by number of entries\n{machine}", "entries",
            "microseconds of CPU per request",
            by_growth(raw["growth-entries"], "-",
                      {"1k": 1e3, "100k": 1e5, "1M": 1e6, "5M": 5e6}, "server_cpu_ns", 1e-3),
            "set logscale x\nset xrange [700:7000000]\nset format x '10^{%L}'\nset yrange [0:*]\nset key bottom right\n"))
    if "growth-connections" in raw:
        paths.append(draw(
            folder, "connections",
            f"Server CPU of a GET, 50 busy connections among more\n{machine}", "connections",
            "microseconds of CPU per request",
            by_growth(raw["growth-connections"], " ", {"10": 60, "1k": 1e3, "8k": 8e3},
                      "server_cpu_ns", 1e-3),
            "set logscale x\nset xrange [40:12000]\nset yrange [0:*]\nset key bottom right\n"))
    return paths
