"""Leases: of many who ask for one missing key one computes, the others wait and get it."""

import subprocess
import sys
import time
import unittest

from harness import BACKENDS, SessionTest, in_threads, until

# Asks for a lease, says so, and waits to be killed.
HOLDER = """
import socket, sys
s = socket.socket(socket.AF_UNIX)
s.connect(sys.argv[1])
s.sendall(b"GET key lease=600\\n")
print(s.recv(100).decode().strip(), flush=True)
s.recv(100)
"""


class Leases:
    """The tests of one backend; its class is made below."""

    backend = None

    def setUp(self):
        super().setUp()
        self.served = self.daemon(self.backend)

    def waiting(self, client, line="GET key lease=60"):
        """Sends a request that is to wait, and makes sure that the daemon has it."""
        client.send(line + "\n")
        self.assertTrue(client.taken())
        return client

    def all_wait(self, clients):
        for client in clients:
            self.waiting(client)
        self.all_handled()

    def all_handled(self):
        """A PING on a connection of the same worker tells that what it read before was begun."""
        for _ in range(8):
            with self.served.client() as other:
                self.assertEqual(other.ask("PING"), "OK")

    def leased(self, clients):
        """The one of the clients that gets the lease, while the others stay silent."""
        def find():
            told = [c for c in clients if not c.silent()]
            return told[0] if told else None

        winner = until(find, "somebody gets the lease")
        self.assertEqual(winner.line(), "MISS lease")
        return winner

    def test_fifty_ask_one_computes(self):
        clients = self.clients(self.served, 50)
        in_threads(50, lambda i: clients[i].send("GET key lease=60\n"))
        self.assertTrue(all(c.taken() for c in clients))
        self.all_handled()
        winner = self.leased(clients)
        others = [c for c in clients if c is not winner]
        self.assertTrue(all(c.silent() for c in others))
        self.assertEqual(winner.put("key", "the value", " flags=7"), "STORED")
        for client in others:
            self.assertRegex(client.line(), r"VALUE 9 flags=7( ttl=\d+)?$")
            self.assertEqual(client.exactly(10), b"the value\n")

    def test_many_keys_at_once(self):
        def one(index):
            key, value = f"key-{index % 10}", f"value-{index % 10}".encode()
            with self.served.client() as client:
                line = client.ask(f"GET {key} lease=60")
                if line == "MISS lease":
                    self.assertEqual(client.put(key, value), "STORED")
                    return 1
                self.assertEqual(client.value(line), value)
                return 0

        computed = in_threads(100, one)
        if self.backend != "null":
            self.assertEqual(sum(computed), 10)
        else:
            self.assertGreaterEqual(sum(computed), 10)

    def test_a_killed_holder_passes_it_on(self):
        holder = subprocess.Popen([sys.executable, "-c", HOLDER, self.served.socket],
                                  stdout=subprocess.PIPE, text=True)
        try:
            self.assertEqual(holder.stdout.readline().strip(), "MISS lease")
            second, third = self.clients(self.served, 2)
            self.all_wait([second])
            self.all_wait([third])
            self.assertTrue(second.silent() and third.silent())
        finally:
            holder.kill()
            holder.wait()
            holder.stdout.close()
        next_one = self.leased([second, third])
        last = third if next_one is second else second
        self.assertTrue(last.silent(0.05))
        next_one.close()
        self.assertIs(self.leased([last]), last)

    def test_it_ends_with_its_time(self):
        first, second = self.clients(self.served, 2)
        begin = time.monotonic()
        self.assertEqual(first.ask("GET key lease=1"), "MISS lease")
        self.all_wait([second])
        self.assertEqual(second.line(), "MISS lease")
        self.assertGreaterEqual(time.monotonic() - begin, 0.99)
        # Who was too late stores all the same, and the holder's PUT finds it.
        self.assertEqual(first.put("key", "late"), "STORED")
        self.assertEqual(second.put("key", "later"),
                         "STORED" if self.backend == "null" else "EXISTS")

    def test_a_delete_ends_it(self):
        first, second, other = self.clients(self.served, 3)
        self.assertEqual(first.ask("GET key lease=60"), "MISS lease")
        self.all_wait([second])
        self.assertEqual(other.ask("DELETE key"), "MISS")
        self.assertEqual(second.line(), "MISS lease")

    def test_one_who_waits_may_leave(self):
        first, second, third = self.clients(self.served, 3)
        self.assertEqual(first.ask("GET key lease=60"), "MISS lease")
        self.all_wait([second])
        self.all_wait([third])
        second.close()
        self.assertEqual(first.put("key", "value"), "STORED")
        self.assertEqual(third.value(third.line()), b"value")

    def test_all_who_wait_may_leave(self):
        first, *others = self.clients(self.served, 20)
        self.assertEqual(first.ask("GET key lease=60"), "MISS lease")
        self.all_wait(others)
        for other in others:
            other.close()
        self.assertEqual(first.ask("DELETE key"), "MISS")
        self.assertEqual(first.ask("GET key lease=60"), "MISS lease")

    def test_the_holder_may_ask_again(self):
        first, second = self.clients(self.served, 2)
        self.assertEqual(first.ask("GET key lease=4"), "MISS lease")
        self.all_wait([second])
        self.assertEqual(first.ask("GET key lease=600"), "MISS lease")
        self.assertTrue(second.silent(4.2))  # the first time has passed, the second counts
        self.assertEqual(first.put("key", "value"), "STORED")
        self.assertEqual(second.value(second.line()), b"value")

    def test_any_put_ends_it(self):
        first, second, other = self.clients(self.served, 3)
        self.assertEqual(first.ask("GET key lease=60"), "MISS lease")
        self.all_wait([second])
        self.assertEqual(other.put("key", "from another", " overwrite"), "STORED")
        self.assertEqual(second.value(second.line()), b"from another")

    def test_a_refused_put_does_not_end_it(self):
        first, second = self.clients(self.served, 2)
        self.assertEqual(first.ask("GET key lease=60"), "MISS lease")
        self.all_wait([second])
        self.assertRegex(first.ask("PUT key 5 ttl=0\nvalue"), "ERROR syntax")
        self.assertTrue(second.silent(0.05))
        self.assertEqual(first.put("key", "value"), "STORED")
        self.assertEqual(second.value(second.line()), b"value")

    def test_it_binds_only_who_asks_for_it(self):
        first, second = self.clients(self.served, 2)
        self.assertEqual(first.ask("GET key lease=60"), "MISS lease")
        self.assertEqual(second.ask("GET key"), "MISS")
        self.assertEqual(second.ask("HEAD key"), "MISS")

    def test_the_line_is_kept(self):
        first, *others = self.clients(self.served, 8)
        self.assertEqual(first.ask("GET key lease=60"), "MISS lease")
        for other in others:
            self.all_wait([other])
        holder = first
        for other in list(others):
            holder.close()
            holder = self.leased(others)
            # What asks its storage on threads may have found some out of order.
            if self.backend in ("memory", "null"):
                self.assertIs(holder, other)
            others.remove(holder)
            self.assertTrue(all(o.silent() for o in others))

    def test_a_prefix_makes_the_same_key(self):
        first, second = self.clients(self.served, 2)
        self.assertEqual(first.ask("GET pre/key lease=60"), "MISS lease")
        self.assertEqual(second.ask("PREFIX pre/"), "OK")
        self.all_wait([second])
        self.assertEqual(first.put("pre/key", "value"), "STORED")
        self.assertEqual(second.value(second.line()), b"value")

    def test_what_is_pipelined_behind_a_wait_waits(self):
        first, second = self.clients(self.served, 2)
        self.assertEqual(first.ask("GET key lease=60"), "MISS lease")
        self.waiting(second, "GET key lease=60\nPING\nHEAD nothing")
        self.assertTrue(second.silent(0.05))
        self.assertEqual(first.put("key", "value"), "STORED")
        self.assertEqual(second.value(second.line()), b"value")
        self.assertEqual(second.line(), "OK")
        self.assertEqual(second.line(), "MISS")


