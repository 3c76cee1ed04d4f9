"""liara-cache-cli as scripts use it: what it prints, and what it ends with."""

import json
import os
import signal
import subprocess
import time
import unittest

from harness import BACKENDS, CLI, STORING, TITLES, WAIT, SessionTest, until

DONE, MISS, USAGE, UNREACHABLE, REFUSED, LOCAL = range(6)
LARGE = bytes(range(256)) * 4096


class CliTest(SessionTest):
    def serve(self, backend="memory", **options):
        self.served = self.daemon(backend, **options)
        self.socket = self.served.socket

    def start(self, *arguments, **options):
        return subprocess.Popen([CLI, "-s", self.socket, *arguments], stdin=subprocess.PIPE,
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=self.folder, **options)

    def cli(self, *arguments, given=b"", expected=DONE):
        """Runs it; what it printed to standard output."""
        process = self.start(*arguments)
        out, err = process.communicate(given, WAIT)
        self.assertEqual(process.returncode, expected, err)
        self.assertNotRegex(err, b"Sanitizer|runtime error")
        self.complaint = err.decode()
        if expected >= USAGE:
            self.assertRegex(self.complaint, r"\Aliara-cache-cli: [^\n]+\n\Z")
        return out


class Commands(CliTest):
    def test_a_session(self):
        self.serve()
        self.cli("get", "key", expected=MISS)
        self.assertEqual(self.cli("put", "key", given=b"hello\n"), b"")
        self.cli("put", "key", given=b"other\n", expected=MISS)
        self.assertEqual(self.cli("get", "key"), b"hello\n")
        self.cli("put", "key", "-", "--overwrite", "--flags", "7", "--ttl", "100", given=b"new")
        self.assertRegex(self.cli("head", "key"), rb"\Asize 3\nflags 7\nttl (100|99)\n\Z")
        self.cli("delete", "key")
        self.cli("delete", "key", expected=MISS)
        self.cli("head", "key", expected=MISS)
        self.assertEqual(self.cli("persist"), b"OK volatile\n")
        self.assertEqual(self.cli("ping"), f"OK {self.socket}\n".encode())

    def test_every_backend(self):
        for backend in BACKENDS:
            with self.subTest(backend=backend):
                self.serve(backend)
                self.cli("put", "key", given=b"value")
                stored = backend in STORING
                out = self.cli("get", "key", expected=DONE if stored else MISS)
                self.assertEqual(out, b"value" if stored else b"")
                self.assertIn(f"name {TITLES[backend]}\n".encode(), self.cli("inspect"))
                self.assertRegex(self.cli("persist"), rb"\AOK( volatile)?\n\Z")
                self.assertRegex(self.cli("clear"), rb"\Aentries \d+\n\Z")
                self.cli("get", "key", expected=MISS)

    def test_files(self):
        self.serve("sqlite")
        source, target = self.folder / "source", self.folder / "target"
        source.write_bytes(LARGE)
        self.cli("put", "file", source)
        self.cli("put", "pipe", given=LARGE)
        self.cli("put", "small", "/proc/self/status")
        self.assertIn(b"liara-cache-cli", self.cli("get", "small"))
        target.write_text("before")
        self.cli("get", "nothing", "-o", target, expected=MISS)
        self.assertEqual(target.read_text(), "before")
        for key in ("file", "pipe"):
            self.cli("get", key, "-o", target)
            self.assertEqual(target.read_bytes(), LARGE)
            self.assertEqual(self.cli("get", key), LARGE)
        self.assertEqual(sorted(p.name for p in self.folder.glob("*") if p.is_file()), ["source", "target"])

    def test_prefix(self):
        self.serve()
        self.cli("-p", "a/", "put", "key", given=b"in a")
        self.cli("put", "-p", "b/", "key", given=b"in b")
        self.assertEqual(self.cli("get", "a/key"), b"in a")
        self.assertEqual(json.loads(self.cli("inspect", "--json", "--prefix", "a/"))["entries"], 1)
        self.assertEqual(self.cli("clear", "-p", "a/"), b"entries 1\n")
        self.assertEqual(self.cli("get", "b/key"), b"in b")

    def test_wrong_usage(self):
        self.serve()
        for wrong in ([], ["no-such"], ["get"], ["get", ""], ["get", "k", "l"], ["get", "k", "--json"],
                      ["put", "k", "--ttl", "1x"], ["put", "k", "--flags", "4294967296"], ["--no-such"],
                      ["get", "k", "-o"], ["memo", "k"], ["memo", "k", "--"], ["get", "k" * 1025]):
            with self.subTest(arguments=wrong):
                self.cli(*wrong, expected=USAGE)
        self.assertIn(b"memo", self.cli("--help"))
        self.assertRegex(self.cli("--version"), rb"\Aliara-cache-cli \d")

    def test_errors(self):
        self.serve(max_value_size="1000")
        self.cli("put", "key", given=bytes(1001), expected=REFUSED)
        self.assertIn("too-large", self.complaint)
        self.cli("put", "key", "no-such-file", expected=LOCAL)
        self.served.stop()
        self.cli("get", "key", expected=UNREACHABLE)
        self.assertIn(str(self.socket), self.complaint)


