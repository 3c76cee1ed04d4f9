"""Cases of the source tree: its size, and what the eviction policy misses."""

import os
import subprocess

from cases import CASES, case
from measure import SOURCE, Row, limited
from servers import Missing

POLICY_SECONDS = 3600


@case("policy", "Misses on build traces against exact LRU: what make policy says", goal=13)
def policy(bench):
    environment = {name: value for name, value in os.environ.items()
                   if name not in ("MAKEFLAGS", "MFLAGS", "MAKEOVERRIDES", "MAKELEVEL")}
    make = ["make", "-s", "-C", SOURCE, f"BUILD={bench.settings.build}"]
    if subprocess.run(make + ["-n", "policy"], env=environment, capture_output=True).returncode != 0:
        raise Missing("there is no make policy")
    done = subprocess.run(make + ["policy"], env=environment, capture_output=True, text=True,
                          timeout=POLICY_SECONDS)
    for line in done.stdout.splitlines():
        bench.rows.append(Row("policy", CASES["policy"][0], line.strip(), "", {}))
    if done.returncode != 0:
        raise RuntimeError(f"make policy: {done.stderr.strip()[-200:]}")


def lines_below(folder):
    count = 0
    for place, _, names in os.walk(folder):
        for name in names:
            if name.endswith((".c", ".h")):
                with open(os.path.join(place, name), "rb") as source:
                    count += source.read().count(b"\n")
    return count


@case("lines", "Lines in daemon/store", goal=14)
def lines(bench):
    samples = {"liara": [lines_below(os.path.join(SOURCE, "daemon", "store"))]}
    if bench.has_base("lines", CASES["lines"][0]):
        source = os.path.join(bench.base_folder, "..", "daemon", "store")
        if os.path.isdir(source):
            samples["base"] = [lines_below(source)]
    bench.rows.append(limited("lines", CASES["lines"][0], "lines of .c and .h", "", samples, 7500))