class Limits(SessionTest):
    def test_max_leases(self):
        daemon = self.daemon("memory", max_leases=3)
        client, other = self.clients(daemon, 2)
        for key in "abc":
            self.assertEqual(client.ask(f"GET {key} lease=60"), "MISS lease")
        self.assertRegex(client.ask("GET d lease=60"), "ERROR busy .*max-leases")
        self.assertEqual(client.ask("GET a lease=60"), "MISS lease")  # it is held already
        self.assertEqual(other.ask("GET d lease=60"), "MISS lease")
        self.assertEqual(client.put("a", "value"), "STORED")
        self.assertEqual(client.ask("GET e lease=60"), "MISS lease")

    def test_to_wait_is_not_to_be_idle(self):
        daemon = self.daemon("memory", idle_timeout="1s")
        holder, waiter, idle = self.clients(daemon, 3)
        self.assertEqual(holder.ask("GET key lease=60"), "MISS lease")
        waiter.send("GET key lease=60\n")
        self.assertTrue(idle.closed())
        self.assertTrue(waiter.silent(1.5))
        self.assertEqual(holder.put("key", "value"), "STORED")
        self.assertEqual(waiter.value(waiter.line()), b"value")

    def test_a_stop_ends_all_waits(self):
        daemon = self.daemon("memory", stop_timeout="1s")
        holder, waiter = self.clients(daemon, 2)
        self.assertEqual(holder.ask("GET key lease=600"), "MISS lease")
        waiter.send("GET key lease=600\n")
        self.assertTrue(waiter.taken())
        daemon.stop()
        self.assertTrue(waiter.closed())


for name in BACKENDS:
    class_name = f"Leases_{name}"
    globals()[class_name] = type(class_name, (Leases, SessionTest), {"backend": name})

if __name__ == "__main__":
    unittest.main()
