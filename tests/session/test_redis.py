"""Redis that goes, hangs and comes back while clients work."""

import random
import signal
import threading
import time
import unittest

from harness import Redis, SessionTest, all_hear, in_threads, until

DOWN = "ERROR (unavailable|timeout) "


class Outages(SessionTest):
    def setUp(self):
        super().setUp()
        self.server = self.redis()

    def serve(self, **options):
        self.served = self.daemon("redis", memory_size="0", redis_socket=self.server.socket, **options)
        self.ours = self.client(self.served)
        self.back()
        self.assertEqual(self.ours.put("before", "value"), "STORED")

    def serve_impatient(self):
        self.serve(redis_timeout="2s", redis_connect_timeout="100ms")

    def back(self):
        until(lambda: not self.ours.ask("HEAD nothing").startswith("ERROR"), "Redis is used again")

    def test_killed(self):
        """No request waits for a time-out: these are endless here."""
        self.serve()
        self.server.kill()
        for line in ("GET before", "HEAD before", "DELETE before", "PUT key 1\nx", "PUT key 0 overwrite\n",
                     "CLEAR", "INSPECT", "PERSIST"):
            self.assertRegex(self.ours.ask(line), DOWN, line)
        self.assertEqual(self.ours.ask("PING"), "OK")
        self.server.start()
        self.back()
        self.assertEqual(self.ours.put("after", "value"), "STORED")
        self.assertEqual(self.ours.get("after"), b"value")

    def test_down_for_long_it_answers_at_once(self):
        self.serve()
        self.server.kill()
        begin = time.monotonic()
        while time.monotonic() - begin < 3:
            self.assertRegex(self.ours.ask("GET before"), DOWN)
            time.sleep(0.05)
        self.server.start()
        self.back()

    def test_stopped(self):
        self.serve_impatient()
        self.server.signal(signal.SIGSTOP)
        self.assertRegex(self.ours.ask("GET before"), DOWN)
        self.assertRegex(self.ours.ask("PUT key 5\nvalue"), DOWN)
        self.server.signal(signal.SIGCONT)
        self.back()
        self.assertEqual(self.ours.get("before"), b"value")

    def test_a_late_reply_answers_nobody_else(self):
        self.serve_impatient()
        for index in range(50):
            self.assertEqual(self.ours.put(f"key-{index}", f"value of key-{index}"), "STORED")
        for round_number in range(4):
            clients = self.clients(self.served, 10)
            self.server.signal(signal.SIGSTOP)
            for index, client in enumerate(clients):
                client.send(f"GET key-{index}\n")
            replies = [client.line() for client in clients]
            self.assertTrue(all(r.startswith("ERROR") for r in replies), replies)
            self.server.signal(signal.SIGCONT)
            for index, client in enumerate(clients):
                client.send(f"GET key-{49 - index}\nGET key-{round_number}\n")
            for index, client in enumerate(clients):
                for key in (f"key-{49 - index}", f"key-{round_number}"):
                    line = client.line()
                    if not line.startswith("ERROR"):
                        self.assertEqual(client.value(line), f"value of {key}".encode())
            self.back()

    def test_it_comes_and_goes_while_clients_work(self):
        self.serve_impatient()
        stop = threading.Event()
        good = [0] * 8

        def work(index):
            chance = random.Random(index)
            with self.served.client() as client:
                while not stop.is_set():
                    key = f"{index}-{chance.randrange(20)}"
                    if chance.random() < 0.5:
                        reply = client.put(key, key * 50)
                        self.assertRegex(reply, f"STORED|EXISTS|{DOWN}")
                    else:
                        line = client.ask(f"GET {key}")
                        if line.startswith("ERROR"):
                            self.assertRegex(line, DOWN)
                            continue
                        self.assertIn(client.value(line), (None, (key * 50).encode()))
                        good[index] += 1

        def disturb():
            try:
                until(lambda: all(good), "all have read something")
                for _ in range(3):
                    time.sleep(0.3)
                    self.server.kill()
                    time.sleep(0.3)
                    self.server.start()
                    self.back()
                    self.server.signal(signal.SIGSTOP)
                    time.sleep(0.3)
                    self.server.signal(signal.SIGCONT)
                    self.back()
            finally:
                stop.set()

        in_threads(9, lambda i: disturb() if i == 8 else work(i))

    def test_a_put_that_was_cut_off_may_be_there_or_not(self):
        self.serve()
        for index in range(5):
            writer = self.client(self.served)
            writer.send(f"PUT big-{index} 3000000\n".encode() + bytes([index]) * 3000000 + b"\n")
            time.sleep(0.002 * index)
            self.server.kill()
            self.assertRegex(writer.line(), f"STORED|{DOWN}")
            self.server.start()
            self.back()
            value = self.ours.get(f"big-{index}")
            self.assertIn(value, (None, bytes([index]) * 3000000))

    def test_leases_go_on_when_redis_does_not(self):
        self.serve(workers=1)
        holder, waiter = self.clients(self.served, 2)
        self.assertEqual(holder.ask("GET key lease=60"), "MISS lease")
        waiter.send("GET key lease=60\n")
        self.assertTrue(waiter.taken())
        # Answers of Redis come in order: it has said that the key is not there.
        self.assertEqual(self.ours.ask("HEAD nothing"), "MISS")
        self.assertTrue(waiter.silent())
        self.server.kill()
        self.assertRegex(holder.put("key", "value"), DOWN)
        self.assertTrue(waiter.silent(0.1))
        holder.close()
        self.assertRegex(waiter.line(), f"MISS lease|{DOWN}")

    def test_stop_while_redis_hangs(self):
        self.serve_impatient()
        self.server.signal(signal.SIGSTOP)
        self.ours.send("GET before\n")
        self.assertTrue(self.ours.taken())
        self.served.stop()
        self.server.signal(signal.SIGCONT)

    def test_stop_while_redis_hangs_for_longer_than_the_stop_may_take(self):
        """Nothing here ends by a time-out of Redis: these are endless."""
        self.serve(stop_timeout="500ms")
        self.server.signal(signal.SIGSTOP)
        self.ours.send("GET before\n")
        self.assertTrue(self.ours.taken())
        begin = time.monotonic()
        self.served.stop()
        self.assertLess(time.monotonic() - begin, 40)  # it was 60 s, whatever stop-timeout said
        self.server.signal(signal.SIGCONT)


