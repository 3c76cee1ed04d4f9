"""Every transcript on every backend: as it stands, all of a connection at once, a byte at a time, and
cut in two at every position."""

import re
import unittest
from concurrent.futures import ThreadPoolExecutor
from itertools import count

from harness import BACKENDS, FAULTY, ROOT, Client, SessionTest, until
from transcript import Block, Player, Step, blocks_of

FILES = [ROOT / "proto" / "PROTOCOL.md",
         *sorted((ROOT / "tests" / "session").glob("*.session"))]
AT_ONCE = 8  # plays of one transcript beside each other
FAULTS = ("fault",)
LOCAL = {"memory", "sqlite", "filesystem"}


def backends_of(block):
    """Where a block is played. A Redis that sets no end of its own answers as the local ones do."""
    named = set(block.backends or BACKENDS)
    if LOCAL <= named:
        named |= {"redis", *FAULTS}
    return named


def as_counters_go_on(block):
    """The same block for a daemon that has served before: its counters are any number."""
    steps = []
    for step in block.steps:
        counter = step.kind == "S" and re.match(rb"(hits|misses|stored|exists) \d+\n", step.text)
        steps.append(Step("~", step.client, counter.group(1).decode() + " [0-9]+")
                     if counter else step)
    return Block(block.name, block.backends, steps)


class Transcripts:
    """The tests of one backend; its class is made below."""

    backend = None

    def setUp(self):
        super().setUp()
        options = {"redis_expiration": 0} if self.backend == "redis" else {}
        if self.backend in FAULTS:
            options["program"] = FAULTY
        self.served = self.daemon(self.backend, max_value_size="1M", **options)
        self.prefixes = count()

    def empty(self):
        with self.served.client() as client:
            self.assertRegex(client.ask("CLEAR"), "OK entries=[0-9]+")

    def play(self, block, how, pipelined=False):
        if block.own_store():
            self.empty()
            prefix = b""
        else:
            prefix = f"play{next(self.prefixes)}/".encode()
        Player(block, self.served.socket, how, prefix).play(pipelined)

    def as_it_stands(self, block):
        Player(block, self.served.socket).play()

    def in_pieces(self, block):
        block = as_counters_go_on(block)
        if len(block.connections()) == 1:
            self.play(block, "whole", pipelined=True)
        self.play(block, "bytes")
        cuts = range(1, min(block.longest(), 400))
        if block.own_store():
            for cut in cuts:
                self.play(block, cut)
            return
        with ThreadPoolExecutor(AT_ONCE) as pool:
            for done in [pool.submit(self.play, block, cut) for cut in cuts]:
                done.result()


def add_tests():
    for backend in BACKENDS + FAULTS:
        members = {"backend": backend}
        for path in FILES:
            for block in blocks_of(path):
                if backend not in backends_of(block):
                    continue
                name = re.sub(r"\W", "_", block.name)
                members[f"test_{name}"] = lambda self, b=block: self.as_it_stands(b)
                members[f"test_{name}_in_pieces"] = lambda self, b=block: self.in_pieces(b)
        class_name = "Transcripts_" + backend.replace("-", "_")
        globals()[class_name] = type(class_name, (Transcripts, SessionTest), members)


add_tests()

if __name__ == "__main__":
    unittest.main()
