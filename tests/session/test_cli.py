"""liara-cache-cli: its commands and exit statuses, on every backend."""

import json
import os
import random
import signal
import subprocess
import time
import unittest

from harness import BACKENDS, CLI, FAULTY, WAIT, SessionTest, in_threads, until

DONE, MISS, USAGE, UNREACHABLE, ERROR, LOCAL = 0, 1, 2, 3, 4, 5


class CliTest(SessionTest):
    def cli(self, *arguments, data=None, socket=None, **environment):
        """Runs it; its status, what it printed, and what it complained of."""
        path = socket or self.served.socket
        done = subprocess.run([CLI, "-s", path, *arguments], input=data or b"", capture_output=True,
                              timeout=WAIT, check=False, env={**os.environ, **environment})
        return done.returncode, done.stdout, done.stderr.decode()

    def expect(self, status, *arguments, output=None, data=None, **more):
        code, printed, complaint = self.cli(*arguments, data=data, **more)
        self.assertEqual(code, status, (arguments, printed[:200], complaint))
        if output is not None:
            self.assertEqual(printed, output)
        if status not in (DONE, MISS):
            self.assertEqual(len(complaint.splitlines()), 1, complaint)
        return printed


class Commands:
    """The tests of one backend; its class is made below."""

    backend = None

    def setUp(self):
        super().setUp()
        self.served = self.daemon(self.backend)
        self.stores = self.backend != "null"

    def test_put_get_head_delete(self):
        self.expect(MISS, "get", "key", output=b"")
        self.expect(MISS, "head", "key")
        self.expect(MISS, "delete", "key")
        self.expect(DONE, "put", "key", data=b"value\0\n")
        self.expect(MISS if self.stores else DONE, "put", "key", data=b"other")
        if not self.stores:
            return
        self.expect(DONE, "get", "key", output=b"value\0\n")
        self.assertIn(b"size 7\n", self.expect(DONE, "head", "key"))
        self.expect(DONE, "put", "key", "--overwrite", "--flags", "9", "--ttl", "1000", data=b"new")
        head = self.expect(DONE, "head", "key")
        self.assertIn(b"flags 9\n", head)
        self.assertRegex(head, rb"ttl (1000|9\d\d)\n")
        self.expect(DONE, "delete", "key")
        self.expect(MISS, "get", "key", output=b"")

    def test_cost(self):
        for cost in ("0", "4294967295"):
            self.expect(DONE, "put", f"key-{cost}", "--cost", cost, data=b"value")
        for cost in ("-1", "4294967296", "1.5", ""):
            self.expect(USAGE, "put", "key", "--cost", cost, data=b"value")
        self.expect(USAGE, "get", "key", "--cost", "1")
        self.expect(MISS, "get", "key")

    def test_files(self):
        data = random.Random(1).randbytes(3_000_000)
        source, target = self.folder / "in", self.folder / "out"
        source.write_bytes(data)
        target.write_bytes(b"old")
        self.expect(DONE, "put", "file", str(source))
        self.expect(DONE, "put", "pipe", "-", data=data)
        self.expect(MISS, "get", "nothing", "-o", str(target))
        self.assertEqual(target.read_bytes(), b"old")
        if self.stores:
            for key in ("file", "pipe"):
                self.expect(DONE, "get", key, "-o", str(target), output=b"")
                self.assertEqual(target.read_bytes(), data)
                self.expect(DONE, "get", key, output=data)
        self.expect(LOCAL, "put", "key", str(self.folder / "no such file"))

    def test_clear_and_inspect(self):
        for index in range(5):
            self.expect(DONE, "-p", "one/", "put", f"key-{index}", data=b"x")
            self.expect(DONE, "-p", "two/", "put", f"key-{index}", data=b"x")
        figures = json.loads(self.expect(DONE, "-p", "one/", "inspect", "--json"))
        self.assertEqual(figures["backend"], self.backend)
        self.assertEqual(int(figures["entries"]), 5 if self.stores else 0)
        self.assertIn(f"backend {self.backend}\n".encode(), self.expect(DONE, "inspect"))
        cleared = b"5" if self.stores else b"0"
        self.assertIn(cleared, self.expect(DONE, "-p", "one/", "clear"))
        self.expect(MISS, "get", "one/key-1")
        self.expect(DONE if self.stores else MISS, "get", "two/key-1")

    def test_persist_and_ping(self):
        self.assertIn(b"OK", self.expect(DONE, "persist"))
        self.assertIn(b"OK", self.expect(DONE, "ping"))

    def test_memo(self):
        command = ("memo", "key", "--", "sh", "-c", f"echo ran >> {self.folder}/runs; echo output")
        self.expect(DONE, *command, output=b"output\n")
        self.expect(DONE, *command, output=b"output\n")
        runs = (self.folder / "runs").read_text().count("ran")
        self.assertEqual(runs, 1 if self.stores else 2)

    def test_memo_of_a_command_that_fails(self):
        runs = self.folder / "runs"
        for _ in range(2):
            code, printed, _ = self.cli("memo", "key", "--", "sh", "-c",
                                        f"echo ran >> {runs}; echo some; exit 7")
            self.assertEqual((code, printed), (7, b"some\n"))
        self.assertEqual(runs.read_text().count("ran"), 2)
        self.expect(MISS, "get", "key")
        self.assertEqual(self.cli("memo", "key", "--", "sh", "-c", "kill -9 $$")[0], 128 + 9)
        self.assertEqual(self.cli("memo", "key", "--", "/no/such/command")[0], 127)

    def test_memo_of_many_at_once(self):
        runs, go = self.folder / "runs", self.folder / "go"
        runs.touch()
        before = self.served.descriptors_settled()

        def one(index):
            if index == 12:  # the first ends when others have come
                until(lambda: self.served.descriptors_open() >= before + 6 and runs.read_text(),
                      "one computes, and some others have connected")
                go.touch()
                return None
            return self.cli("memo", "key", "--verbose", "--", "sh", "-c",
                            f"echo ran >> {runs}; while [ ! -e {go} ]; do sleep 0.02; done; echo output")

        results = in_threads(13, one)[:12]
        self.assertEqual({(code, printed) for code, printed, _ in results}, {(0, b"output\n")})
        count = runs.read_text().count("ran")
        if self.stores:
            self.assertEqual(count, 1, [complaint for _, _, complaint in results])
        else:
            self.assertLess(count, 12)

    def test_memo_when_the_one_that_computes_is_killed(self):
        begun, go = self.folder / "begun", self.folder / "go"
        begun.touch()
        command = ["memo", "key", "--", "sh", "-c",
                   f"echo >> {begun}; while [ ! -e {go} ]; do sleep 0.02; done; echo output"]
        first = subprocess.Popen([CLI, "-s", self.served.socket, *command],
                                 stdout=subprocess.DEVNULL, start_new_session=True)
        until(lambda: begun.read_text() == "\n", "the first computes")
        second = subprocess.Popen([CLI, "-s", self.served.socket, *command],
                                  stdout=subprocess.PIPE)
        os.killpg(first.pid, signal.SIGKILL)
        first.wait()
        until(lambda: begun.read_text() == "\n\n", "the second computes")
        go.touch()
        self.assertEqual(second.communicate(timeout=WAIT)[0], b"output\n")
        self.assertEqual(second.returncode, 0)


