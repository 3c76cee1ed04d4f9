"""8 processes PUT 10,000 times each on the same 1,000 keys: exactly one STORED per key."""

import subprocess
import unittest

from harness import BACKENDS, LOAD, SessionTest

PROCESSES, PUTS, KEYS, SIZE = 8, 10000, 1000, 300
SECONDS = 900


class Stress(SessionTest):
    def race(self, backend):
        daemon = self.daemon(backend)
        done = subprocess.run(
            [LOAD, daemon.socket, str(PROCESSES), str(PUTS), str(KEYS), str(SIZE)],
            capture_output=True, text=True, timeout=SECONDS, check=False)
        self.assertEqual(done.returncode, 0, done.stderr[-2000:])
        return dict(pair.split("=") for pair in done.stdout.split())

    def stores_once(self, backend):
        counts = self.race(backend)
        self.assertEqual(counts, {"stored": str(KEYS), "exists": str(PROCESSES * PUTS - KEYS),
                                  "errors": "0", "once": str(KEYS), "right": str(KEYS)})

    def test_null(self):
        counts = self.race("null")
        self.assertEqual(counts["stored"], str(PROCESSES * PUTS))
        self.assertEqual(counts["errors"], "0")


for name in BACKENDS:
    if name != "null":
        setattr(Stress, f"test_{name}", lambda self, n=name: self.stores_once(n))

if __name__ == "__main__":
    unittest.main()
