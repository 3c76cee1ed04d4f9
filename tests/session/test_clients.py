"""Clients that leave when they should not, and such as never do what they should."""

import random
import socket
import struct
import unittest

from harness import BACKENDS, FAULTY, Closed, SessionTest, in_threads, until

MIB = 1 << 20


def reset(client):
    """Closes so that the other side sees an error, not an end."""
    client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()


class Leaving:
    """Clients that leave at every point; afterwards the daemon is as before. One class a backend."""

    backend = None

    def setUp(self):
        super().setUp()
        self.served = self.daemon(self.backend)
        self.watcher = self.client(self.served)
        self.assertEqual(self.watcher.ask("PING"), "OK")
        self.before = self.served.descriptors_settled()

    def as_before(self):
        # A worker that had nothing to do before may have connected to Redis meanwhile.
        until(lambda: self.served.descriptors_open() <= self.before + 2, "its descriptors are closed")
        self.assertEqual(self.watcher.ask("PING"), "OK")

    def test_in_a_line(self):
        for end in (socket.socket.close, None):
            for client in self.clients(self.served, 20):
                client.send("PUT some-ke")
                client.close() if end else reset(client)
        self.as_before()

    def test_in_a_put(self):
        for client in self.clients(self.served, 20):
            client.send(b"PUT key 1000000\n" + bytes(500000))
            client.close()
        self.as_before()
        self.assertIsNone(self.watcher.get("key"))

    def test_before_the_last_byte_of_a_put(self):
        for client in self.clients(self.served, 20):
            client.send(b"PUT key 10\n0123456789")
            client.close()
        self.as_before()
        self.assertIsNone(self.watcher.get("key"))

    def test_in_a_reply(self):
        self.watcher.put("key", bytes(4 * MIB))
        for client in self.clients(self.served, 20):
            client.send("GET key\n")
            if self.backend != "null":
                client.exactly(1000)
            client.close()
        self.as_before()

    def test_without_waiting_for_replies(self):
        for index, client in enumerate(self.clients(self.served, 50)):
            client.send(f"PUT key-{index} 5\nvalue\nGET key-{index}\nPERSIST\nCLEAR\nINSPECT\n" * 10)
            client.close()
        self.as_before()

    def test_half_closed_still_gets_its_answers(self):
        client = self.client(self.served)
        client.send(b"PUT key 5\nvalue\nGET key\nPING\nHEAD key")
        client.socket.shutdown(socket.SHUT_WR)
        self.assertEqual(client.line(), "STORED")
        self.assertEqual(client.value(client.line()), None if self.backend == "null" else b"value")
        self.assertEqual(client.line(), "OK")
        self.assertTrue(client.closed())  # the last was no whole line
        self.as_before()

    def test_a_quit_is_not_read_past(self):
        client = self.client(self.served)
        client.send("PING\nQUIT\nPUT key 5\nvalue\n")
        self.assertEqual(client.line(), "OK")
        with self.assertRaises(Closed):
            client.line()
        self.assertIsNone(self.watcher.get("key"))
        self.as_before()

    def storm(self, seed):
        """A client that asks at random, leaves at random, and checks what it reads."""
        chance = random.Random(seed)
        for _ in range(12):
            with self.served.client() as client:
                self.random_requests(client, chance)
                if chance.random() < 0.3:
                    reset(client)

    def random_requests(self, client, chance):
        for _ in range(chance.randrange(1, 20)):
            key = f"k{chance.randrange(10)}"
            what = chance.randrange(8)
            if what == 0:
                client.send(f"GET {key}\n" * chance.randrange(1, 50))
                return
            if what == 1:
                client.send(b"PUT %s 100000\n" % key.encode() + bytes(chance.randrange(100000)))
                return
            if what == 2:
                client.send(chance.randbytes(chance.randrange(1, 2000)))
                return
            if what == 3:
                client.send(f"GET {key} lease=1\n")
                return
            if what == 4:
                client.put(key, key * chance.randrange(1, 20000), " overwrite")
            elif what == 5:
                client.ask(f"DELETE {key}")
            else:
                value = client.get(key)
                if value is not None:
                    self.assertEqual(value, (key * (len(value) // 2)).encode())

    def test_a_storm_of_all_of_it(self):
        in_threads(12, self.storm)
        self.as_before()


for name in BACKENDS:
    class_name = f"Leaving_{name}"
    globals()[class_name] = type(class_name, (Leaving, SessionTest), {"backend": name})


class Faults:
    """Stores that are slow, fail, or forget; see tests/fault_store.h for the keys."""

    backend = None

    def setUp(self):
        super().setUp()
        self.served = self.daemon(self.backend, program=FAULTY, stop_timeout="60s")

    def test_answers_stay_in_order(self):
        daemon = self.served
        client = self.client(daemon)
        client.send("GET !delay=100/k\nPING\nGET !delay=1/k\nHEAD k\nPING\n")
        self.assertEqual([client.line() for _ in range(5)], ["MISS", "OK", "MISS", "MISS", "OK"])

    def test_one_who_waits_holds_up_nobody(self):
        daemon = self.served
        slow, *others = self.clients(daemon, 20)
        slow.send("GET !hold=h/k\n")
        for other in others:
            self.assertEqual(other.put("key", "value", " overwrite"), "STORED")
            self.assertEqual(other.get("key"), b"value")
        self.assertTrue(slow.silent())
        self.assertEqual(others[0].put("!release=h/", ""), "STORED")
        self.assertEqual(slow.line(), "MISS")

    def test_errors_have_their_codes(self):
        codes = ("no-space", "denied", "unavailable", "timeout", "busy", "internal", "too-large")
        daemon = self.served
        client = self.client(daemon)
        for code in codes:
            for when in ("", "!delay=1"):
                self.assertRegex(client.ask(f"GET {when}!error={code}/k"), f"ERROR {code} ")
                self.assertRegex(client.put(f"{when}!error={code}/k", "v"), f"ERROR {code} ")
                self.assertRegex(client.ask(f"HEAD {when}!error={code}/k"), f"ERROR {code} ")
                self.assertRegex(client.ask(f"DELETE {when}!error={code}/k"), f"ERROR {code} ")
        for verb in ("persist", "clear", "inspect"):
            self.assertEqual(client.put(f"!on={verb}!error=unavailable/k", ""), "STORED")
            self.assertRegex(client.ask(verb.upper()), "ERROR unavailable ")
        self.assertEqual(client.ask("PING"), "OK")

    def test_an_answer_that_comes_when_the_client_is_gone(self):
        daemon = self.served
        other = self.client(daemon)
        self.assertEqual(other.ask("PING"), "OK")
        before = daemon.descriptors_open()
        key = "!hold=h/k" if daemon.backend == "fault" else "!delay=300/k"
        for request in (f"GET {key}", f"HEAD {key}", f"DELETE {key}2", f"PUT {key} 5\nvalue",
                        f"GET {key} lease=9"):
            gone = self.client(daemon)
            gone.send(request + "\n")
            self.assertTrue(gone.taken())
            gone.close()
        until(lambda: daemon.descriptors_open() <= before, "their descriptors are closed")
        self.assertEqual(other.put("!release=h/", ""), "STORED")
        # What was asked for is done, though nobody hears of it.
        until(lambda: other.inspect()["entries"] == "2", "the PUT was done")

    def test_leases_over_a_slow_store(self):
        daemon = self.served
        key = "!on=put!delay=50/k"
        clients = self.clients(daemon, 20)
        for client in clients:
            client.send(f"GET {key} lease=60\n")
        winner = until(lambda c=clients: next((x for x in c if not x.silent()), None), "a lease")
        self.assertEqual(winner.line(), "MISS lease")
        self.assertEqual(winner.put(key, "value"), "STORED")
        for client in clients:
            if client is not winner:
                self.assertEqual(client.value(client.line()), b"value")

    def test_a_put_that_fails_does_not_end_a_lease(self):
        daemon = self.served
        holder, waiter = self.clients(daemon, 2)
        key = "!on=put!error=no-space/k"
        self.assertEqual(holder.ask(f"GET {key} lease=60"), "MISS lease")
        waiter.send(f"GET {key} lease=60\n")
        self.assertTrue(waiter.taken())
        self.assertRegex(holder.put(key, "v"), "ERROR no-space")
        self.assertTrue(waiter.silent(0.1))
        self.assertEqual(holder.ask(f"DELETE {key}"), "MISS")
        self.assertEqual(waiter.line(), "MISS lease")

    def test_a_get_that_fails_holds_no_lease(self):
        daemon = self.served
        first, second = self.clients(daemon, 2)
        key = "!on=get!error=timeout/k"
        self.assertRegex(first.ask(f"GET {key} lease=60"), "ERROR timeout")
        self.assertRegex(second.ask(f"GET {key} lease=60"), "ERROR timeout")

    def test_a_store_that_forgets(self):
        """Who waits gets the value that it waited for, though the store has it no more."""
        holder, waiter = self.clients(self.served, 2)
        for attempt in range(20):
            key = f"!lose/{attempt}"
            self.assertEqual(holder.ask(f"GET {key} lease=60"), "MISS lease")
            waiter.send(f"GET {key} lease=60\n")
            self.assertTrue(waiter.taken())
            waiter.silent(0.02 * attempt)
            self.assertEqual(holder.put(key, "value"), "STORED")
            line = waiter.line()
            if line != "MISS lease":  # that one was not yet in line
                break
        self.assertEqual(waiter.value(line), b"value")
        self.assertEqual(waiter.ask(f"GET {key}"), "MISS")

    def test_the_end_waits_for_what_is_pending(self):
        daemon = self.served
        client = self.client(daemon)
        client.send("GET !delay=300/k\n")
        self.assertTrue(client.taken())
        daemon.stop()
        self.assertEqual(client.line(), "MISS")


class Ends(SessionTest):
    def test_the_end_does_not_wait_for_ever(self):
        daemon = self.daemon("fault", program=FAULTY, stop_timeout="500ms",
                             environment=without_leak_check())
        client = self.client(daemon)
        client.send("GET !hold=never/k\n")
        self.assertTrue(client.taken())
        daemon.stop()
        self.assertIn("pending", daemon.log())
        self.assertTrue(client.closed())


def without_leak_check():
    """For a store that never gives back what it holds: that is what the test asks of it."""
    import os
    return {**os.environ, "ASAN_OPTIONS": "detect_leaks=0"}


for name in ("fault",):
    class_name = f"Faults_{name}".replace("-", "_")
    globals()[class_name] = type(class_name, (Faults, SessionTest), {"backend": name})


if __name__ == "__main__":
    unittest.main()