for name in BACKENDS:
    class_name = f"Commands_{name}"
    globals()[class_name] = type(class_name, (Commands, CliTest), {"backend": name})


class Failures(CliTest):
    def setUp(self):
        super().setUp()
        self.served = self.daemon("fault", program=FAULTY, max_value_size="1M")

    def test_usage(self):
        for arguments in ((), ("nonsense",), ("get",), ("get", "a", "b"), ("put",), ("get", ""),
                          ("put", "key", "--ttl", "soon"), ("--nonsense", "ping"), ("memo", "key"),
                          ("memo", "key", "--"), ("ping", "more"), ("get", "k" * 1025)):
            code, printed, complaint = self.cli(*arguments)
            self.assertEqual((code, printed), (USAGE, b""), arguments)
            self.assertNotEqual(complaint, "")

    def test_help_and_version(self):
        self.assertIn(b"memo", self.expect(DONE, "--help"))
        self.assertRegex(self.expect(DONE, "--version"), rb"\d+\.\d+\.\d+")

    def test_nobody_answers(self):
        nowhere = self.folder / "nowhere"
        for command in (("get", "key"), ("put", "key"), ("head", "key"), ("delete", "key"),
                        ("clear",), ("inspect",), ("persist",), ("ping",)):
            self.expect(UNREACHABLE, *command, socket=nowhere, output=b"")

    def test_memo_without_a_daemon_runs_the_command(self):
        nowhere = self.folder / "nowhere"
        code, printed, _ = self.cli("memo", "key", "--", "echo", "output", socket=nowhere)
        self.assertEqual((code, printed), (0, b"output\n"))
        code, _, _ = self.cli("memo", "key", "--", "sh", "-c", "exit 9", socket=nowhere)
        self.assertEqual(code, 9)

    def test_the_daemon_answers_an_error(self):
        self.expect(ERROR, "get", "!error=internal/k")
        self.expect(ERROR, "put", "!error=no-space/k", data=b"x")
        self.expect(ERROR, "head", "!error=denied/k")
        self.expect(ERROR, "delete", "!error=unavailable/k")
        self.expect(ERROR, "put", "large", data=bytes(1_100_000))
        self.expect(ERROR, "put", "large", "-", data=bytes(1_100_000))
        for verb in ("persist", "clear", "inspect"):
            self.expect(DONE, "put", f"!on={verb}!error=internal/k", data=b"")
            self.expect(ERROR, verb)

    def test_memo_goes_on_whatever_the_store_says(self):
        for key in ("!error=internal/k", "!on=put!error=no-space/k", "!on=get!error=timeout/k"):
            code, printed, _ = self.cli("memo", key, "--", "echo", "output")
            self.assertEqual((code, printed), (0, b"output\n"), key)

    def test_a_daemon_that_says_nothing(self):
        self.suspend(self.served)
        source = self.folder / "source"
        source.write_bytes(bytes(1_000_000))
        commands = (("get", "key"), ("get", "key", "-o", str(self.folder / "target")),
                    ("put", "key"), ("put", "key", str(source)), ("head", "key"), ("delete", "key"),
                    ("clear",), ("inspect",), ("persist",), ("ping",), ("-p", "p/", "get", "key"))
        for path in (self.served.socket, self.crowded()):
            in_threads(len(commands), lambda index, path=path: self.expect(
                UNREACHABLE, "--timeout", "1", *commands[index], socket=path, output=b""))

    def test_the_socket_comes_from_the_environment(self):
        done = subprocess.run([CLI, "ping"], capture_output=True, timeout=WAIT, check=False,
                              env={**os.environ, "LIARA_CACHE_SOCKET": str(self.served.socket)})
        self.assertEqual(done.returncode, 0)
        self.assertIn(str(self.served.socket).encode(), done.stdout)

    def test_a_closed_output_is_an_error(self):
        self.expect(DONE, "put", "key", data=bytes(500_000))
        with open("/dev/full", "wb") as full:
            done = subprocess.run([CLI, "-s", self.served.socket, "get", "key"], stdout=full,
                                  stderr=subprocess.PIPE, timeout=WAIT, check=False)
        self.assertEqual(done.returncode, LOCAL)
        target = self.folder / "no such folder" / "file"
        self.expect(LOCAL, "get", "key", "-o", str(target))


