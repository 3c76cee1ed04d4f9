"""Checks with random input: their programs, their seeds, and the list of known failures.

The environment says more than a short run needs: SEED, the first seed; OPERATIONS, ROUNDS, how much;
BACKEND, one alone. Where one of them is set, everything that is found is shown.
"""

import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path

from harness import BUILD, DAEMON, REPORTS, ROOT, SessionTest

KNOWN = ROOT / "tests" / "known-failures"
TRIES = 3  # a known failure that passes so often may have been mended


def known_failures():
    lines = KNOWN.read_text().splitlines()
    return {line.strip() for line in lines if line.strip() and not line.startswith("#")}


def number(name, short):
    return int(os.environ.get(name) or short)


def chosen(backends):
    """The backends that this run is about."""
    return [b for b in backends if os.environ.get("BACKEND") in (None, "", b)]


def is_long():
    return any(os.environ.get(name) for name in ("SEED", "OPERATIONS", "ROUNDS", "BACKEND"))


def first_seed():
    return number("SEED", random.SystemRandom().randrange(1, 1 << 31))


def tell(line):
    """A line for whoever runs the tests; tests/run shows those that begin like this."""
    print(f"\nnote: {line}", file=sys.stderr, flush=True)


class CheckTest(SessionTest):
    """A test that runs a program with a seed and believes its exit status."""

    def judge(self, check, title, program, arguments, options=(), seconds=300):
        """Runs BUILD/tests/program until it fails or it has been seen to pass."""
        name = f"{check} {title}"
        is_known = name in known_failures()
        for attempt in range(TRIES if is_known else 1):
            seed = first_seed() + attempt
            command = [BUILD / "tests" / program, f"--daemon={DAEMON}", f"--seed={seed}",
                       *arguments, "--", *options]
            good, output = self.run_program(command, seconds)
            if is_long():
                tell(f"{name}: {output if not good else output.splitlines()[-1]}")
            if not good:
                break
        if good and is_known:
            tell(f"known failure passes {TRIES} times, can be removed if it does so for long "
                 f"(make {check}): {name}")
        elif is_known:
            tell(f"known failure: {name}: {output.splitlines()[-1]}")
            self.skipTest("a known failure")
        self.assertTrue(good, f"{name}, seed {seed}:\n{output}\nto repeat it: "
                        + " ".join(map(str, command)))

    def run_program(self, command, seconds):
        folder = tempfile.mkdtemp(dir=self.folder, prefix="")
        done = subprocess.run(list(map(str, command)), stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, text=True, errors="replace",
                              timeout=seconds, check=False, env={**os.environ, "TMPDIR": folder})
        output = done.stdout.strip() or "no output"
        # What a crash or a sanitizer says is never a known failure.
        self.assertIn(done.returncode, (0, 1), output)
        self.assertIsNone(REPORTS.search(output), output)
        return done.returncode == 0, output
