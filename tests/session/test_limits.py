"""What a client can run into: sizes, connections, time-outs, and memory that stays bounded."""

import os
import random
import sqlite3
import time
import unittest

from harness import BACKENDS, WAIT, SessionTest, encode, in_threads, raise_limits, until

MIB = 1 << 20


class Sizes(SessionTest):
    def value_limit(self, backend):
        daemon = self.daemon(backend, max_value_size=100000)
        client = self.client(daemon)
        exact, above = random.Random(1).randbytes(100000), bytes(100001)
        self.assertEqual(client.put("exact", exact), "STORED")
        self.assertRegex(client.put("above", above), "ERROR too-large .*max-value-size")
        self.assertEqual(client.ask("PING"), "OK")  # in step
        self.assertIsNone(client.get("above"))
        if backend != "null":
            self.assertEqual(client.get("exact"), exact)
        # Pipelined behind it, and announced as larger than anything.
        client.send(b"PUT above 100001\n" + above + b"\nPING\nPUT key 2\nok\n")
        self.assertRegex(client.line(), "ERROR too-large")
        self.assertEqual(client.line(), "OK")
        self.assertEqual(client.line(), "STORED")
        client.send("PUT above 9999999999999\n")
        self.assertRegex(client.line(), "ERROR too-large")

    def test_a_large_value_is_whole(self):
        for backend in BACKENDS:
            with self.subTest(backend):
                client = self.client(self.daemon(backend))
                data = random.Random(2).randbytes(20 * MIB + 1)
                self.assertEqual(client.put("large", data), "STORED")
                if backend != "null":
                    self.assertEqual(client.get("large"), data)

    def test_every_byte_on_every_backend(self):
        keys = [bytes([byte]) for byte in range(256)] + [bytes(range(256)), bytes(range(255, -1, -1))]
        for backend in BACKENDS:
            with self.subTest(backend):
                client = self.client(self.daemon(backend))
                for key in keys:
                    self.assertEqual(client.put(key, key + bytes(range(256))), "STORED")
                for key in keys:
                    expected = None if backend == "null" else key + bytes(range(256))
                    self.assertEqual(client.get(key), expected)
                self.assertEqual(client.ask("CLEAR"),
                                 "OK entries=0" if backend == "null" else "OK entries=258")

    def test_keys(self):
        client = self.client(self.daemon("memory"))
        longest = bytes([0xFF]) * 1024
        self.assertEqual(client.put(longest, "value"), "STORED")
        self.assertEqual(client.get(longest), b"value")
        self.assertRegex(client.ask("GET " + "k" * 1025), "ERROR too-large")
        self.assertRegex(client.ask("GET " + "%41" * 1025), "ERROR too-large")
        self.assertEqual(client.ask("GET " + "k" * 1024), "MISS")
        self.assertRegex(client.put("k" * 1025, "value"), "ERROR too-large")
        self.assertEqual(client.ask("PREFIX " + "p" * 1000), "OK")
        self.assertEqual(client.ask("GET " + "k" * 24), "MISS")
        self.assertRegex(client.ask("GET " + "k" * 25), "ERROR too-large")
        self.assertRegex(client.put("k" * 25, "value"), "ERROR too-large")
        self.assertEqual(client.ask("PING"), "OK")

    def test_lines(self):
        daemon = self.daemon("memory")
        client = self.client(daemon)
        # 4,096 bytes with the LF are a line; this one has no sense, but the stream stays in step.
        self.assertRegex(client.ask("GET " + "k " * 2045 + "k"), "ERROR syntax")
        self.assertEqual(client.ask("PING"), "OK")
        client.send("x" * 4096)
        self.assertRegex(client.line(), "ERROR too-large")
        self.assertTrue(client.closed())
        endless = self.client(daemon)
        try:
            for _ in range(1000):
                endless.send("x" * 65536)
        except (BrokenPipeError, ConnectionResetError):
            pass
        self.assertTrue(endless.closed())
        self.assertEqual(self.client(daemon).ask("PING"), "OK")


