"""One system call of the store fails, at many places: what PERSIST was answered OK for is there, nothing
older comes back, and the daemon starts again.
"""

import re
import unittest

from harness import BUILD, PERSISTENT
from known import CheckTest, chosen, number

ROUNDS = 1  # of each kind of fault; 0: at every call
GROUPS = ("sync", "write", "file")


class Faults(CheckTest):
    def faults(self, backend, group):
        rounds = number("ROUNDS", ROUNDS)
        title = f"{backend}/{group}"
        output = self.judge("faults", title, "faults",
                            [f"--shim={BUILD / 'tests' / 'shim.so'}", f"--backend={backend}",
                             f"--group={group}", f"--rounds={rounds}"],
                            seconds=300 if 0 < rounds < 50 else 7200)
        stuck = re.search(r"^(?:good|bad) .* stuck=(\d+)", output, re.M)
        self.assertIsNotNone(stuck, output)
        self.settle("recovers", title, stuck[1] == "0", output)


for name in chosen(PERSISTENT):
    for kind in GROUPS:
        setattr(Faults, f"test_{name}_{kind}", lambda self, n=name, g=kind: self.faults(n, g))

if __name__ == "__main__":
    unittest.main()
