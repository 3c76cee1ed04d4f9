"""The daemon as a process: who owns a socket and a store, signals, systemd's ways, configuration."""

import os
import pwd
import re
import signal
import socket
import stat
import subprocess
import unittest

from harness import (BACKENDS, DAEMON, PERSISTENT, TITLES, WAIT, Client, Daemon, SessionTest, until)


HANDED_OVER = 9  # a descriptor's number that nothing else of a test has


def run(*arguments, **environment):
    """Runs the daemon for something that ends by itself."""
    return subprocess.run([DAEMON, *map(str, arguments)], capture_output=True, text=True,
                          timeout=WAIT, check=False, env={**os.environ, **environment})


class Owners(SessionTest):
    def refused(self, daemon, *words):
        """Starts it, waits for its end, and holds it to its message."""
        daemon.launch()
        self.addCleanup(daemon.kill)
        self.assertEqual(daemon.wait(), 1, daemon.log())
        message = daemon.log().splitlines()[-1]
        for word in words:
            self.assertIn(word, message)
        daemon.check_log()

    def test_a_second_daemon_on_the_same_socket(self):
        first = self.daemon("memory")
        second = Daemon(self.folder / "second", "memory", start=False, socket=first.socket)
        self.refused(second, str(first.socket), "in use", str(first.pid))
        with first.client() as client:
            self.assertEqual(client.ask("PING"), "OK")
        self.assertTrue(first.socket.exists())

    def test_a_second_daemon_on_the_same_store(self):
        for backend in PERSISTENT:
            with self.subTest(backend):
                first = self.daemon(backend)
                second = Daemon(self.folder / f"second-{backend}", backend, start=False,
                                directory=first.directory)
                self.refused(second, str(first.directory), "in use")
                self.assertFalse(second.socket.exists())
                with first.client() as client:
                    self.assertEqual(client.put("key", "value"), "STORED")

    def test_the_next_one_may_have_both(self):
        first = self.daemon("sqlite")
        first.stop()
        second = self.adopt(Daemon(self.folder / "second", "sqlite", socket=first.socket,
                                   directory=first.directory))
        with second.client() as client:
            self.assertEqual(client.ask("PING"), "OK")

    def test_a_stale_socket_is_replaced(self):
        daemon = self.daemon("memory")
        daemon.kill9()
        self.assertTrue(daemon.socket.exists())
        daemon.start()
        self.assertEqual(self.client(daemon).ask("PING"), "OK")

    def test_a_live_socket_of_another_program_is_not_stolen(self):
        path = self.folder / "foreign.sock"
        with socket.socket(socket.AF_UNIX) as foreign:
            foreign.bind(str(path))
            foreign.listen(1)
            inode = path.stat().st_ino
            daemon = Daemon(self.folder / "daemon", "memory", start=False, socket=path)
            self.refused(daemon, str(path), "in use")
            self.assertEqual(path.stat().st_ino, inode)

    def test_what_is_no_socket_is_left_alone(self):
        path = self.folder / "file"
        path.write_text("precious")
        self.refused(Daemon(self.folder / "daemon", "memory", start=False, socket=path),
                     str(path), "no socket")
        self.assertEqual(path.read_text(), "precious")

    def test_a_folder_that_others_can_write_to_is_refused(self):
        folder = self.folder / "open"
        folder.mkdir()
        folder.chmod(0o777)
        self.refused(Daemon(self.folder / "daemon", "memory", start=False, socket=folder / "socket"),
                     str(folder), "not safe")

    def test_two_started_at_once(self):
        """Of many that want the same socket one serves, and the others say so."""
        daemons = [Daemon(self.folder / f"daemon{i}", "memory", start=False,
                          socket=self.folder / "shared") for i in range(6)]
        for daemon in daemons:
            daemon.launch()
            self.addCleanup(daemon.kill)
        until(lambda: sum(d.running() for d in daemons) == 1, "one is left")
        for daemon in daemons:
            if not daemon.running():
                self.assertEqual(daemon.wait(), 1)
        winner = next(d for d in daemons if d.running())
        until(winner.answers, "it serves")
        winner.stop()


class Streams(SessionTest):
    @staticmethod
    def listens(daemon):
        try:
            with daemon.client() as client:
                return client.ask("PING") == "OK"
        except OSError:
            return False

    def test_closed_ones_are_taken_by_nothing_else(self):
        """Whatever is written to them must not reach a client or a store's file."""
        for backend in BACKENDS:
            with self.subTest(backend):
                daemon = self.prepared(backend, before=lambda: os.closerange(0, 3))
                if backend == "redis":
                    daemon.options["redis_socket"] = self.redis().socket
                daemon.launch()
                self.adopt(daemon)
                until(lambda d=daemon: self.listens(d), "the daemon listens")
                with daemon.client() as client:
                    daemon.signal(signal.SIGHUP)
                    self.assertRegex(client.put("key", "value"), "STORED|ERROR unavailable")
                    links = [os.readlink(f"/proc/{daemon.pid}/fd/{fd}") for fd in range(3)]
                self.assertEqual(links, ["/dev/null"] * 3)