for name in BACKENDS:
    setattr(Sizes, f"test_value_limit_{name}", lambda self, n=name: self.value_limit(n))


class Connections(SessionTest):
    def serves_a_thousand(self, backend):
        if raise_limits() < 1100:
            self.skipTest("this user may not open 1,100 descriptors")
        daemon = self.daemon(backend)
        clients = self.clients(daemon, 1000)
        for index, client in enumerate(clients):
            client.send(f"PUT key-{index} 5\nvalue\n")
        self.assertEqual({client.line() for client in clients}, {"STORED"})
        for index, client in enumerate(clients):
            client.send(f"HEAD key-{(index + 500) % 1000}\nPING\n")
        for client in clients:
            self.assertRegex(client.line(), "MISS" if backend == "null" else "SIZE 5( ttl=.*)?$")
            self.assertEqual(client.line(), "OK")
        if backend != "null":
            self.assertEqual(clients[7].inspect()["entries"], "1000")

    def test_beyond_max_connections(self):
        daemon = self.daemon("memory", max_connections=10)

        def served():
            # The connection that saw it start may still be counted.
            client = self.client(daemon)
            try:
                return client if client.ask("PING") == "OK" else None
            except OSError:
                return None

        clients = [until(served, "it serves") for _ in range(10)]
        refused = self.client(daemon)
        self.assertRegex(refused.line(), "ERROR busy .*max-connections")
        self.assertTrue(refused.closed())
        self.assertEqual(clients[3].ask("PING"), "OK")
        clients[0].close()

        def served_again():
            with daemon.client() as client:
                try:
                    return client.ask("PING") == "OK"
                except (AssertionError, BrokenPipeError):
                    return False

        until(served_again, "a new one is served when one has left")

    def test_without_descriptors_it_waits_and_goes_on(self):
        def few():
            import resource
            resource.setrlimit(resource.RLIMIT_NOFILE, (60, 60))

        daemon = self.daemon("memory", before=few)
        clients = self.clients(daemon, 80)
        served = clients[0]
        self.assertEqual(served.ask("PING"), "OK")
        until(lambda: "accept" in daemon.log(), "it logs")
        time.sleep(0.3)
        spent = self.cpu(daemon)
        time.sleep(0.5)
        self.assertLess(self.cpu(daemon) - spent, 0.25, "it spins at EMFILE")
        for client in clients[1:60]:
            client.close()
        last = clients[-1]
        self.assertEqual(last.ask("PING"), "OK")

    def cpu(self, daemon):
        with open(f"/proc/{daemon.pid}/stat") as stat:
            fields = stat.read().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def test_an_idle_daemon_uses_no_processor(self):
        daemon = self.daemon("memory")
        clients = self.clients(daemon, 20)
        for client in clients:
            self.assertEqual(client.ask("PING"), "OK")

        def rests():
            before = self.cpu(daemon)
            time.sleep(1)
            return self.cpu(daemon) - before <= 0.05

        until(rests, "a second with hardly any work")  # what it began may have to end first


for name in BACKENDS:
    setattr(Connections, f"test_a_thousand_{name}", lambda self, n=name: self.serves_a_thousand(n))