class Hanging(CliTest):
    """A daemon that hangs, at whatever point: COMMAND runs, and before the daemon goes on."""

    def setUp(self):
        super().setUp()
        self.served = self.daemon("memory")

    def memo(self, command, *options, socket=None):
        """Starts it with a short time-out unless the options have another."""
        process = subprocess.Popen([CLI, "-s", socket or self.served.socket, "--timeout", "1",
                                    *options, "memo", "key", "--verbose", "--", "sh", "-c", command],
                                   stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                   stderr=subprocess.PIPE)
        self.addCleanup(process.communicate)
        self.addCleanup(process.kill)
        return process

    def check(self, process, output=b"output\n", status=0):
        printed, complaint = process.communicate(timeout=WAIT)
        self.assertEqual((printed, process.returncode), (output, status), complaint)
        return complaint.decode()

    def test_from_the_beginning(self):
        self.suspend(self.served)
        for options in ((), ("-p", "prefix/"), ("--timeout", "2")):
            complaint = self.check(self.memo("echo output; exit 7", *options), status=7)
            self.assertIn("did not answer", complaint)
        self.assertTrue(self.served.suspended())

    def test_without_being_told_how_long_to_wait(self):
        self.suspend(self.served)
        done = subprocess.run([CLI, "-s", self.served.socket, "memo", "key", "--", "echo", "output"],
                              stdout=subprocess.PIPE, timeout=WAIT / 2, check=False)
        self.assertEqual((done.stdout, done.returncode), (b"output\n", 0))
        self.assertTrue(self.served.suspended())

    def test_it_accepts_no_connection(self):
        complaint = self.check(self.memo("echo output", socket=self.crowded()))
        self.assertIn("accepts no connection", complaint)

    def test_while_the_command_runs(self):
        pid = self.served.pid
        self.addCleanup(self.served.signal, signal.SIGCONT)
        for length in (1, 100_000, 30_000_000):
            stop = (f"kill -STOP {pid}; while grep -L '(stopped)' /proc/{pid}/task/*/status | "
                    f"grep -q .; do :; done; head -c {length} /dev/zero")
            complaint = self.check(self.memo(stop), output=bytes(length))
            self.assertIn("did not answer", complaint)
            self.assertTrue(self.served.suspended())
            self.served.signal(signal.SIGCONT)
            self.expect(MISS, "get", "key")

    def test_in_the_middle_of_an_answer(self):
        for said in (b"OK\nVALUE 7\n", b"OK\nVALUE 7\nhalf", b"O", b"OK\nVALUE 900000\n" + bytes(500_000)):
            gone = []

            def stall(connection):
                connection.recv(1000)
                connection.sendall(said)
                gone.append(connection.recv(1000))

            with self.played(stall) as path:
                self.check(self.memo("echo output", socket=path))
            self.assertEqual(gone, [b""])

    def test_it_is_killed_while_another_computes(self):
        holder = self.client(self.served)
        self.assertEqual(holder.ask("GET key lease=600"), "MISS lease")
        process = self.memo("echo output")
        with self.assertRaises(subprocess.TimeoutExpired):
            process.wait(0.5)
        self.served.kill9()
        self.check(process)

    def test_it_dies_while_another_computes_and_the_next_one_hangs(self):
        def die(connection):
            connection.recv(1000)
            connection.sendall(b"OK\n")

        with self.played(die) as path:
            self.check(self.memo("echo output", socket=path))

    def test_it_only_waits_for_another(self):
        """For longer than the time-out, which is about what a daemon can answer at once."""
        holder = self.client(self.served)
        self.assertEqual(holder.ask("GET key lease=600"), "MISS lease")
        process = self.memo("echo output")
        with self.assertRaises(subprocess.TimeoutExpired):
            process.wait(3)
        self.assertEqual(holder.put("key", "from another\n"), "STORED")
        self.assertIn("a hit", self.check(process, output=b"from another\n"))

    def test_another_takes_longer_than_the_lease(self):
        holder = self.client(self.served)
        self.assertEqual(holder.ask("GET key lease=600"), "MISS lease")
        process = subprocess.Popen([CLI, "-s", self.served.socket, "--timeout", "1", "memo", "key",
                                    "--lease", "1", "--", "echo", "output"], stdout=subprocess.PIPE)
        self.addCleanup(process.communicate)
        self.addCleanup(process.kill)
        self.assertEqual(process.communicate(timeout=WAIT)[0], b"output\n")


