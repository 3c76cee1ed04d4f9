"""8 clients on few keys, every verb: what they are answered fits together, key by key."""

import unittest

from harness import STORING
from known import CheckTest, chosen, number

OPERATIONS = 20000

# What each variant is about: a memory that holds next to nothing; a store that has to evict.
VARIANTS = {
    "memory": {"": (), "tight": ("--max-size=2M",)},
    "filesystem": {"": (), "1M": ("--memory-size=1M",), "tight": ("--max-size=4M",)},
    "sqlite": {"": (), "1M": ("--memory-size=1M",), "tight": ("--max-size=4M",)},
    "redis": {"": (), "1M": ("--memory-size=1M",)},
}


class Histories(CheckTest):
    def history(self, backend, variant):
        def options():
            # A history begins with an empty store.
            redis = [f"--redis-socket={self.redis().socket}"] if backend == "redis" else []
            return [*VARIANTS[backend][variant], *redis]

        arguments = [f"--backend={backend}", f"--operations={number('OPERATIONS', OPERATIONS)}"]
        if variant == "tight":
            arguments.append("--evicts")
        self.judge("histories", "/".join(filter(None, (backend, variant))), "histories", arguments,
                   options, 300 + number("OPERATIONS", OPERATIONS) // 500)


for name in chosen(STORING):
    for kind in VARIANTS[name]:
        setattr(Histories, f"test_{name}_{kind}".rstrip("_"),
                lambda self, n=name, k=kind: self.history(n, k))

if __name__ == "__main__":
    unittest.main()