class Timeouts(SessionTest):
    def test_idle(self):
        daemon = self.daemon("memory", idle_timeout="5s")
        idle, busy = self.clients(daemon, 2)
        begin = time.monotonic()
        self.assertEqual(idle.ask("PING"), "OK")
        while idle.silent(0.01) and time.monotonic() - begin < WAIT:
            self.assertEqual(busy.ask("PING"), "OK")
        self.assertTrue(idle.closed())
        self.assertGreaterEqual(time.monotonic() - begin, 4.9)
        self.assertEqual(busy.ask("PING"), "OK")

    def test_in_the_middle_of_a_request(self):
        daemon = self.daemon("memory", request_timeout="4s")
        line, body, skip, slow, idle = self.clients(daemon, 5)
        line.send("GET ke")
        body.send("PUT key 100\nbegin")
        skip.send("PUT key 100 colour=red\nbegin")
        self.assertRegex(skip.line(), "ERROR syntax")
        slow.send("PUT slow 12\n")
        for _ in range(12):  # each byte is a sign of life
            self.assertTrue(slow.silent(0.4))
            slow.send("x")
        slow.send("\n")
        self.assertEqual(slow.line(), "STORED")
        self.assertTrue(line.closed())
        self.assertTrue(body.closed())
        self.assertTrue(skip.closed())
        self.assertEqual(idle.ask("HEAD key"), "MISS")

    def test_a_reply_that_nobody_reads(self):
        daemon = self.daemon("memory", request_timeout="1s")
        writer, reader = self.clients(daemon, 2)
        self.assertEqual(writer.put("key", bytes(4 * MIB)), "STORED")
        reader.send("GET key\n")
        until(lambda: not reader.silent(), "the reply begins")
        before = daemon.descriptors_open()
        until(lambda: daemon.descriptors_open() < before, "the daemon gives the connection up")
        self.assertEqual(writer.ask("PING"), "OK")


