"""PUT with the value in a descriptor, GET with fd, and descriptors where none belongs."""

import os
import random
import socket
import tempfile
import unittest

from harness import BACKENDS, SessionTest, until

MIB = 1 << 20


def memfd(data):
    fd = os.memfd_create("value")
    os.write(fd, data)
    return fd


class Descriptors:
    """The tests of one backend; its class is made below."""

    backend = None

    def setUp(self):
        super().setUp()
        self.served = self.daemon(self.backend, workers=1)
        self.ours = self.client(self.served)
        self.assertEqual(self.ours.ask("HEAD nothing"), "MISS")
        self.before = self.served.descriptors_open()

    def tearDown(self):
        """Whatever a test passed, nothing of it stays open."""
        self.assertEqual(self.ours.ask("PING"), "OK")
        until(lambda: self.served.descriptors_open() <= self.before,
              "the daemon closes what was passed to it")
        super().tearDown()

    def pass_one(self, line, fd):
        try:
            self.ours.send_descriptors(line + "\n", [fd])
        finally:
            os.close(fd)
        return self.ours.line()

    def expect(self, key, value):
        self.assertEqual(self.ours.get(key), None if self.backend == "null" else value)

    def test_a_memfd(self):
        data = random.Random(1).randbytes(3 * MIB + 7)
        self.assertEqual(self.pass_one(f"PUT key {len(data)} fd flags=5", memfd(data)), "STORED")
        self.expect("key", data)

    def test_a_file_is_read_from_its_beginning(self):
        with tempfile.TemporaryFile(dir=self.folder) as file:
            file.write(b"0123456789 and more")
            file.flush()
            file.seek(5)
            self.assertEqual(self.pass_one("PUT key 10 fd", os.dup(file.fileno())), "STORED")
            self.assertEqual(os.lseek(file.fileno(), 0, os.SEEK_CUR), 5)
        self.expect("key", b"0123456789")

    def test_nothing_is_a_value(self):
        self.assertEqual(self.pass_one("PUT key 0 fd", memfd(b"")), "STORED")
        self.expect("key", b"")

    def test_overwrite_and_exists(self):
        self.assertEqual(self.pass_one("PUT key 3 fd", memfd(b"one")), "STORED")
        again = "STORED" if self.backend == "null" else "EXISTS"
        self.assertEqual(self.pass_one("PUT key 3 fd", memfd(b"two")), again)
        self.expect("key", b"one")
        self.assertEqual(self.pass_one("PUT key 3 fd overwrite", memfd(b"two")), "STORED")
        self.expect("key", b"two")

    def test_too_short(self):
        self.assertRegex(self.pass_one("PUT key 11 fd", memfd(b"0123456789")), "ERROR syntax")
        self.assertIsNone(self.ours.get("key"))

    def test_no_regular_file(self):
        for make in (lambda: os.pipe()[0], lambda: os.open("/dev/zero", os.O_RDONLY),
                     lambda: os.open("/", os.O_RDONLY),
                     lambda: socket.socket(socket.AF_UNIX).detach()):
            self.assertRegex(self.pass_one("PUT key 1 fd", make()), "ERROR syntax")
        self.assertIsNone(self.ours.get("key"))

    def test_one_that_cannot_be_read(self):
        path = self.folder / "write-only"
        path.write_bytes(b"0123456789")
        fd = os.open(path, os.O_WRONLY)
        self.assertRegex(self.pass_one("PUT key 10 fd", fd), "ERROR (syntax|denied)")
        self.assertIsNone(self.ours.get("key"))

    def test_none_was_sent(self):
        self.assertRegex(self.ours.ask("PUT key 5 fd"), "ERROR syntax")
        self.assertEqual(self.ours.ask("PING"), "OK")

    def test_two_at_once(self):
        one, two = memfd(b"value"), memfd(b"other")
        try:
            self.ours.send_descriptors("PUT key 5 fd\n", [one, two])
            self.assertRegex(self.ours.line(), "STORED|ERROR syntax")
        finally:
            os.close(one)
            os.close(two)

    def test_a_hundred_at_once(self):
        fd = memfd(b"value")
        try:
            self.ours.send_descriptors("PING\n", [fd] * 100)
            self.assertEqual(self.ours.line(), "OK")
        finally:
            os.close(fd)

    def test_where_none_belongs(self):
        for line, reply in (("PING", "OK"), ("HEAD nothing", "MISS"), ("GET nothing fd", "MISS"),
                            ("PUT key 5\nvalue", "STORED"), ("nonsense", "ERROR.*")):
            self.assertRegex(self.pass_one(line, memfd(b"value")), reply)
        # It must not be taken by a later line that came without one.
        self.assertRegex(self.ours.ask("PUT other 5 fd"), "ERROR syntax")

    def test_one_in_the_middle_of_a_body(self):
        self.ours.send("PUT key 10\n01234")
        self.assertTrue(self.ours.taken())
        self.assertEqual(self.pass_one("56789", memfd(b"x")), "STORED")
        self.expect("key", b"0123456789")

    def test_each_line_has_its_own(self):
        """Pipelined: a descriptor belongs to the line that it came with, however many follow."""
        count = 20
        for index in range(count):
            fd = memfd(b"value-%02d" % index)
            self.ours.send_descriptors(f"PUT key-{index:02} 8 fd\n", [fd])
            os.close(fd)
        for _ in range(count):
            self.assertEqual(self.ours.line(), "STORED")
        for index in range(count):
            self.expect(f"key-{index:02}", b"value-%02d" % index)

    def test_a_refused_line_takes_its_own_along(self):
        fd, other = memfd(b"wrong"), memfd(b"right")
        self.ours.send_descriptors("PUT key 5 fd ttl=0\n", [fd])
        self.ours.send_descriptors("PUT key 5 fd\n", [other])
        os.close(fd)
        os.close(other)
        self.assertRegex(self.ours.line(), "ERROR syntax")
        self.assertEqual(self.ours.line(), "STORED")
        self.expect("key", b"right")

    def test_it_is_left_while_it_is_read(self):
        for _ in range(20):
            client = self.client(self.served)
            fd = memfd(bytes(4 * MIB))
            client.send_descriptors(f"PUT key {4 * MIB} fd\n", [fd])
            os.close(fd)
            client.close()
        until(lambda: self.served.descriptors_open() <= self.before, "all is closed")

    def test_leases_end_by_it(self):
        waiter = self.client(self.served)
        self.assertEqual(self.ours.ask("GET key lease=60"), "MISS lease")
        waiter.send("GET key lease=60\n")
        self.assertTrue(waiter.taken())
        self.assertEqual(self.pass_one("PUT key 5 fd", memfd(b"value")), "STORED")
        self.assertEqual(waiter.value(waiter.line()), b"value")
        waiter.close()

    def test_get_with_fd_may_answer_with_the_bytes(self):
        self.ours.put("key", "value")
        line = self.ours.ask("GET key fd")
        if self.backend == "null":
            self.assertEqual(line, "MISS")
        else:
            self.assertEqual(self.ours.value(line), b"value")

    def get_descriptor(self, key):
        """Of GET key fd the reply's words and its descriptor, or None where the bytes came."""
        client = self.client(self.served)
        client.send(f"GET {key} fd\n")
        client.buffer, descriptors, _, _ = socket.recv_fds(client.socket, 4096, 2)
        line = client.line()
        if not descriptors:
            client.exactly(int(line.split()[1]) + 1)
            client.close()
            return None
        self.assertEqual(client.ask("PING"), "OK")
        client.close()
        self.assertEqual(len(descriptors), 1)
        return line.split(), descriptors[0]

    def test_get_by_descriptor(self):
        """What is asked for often or is large comes so, stays as it is, and can't be changed."""
        if self.backend == "null":
            return
        for length in (64 * 1024, MIB, 3 * MIB + 5):
            data = random.Random(length).randbytes(length)
            self.assertEqual(self.ours.put("key", data, " flags=9 overwrite"), "STORED")
            words, fd = until(lambda: self.get_descriptor("key"), "a descriptor comes")
            try:
                fields = dict(word.split("=") for word in words[2:])
                self.assertEqual(words[:2] + [fields["flags"]], ["FD", str(length), "9"])
                self.assertEqual(self.ours.ask("DELETE key"), "DELETED")
                self.assertEqual(os.pread(fd, length, int(fields["offset"])), data)
                with self.assertRaises(OSError):
                    os.pwrite(fd, b"x", 0)
                with self.assertRaises(OSError):
                    os.truncate(fd, 0)
            finally:
                os.close(fd)

    def test_a_small_value_never_comes_by_descriptor(self):
        if self.backend == "null":
            return
        self.ours.put("key", bytes(64 * 1024 - 1))
        for _ in range(10):
            self.assertIsNone(self.get_descriptor("key"))

    def test_a_large_value_sent_again_and_again(self):
        """From the second time on it may come out of a descriptor of the daemon's."""
        if self.backend == "null":
            return
        for length in (64 * 1024 - 1, 64 * 1024, MIB + 3, 5 * MIB):
            data = random.Random(length).randbytes(length)
            self.assertEqual(self.ours.put(f"key{length}", data, " flags=9"), "STORED")
            for _ in range(3):
                self.assertEqual(self.ours.get(f"key{length}"), data)
            self.ours.send(f"GET key{length}\nGET nothing\n" * 6)
            for _ in range(6):
                self.assertEqual(self.ours.line().split(" ttl=")[0], f"VALUE {length} flags=9")
                self.assertEqual(self.ours.exactly(length + 1), data + b"\n")
                self.assertEqual(self.ours.line(), "MISS")
        self.assertEqual(self.ours.ask("CLEAR"), "OK entries=4")

    def test_a_large_value_changes_while_a_slow_client_has_not_read_it(self):
        if self.backend == "null":
            return
        old, new = (random.Random(seed).randbytes(3 * MIB) for seed in (1, 2))
        self.ours.put("key", old)
        for _ in range(3):
            self.assertEqual(self.ours.get("key"), old)
        slow = self.client(self.served)
        slow.send("GET key\n" * 4)
        self.assertEqual(slow.line().split(" ttl=")[0], f"VALUE {3 * MIB}")
        self.assertEqual(self.ours.put("key", new, " overwrite"), "STORED")
        self.assertEqual(self.ours.get("key"), new)
        self.assertEqual(self.ours.ask("DELETE key"), "DELETED")
        self.assertEqual(slow.exactly(3 * MIB + 1), old + b"\n")
        for _ in range(3):
            line = slow.line()
            if line != "MISS":
                self.assertEqual(line.split(" ttl=")[0], f"VALUE {3 * MIB}")
                self.assertIn(slow.exactly(3 * MIB + 1), (old + b"\n", new + b"\n"))
        slow.close()


