"""kill -9 amid puts, overwrites, deletes, clears and barriers: what a PERSIST was answered for is there,
and nothing older.
"""

import unittest

from harness import PERSISTENT
from known import CheckTest, chosen, number

ROUNDS = 10
OPERATIONS = 1000  # in each


class Crash(CheckTest):
    def killed(self, backend, *options):
        rounds = number("ROUNDS", ROUNDS)
        title = backend + ("/1M" if options else "")
        self.judge("crash", title, "histories",
                   [f"--backend={backend}", f"--kills={rounds}",
                    f"--operations={rounds * OPERATIONS}"], lambda: options, 300 + 3 * rounds)


for name in chosen(PERSISTENT):
    setattr(Crash, f"test_{name}", lambda self, n=name: self.killed(n))
    setattr(Crash, f"test_{name}_1M", lambda self, n=name: self.killed(n, "--memory-size=1M"))

if __name__ == "__main__":
    unittest.main()