class Signals(SessionTest):
    def test_an_end_by_signal_is_clean(self):
        for number in (signal.SIGTERM, signal.SIGINT):
            daemon = self.daemon("memory")
            idle, busy = self.clients(daemon, 2)
            self.assertEqual(idle.ask("PING"), "OK")
            busy.send("PUT key 10\n01234")
            self.assertTrue(busy.taken())
            daemon.signal(number)
            self.assertTrue(idle.closed())
            # What has begun may be finished.
            busy.send("56789\n")
            self.assertEqual(busy.line(), "STORED")
            self.assertEqual(daemon.wait(), 0)
            self.assertFalse(daemon.socket.exists())

    def test_it_is_not_held_up(self):
        daemon = self.daemon("memory", stop_timeout="500ms")
        client = self.client(daemon)
        client.send("PUT key 10\n01234")
        self.assertTrue(client.taken())
        daemon.stop()
        self.assertTrue(client.closed())

    def test_a_second_signal_does_no_harm(self):
        daemon = self.daemon("sqlite")
        self.client(daemon).put("key", "value")
        daemon.signal(signal.SIGTERM)
        daemon.signal(signal.SIGHUP)
        daemon.signal(signal.SIGTERM)
        self.assertEqual(daemon.wait(), 0)

    def test_nobody_is_served_by_half_while_it_stops(self):
        daemon = self.daemon("memory")
        clients = self.clients(daemon, 50)
        for client in clients:
            client.send(b"PUT key 5\nvalue\n" * 20)
        daemon.stop()
        for client in clients:
            data = b""
            while True:
                try:
                    data += client.exactly(1)
                except AssertionError:
                    break
            self.assertEqual(data.replace(b"STORED\n", b"").replace(b"EXISTS\n", b""), b"")

    def test_hangup_reads_the_configuration_again(self):
        daemon = self.prepared("memory")
        del daemon.options["backend"]
        daemon.config.write_text("backend = memory\nmax-value-size = 10\n")
        client = self.client(self.launched(daemon))
        self.assertRegex(client.put("key", "0123456789a"), "ERROR too-large")
        daemon.config.write_text("backend = memory\nmax-value-size = 100\n")
        daemon.signal(signal.SIGHUP)
        until(lambda: client.put("key", "0123456789a") == "STORED", "the new limit holds")
        # An error changes nothing, and is said.
        daemon.config.write_text("backend = memory\nmax-value-size = many\n")
        daemon.signal(signal.SIGHUP)
        until(lambda: f"{daemon.config}:2" in daemon.log(), "it names file and line")
        self.assertEqual(client.put("other", "0123456789a"), "STORED")
        # What can't change at run time is said and left.
        daemon.config.write_text("backend = null\nmax-value-size = 200\n")
        daemon.signal(signal.SIGHUP)
        until(lambda: re.search(r"restart.*backend", daemon.log()), "it says what needs a restart")
        self.assertEqual(client.inspect()["backend"], "memory")
        self.assertEqual(client.put("third", "0" * 150), "STORED")


