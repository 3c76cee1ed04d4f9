"""The result as a table for a terminal, and as bench.json."""

import dataclasses
import json

from cases import GOALS, GOAL_NAMES
from measure import SPREAD

UNITS = (("ns", 1), ("us", 1e3), ("ms", 1e6), ("s", 1e9))


def shown(value, unit):
    """A number in few digits with a unit that suits it."""
    if value is None:
        return ""
    scale = dict(UNITS).get(unit)
    if scale is not None:
        value *= scale
        for name, factor in reversed(UNITS):
            if value >= factor or name == "ns":
                return f"{value / factor:.3g} {name}" if value < 999.5 * factor else \
                    f"{value / factor:.0f} {name}"
    for factor, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= factor:
            return f"{value / factor:.3g} {letter}{unit}"
    return f"{value:.3g} {unit}".rstrip()


def ratio_text(row):
    if row.ratio is None and row.low is not None:
        return f"({shown(row.low, row.unit)}-{shown(row.high, row.unit)}) {row.note}".rstrip()
    if row.ratio is None:
        return row.note
    return f"{row.ratio:.2f} ({row.low:.2f}-{row.high:.2f}) of {row.against}"


def target_text(row):
    sign = ">=" if row.larger_is_better else "<="
    if row.limit is not None:
        return f"{sign} {shown(row.limit, row.unit)}"
    return f"{sign} {row.target:.2f}" if row.target is not None else ""


def aligned(lines, widths=()):
    """Lines of cells as text, each column as wide as its widest cell, and at least as widths."""
    count = max(len(line) for line in lines)
    wide = [max([len(line[i]) for line in lines if i < len(line)]
                + [widths[i] if i < len(widths) else 0]) for i in range(count)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, wide)).rstrip()
            for line in lines]


def case_table(title, rows):
    """The rows of one case under its title, the servers' own figures first."""
    names = []
    for row in rows:
        names += [name for name in row.values if name not in names]
    lines = [["", *names, "ratio (range)", "target", ""]]
    for row in rows:
        lines.append(["  " + row.figure, *(shown(row.values.get(name), row.unit) for name in names),
                      ratio_text(row), target_text(row), row.verdict])
    return "\n".join([title] + aligned(lines, [36] + [10] * len(names) + [34, 7]))


def table(rows):
    """All rows, a table for each case."""
    cases = {}
    for row in rows:
        cases.setdefault((row.case, row.title), []).append(row)
    return "\n\n".join(case_table(f"{title} [{case}]", rows)
                       for (case, title), rows in cases.items())


def measured_text(row):
    """The figure that the target is about, or all where there is none."""
    if row.ratio is not None or row.note:
        return ratio_text(row)
    if row.ours:
        return f"{shown(row.values.get(row.ours), row.unit)} {ratio_text(row)}"
    return ", ".join(f"{name} {shown(value, row.unit)}" for name, value in row.values.items())


def belongs_to_goal(row):
    """Ratios without a target are shown with their case alone."""
    return row.ratio is None or row.target is not None or row.figure == SPREAD


def goals_table(rows):
    """What the stores are built to reach, goal by goal, with the command for each row alone."""
    lines = [["Goals", "measured (range)", "target", "", "alone: make bench ..."]]
    for goal, name in GOAL_NAMES.items():
        mine = [row for row in rows if GOALS.get(row.case) == goal and belongs_to_goal(row)]
        lines += [[f"{goal:2} {name}"]] if mine else []
        lines += [[f"   {row.figure}", measured_text(row), target_text(row), row.verdict,
                   f"ONLY={row.case}"] for row in mine]
    return "\n".join(aligned(lines))


def calls_table(calls):
    """System calls per request, a line for each case and server."""
    lines = [["System calls per request", "server", "all", "which"]]
    for case, servers in calls.items():
        for server, counts in servers.items():
            which = sorted((count, name) for name, count in counts.items() if name != "all")
            lines.append([case, server, f"{counts['all']:.2f}",
                          ", ".join(f"{name} {count:.2f}" for count, name in reversed(which)
                                    if count >= 0.005)])
            case = ""
    return "\n".join(aligned(lines))


def verdicts(rows):
    counts = {name: sum(row.verdict == name for row in rows)
              for name in ("met", "missed", "not built")}
    return ", ".join(f"{count} {name}" for name, count in counts.items())


def write_json(path, facts, rows, calls, raw):
    with open(path, "w") as out:
        json.dump({"run": facts, "rows": [dataclasses.asdict(row) for row in rows],
                   "system_calls": calls, "rounds": raw}, out, indent=1)
        out.write("\n")
