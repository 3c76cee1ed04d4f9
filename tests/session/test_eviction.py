"""Where room is short: what took long to compute is kept longer, and INSPECT counts what went."""

import time
import unittest

from harness import SessionTest, until

MIB = 1 << 20


def figure(client, name):
    return int(client.inspect()[name])


def evicted(client):
    inspected = client.inspect()
    return tuple(int(inspected[name]) for name in ("evicted", "evicted-bytes", "evicted-cost-ms"))


class Eviction(SessionTest):
    def setUp(self):
        super().setUp()
        self.filled = 0

    def fill(self, client, bytes_, size=4000, options=" cost=0"):
        """Puts values of about so many bytes together, each under a new key."""
        for _ in range(bytes_ // size):
            self.filled += 1
            self.assertEqual(client.put(f"fill-{self.filled:06}", bytes(size), options), "STORED")

    def fill_until(self, client, condition, most):
        """Fills until the condition holds, with no more than so many bytes."""
        for _ in range(most // (MIB // 2)):
            if condition():
                return
            self.fill(client, MIB // 2)
        self.assertTrue(condition(), f"still not after {most} bytes")


class Memory(Eviction):
    def test_what_was_evicted_is_counted(self):
        daemon = self.daemon("memory", max_size="2M")
        client = self.client(daemon)
        self.fill(client, MIB // 2, options=" cost=1000")
        self.assertEqual(evicted(client), (0, 0, 0))
        for round_ in range(10):
            self.fill(client, MIB, options=" cost=1000")
        entries, bytes_, cost = evicted(client)
        self.assertGreater(entries, 0)
        self.assertEqual(entries, self.filled - figure(client, "entries"))
        self.assertEqual(bytes_, entries * (len("fill-000001") + 4000))
        self.assertLess(abs(cost - entries * 1000), entries * 125)
        self.assertEqual(client.ask("PREFIX elsewhere"), "OK")
        self.assertEqual(evicted(client), (entries, bytes_, cost))

    def test_what_was_removed_is_not(self):
        """Deleted, replaced, cleared, or past its end: nothing of it was for want of room."""
        client = self.client(self.daemon("memory", max_size="2M"))
        for name in ("one", "two", "three"):
            self.assertEqual(client.put(name, "value"), "STORED")
        self.assertEqual(client.put("one", "new", " overwrite"), "STORED")
        self.assertEqual(client.ask("DELETE two"), "DELETED")
        self.assertEqual(client.put("late", "value", " ttl=1"), "STORED")
        until(lambda: client.ask("HEAD late") == "MISS", "its time is over")
        self.assertEqual(client.ask("CLEAR"), "OK entries=2")
        self.assertEqual(evicted(client), (0, 0, 0))

    def test_what_is_past_its_end_makes_room_uncounted(self):
        client = self.client(self.daemon("memory", max_size="2M"))
        self.fill(client, MIB // 2, options=" ttl=1")
        short = self.filled
        until(lambda: client.ask(f"HEAD fill-{short:06}") == "MISS", "their time is over")
        for _ in range(8):
            self.fill(client, MIB)
        self.assertEqual(figure(client, "entries") + figure(client, "evicted"),
                         self.filled - short)

    def test_what_took_long_stays_longer(self):
        client = self.client(self.daemon("memory", max_size="2M"))
        for number in range(200):
            for cost, name in ((1, "cheap"), (60000, "dear")):
                line = client.put(f"{name}-{number}", bytes(2000), f" cost={cost}")
                self.assertEqual(line, "STORED")

        def left(name):
            return sum(client.ask(f"HEAD {name}-{number}") != "MISS" for number in range(200))

        self.fill_until(client, lambda: left("cheap") < 20, 64 * MIB)
        self.assertGreater(left("dear"), 100)

    def test_a_lease_s_time_is_the_cost(self):
        """What nobody gave a cost is taken to have cost what the lease's holder took, and what
        nobody was granted a lease on, 100 ms."""
        daemon = self.daemon("memory", max_size="2M")
        client, other = self.clients(daemon, 2)
        large = bytes(16000)  # goes before what is small
        begin = time.monotonic()
        self.assertEqual(client.ask("GET leased lease=60"), "MISS lease")
        granted = time.monotonic()
        time.sleep(1)
        self.assertEqual(client.ask("GET leased lease=60"), "MISS lease")  # renewed: no new start
        time.sleep(0.5)
        least = (time.monotonic() - granted) * 1000
        self.assertEqual(other.put("leased", large), "STORED")
        most = (time.monotonic() - begin) * 1000
        self.fill_until(client, lambda: client.ask("HEAD leased") == "MISS", 64 * MIB)
        cost = figure(client, "evicted-cost-ms")
        self.assertGreater(cost, least * 7 / 8 - 1)
        self.assertLess(cost, most * 9 / 8 + 1)

        self.assertEqual(client.put("plain", large), "STORED")
        self.fill_until(client, lambda: client.ask("HEAD plain") == "MISS", 64 * MIB)
        self.assertLess(abs(figure(client, "evicted-cost-ms") - cost - 100), 13)

        # What is said counts more, and no lease is left of the one before.
        self.assertEqual(client.ask("GET said lease=60"), "MISS lease")
        self.assertEqual(client.put("said", large, " cost=8000"), "STORED")
        self.fill_until(client, lambda: client.ask("HEAD said") == "MISS", 64 * MIB)
        self.assertLess(abs(figure(client, "evicted-cost-ms") - cost - 8100), 1013)


class Disk(Eviction):
    """The tests of one backend; its class is made below."""

    backend = None
    most = 16 * MIB

    def setUp(self):
        super().setUp()
        self.served = self.daemon(self.backend, max_size=self.most, memory_size="4M")

    def test_a_cost_survives_a_restart_and_a_way_through_memory(self):
        value = bytes(100_000)
        with self.served.client() as client:
            self.assertEqual(client.put("dear", value, " cost=60000"), "STORED")
            self.assertEqual(client.ask("PERSIST"), "OK")
        self.served.restart()
        client = self.client(self.served)
        self.assertEqual(client.get("dear"), value)  # and now it is in memory, too
        gone = lambda: client.ask("HEAD dear") == "MISS"
        self.fill_until(client, gone, 40 * self.most)
        self.assertLess(abs(figure(client, "evicted-cost-ms") - 60000), 60000 / 8)

    def test_what_leaves_memory_is_not_evicted(self):
        client = self.client(self.served)
        self.fill(client, 8 * MIB)  # twice what memory holds
        self.assertEqual(client.ask("PERSIST"), "OK")
        self.assertEqual(evicted(client), (0, 0, 0))
        self.assertEqual(figure(client, "entries"), self.filled)
        self.fill_until(client, lambda: figure(client, "evicted") > 1000, 40 * self.most)
        entries, bytes_, _ = evicted(client)
        self.assertLess(abs(bytes_ - entries * 4011), entries * 600)


for name in ("filesystem", "sqlite"):
    globals()[f"Disk_{name}"] = type(f"Disk_{name}", (Disk,), {"backend": name})
del Disk

if __name__ == "__main__":
    unittest.main()