class ClosedStreams(CliTest):
    """Standard streams that are closed when the program starts."""

    def setUp(self):
        super().setUp()
        self.served = self.daemon("memory")
        self.expect(DONE, "put", "kept", data=b"value")

    def without(self, streams, *arguments, path=None):
        """Runs it with these descriptors closed; its status, and what it printed or complained of."""
        closing = " ".join(f"{fd}>&-" for fd in streams)
        done = subprocess.run(["sh", "-c", f'exec "$@" {closing}', "sh", CLI, "-s",
                               path or self.served.socket, *arguments], input=b"input",
                              capture_output=True, timeout=60, check=False)
        return done.returncode, done.stdout, done.stderr.decode()

    def is_kept(self):
        self.expect(DONE, "get", "kept", output=b"value")

    def test_a_value_is_no_request(self):
        self.expect(DONE, "put", "key", data=b"CLEAR\n")
        for option in ((), ("-o", "-"), ("--no-descriptor",)):
            status, _, complaint = self.without([1], "get", "key", *option)
            self.assertEqual(status, LOCAL)
            self.assertIn("standard output", complaint)
            self.is_kept()

    def test_what_prints_needs_an_output(self):
        for command in (("head", "kept"), ("clear",), ("inspect",), ("inspect", "--json"),
                        ("persist",), ("ping",), ("--help",), ("--version",),
                        ("memo", "kept", "--", "true"),
                        ("memo", "new", "--", "touch", str(self.folder / "ran"))):
            status, _, complaint = self.without([1], *command)
            self.assertEqual(status, LOCAL, command)
            self.assertIn("standard output is closed", complaint)
        self.assertFalse((self.folder / "ran").exists())
        self.is_kept()

    def test_put_needs_an_input(self):
        for command in (("put", "key"), ("put", "key", "-"), ("put", "key", "/dev/stdin")):
            status, _, complaint = self.without([0], *command)
            self.assertEqual(status, LOCAL, command)
            self.assertIn("stdin" if "/dev/stdin" in command else "standard input is closed",
                          complaint)
            self.expect(MISS, "get", "key")

    def test_files_need_no_stream(self):
        data = random.Random(1).randbytes(1_000_000)
        for size in (5, len(data)):
            source, target = self.folder / "source", self.folder / "target"
            source.write_bytes(data[:size])
            key = f"key-{size}"
            self.assertEqual(self.without([0, 1, 2], "put", key, str(source))[0], DONE)
            self.assertEqual(self.without([0, 1, 2], "put", key, str(source))[0], MISS)
            for option in ((), ("--no-descriptor",)):
                code, _, _ = self.without([0, 1, 2], "get", key, "-o", str(target), *option)
                self.assertEqual(code, DONE)
                self.assertEqual(target.read_bytes(), data[:size])
                target.unlink()
            self.assertEqual(self.without([0, 1, 2], "delete", key)[0], DONE)
        self.is_kept()

    def test_a_complaint_goes_to_nobody(self):
        """Neither into the connection nor into a file: a daemon that is played hears all."""
        target = self.folder / "target"
        for streams, command in (([2], ("get", "key")), ([0, 2], ("get", "key", "-o", str(target))),
                                 ([1, 2], ("get", "key", "-o", str(target)))):
            heard = []

            def refuse(connection):
                heard.append(connection.recv(1000))
                connection.sendall(b"ERROR internal told so\n")
                while heard[-1]:
                    heard.append(connection.recv(1000))

            with self.played(refuse) as path:
                self.assertEqual(self.without(streams, *command, path=path)[0], ERROR)
            self.assertEqual(heard, [b"GET key fd\n", b""])
            self.assertFalse(target.exists())

    def test_memo_gives_its_command_none_of_its_own(self):
        script = "ls -l /proc/self/fd/ >&9 2>&1"
        listing = self.folder / "listing"
        for streams in ([], [0], [2], [0, 2]):
            code, printed, _ = self.without(streams, "memo", f"key{streams}", "--", "sh", "-c",
                                            f"exec 9>{listing}; {script}; echo output")
            self.assertEqual((code, printed), (0, b"output\n"))
            self.expect(DONE, "get", f"key{streams}", output=b"output\n")
            for own in ("socket:", "anon_inode", "memfd", "deleted"):
                self.assertNotIn(own, listing.read_text())

    def test_memo_does_not_store_what_needs_the_input(self):
        self.assertEqual(self.without([], "memo", "open", "--", "cat")[:2], (0, b"input"))
        for command in (("cat",), ("cat", "/dev/stdin")):
            self.assertNotEqual(self.without([0], "memo", "closed", "--", *command)[0], 0)
            self.expect(MISS, "get", "closed")


if __name__ == "__main__":
    unittest.main()