class Starts(SessionTest):
    def test_without_a_server(self):
        """The daemon starts, answers unavailable, and uses Redis once it comes."""
        folder = self.folder / "redis"
        folder.mkdir()
        daemon = self.daemon("redis", memory_size="0", redis_socket=folder / "redis.sock")
        client = self.client(daemon)
        self.assertRegex(client.ask("GET key"), DOWN)
        server = Redis(folder)
        self.addCleanup(server.kill)
        until(lambda: client.ask("GET key") == "MISS", "Redis is used")

    def test_a_server_that_does_not_accept(self):
        """A listening socket with a full queue: connecting hangs."""
        import socket
        path = self.folder / "mute.sock"
        with socket.socket(socket.AF_UNIX) as mute:
            mute.bind(str(path))
            mute.listen(0)
            daemon = self.daemon("redis", memory_size="0", redis_socket=path,
                                 redis_connect_timeout="100ms")
            client = self.client(daemon)
            for _ in range(3):
                self.assertRegex(client.ask("GET key"), DOWN)

    def test_a_server_that_speaks_nonsense(self):
        import socket
        path = self.folder / "noise.sock"
        stop = threading.Event()
        with socket.socket(socket.AF_UNIX) as noise:
            noise.bind(str(path))
            noise.listen(10)
            noise.settimeout(0.1)

            def babble():
                while not stop.is_set():
                    try:
                        peer, _ = noise.accept()
                    except socket.timeout:
                        continue
                    with peer:
                        peer.settimeout(0.5)
                        try:
                            peer.recv(1000)
                            peer.sendall(b"hello, this is no Redis\r\n" * 10)
                        except OSError:
                            pass

            thread = threading.Thread(target=babble)
            thread.start()
            try:
                daemon = self.daemon("redis", memory_size="0", redis_socket=path)
                client = self.client(daemon)
                for _ in range(5):
                    self.assertRegex(client.ask("GET key"), "ERROR (unavailable|timeout|internal) ")
                self.assertEqual(client.ask("PING"), "OK")
            finally:
                stop.set()
                thread.join()

    def test_password_and_database(self):
        server = self.redis_with_password("open sesame")
        secret = self.folder / "password"
        secret.write_text("open sesame\n")
        secret.chmod(0o600)
        daemon = self.daemon("redis", memory_size="0", redis_socket=server.socket, redis_password_file=secret,
                             redis_database=3)
        client = self.client(daemon)
        self.assertEqual(client.put("key", "value"), "STORED")
        self.assertEqual(client.get("key"), b"value")
        wrong = self.folder / "wrong"
        wrong.write_text("close sesame\n")
        wrong.chmod(0o600)
        refused = self.daemon("redis", memory_size="0", redis_socket=server.socket, redis_password_file=wrong)
        self.assertRegex(self.client(refused).ask("GET key"), "ERROR (denied|unavailable) ")

    def redis_with_password(self, password):
        folder = self.folder / "secret"
        folder.mkdir()
        config = folder / "redis.conf"
        config.write_text(f'requirepass "{password}"\n')
        server = SecretRedis(folder)
        self.addCleanup(server.kill)
        return server

    def test_only_our_keys_are_cleared(self):
        server = self.redis()
        server.command("SET", "foreign", "1")
        server.command("SET", "liara", "1")
        daemon = self.daemon("redis", memory_size="0", redis_socket=server.socket)
        client = self.client(daemon)
        for index in range(2000):
            client.send(f"PUT key-{index} 1\nx\n")
        for _ in range(2000):
            self.assertEqual(client.line(), "STORED")
        self.assertEqual(client.ask("CLEAR"), "OK entries=2000")
        self.assertEqual(server.command("DBSIZE"), b":2")

    def test_the_default_expiration_is_an_hour(self):
        server = self.redis()
        client = self.client(self.daemon("redis", memory_size="0", redis_socket=server.socket))
        client.put("key", "value")
        client.put("own", "value", " ttl=1000")
        self.assertRegex(client.ask("HEAD key"), "SIZE 5 ttl=(3600|3[45][0-9][0-9])$")
        self.assertRegex(client.ask("HEAD own"), "SIZE 5 ttl=(1000|9[0-9][0-9])$")

    def test_persist_follows_the_server(self):
        server = self.redis("--appendonly", "yes", "--appendfsync", "always")
        client = self.client(self.daemon("redis", memory_size="0", redis_socket=server.socket))
        client.put("key", "value")
        self.assertEqual(client.ask("PERSIST"), "OK")
        server.command("CONFIG", "SET", "appendfsync", "everysec")
        self.assertEqual(client.ask("PERSIST"), "OK volatile")


class SecretRedis(Redis):
    """One whose password stands in its configuration."""

    def __init__(self, folder):
        self.folder = folder
        self.socket = folder / "redis.sock"
        self.arguments = ["redis-server", folder / "redis.conf", "--port", "0", "--unixsocket",
                          self.socket, "--save", "", "--dir", folder]
        self.start()

    def answers(self):
        try:
            return self.command("PING").startswith(b"-NOAUTH")
        except OSError:
            return False


if __name__ == "__main__":
    unittest.main()