class Systemd(SessionTest):
    def notify_socket(self):
        path = self.folder / "notify"
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.addCleanup(listener.close)
        listener.bind(str(path))
        listener.settimeout(WAIT)
        return listener, path

    def test_notifications(self):
        listener, path = self.notify_socket()
        daemon = self.daemon("memory", environment={
            **os.environ, "NOTIFY_SOCKET": str(path), "WATCHDOG_USEC": "400000"})

        def message(pattern):
            for _ in range(200):
                text = listener.recv(4096).decode()
                if re.search(pattern, text, re.MULTILINE):
                    return text
            raise AssertionError(f"no {pattern} came")

        message("^READY=1")
        client = self.client(daemon)
        client.put("key", "value")
        client.get("key")
        client.get("nothing")
        message(r"^STATUS=1 connection.* 1 hit.* 1 miss.* 1 stored")
        message("^WATCHDOG=1")
        message("^WATCHDOG=1")
        daemon.signal(signal.SIGHUP)
        message("^RELOADING=1")
        message("^READY=1")
        daemon.signal(signal.SIGTERM)
        message("^STOPPING=1")
        self.assertEqual(daemon.wait(), 0)

    def activated(self):
        """A listening socket, and a daemon to which it is handed over as systemd does."""
        path = self.folder / "activated"
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.addCleanup(listener.close)
        listener.bind(str(path))
        listener.listen(100)
        os.dup2(listener.fileno(), HANDED_OVER)
        self.addCleanup(os.close, HANDED_OVER)
        daemon = self.prepared("memory", socket=path, descriptors=(HANDED_OVER,))
        # Only the daemon's own process knows LISTEN_PID, so a shell sets it.
        script = f'exec 3<&{HANDED_OVER}; LISTEN_PID=$$ LISTEN_FDS=1 exec "$0" "$@"'
        command = daemon.command_line()
        daemon.command_line = lambda: ["/bin/sh", "-c", script, *command]
        return daemon, path

    def test_socket_activation(self):
        daemon, path = self.activated()
        early = Client(path)  # before the daemon runs: it waits in the queue
        self.addCleanup(early.close)
        early.send("PUT key 5\nvalue\n")
        self.launched(daemon)
        self.assertEqual(early.line(), "STORED")
        daemon.stop()
        self.assertTrue(path.exists(), "the socket is systemd's")
        self.assertIn("systemd's socket", daemon.log())
        late = Client(path)  # it waits for the next daemon
        self.addCleanup(late.close)
        late.send("PING\n")
        daemon.start()
        self.assertEqual(late.line(), "OK")

    def test_the_journal_gets_priorities(self):
        folder = self.folder / "journal"
        folder.mkdir()
        log = folder / "log"
        log.touch()
        status = log.stat()
        daemon = Daemon(folder, "memory", start=False, environment={
            **os.environ, "JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}"})
        self.launched(daemon).stop()
        for line in daemon.log().splitlines():
            self.assertRegex(line, "^<[3-7]>[^0-9]")


class Configuration(SessionTest):
    def complaint(self, text, *words):
        """--check-config of a file with this text: exit status 2, and file, line and what."""
        path = self.folder / "conf"
        path.write_text(text)
        done = run(f"--config={path}", "--check-config")
        self.assertEqual(done.returncode, 2, done.stderr)
        for word in words:
            self.assertIn(word.format(path=path), done.stderr)
        # The daemon itself does not start with it either.
        self.assertEqual(run(f"--config={path}").returncode, 2)

    def test_complaints(self):
        self.complaint("max-size = 5G\nmax-sice = 6G\n", "{path}:2: ", "max-sice")
        self.complaint("max-size = 5G\n\n# again\nmax-size = 6G\n", "{path}:4: ", "max-size")
        self.complaint("max-size = 5X\n", "{path}:1: ", "5X", "5G")
        self.complaint("max-size = -1\n", "{path}:1: ")
        self.complaint("max-size = 99999999999999999999999\n", "{path}:1: ")
        self.complaint("backend = paper\n", "{path}:1: ", "paper", "sqlite")
        self.complaint("socket = relative/path\n", "{path}:1: ", "absolute")
        self.complaint("socket = /" + "x" * 200 + "\n", "{path}:1: ")
        self.complaint("workers = many\n", "{path}:1: ")
        self.complaint("socket-mode = 0999\n", "{path}:1: ")
        self.complaint("what is this\n", "{path}:1: ")
        self.complaint("redis-port = 70000\n", "{path}:1: ")
        self.complaint("a = 1\nb = 2\n", "{path}:1: ", "{path}:2: ")

    def test_on_the_command_line(self):
        for argument in ("--max-sice=6G", "--max-size=5X", "--nonsense", "stray", "--max-size",
                         "--backend=paper"):
            done = run(argument)
            self.assertEqual(done.returncode, 2, argument)
            self.assertIn(argument.split("=")[0], done.stderr)
        self.assertEqual(run("--config=/nonexistent/file", "--check-config").returncode, 2)

    def test_it_is_printed_with_its_origins(self):
        path = self.folder / "conf"
        path.write_text("max-size = 1G\nworkers = 3\n")
        done = run(f"--config={path}", "--workers=2", "--print-config")
        self.assertEqual(done.returncode, 0, done.stderr)
        for pattern in (rf"max-size += 1G .*{path}:1", "workers += 2 .*command line",
                        "backend += sqlite .*default"):
            self.assertRegex(done.stdout, pattern)
        # What it prints is a configuration.
        path.write_text(done.stdout)
        again = run(f"--config={path}", "--check-config")
        self.assertEqual((again.returncode, again.stderr), (0, ""))

    def test_help_and_version(self):
        self.assertRegex(run("--version").stdout, r"^liara-cached \d+\.\d+\.\d+\n$")
        text = run("--help").stdout
        for option in ("--socket", "--backend", "--directory", "--max-size", "--max-value-size",
                       "--workers", "--idle-timeout", "--max-connections", "--redis-host",
                       "--redis-port", "--redis-socket", "--redis-database",
                       "--redis-password-file", "--redis-expiration", "--config",
                       "--check-config", "--print-config"):
            self.assertIn(option, text)

    def test_every_option_of_the_example_is_one(self):
        from harness import ROOT
        example = ROOT / "conf" / "liara-cached.conf"
        self.assertEqual(run(f"--config={example}", "--check-config").returncode, 0)
        # Also with each key that is only shown.
        text = re.sub(r"(?m)^#\s?([a-z-]+ *=)", r"\1", example.read_text())
        keys = re.findall(r"(?m)^([a-z-]+) *=", text)
        printed = run("--print-config").stdout
        options = re.findall(r"(?m)^([a-z-]+) *=", printed)
        self.assertLessEqual(set(options), set(keys), "options that the example does not show")

    def test_names_in_inspect(self):
        for backend in BACKENDS:
            figures = self.client(self.daemon(backend)).inspect()
            self.assertEqual(figures["name"], TITLES[backend])
            self.assertEqual(figures["backend"], backend)
            self.assertEqual(figures["entries"], "0")
            self.assertRegex(figures["size"], "^[0-9]+$")


