"""Changes of one key: what was answered last is what is there, whatever way each of them took."""

import threading
import unittest

from harness import PERSISTENT, SessionTest

TIMES = 40
ROUNDS = 8  # between two of which the daemon is killed
WRITES = 3000
SMALL, LARGE = 3, 300000  # with 1M of memory no more than 256K may wait to be written


def numbered(number, length):
    return number.to_bytes(4, "big") + bytes(length - 4)


class AnOverwrite(SessionTest):
    def size(self, client, key):
        line = client.ask(f"HEAD {key}")
        return int(line.split(" ")[1]) if line.startswith("SIZE") else line

    def that_is_too_large_to_wait(self, backend):
        daemon = self.daemon(backend, memory_size="1M")
        kept = {}
        for count in range(ROUNDS):
            keys = [f"key-{count}-{i}" for i in range(TIMES // ROUNDS)]
            with daemon.client() as client:
                for key in keys:
                    self.assertEqual(client.put(key, bytes(SMALL)), "STORED")
                    self.assertEqual(client.put(key, bytes(LARGE), " overwrite"), "STORED")
                    self.assertEqual(self.size(client, key), LARGE)
                kept.update({key: LARGE for key in keys})
                self.changed_again(client, keys, kept)
                self.assertEqual(client.ask("PERSIST"), "OK")
                self.check(client, kept)
            daemon.kill9()
            daemon.start()
            with daemon.client() as client:
                self.check(client, kept)

    def changed_again(self, client, keys, kept):
        """Two of them take the other ways."""
        self.assertEqual(client.put(keys[0], bytes(SMALL), " overwrite"), "STORED")
        self.assertEqual(client.put(keys[0], bytes(LARGE + 1), " overwrite"), "STORED")
        self.assertEqual(client.put(keys[1], bytes(SMALL), " overwrite"), "STORED")
        self.assertEqual(client.ask(f"DELETE {keys[1]}"), "DELETED")
        kept[keys[0]], kept[keys[1]] = LARGE + 1, "MISS"

    def check(self, client, kept):
        self.assertEqual({key: self.size(client, key) for key in kept}, kept)

    def beside_a_clear_of_others(self, backend):
        daemon = self.daemon(backend)
        ended = threading.Event()
        clears = []

        def clear():
            with daemon.client() as client:
                self.assertEqual(client.ask("PREFIX other/"), "OK")
                while not ended.is_set():
                    clears.append(client.ask("CLEAR"))

        other = threading.Thread(target=clear)
        other.start()
        try:
            with daemon.client() as client:
                older = self.older_than_written(client)
        finally:
            ended.set()
            other.join()
        self.assertEqual(older, [])
        self.assertEqual(set(clears), {"OK entries=0"})
        with daemon.client() as client:
            self.assertEqual(client.ask("PERSIST"), "OK")
            self.assertEqual(client.get("key"), numbered(WRITES - 1, 100))
        daemon.kill9()
        daemon.start()
        with daemon.client() as client:
            self.assertEqual(client.get("key"), numbered(WRITES - 1, 100))

    def older_than_written(self, client):
        """The writes after which the same client reads something else."""
        older = []
        for number in range(WRITES):
            value = numbered(number, 100)
            self.assertEqual(client.put("key", value, " overwrite"), "STORED")
            if client.get("key") != value:
                older.append(number)
        return older


for name in PERSISTENT:
    for test in (AnOverwrite.that_is_too_large_to_wait, AnOverwrite.beside_a_clear_of_others):
        setattr(AnOverwrite, f"test_{test.__name__}_{name}", lambda self, n=name, t=test: t(self, n))

if __name__ == "__main__":
    unittest.main()