for name in BACKENDS:
    class_name = f"Descriptors_{name}"
    globals()[class_name] = type(class_name, (Descriptors, SessionTest), {"backend": name})


class Disk(SessionTest):
    """GET fd of large values in a store on disk: sealed memory, never a file of the store."""

    def get_descriptor(self, client, key):
        """Of GET key fd the descriptor, or None where the bytes came."""
        client.send(f"GET {key} fd\n")
        client.buffer, descriptors, _, _ = socket.recv_fds(client.socket, 4096, 2)
        line = client.line()
        if line.startswith("FD"):
            self.assertRegex(line, "^FD [0-9]+ offset=0( |$)")
            return descriptors[0]
        self.assertEqual(descriptors, [])
        client.value(line)
        return None

    def held(self, client, key):
        return until(lambda: self.get_descriptor(client, key), "a descriptor comes")

    def expect(self, fd, data):
        try:
            self.assertEqual(os.pread(fd, len(data) + 1, 0), data + b"\n")
            self.assertRaises(OSError, os.pwrite, fd, b"x", 0)
            again = os.open(f"/proc/self/fd/{fd}", os.O_RDWR)
            self.assertRaises(OSError, os.pwrite, again, b"x", 0)
            os.close(again)
        finally:
            os.close(fd)

    def test_what_was_handed_out_stays_as_it_was(self):
        for backend in ("filesystem", "sqlite"):
            with self.subTest(backend):
                served = self.daemon(backend)
                client = self.client(served)
                data, other = (random.Random(seed).randbytes(2 * MIB + seed) for seed in (1, 2))
                self.assertEqual(client.put("key", data), "STORED")
                before = served.descriptors_open()
                self.expect(self.held(client, "key"), data)
                held = self.held(client, "key")
                self.assertEqual(client.put("key", other, " overwrite"), "STORED")
                self.expect(self.held(client, "key"), other)
                self.assertEqual(client.ask("DELETE key"), "DELETED")
                self.expect(held, data)
                self.assertEqual(client.ask("GET key fd"), "MISS")
                until(lambda s=served, b=before: s.descriptors_open() <= b,
                      "the daemon closes what it has sent")

    def test_what_memory_does_not_have_comes_from_the_disk(self):
        for backend in ("filesystem", "sqlite"):
            with self.subTest(backend):
                served = self.daemon(backend)
                client = self.client(served)
                data = random.Random(3).randbytes(2 * MIB)
                self.assertEqual(client.put("key", data), "STORED")
                served.restart()
                client = self.client(served)
                self.assertEqual(client.get("key"), data)
                self.expect(self.held(client, "key"), data)


if __name__ == "__main__":
    unittest.main()