class Memory(SessionTest):
    def test_replies_that_nobody_reads_are_bounded(self):
        daemon = self.daemon("memory", max_unread="64K", request_timeout="0")
        writer, reader = self.clients(daemon, 2)
        data = random.Random(3).randbytes(200)
        self.assertEqual(writer.put("key", data), "STORED")
        requests = 50000
        before = daemon.memory()

        def flood():
            reader.send(b"GET key\n" * requests)
            return True

        def drain():
            # Not before the daemon stopped reading: then the socket's buffers are full both ways.
            until(lambda: not reader.taken(0.05), "the daemon stops reading")
            grown = daemon.memory() - before
            self.assertEqual(writer.ask("PING"), "OK")
            for _ in range(requests):
                self.assertEqual(reader.value(reader.line()), data)
            return grown

        results = in_threads(2, lambda i: (flood, drain)[i]())
        self.assertLess(results[1], 8 * MIB)

    def test_large_replies_that_nobody_reads_share_the_value(self):
        daemon = self.daemon("memory", request_timeout="0")
        writer, *readers = self.clients(daemon, 51)
        data = random.Random(4).randbytes(4 * MIB)
        self.assertEqual(writer.put("key", data), "STORED")
        before = daemon.memory()
        for reader in readers:
            reader.send("GET key\n")
        for reader in readers:
            until(lambda r=reader: not r.silent(), "the reply begins")
        self.assertLess(daemon.memory() - before, 40 * MIB)
        for reader in readers:
            self.assertEqual(reader.value(reader.line()), data)

    def test_what_is_deleted_while_it_is_sent_stays_whole(self):
        daemon = self.daemon("memory")
        writer, reader = self.clients(daemon, 2)
        data = random.Random(5).randbytes(8 * MIB)
        self.assertEqual(writer.put("key", data), "STORED")
        reader.send("GET key\n")
        until(lambda: not reader.silent(), "the reply begins")
        self.assertEqual(writer.ask("DELETE key"), "DELETED")
        self.assertEqual(writer.put("key", bytes(8 * MIB)), "STORED")
        self.assertEqual(reader.value(reader.line()), data)

    def test_max_inflight(self):
        for backend in ("null", "filesystem"):
            with self.subTest(backend):
                daemon = self.daemon(backend, max_inflight="1M", max_value_size="10M",
                                     memory_size="0")
                clients = self.clients(daemon, 10)
                for client in clients:
                    client.send(b"PUT key 300000\n" + bytes(1000))
                self.assertEqual(self.client(daemon).ask("PING"), "OK")
                answers = []
                for client in clients:
                    client.send(bytes(299000) + b"\nPING\n")
                    answers.append(client.line())
                    self.assertEqual(client.line(), "OK")  # in step
                self.assertIn("STORED", answers)
                self.assertTrue(any(a.startswith("ERROR busy") for a in answers), answers)
                until(lambda c=clients[0]: c.put("key", bytes(900000)) in ("STORED", "EXISTS"),
                      "all of it is given back")

    def test_max_inflight_per_connection(self):
        daemon = self.daemon("memory", max_inflight_per_connection="100K", max_value_size="1M")
        client = self.client(daemon)
        self.assertRegex(client.put("key", bytes(200000)), "ERROR busy .*max-inflight-per-connection")
        self.assertEqual(client.put("key", bytes(100000)), "STORED")

    def test_a_thousand_who_ask_for_much_at_once(self):
        daemon = self.daemon("filesystem", max_inflight="32M", max_value_size="8M",
                             memory_size="0", request_timeout="0")
        writer, *readers = self.clients(daemon, 101)
        self.assertEqual(writer.put("key", bytes(4 * MIB)), "STORED")
        self.assertEqual(writer.ask("PERSIST"), "OK")  # from here on each GET reads it anew
        before = daemon.memory()
        for reader in readers:
            reader.send("GET key\n")
        lines = [reader.line() for reader in readers]
        self.assertLess(daemon.memory() - before, 100 * MIB)
        self.assertTrue(any(line.startswith("VALUE") for line in lines))
        self.assertTrue(any(line.startswith("ERROR busy") for line in lines), "nothing was bounded")
        for reader, line in zip(readers, lines):
            if line.startswith("VALUE"):
                self.assertEqual(len(reader.value(line)), 4 * MIB)
        self.assertEqual(len(writer.get("key")), 4 * MIB)

    def test_max_size(self):
        for backend in ("memory", "filesystem", "sqlite"):
            with self.subTest(backend):
                daemon = self.daemon(backend, max_size="4M")
                client = self.client(daemon)
                for index in range(200):
                    self.assertEqual(client.put(f"key-{index}", os.urandom(100000)), "STORED")
                until(lambda c=client: int(c.inspect()["size"]) <= 4 * MIB,
                      "the size comes down to max-size")
                self.assertGreater(int(client.inspect()["entries"]), 10)
                self.assertIsNone(client.get("key-0"))
                self.assertIsNotNone(client.get("key-199"))
                if backend != "memory":
                    until(lambda d=daemon: disk_use(d.directory) < 8 * MIB,
                          "the space goes back to the file system")

    def test_clear_gives_the_space_back(self):
        """All but what an empty store takes: the log's file in use and the next one."""
        for backend, empty in (("filesystem", 9 * MIB), ("sqlite", 3 * MIB)):
            with self.subTest(backend):
                daemon = self.daemon(backend, max_size="64M")
                client = self.client(daemon)
                for index in range(300):
                    client.put(f"{index % 3}/{index}", os.urandom(100000))
                self.assertEqual(client.ask("PERSIST"), "OK")
                self.assertGreater(disk_use(daemon.directory), 28 * MIB)
                for prefix in ("0/", "1/"):
                    other = self.client(daemon)
                    self.assertEqual(other.ask(f"PREFIX {prefix}"), "OK")
                    self.assertEqual(other.ask("CLEAR"), "OK entries=100")
                until(lambda d=daemon: disk_use(d.directory) < 10 * MIB + empty,
                      "the space goes back to the file system")
                for index in range(2, 300, 3):
                    self.assertEqual(len(client.get(f"2/{index}") or b""), 100000)
                self.assertEqual(client.ask("CLEAR"), "OK entries=100")
                until(lambda d=daemon: disk_use(d.directory) < empty, "all of it goes back")


