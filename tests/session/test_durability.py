"""What is on the disk: after kill -9, after a clean end, and after damage."""

import os
import random
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
    """Whatever became of the files: a miss and a line in the log, never a wrong byte nor an older
    value, never a crash."""

    COUNT = 60

    def filled(self, backend):
        """A daemon that has nothing in memory. Each value has superseded one, and some are gone."""
        # The bound makes several segments of what is written here.
        daemon = self.daemon(backend, memory_size="0", max_size="8M")
        self.values = {f"key-{i}": random.Random(i).randbytes(3000 + i) for i in range(self.COUNT)}
        self.gone = [f"gone-{i}" for i in range(10)]
        with daemon.client() as client:
            for key in [*self.values, *self.gone]:
                self.assertEqual(client.put(key, b"old " + key.encode() * 200), "STORED")
            self.assertEqual(client.ask("PERSIST"), "OK")
            for number in range(70):
                self.assertEqual(client.put(f"other-{number}", bytes(10000)), "STORED")
            for key, value in self.values.items():
                self.assertEqual(client.put(key, value, " overwrite"), "STORED")
            for key in self.gone:
                self.assertEqual(client.ask(f"DELETE {key}"), "DELETED")
            self.assertEqual(client.ask("PERSIST"), "OK")
        daemon.restart()
        return daemon

    def files(self, daemon):
        return sorted(p for p in daemon.directory.rglob("*") if p.is_file() and p.name != "lock")

    def hits(self, client):
        """How many values are there; each one is right or a miss."""
        hits = 0
        for key, value in self.values.items():
            got = client.get(key)
            if got is not None:
                self.assertEqual(got, value, key)
                hits += 1
        for key in self.gone:
            self.assertIsNone(client.get(key), key)
        return hits

    def check(self, daemon, least):
        """Serves what is right, and goes on: what is missing can be put again."""
        with daemon.client() as client:
            hits = self.hits(client)
            self.assertGreaterEqual(hits, least)
            # A PERSIST that fails says that what was stored before it may be gone: memory keeps
            # none of it here. The one under way when damage is found and the next may say so.
            for attempt in range(3):
                for key, value in self.values.items():
                    self.assertEqual(client.put(key, value, " overwrite"), "STORED")
                answer = client.ask("PERSIST")
                if answer == "OK":
                    break
                self.assertRegex(answer, "ERROR internal .*Input/output error")
            self.assertEqual(answer, "OK")
        daemon.kill9()
        daemon.start()
        with daemon.client() as client:
            self.assertEqual(self.hits(client), self.COUNT)
            self.assertRegex(client.ask("CLEAR"), "OK entries=[0-9]+")
            self.assertEqual(client.put("after", "x"), "STORED")
            self.assertEqual(client.get("after"), b"x")
        return hits

    def says_so(self, daemon, before):
        """The log has a new line besides those of starting and stopping."""
        lines = daemon.log()[before:].splitlines()
        told = [l for l in lines if "warning" in l or "error" in l]
        self.assertTrue(told, "nothing was logged:\n" + "\n".join(lines))

    def segments(self, daemon):
        return sorted(daemon.directory.glob("*.log"))

    def place(self, daemon, key):
        """The segment that holds the value, and where it begins there."""
        for path in self.segments(daemon):
            at = path.read_bytes().find(self.values[key])
            if at >= 0:
                return path, at
        raise AssertionError(f"{key} is in no segment")

    @staticmethod
    def write_at(path, at, data):
        with open(path, "r+b") as file:
            file.seek(at)
            file.write(data)

    def damaged_records(self, running):
        """Each kind of damage to one record; while the daemon runs, or between two runs."""
        daemon = self.filled("filesystem")
        if not running:
            daemon.stop()
        before = len(daemon.log())
        # Of the value, and of the key and the head that lie before it.
        for index, offset in enumerate((0, 1500, 2999, -1, -6, -7, -10, -16, -20, -30, -38)):
            path, at = self.place(daemon, f"key-{index + 30}")
            at += offset
            self.write_at(path, at, bytes([path.read_bytes()[at] ^ 0x40]))
        path, at = self.place(daemon, "key-50")
        self.write_at(path, at, bytes(2000))
        # A record that is sound where it lies is not at another place.
        path, at = self.place(daemon, "key-20")
        record = path.read_bytes()[at - 38:at + 3020]
        path, at = self.place(daemon, "key-52")
        self.write_at(path, at - 38, record)
        if not running:
            daemon.start()
        self.check(daemon, self.COUNT - 14)
        self.says_so(daemon, before)

    def test_records_while_it_runs(self):
        self.damaged_records(True)

    def test_records_between_two_runs(self):
        self.damaged_records(False)

    def damaged_segment(self, how, which, clean, silent=False):
        daemon = self.filled("filesystem")
        if clean:
            daemon.stop()
        else:
            daemon.kill9()
        before = len(daemon.log())
        segments = self.segments(daemon)
        self.assertGreater(len(segments), 1)
        how(segments[which])
        daemon.start()
        hits = self.check(daemon, 0)
        if hits < self.COUNT and not silent:
            self.says_so(daemon, before)

    def each_segment(self, how, silent=False):
        for which in (0, -1):
            for clean in (True, False):
                with self.subTest(which=which, clean=clean):
                    self.damaged_segment(how, which, clean, silent and which == -1)

    def test_segment_is_missing(self):
        self.each_segment(lambda path: path.unlink(), silent=True)

    def test_segment_is_empty(self):
        self.each_segment(lambda path: os.truncate(path, 0), silent=True)

    def test_segment_is_cut(self):
        self.each_segment(lambda path: os.truncate(path, path.stat().st_size * 2 // 3),
                          silent=True)

    def test_segment_is_noise(self):
        self.each_segment(
            lambda path: path.write_bytes(random.Random(5).randbytes(path.stat().st_size)),
            silent=True)

    def test_segment_is_a_link(self):
        def how(path):
            path.unlink()
            path.symlink_to("/etc/passwd")

        self.each_segment(how)

    def test_segment_has_a_wrong_bit_anywhere(self):
        """One spot costs no more than the records of a batch; an older value never comes back."""
        daemon = self.filled("filesystem")
        daemon.stop()
        segments = self.segments(daemon)
        saved = {path: path.read_bytes() for path in self.files(daemon)}
        chance = random.Random(2)
        for path in segments:
            data = saved[path]
            positions = [0, 8, 16, 24, 32, 64, 128, len(data) - 1, len(data) - 20, len(data) - 48]
            positions += [chance.randrange(len(data)) for _ in range(5)]
            for position in positions:
                for leftover in self.segments(daemon):
                    leftover.unlink()
                for other, content in saved.items():
                    other.write_bytes(content)
                self.write_at(path, position, bytes([data[position] ^ 1 << chance.randrange(8)]))
                daemon.start()
                with daemon.client() as client:
                    self.hits(client)
                    self.assertEqual(client.put("new", "value", " overwrite"), "STORED")
                daemon.stop()

    def each_anchor(self, how):
        for clean in (True, False):
            with self.subTest(clean=clean):
                daemon = self.filled("filesystem")
                if clean:
                    daemon.stop()
                else:
                    daemon.kill9()
                before = len(daemon.log())
                how(daemon.directory / "anchor")
                daemon.start()
                self.assertEqual(self.check(daemon, 0), 0)
                self.says_so(daemon, before)

    def test_anchor_is_missing(self):
        self.each_anchor(lambda path: path.unlink())

    def test_anchor_is_noise(self):
        self.each_anchor(lambda path: path.write_bytes(random.Random(6).randbytes(5000)))

    def test_one_half_of_the_anchor_is_enough(self):
        for at in (8, 4096 + 8):
            with self.subTest(at=at):
                daemon = self.filled("filesystem")
                daemon.stop()
                self.write_at(daemon.directory / "anchor", at, bytes(16))
                daemon.start()
                self.check(daemon, self.COUNT)

    def test_damage_to_an_anchor_half_does_not_make_an_older_end_count(self):
        """The log is cut as well, to where the anchor had it one PERSIST before."""
        for at in (8, 4096 + 8):
            with self.subTest(at=at):
                daemon = self.filled("filesystem")
                key, value = next(iter(self.values.items()))
                with daemon.client() as client:
                    self.assertEqual(client.put(key, "middle", " overwrite"), "STORED")
                    self.assertEqual(client.ask("PERSIST"), "OK")
                    log = self.segments(daemon)[-1]
                    before = log.read_bytes()
                    self.assertEqual(client.put(key, value, " overwrite"), "STORED")
                    self.assertEqual(client.ask("PERSIST"), "OK")
                daemon.kill9()
                self.assertEqual(self.segments(daemon)[-1], log)
                log.write_bytes(before)
                self.write_at(daemon.directory / "anchor", at, bytes(16))
                daemon.start()
                self.hits(daemon.client())

    def test_segments_are_cut_while_it_runs(self):
        daemon = self.filled("filesystem")
        for path in self.segments(daemon):
            os.truncate(path, path.stat().st_size // 2)
        with daemon.client() as client:
            self.hits(client)
            self.assertEqual(client.put("new", "value", " overwrite"), "STORED")
            self.assertEqual(client.get("new"), b"value")

    def test_foreign_files_are_left_alone(self):
        daemon = self.filled("filesystem")
        daemon.stop()
        note = daemon.directory / "README"
        note.write_text("not ours")
        daemon.start()
        self.check(daemon, self.COUNT)
        self.assertEqual(note.read_text(), "not ours")

    def refused(self, daemon, words):
        """It does not start, says what to do, and touches nothing."""
        before = {path: path.read_bytes() for path in self.files(daemon)}
        daemon.launch()
        self.assertEqual(daemon.wait(), 1)
        for word in (str(daemon.directory), *words):
            self.assertIn(word, daemon.log().splitlines()[-1])
        self.assertEqual({path: path.read_bytes() for path in self.files(daemon)}, before)
        daemon.expected = 1

    def test_older_layout_is_refused(self):
        for name in ("version", "index"):
            with self.subTest(name=name):
                daemon = self.prepared("filesystem")
                daemon.directory.mkdir(exist_ok=True)
                (daemon.directory / name).write_text("1")
                self.refused(daemon, ("older layout", "empty the directory"))

    def database(self, daemon):
        return daemon.directory / "cache.db"

    def damaged_database(self, how, name="cache.db", clean=True, silent=False):
        daemon = self.filled("sqlite")
        if clean:
            daemon.stop()
        else:
            daemon.kill9()
        path = daemon.directory / name
        self.assertTrue(path.exists(), f"there is no {name}")
        before = len(daemon.log())
        how(path)
        daemon.start()
        hits = self.check(daemon, 0)
        if hits < self.COUNT and not silent:
            self.says_so(daemon, before)

    def each_part(self, how, silent=False):
        for name in ("cache.db", "cache.db-wal", "cache.anchor"):
            for clean in (True, False):
                with self.subTest(name=name, clean=clean):
                    self.damaged_database(how, name, clean, silent)

    def test_database_part_is_missing(self):
        self.each_part(lambda path: path.unlink(), silent=True)

    def test_database_part_is_empty(self):
        self.each_part(lambda path: os.truncate(path, 0), silent=True)

    def test_database_part_is_cut(self):
        self.each_part(lambda path: os.truncate(path, path.stat().st_size // 2))

    def test_database_part_is_cut_to_a_crumb(self):
        self.each_part(lambda path: os.truncate(path, 50))

    def test_database_part_is_noise(self):
        self.each_part(
            lambda path: path.write_bytes(random.Random(1).randbytes(path.stat().st_size)))

    def test_database_begins_with_noise(self):
        self.each_part(lambda path: self.write_at(path, 0, random.Random(1).randbytes(100)))

    def foreign_database(self, statements):
        daemon = self.prepared("sqlite")
        daemon.directory.mkdir(exist_ok=True)
        with closing(sqlite3.connect(self.database(daemon))) as db:
            for statement in statements:
                db.execute(statement)
            db.commit()
        return daemon

    def test_database_of_another_program_is_refused(self):
        self.refused(self.foreign_database(["create table entry (x)"]),
                     ("another program", "use another directory"))

    def test_database_of_an_older_version_is_refused(self):
        daemon = self.foreign_database(["create table entry (key)",
                                        f"pragma application_id={0x4C696361}",
                                        "pragma user_version=2"])
        self.refused(daemon, ("older version", "delete it, or use another directory"))

    def test_database_has_wrong_bytes_anywhere(self):
        daemon = self.filled("sqlite")
        daemon.stop()
        saved = {path: path.read_bytes() for path in self.files(daemon)}
        chance = random.Random(3)
        for path, data in saved.items():
            for _ in range(8):
                for leftover in self.files(daemon):
                    leftover.unlink()
                for other, content in saved.items():
                    other.write_bytes(content)
                for _ in range(8 if data else 0):
                    position = chance.randrange(len(data))
                    self.write_at(path, position,
                                  bytes([data[position] ^ 1 << chance.randrange(8)]))
                daemon.start()
                with daemon.client() as client:
                    self.hits(client)
                    self.assertEqual(client.put("new", "value", " overwrite"), "STORED")
                daemon.stop()

    def test_database_is_spoilt_while_it_runs(self):
        daemon = self.filled("sqlite")
        path = self.database(daemon)
        size = path.stat().st_size
        self.write_at(path, 4096, random.Random(4).randbytes(max(0, size - 4096)))
        with daemon.client() as client:
            for key, value in self.values.items():
                line = client.ask(f"GET {key}")
                if not line.startswith("ERROR"):
                    self.assertIn(client.value(line), (None, value))
            until(lambda: client.put("new", "value", " overwrite") == "STORED", "it stores again")
            self.assertEqual(client.get("new"), b"value")


for name in PERSISTENT:
    setattr(KillNine, f"test_fifty_times_{name}", lambda self, n=name: self.rounds(n))
    for test in (Ends.a_clean_end_loses_nothing, Ends.cleared_is_cleared, Ends.persist_is_shared):
        setattr(Ends, f"test_{test.__name__}_{name}", lambda self, n=name, t=test: t(self, n))

if __name__ == "__main__":
    unittest.main()