class Memo(CliTest):
    def test_runs_once(self):
        self.serve()
        command = ("memo", "key", "--", "sh", "-c", "echo out; echo err >&2; echo x >>ran")
        self.assertEqual(self.cli(*command), b"out\n")
        self.assertEqual(self.complaint, "err\n")
        self.assertEqual(self.cli(*command), b"out\n")
        self.assertEqual(self.complaint, "")
        self.assertEqual((self.folder / "ran").read_text(), "x\n")

    def test_of_many_one_runs(self):
        self.serve("sqlite")
        until_go = "while [ ! -e go ]; do sleep 0.02; done; echo x >>ran; echo result"
        asking = [self.start("memo", "key", "--", "sh", "-c", until_go) for _ in range(20)]
        time.sleep(0.2)
        (self.folder / "go").touch()
        for process in asking:
            self.assertEqual(process.communicate(timeout=WAIT)[0], b"result\n")
            self.assertEqual(process.returncode, 0)
        self.assertEqual((self.folder / "ran").read_text(), "x\n")

    def test_failure_is_not_stored(self):
        self.serve()
        for script, status in (("exit 7", 7), ("kill -9 $$", 137), ("kill -TERM $$", 143)):
            out = self.cli_status("memo", "key", "--", "sh", "-c", "echo part; " + script, status=status)
            self.assertEqual(out, b"part\n")
            self.cli("head", "key", expected=MISS)
        self.cli_status("memo", "key", "--", "no-such-command", status=127)

    def cli_status(self, *arguments, status):
        process = self.start(*arguments)
        out, _ = process.communicate(timeout=WAIT)
        self.assertEqual(process.returncode, status)
        return out

    def test_without_a_daemon(self):
        self.socket = self.folder / "nobody"
        self.assertEqual(self.cli("memo", "key", "--", "echo", "plain"), b"plain\n")
        self.assertEqual(self.complaint, "")

    def test_large_output(self):
        self.serve("filesystem")
        (self.folder / "large").write_bytes(LARGE)
        self.assertEqual(self.cli("memo", "key", "--", "cat", "large"), LARGE)
        self.assertEqual(self.cli("memo", "key", "--", "false"), LARGE)

    def test_killed_holder(self):
        self.serve()
        first = self.start("memo", "key", "--", "sh", "-c", "echo >started; exec sleep 60")
        until((self.folder / "started").exists, "the first runs")
        second = self.start("memo", "key", "--", "echo", "second")
        time.sleep(0.1)
        self.assertIsNone(second.poll())
        first.send_signal(signal.SIGTERM)
        self.assertEqual(second.communicate(timeout=WAIT)[0], b"second\n")
        first.communicate(timeout=WAIT)
        self.assertEqual(first.returncode, 128 + signal.SIGTERM)

    def test_signal_ends_the_command(self):
        self.serve()
        process = self.start("memo", "key", "--", "sh", "-c", "echo $$ >pid; exec sleep 60")
        pid = until(lambda: (self.folder / "pid").exists() and (self.folder / "pid").read_text().strip(), "it runs")
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=WAIT)
        self.assertEqual(process.returncode, 128 + signal.SIGINT)
        with self.assertRaises(ProcessLookupError):
            os.kill(int(pid), 0)


if __name__ == "__main__":
    unittest.main()