class Overload(SessionTest):
    """A store that can't be written to for a while, because another program has locked it."""

    def locked(self, daemon):
        other = sqlite3.connect(daemon.directory / "cache.db", isolation_level=None)
        self.addCleanup(other.close)
        other.execute("BEGIN IMMEDIATE")
        return other

    def fill(self, client):
        """PUTs new keys until one is refused: the numbers of those that were STORED, the answer."""
        stored = []
        for number in range(1000):
            line = client.put(f"key-{number}", self.value(number))
            if line != "STORED":
                return stored, line
            stored.append(number)
        raise AssertionError("what is dirty is not bounded")

    @staticmethod
    def value(number):
        return random.Random(number).randbytes(20000)

    def test_what_was_stored_is_kept_and_persist_says_why_not(self):
        daemon = self.daemon("sqlite", memory_size="4M")
        client, other = self.clients(daemon, 2)
        self.assertEqual(client.put("first", "value"), "STORED")
        self.assertEqual(client.ask("PERSIST"), "OK")
        before = daemon.memory()
        lock = self.locked(daemon)
        stored, refused = self.fill(client)
        self.assertRegex(refused, "ERROR unavailable .*locked")
        self.assertGreater(len(stored), 10)
        self.assertLessEqual(len(stored) * 20000, MIB)  # a quarter of memory-size
        answers = in_threads(8, lambda n: self.client(daemon).put(f"more-{n}", bytes(100000)))
        for answer in answers:
            self.assertRegex(answer, "ERROR unavailable")
        self.assertLess(daemon.memory() - before, 40 * MIB)
        self.assertRegex(other.ask("PERSIST"), "ERROR unavailable .*locked")
        for number in stored:
            self.assertEqual(other.get(f"key-{number}"), self.value(number))
        lock.execute("ROLLBACK")
        until(lambda: other.ask("PERSIST") == "OK", "what was dirty is written")
        self.assertEqual(client.put("after", "value"), "STORED")
        self.assertEqual(client.ask("PERSIST"), "OK")
        daemon.kill9()
        daemon.start()
        client = self.client(daemon)
        for number in stored:
            self.assertEqual(client.get(f"key-{number}"), self.value(number))
        self.assertEqual(client.put(f"key-{stored[0]}", "other"), "EXISTS")
        self.assertEqual(client.get("after"), b"value")

    def test_a_stop_that_can_write_nothing_ends_and_says_so(self):
        daemon = self.daemon("sqlite", stop_timeout="1s")
        client = self.client(daemon)
        self.assertEqual(client.put("first", "value"), "STORED")
        self.assertEqual(client.ask("PERSIST"), "OK")
        self.locked(daemon)
        for number in range(3):
            self.assertEqual(client.put(f"key-{number}", "value"), "STORED")
        self.assertEqual(client.inspect()["unwritten"], str(3 * len("key-0value")))
        daemon.expected = 1
        daemon.stop()
        self.assertIn("can't persist at the end", daemon.log())
        self.assertIn("3 changes did not reach the disk and are lost", daemon.log())

    def test_a_put_waits_for_a_store_that_is_held(self):
        """Once as much is unwritten as memory may hold; a STORED means memory, PERSIST the disk."""
        daemon = self.daemon("sqlite", memory_size="0")
        client = self.client(daemon)
        lock = self.locked(daemon)
        number = 0
        while True:
            value = self.value(number)
            client.send(f"PUT key-{number} {len(value)}\n".encode() + value + b"\n")
            if number >= 40 and client.silent(0.3):
                break
            self.assertEqual(client.line(), "STORED")
            number += 1
        self.assertLess(number, 60)
        lock.execute("ROLLBACK")
        self.assertEqual(client.line(), "STORED")
        for key in range(number + 1):
            self.assertEqual(client.get(f"key-{key}"), self.value(key))


def disk_use(folder):
    """Bytes that a folder takes on the disk."""
    total = 0
    for where, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(where, name)).st_blocks * 512
            except FileNotFoundError:
                pass
    return total


if __name__ == "__main__":
    unittest.main()
