"""Checks with random input: their programs, their seeds, and the list of known failures.

The environment asks for more than a short run: SEED, the first seed; OPERATIONS, ROUNDS, how much;
BACKEND, one alone. Where one of them is set, everything that is found is shown.
"""

import os
import random
import re
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

    def judge(self, check, title, program, arguments, options=tuple, seconds=300):
        """Runs BUILD/tests/program until it fails or it has been seen to pass. Returns its output.

        options() returns more of the daemon's options, anew for each attempt.
        """
        name = f"{check} {title}"
        for attempt in range(TRIES if name in known_failures() else 1):
            seed = first_seed() + attempt
            command = [BUILD / "tests" / program, f"--daemon={DAEMON}", f"--seed={seed}",
                       *arguments, "--", *options()]
            good, output = self.run_program(command, seconds)
            if is_long():
                tell(f"{name}: {output if not good else output.splitlines()[-1]}")
            if not good:
                break
        self.settle(check, title, good, output + "\nto repeat it: " + " ".join(map(str, command)))
        return output

    def settle(self, check, title, good, output):
        """A failure has to be known; that a known one passes is told."""
        name = f"{check} {title}"
        if name not in known_failures():
            self.assertTrue(good, f"{name}:\n{output}")
        elif good:
            tell(f"known failure passes, can be removed if its long form does too: {name}")
        else:
            result = re.findall(r"^(?:good|bad) .*", output, re.M)
            tell(f"known failure: {name}: {result[-1] if result else output}")

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