class Defaults(SessionTest):
    """Without any configuration, as an ordinary user."""

    def setUp(self):
        super().setUp()
        self.user = pwd.getpwnam("nobody") if os.geteuid() == 0 else pwd.getpwuid(os.geteuid())
        self.folder.chmod(0o755)
        for name in ("run", "cache", "config", "home"):
            path = self.folder / name
            path.mkdir(mode=0o700)
            os.chown(path, self.user.pw_uid, self.user.pw_gid)
        if os.geteuid() == 0 and not os.access(DAEMON, os.X_OK):
            self.skipTest("nobody may not run the daemon from this folder")

    def as_user(self):
        if os.geteuid() == 0:
            os.setgroups([])
            os.setgid(self.user.pw_gid)
            os.setuid(self.user.pw_uid)

    def program(self):
        """The daemon where everybody may run it."""
        path = self.folder / "liara-cached"
        if not path.exists():
            path.write_bytes(DAEMON.read_bytes())
            path.chmod(0o755)
        return path

    def started(self, socket_path, **variables):
        environment = {"PATH": os.environ["PATH"], **variables}
        for name in ("ASAN_OPTIONS", "UBSAN_OPTIONS", "TSAN_OPTIONS", "GCOV_PREFIX"):
            if name in os.environ:
                environment[name] = os.environ[name]
        daemon = Daemon(self.folder / "daemon", "sqlite", start=False, program=self.program(),
                        environment=environment, before=self.as_user)
        daemon.options = {}
        daemon.command_line = lambda: [self.program()]
        daemon.options["socket"] = socket_path
        return self.launched(daemon)

    def test_with_xdg_folders(self):
        path = self.folder / "run" / "liara-cached" / "socket"
        daemon = self.started(path, XDG_RUNTIME_DIR=str(self.folder / "run"),
                              XDG_CACHE_HOME=str(self.folder / "cache"),
                              XDG_CONFIG_HOME=str(self.folder / "config"),
                              HOME=str(self.folder / "home"))
        client = self.client(daemon)
        self.assertEqual(client.inspect()["backend"], "sqlite")
        self.assertEqual(client.put("key", "value"), "STORED")
        store = self.folder / "cache" / "liara-cached"
        self.assertTrue(any(store.iterdir()))
        self.assertEqual(stat.S_IMODE(store.stat().st_mode), 0o700)
        self.assertEqual(stat.S_IMODE(path.stat().st_mode), 0o600)
        self.assertEqual(path.stat().st_uid, self.user.pw_uid)

    def test_with_a_home_alone(self):
        path = f"/tmp/liara-cached-{self.user.pw_uid}/socket"
        if os.path.exists(path):
            self.skipTest(f"{path} is in use")
        daemon = self.started(path, HOME=str(self.folder / "home"))
        self.addCleanup(lambda: (os.unlink(path + ".lock"), os.rmdir(os.path.dirname(path))))
        self.assertEqual(self.client(daemon).put("key", "value"), "STORED")
        self.assertEqual(stat.S_IMODE(os.stat(os.path.dirname(path)).st_mode), 0o700)
        self.assertTrue((self.folder / "home" / ".cache" / "liara-cached").is_dir())
        daemon.stop()

    def test_the_users_own_configuration(self):
        (self.folder / "config" / "liara-cached.conf").write_text(
            f"backend = memory\nsocket = {self.folder}/run/own\n")
        os.chown(self.folder / "config" / "liara-cached.conf", self.user.pw_uid, self.user.pw_gid)
        daemon = self.started(self.folder / "run" / "own",
                              XDG_RUNTIME_DIR=str(self.folder / "run"),
                              XDG_CONFIG_HOME=str(self.folder / "config"),
                              HOME=str(self.folder / "home"))
        self.assertEqual(self.client(daemon).inspect()["backend"], "memory")


if __name__ == "__main__":
    unittest.main()
