"""What is on the disk: after kill -9, after a clean end, and after damage."""

import os
import random
import shutil
import sqlite3
import time
import unittest
from contextlib import closing

from harness import PERSISTENT, SessionTest, until

ROUNDS = 50


def make_value(key, version):
    """A value that nobody else has, from 0 bytes to some 30,000."""
    chance = random.Random(f"{key}/{version}")
    return chance.randbytes(chance.choice((0, 1, 100, 1000, 5000, 30000)) + chance.randrange(50))


class KillNine(SessionTest):
    """What a PERSIST was answered for is there, byte for byte, whatever came after it."""

    def rounds(self, backend):
        daemon = self.daemon(backend)
        kept = {}  # what must be there; None: what must not
        for round_number in range(ROUNDS):
            client = daemon.client()
            self.check(client, kept, round_number)
            self.change(client, kept, round_number)
            self.assertEqual(client.ask("PERSIST"), "OK")
            # Others go on writing, and one of them asks for a PERSIST that nobody hears of.
            loose = daemon.client()
            lost = [f"loose-{round_number}-{i}" for i in range(20)]
            loose.send(b"".join(b"PUT %s 2000\n" % key.encode() + bytes(2000) + b"\n"
                                for key in lost))
            if round_number % 3 == 0:
                loose.send("PERSIST\n")
            if round_number % 2 == 0:
                loose.line()
            daemon.kill9()
            client.close()
            loose.close()
            daemon.start()
        with daemon.client() as client:
            self.check(client, kept, None)

    def change(self, client, kept, round_number):
        for index in range(8):
            key = f"key-{round_number}-{index}"
            kept[key] = make_value(key, 0)
            self.assertEqual(client.put(key, kept[key]), "STORED")
        for key in random.Random(round_number).sample(sorted(kept), 4):
            if kept[key] is None:
                continue
            if len(key) % 2:
                kept[key] = make_value(key, round_number)
                self.assertEqual(client.put(key, kept[key], " overwrite"), "STORED")
            else:
                kept[key] = None
                self.assertEqual(client.ask(f"DELETE {key}"), "DELETED")

    def check(self, client, kept, round_number):
        """All keys at the end, in between those of the last rounds and some of the others."""
        keys = sorted(kept)
        if round_number is not None:
            recent = [k for k in keys if int(k.split("-")[1]) >= round_number - 2]
            keys = recent + random.Random(round_number).sample(keys, min(30, len(keys)))
        for key in keys:
            self.assertEqual(client.get(key), kept[key], key)


class Ends(SessionTest):
    def a_clean_end_loses_nothing(self, backend):
        daemon = self.daemon(backend)
        with daemon.client() as client:
            for index in range(200):
                self.assertEqual(client.put(f"key-{index}", make_value(index, 0), f" flags={index}"),
                                 "STORED")
            self.assertEqual(client.put("brief", "x", " ttl=1"), "STORED")
            self.assertEqual(client.put("long", "x", " ttl=1000"), "STORED")
            stored = time.monotonic()
        daemon.restart()
        with daemon.client() as client:
            for index in range(200):
                line = client.ask(f"GET key-{index}")
                self.assertEqual(client.value(line), make_value(index, 0))
                self.assertTrue(index == 0 or line.endswith(f" flags={index}"), line)
            self.assertRegex(client.ask("HEAD long"), "SIZE 1 ttl=(9[0-9][0-9]|1000)$")
            until(lambda: time.monotonic() > stored + 1.1, "a second passes")
            self.assertIsNone(client.get("brief"))

    def cleared_is_cleared(self, backend):
        daemon = self.daemon(backend)
        with daemon.client() as client:
            for index in range(50):
                client.put(f"old-{index}", "x")
            self.assertEqual(client.ask("PERSIST"), "OK")
            self.assertEqual(client.ask("CLEAR"), "OK entries=50")
            client.put("new", "y")
            self.assertEqual(client.ask("PERSIST"), "OK")
        daemon.kill9()
        daemon.start()
        with daemon.client() as client:
            self.assertEqual(client.inspect()["entries"], "1")
            self.assertEqual(client.get("new"), b"y")
            self.assertEqual(client.put("old-1", "z"), "STORED")

    def persist_is_shared(self, backend):
        """Many ask at once, while others write."""
        daemon = self.daemon(backend)
        clients = self.clients(daemon, 20)
        for index, client in enumerate(clients):
            client.send(f"PUT key-{index} 5\nvalue\nPERSIST\n")
        for client in clients:
            self.assertEqual(client.line(), "STORED")
            self.assertEqual(client.line(), "OK")
        daemon.kill9()
        daemon.start()
        with daemon.client() as client:
            self.assertEqual(client.inspect()["entries"], "20")


