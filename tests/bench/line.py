"""A client of the line protocol, for what a case needs once and not measured by the thousand."""

import os
import socket
import time


def key_of(number):
    """The key that the load generator gives to a number."""
    mask = (1 << 64) - 1
    mixed = (number + 0x9E3779B97F4A7C15) & mask
    mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & mask
    mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & mask
    mixed ^= mixed >> 31
    return "obj:" + "".join("0123456789abcdef"[(mixed >> shift) & 15] for shift in range(0, 64, 4))


class Line:
    """One connection; each method is one request."""

    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(600)
        self.socket.connect(path)
        self.stream = self.socket.makefile("rb")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stream.close()
        self.socket.close()

    def ask(self, request):
        self.socket.sendall(request)
        return self.stream.readline().decode().split()

    def get(self, key):
        """The value, or None."""
        words = self.ask(f"GET {key}\n".encode())
        if words[:1] == ["MISS"]:
            return None
        if words[:1] != ["VALUE"]:
            raise RuntimeError("GET: " + " ".join(words))
        return self.stream.read(int(words[1]) + 1)[:-1]

    def gives_descriptor(self, key):
        """Whether GET with fd is answered by a descriptor, not by the value."""
        self.socket.sendall(f"GET {key} fd\n".encode())
        data, descriptors, _, _ = socket.recv_fds(self.socket, 4096, 1)
        for descriptor in descriptors:
            os.close(descriptor)
        if not descriptors:
            head, _, value = data.partition(b"\n")
            self.stream.read(int(head.split()[1]) + 1 - len(value))
        return bool(descriptors)

    def put(self, key, value):
        words = self.ask(f"PUT {key} {len(value)} overwrite\n".encode() + value + b"\n")
        if words != ["STORED"]:
            raise RuntimeError("PUT: " + " ".join(words))

    def put_new(self, key, value):
        """Whether it was stored; false: something is there already."""
        words = self.ask(f"PUT {key} {len(value)}\n".encode() + value + b"\n")
        if words not in (["STORED"], ["EXISTS"]):
            raise RuntimeError("PUT: " + " ".join(words))
        return words == ["STORED"]

    def delete(self, key):
        words = self.ask(f"DELETE {key}\n".encode())
        if words not in (["DELETED"], ["MISS"]):
            raise RuntimeError("DELETE: " + " ".join(words))
        return words == ["DELETED"]

    def prefix(self, prefix):
        words = self.ask(f"PREFIX {prefix}\n".encode())
        if words != ["OK"]:
            raise RuntimeError("PREFIX: " + " ".join(words))

    def clear(self):
        """How many entries went."""
        words = self.ask(b"CLEAR\n")
        if words[:1] != ["OK"]:
            raise RuntimeError("CLEAR: " + " ".join(words))
        return int(words[1].partition("=")[2])

    def inspect(self):
        """{name: value}, all strings."""
        words = self.ask(b"INSPECT\n")
        if words[:1] != ["VALUE"]:
            raise RuntimeError("INSPECT: " + " ".join(words))
        text = self.stream.read(int(words[1]) + 1).decode()
        return dict(line.split(" ", 1) for line in text.splitlines() if line)

    def persist(self):
        """How long it took, in milliseconds."""
        before = time.perf_counter()
        words = self.ask(b"PERSIST\n")
        if words[:1] != ["OK"]:
            raise RuntimeError("PERSIST: " + " ".join(words))
        return (time.perf_counter() - before) * 1e3
