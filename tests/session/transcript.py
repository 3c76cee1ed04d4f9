"""Reads and plays transcripts: the fenced blocks marked `session` of proto/PROTOCOL.md, which says
what their lines mean, and of the *.session files here. Beside what stands there, `S! ` (with nothing
behind it) says that the daemon closes this connection.
"""

import re

from harness import Client, Closed

LINE = re.compile(r"(?:(C|S)(\d*)([:~!])(?: (.*))?|(#.*)?)$")
ESCAPE = re.compile(r"\\(x[0-9A-Fa-f]{2}|n|r|\\)")


def unescape(text):
    def one(match):
        code = match.group(1)
        if code[0] == "x":
            return chr(int(code[1:], 16))
        return {"n": "\n", "r": "\r", "\\": "\\"}[code]

    return ESCAPE.sub(one, text).encode("latin-1")


class Step:
    """What one connection sends (kind C), or expects (S: exactly, ~ by expression, ! the end)."""

    def __init__(self, kind, client, text):
        self.kind, self.client, self.text = kind, client, text

    def __str__(self):
        mark = {"C": "C: ", "S": "S: ", "~": "S~ ", "!": "S! "}[self.kind]
        return f"{mark}{self.text!r} (connection {self.client})"


class Block:
    def __init__(self, name, backends, steps):
        self.name, self.backends, self.steps = name, backends, steps

    def sent(self):
        """The pieces that are sent at once: a request, with its value."""
        return [step for step in self.steps if step.kind == "C"]

    def longest(self):
        return max(len(step.text) for step in self.sent())

    def connections(self):
        return sorted({step.client for step in self.steps})

    def own_store(self):
        """Whether it speaks of more than its own keys, so that nothing may run beside it."""
        verbs = (b"PREFIX", b"CLEAR", b"INSPECT", b"PERSIST")
        return any(verb in step.text or len(step.text) > 1000
                   for step in self.sent() for verb in verbs)


def parse_block(name, backends, lines):
    steps = []
    for number, line in lines:
        match = LINE.match(line)
        if not match:
            raise ValueError(f"{name}: line {number} is no line of a transcript: {line}")
        side, client, mark, text, _ = match.groups()
        if side is None:
            continue
        client, text = int(client or 1), text or ""
        kind = "C" if side == "C" else {":": "S", "~": "~", "!": "!"}[mark]
        data = text if kind in "~!" else unescape(text) + b"\n"
        # The lines of a request with its value are one piece, however they are written.
        if kind == "C" and steps and steps[-1].kind == "C" and steps[-1].client == client:
            steps[-1].text += data
        else:
            steps.append(Step(kind, client, data))
    return Block(name, backends, steps)


def blocks_of(path):
    """All blocks of a file, named after it and the line where each begins."""
    found, lines, backends, begin = [], None, (), 0
    for number, line in enumerate(path.read_text().splitlines(), 1):
        fence = re.match(r"```(\w*)\s*(.*)$", line)
        if lines is not None and fence:
            found.append(parse_block(f"{path.name}:{begin}", backends, lines))
            lines = None
        elif lines is not None:
            lines.append((number, line))
        elif fence and fence.group(1) == "session":
            backends = tuple(filter(None, re.split(r"[ ,]+", fence.group(2))))
            lines, begin = [], number
    return found


class Player:
    """Plays a block against a daemon. how: "whole", "bytes", or a number: where pieces are cut."""

    def __init__(self, block, path, how="whole", prefix=b""):
        self.block, self.path, self.how, self.prefix = block, path, how, prefix
        self.clients = {}

    def client(self, number):
        if number not in self.clients:
            client = self.clients[number] = Client(self.path)
            if self.prefix:
                reply = client.ask(f"PREFIX {self.prefix.decode()}")
                assert reply == "OK", reply
        return self.clients[number]

    def send(self, client, data):
        try:
            if self.how == "whole":
                client.send(data)
            elif self.how == "bytes":
                for byte in data:
                    client.send(bytes([byte]))
                    client.taken(0.2)
            else:
                cut = self.how % len(data)
                client.send(data[:cut])
                client.taken(0.2)
                client.send(data[cut:])
        except (BrokenPipeError, ConnectionResetError):
            pass  # a daemon that has lost the stream answers and closes while we still send

    def step(self, step):
        client = self.client(step.client)
        if step.kind == "C":
            self.send(client, step.text)
        elif step.kind == "S":
            got = b"".join(client.line().encode("latin-1") + b"\n" for _ in range(step.text.count(b"\n")))
            if got != step.text:
                raise AssertionError(f"expected {step}, got {got!r}")
        elif step.kind == "~":
            line = client.line()
            if not re.fullmatch(step.text, line):
                raise AssertionError(f"expected {step}, got {line!r}")
        elif not client.closed():
            raise AssertionError(f"expected {step}, but the connection is open")

    def play(self, pipelined=False):
        steps = self.block.steps
        if pipelined:
            steps = self.block.sent() + [step for step in steps if step.kind != "C"]
        try:
            for number, step in enumerate(steps, 1):
                try:
                    self.step(step)
                except (AssertionError, Closed) as error:
                    raise AssertionError(f"{self.block.name}, {self.how}, step {number}: {step}: "
                                         f"{error}") from None
            for number, client in self.clients.items():
                if client.buffer:
                    raise AssertionError(f"{self.block.name}: more came on connection {number}: "
                                         f"{client.buffer!r}")
        finally:
            for client in self.clients.values():
                client.close()