class Damage(SessionTest):
    """Whatever became of the files: a miss and a line in the log, never a wrong byte, never a crash.
    """

    COUNT = 60

    def filled(self, backend, journal="0"):
        # Without the memory tier, which would answer what is damaged behind it.
        daemon = self.daemon(backend, memory_size="0", journal_size=journal)
        self.values = {f"key-{i}": random.Random(i).randbytes(3000 + i) for i in range(self.COUNT)}
        with daemon.client() as client:
            for key, value in self.values.items():
                self.assertEqual(client.put(key, value), "STORED")
            self.assertEqual(client.ask("PERSIST"), "OK")
        return daemon

    def files(self, daemon):
        return sorted(p for p in daemon.directory.rglob("*") if p.is_file())

    def check(self, daemon, least, most=None):
        """Every value is right or a miss; how many are right lies between the two."""
        with daemon.client() as client:
            hits = 0
            for key, value in self.values.items():
                got = client.get(key)
                if got is not None:
                    self.assertEqual(got, value, key)
                    hits += 1
            self.assertGreaterEqual(hits, least)
            self.assertLessEqual(hits, self.COUNT if most is None else most)
            # It serves on: what is missing can be put again.
            for key, value in self.values.items():
                self.assertRegex(client.put(key, value), "STORED|EXISTS")
                self.assertEqual(client.get(key), value)
            self.assertEqual(client.ask("PERSIST"), "OK")
            self.assertRegex(client.ask("CLEAR"), "OK entries=[0-9]+")
            self.assertEqual(client.put("after", "x"), "STORED")

    def says_so(self, daemon, before):
        """The log has a new line besides those of starting and stopping."""
        lines = daemon.log()[before:].splitlines()
        told = [l for l in lines if "warning" in l or "error" in l]
        self.assertTrue(told, "nothing was logged:\n" + "\n".join(lines))

    def entry_file(self, daemon, key):
        """The file of an entry of the filesystem store: the one that holds its bytes."""
        value = self.values[key]
        return next(p for p in self.files(daemon) if value in p.read_bytes())

    def damaged_entries(self, running):
        """Each kind of damage to one entry; while the daemon runs, or between two runs."""
        daemon = self.filled("filesystem")
        before = len(daemon.log())
        victims = {}

        def spoil(key, how):
            path = self.entry_file(daemon, key)
            victims[key] = path
            how(path)

        def change(position):
            def how(path):
                data = bytearray(path.read_bytes())
                data[position] ^= 0x40
                path.write_bytes(data)
            return how

        def truncate(length):
            return lambda path: os.truncate(path, length)

        def become_link(path):
            path.unlink()
            path.symlink_to("/etc/passwd")

        def become_other(path):
            shutil.copy(self.entry_file(daemon, "key-20"), path)

        if not running:
            daemon.stop()
        kinds = [change(i) for i in (0, 4, 8, 16, 24, 32, 40, 48)]
        kinds += [change(-1), change(-1500), change(-2999), truncate(0), truncate(10),
                  truncate(2000), lambda path: path.unlink(), become_link, become_other,
                  lambda path: path.write_bytes(path.read_bytes() + b"more"),
                  lambda path: path.write_bytes(b"")]
        for index, how in enumerate(kinds):
            spoil(f"key-{index + 30}", how)
        if not running:
            daemon.start()
        # Some kinds of damage touch nothing that matters: then the value is right.
        self.check(daemon, self.COUNT - len(kinds))
        self.says_so(daemon, before)

    def test_entries_while_it_runs(self):
        self.damaged_entries(True)

    def test_entries_between_two_runs(self):
        self.damaged_entries(False)

    def journal_files(self, daemon):
        return [p for p in self.files(daemon) if p.parent.name == "journal"]

    def damaged_journal(self, how, least):
        """Killed before its entries had files; some lie in the journal alone."""
        daemon = self.filled("filesystem", journal="64M")
        daemon.kill9()
        for attempt in range(20):  # on a slow machine they may have files already
            if self.journal_files(daemon):
                break
            daemon.start()
            with daemon.client() as client:
                self.assertEqual(client.put(f"late-{attempt}", "x" * 3000), "STORED")
            daemon.kill9()
        files = self.journal_files(daemon)
        self.assertTrue(files, "there is no journal")
        before = len(daemon.log())
        for path in files:
            how(path)
        daemon.start()
        self.check(daemon, least)
        self.says_so(daemon, before)

    def test_journal_has_wrong_bits(self):
        chance = random.Random(4)

        def how(path):
            data = bytearray(path.read_bytes())
            for _ in range(5):
                data[chance.randrange(16, len(data))] ^= 1 << chance.randrange(8)
            path.write_bytes(data)
        self.damaged_journal(how, self.COUNT - 5)

    def test_journal_is_cut(self):
        self.damaged_journal(lambda path: os.truncate(path, path.stat().st_size * 2 // 3),
                             self.COUNT // 2)

    def test_journal_is_noise(self):
        self.damaged_journal(
            lambda path: path.write_bytes(random.Random(5).randbytes(path.stat().st_size)), 0)

    def index_files(self, daemon):
        return [p for p in self.files(daemon) if p.name.startswith("index")]

    def damaged_index(self, how, clean):
        daemon = self.filled("filesystem")
        if clean:
            daemon.stop()
        else:
            daemon.kill9()
        files = self.index_files(daemon)
        self.assertTrue(files, "there is no index")
        before = len(daemon.log())
        for path in files:
            how(path)
        daemon.start()
        with daemon.client() as client:
            until(lambda: client.inspect()["entries"] == str(self.COUNT), "the index is rebuilt")
        self.check(daemon, self.COUNT)
        return daemon.log()[before:]

    def test_index_is_missing(self):
        for clean in (True, False):
            with self.subTest(clean=clean):
                self.damaged_index(lambda path: path.unlink(), clean)

    def test_index_is_empty(self):
        for clean in (True, False):
            with self.subTest(clean=clean):
                self.damaged_index(lambda path: os.truncate(path, 0), clean)

    def test_index_is_cut(self):
        for clean in (True, False):
            with self.subTest(clean=clean):
                self.damaged_index(lambda path: os.truncate(path, path.stat().st_size * 2 // 3),
                                   clean)

    def test_index_is_noise(self):
        self.damaged_index(
            lambda path: path.write_bytes(random.Random(1).randbytes(path.stat().st_size)), True)

    def test_index_has_a_wrong_bit_anywhere(self):
        daemon = self.filled("filesystem")
        daemon.stop()
        files = self.index_files(daemon)
        saved = {path: path.read_bytes() for path in files}
        chance = random.Random(2)
        for path, data in saved.items():
            positions = [0, 1, 8, 16, 24, len(data) - 1]
            positions += [chance.randrange(len(data)) for _ in range(10)] if data else []
            for position in positions:
                if position >= len(data):
                    continue
                spoilt = bytearray(data)
                spoilt[position] ^= 1 << chance.randrange(8)
                path.write_bytes(spoilt)
                daemon.start()
                with daemon.client() as client:
                    for key in ("key-0", "key-31", "key-59"):
                        self.assertEqual(client.get(key), self.values[key])
                daemon.stop()
                for other, content in saved.items():
                    other.write_bytes(content)

    def test_index_is_old(self):
        """Entries came and went since it was written: it is the files that count."""
        daemon = self.filled("filesystem")
        daemon.stop()
        old = {path: path.read_bytes() for path in self.index_files(daemon)}
        daemon.start()
        with daemon.client() as client:
            self.assertEqual(client.put("new", "value"), "STORED")
            self.assertEqual(client.ask("DELETE key-1"), "DELETED")
            self.assertEqual(client.put("key-2", "other", " overwrite"), "STORED")
            self.assertEqual(client.ask("PERSIST"), "OK")
        daemon.stop()
        for path, data in old.items():
            path.write_bytes(data)
        daemon.start()
        with daemon.client() as client:
            self.assertEqual(client.get("new"), b"value")
            self.assertIsNone(client.get("key-1"))
            self.assertEqual(client.get("key-2"), b"other")
            self.assertEqual(client.get("key-3"), self.values["key-3"])

    def test_foreign_files_are_left_alone(self):
        daemon = self.filled("filesystem")
        daemon.stop()
        note = daemon.directory / "README"
        note.write_text("not ours")
        daemon.start()
        self.check(daemon, self.COUNT)
        self.assertEqual(note.read_text(), "not ours")

    def database(self, daemon):
        """The largest file of the sqlite store."""
        return max(self.files(daemon), key=lambda p: p.stat().st_size)

    def damaged_database(self, how, least=0, silent=False):
        daemon = self.filled("sqlite")
        daemon.stop()
        before = len(daemon.log())
        how(self.database(daemon))
        daemon.start()
        self.check(daemon, least)
        if not silent:
            self.says_so(daemon, before)

    def test_database_is_missing(self):
        self.damaged_database(lambda path: path.unlink(), silent=True)

    def test_database_is_empty(self):
        self.damaged_database(lambda path: os.truncate(path, 0), silent=True)

    def test_database_is_cut(self):
        self.damaged_database(lambda path: os.truncate(path, path.stat().st_size // 2))

    def test_database_is_cut_to_a_crumb(self):
        self.damaged_database(lambda path: os.truncate(path, 50))

    def test_database_is_noise(self):
        self.damaged_database(
            lambda path: path.write_bytes(random.Random(1).randbytes(path.stat().st_size)))

    def test_database_begins_with_noise(self):
        def spoil(path):
            data = path.read_bytes()
            path.write_bytes(random.Random(1).randbytes(100) + data[100:])

        self.damaged_database(spoil)

    def test_database_of_another_program_is_left_alone(self):
        daemon = self.filled("sqlite")
        daemon.stop()
        path = self.database(daemon)
        path.unlink()
        with closing(sqlite3.connect(path)) as db:
            db.execute("create table entry (x)")
            db.commit()
        data = path.read_bytes()
        daemon.launch()
        self.assertEqual(daemon.wait(), 1)
        self.assertIn(str(path), daemon.log().splitlines()[-1])
        self.assertEqual(path.read_bytes(), data)
        daemon.expected = 1

    def test_database_has_wrong_bytes_anywhere(self):
        daemon = self.filled("sqlite")
        daemon.stop()
        path = self.database(daemon)
        saved = path.read_bytes()
        chance = random.Random(3)
        for _ in range(25):
            spoilt = bytearray(saved)
            for _ in range(8):
                spoilt[chance.randrange(len(spoilt))] ^= 1 << chance.randrange(8)
            for leftover in self.files(daemon):
                if leftover != path and "lock" not in leftover.name:
                    leftover.unlink()
            path.write_bytes(spoilt)
            daemon.start()
            with daemon.client() as client:
                for key, value in self.values.items():
                    line = client.ask(f"GET {key}")
                    if not line.startswith("ERROR"):
                        self.assertIn(client.value(line), (None, value))
                self.assertRegex(client.put("new", "value", " overwrite"), "STORED|ERROR")
            daemon.stop()

    def test_database_is_spoilt_while_it_runs(self):
        daemon = self.filled("sqlite")
        path = self.database(daemon)
        with open(path, "r+b") as file:
            size = path.stat().st_size
            file.seek(4096)
            file.write(random.Random(4).randbytes(size - 4096))
        with daemon.client() as client:
            for key, value in self.values.items():
                line = client.ask(f"GET {key}")
                if not line.startswith("ERROR"):
                    self.assertIn(client.value(line), (None, value))


for name in PERSISTENT:
    setattr(KillNine, f"test_fifty_times_{name}", lambda self, n=name: self.rounds(n))
    for test in (Ends.a_clean_end_loses_nothing, Ends.cleared_is_cleared, Ends.persist_is_shared):
        setattr(Ends, f"test_{test.__name__}_{name}", lambda self, n=name, t=test: t(self, n))

if __name__ == "__main__":
    unittest.main()
