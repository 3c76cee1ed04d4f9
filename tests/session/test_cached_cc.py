"""cached-cc: what is a hit, what is not, and that a hit is what the compiler would have made."""

import os
import subprocess
import unittest

from harness import CLI, ROOT, WAIT, SessionTest

LAUNCHER = ROOT / "conf" / "examples" / "cached-cc"


class CachedCc(SessionTest):
    def setUp(self):
        super().setUp()
        self.work = self.folder / "work"
        self.work.mkdir()
        self.served = self.daemon("memory")
        self.environment = dict(os.environ, LIARA_CACHE_CLI=str(CLI), CACHED_CC_LOG=str(self.folder / "log"),
                                LIARA_CACHE_SOCKET=str(self.served.socket))
        self.write("h.h", "int x;\n")
        self.write("s.c", '#include "h.h"\nint f(void) { return x; }\n')

    def write(self, name, text):
        (self.work / name).write_text(text)

    def run_it(self, *command):
        return subprocess.run(command, cwd=self.work, env=self.environment, capture_output=True, timeout=WAIT)

    def cc(self, *arguments, compiler="gcc", expected=None, status=0):
        log = self.folder / "log"
        log.unlink(missing_ok=True)
        done = self.run_it(LAUNCHER, compiler, *arguments)
        self.assertEqual(done.returncode, status, done.stderr)
        if expected:
            self.assertEqual(log.read_text().split()[0], expected, arguments)
        return done.stderr.decode()

    def made(self, *names):
        return [(self.work / name).read_bytes() for name in names]

    def test_hit_is_what_the_compiler_makes(self):
        for arguments, names in (
                (["-c", "s.c"], ["s.o"]),
                (["-g", "-O2", "-Wall", "-c", "s.c", "-o", "a b.o"], ["a b.o"]),
                (["-MD", "-c", "s.c"], ["s.o", "s.d"]),
                (["-O1", "-MMD", "-MP", "-c", "s.c", "-oz.o"], ["z.o", "z.d"]),
                (["-O1", "-MD", "-MF", "my.d", "-MT", "t$(x)", "-c", "s.c", "-o", "y.o"], ["y.o", "my.d"])):
            with self.subTest(arguments=arguments):
                self.run_it(LAUNCHER, "gcc", *arguments)
                for name in names:
                    (self.work / name).unlink()
                self.cc(*arguments, expected="hit")
                from_cache = self.made(*names)
                self.run_it("gcc", *arguments)
                self.assertEqual(from_cache, self.made(*names))

    def test_what_changes_the_key(self):
        self.cc("-c", "s.c", expected="miss")
        self.cc("-c", "s.c", expected="hit")
        self.cc("-c", "s.c", "-o", "other.o", expected="hit")
        self.cc("-c", "-O2", "s.c", expected="miss")
        self.write("h.h", "int x, y;\n")
        self.cc("-c", "s.c", expected="miss")
        self.write("t.c", "const char *time = __TIME__, *date = __DATE__, *file = __FILE__;\n")
        self.cc("-c", "t.c", "-D__TIME__=1", expected="miss")
        self.cc("-g", "-c", "s.c", expected="miss")
        self.work = self.work / "elsewhere"
        self.work.mkdir()
        self.write("h.h", "int x, y;\n")
        self.write("s.c", '#include "h.h"\nint f(void) { return x; }\n')
        self.cc("-c", "s.c", expected="hit")
        self.cc("-g", "-c", "s.c", expected="miss")

    def test_warnings_are_said_again(self):
        self.write("w.c", "#warning heard\nint f(void) { int unused; return 1; }\n")
        said = self.cc("-Wall", "-c", "w.c", expected="miss")
        self.assertIn("unused", said)
        self.assertEqual(self.cc("-Wall", "-c", "w.c", expected="hit"), said)

    def test_warnings_that_depend_on_comments(self):
        text = "int f(int a) { switch (a) { case 1: a++; /* %s */\ncase 2: return a; } return 0; }\n"
        self.write("c.c", text % "fallthrough")
        self.assertEqual(self.cc("-Wextra", "-c", "c.c", expected="miss"), "")
        self.write("c.c", text % "something..")
        self.assertIn("fall", self.cc("-Wextra", "-c", "c.c", expected="miss"))

    def test_failures_pass_through(self):
        self.write("bad.c", "int f(void) { return }\n")
        for _ in range(2):
            self.assertIn("error", self.cc("-c", "bad.c", status=1))
        self.assertIn("no-such", self.cc("-c", "no-such.c", expected="plain", status=1))

    def test_all_else_is_plain(self):
        self.write("m.c", "int main(void) { return 0; }\n")
        self.write("rsp", "-c s.c\n")
        self.write("p.h", "int p;\n")
        self.run_it("gcc", "p.h", "-o", "p.h.gch")
        for arguments in (["m.c"], ["-E", "s.c"], ["-S", "s.c"], ["-M", "s.c"], ["-c", "s.c", "m.c"], ["@rsp"],
                          ["--version"], ["-c", "--coverage", "s.c"], ["-c", "-fprofile-generate", "s.c"],
                          ["-c", "s.c", "-o", "/dev/null"], ["-c", "-gsplit-dwarf", "s.c"], ["-c", "-save-temps", "s.c"],
                          ["-c", "-march=native", "s.c"], ["-c", "-Wa,-L", "s.c"], ["-c", "-include", "p.h", "m.c"],
                          ["-c", "-x", "c", "s.c"], ["-c", "-fstack-usage", "s.c"]):
            with self.subTest(arguments=arguments):
                self.cc(*arguments, expected="plain")

    def test_what_is_not_to_be_stored(self):
        self.write("i.c", '__asm__(".incbin \\"data\\"");\n')
        self.write("data", "one")
        self.cc("-c", "i.c", expected="miss")
        self.cc("-c", "i.c", expected="miss")
        # An editor that saves while the compiler runs.
        self.write("slow", "#!/bin/sh\ncase $* in *-E*) ;; *) echo 'int r = 2;' >r.c ;; esac\nexec gcc \"$@\"\n")
        (self.work / "slow").chmod(0o755)
        for _ in range(2):
            self.write("r.c", "int r = 1;\n")
            self.cc("-c", "r.c", compiler="./slow", expected="miss")

    def test_without_a_cache(self):
        for name in ("LIARA_CACHE_SOCKET", "LIARA_CACHE_CLI"):
            self.environment[name] = str(self.folder / "nobody")
            self.assertEqual(self.cc("-c", "s.c", expected="plain"), "")
            self.assertTrue((self.work / "s.o").exists())

    def test_the_daemon_hangs(self):
        def miss(connection):
            connection.recv(10000)
            connection.sendall(b"MISS\n")

        with self.played(miss) as path:
            self.environment["LIARA_CACHE_SOCKET"] = str(path)
            self.assertEqual(self.cc("-c", "s.c", expected="plain"), "")
        self.environment["LIARA_CACHE_SOCKET"] = str(self.crowded())
        self.assertEqual(self.cc("-c", "s.c", expected="plain"), "")
        self.suspend(self.served)
        self.environment["LIARA_CACHE_SOCKET"] = str(self.served.socket)
        self.environment["CACHED_CC_TIMEOUT"] = "1"
        self.assertEqual(self.cc("-c", "s.c", expected="plain"), "")
        self.assertTrue(self.served.suspended())
        self.assertTrue((self.work / "s.o").exists())

    def test_nothing_is_left_behind(self):
        self.cc("-c", "s.c", expected="miss")
        self.cc("-c", "s.c", expected="hit")
        self.assertEqual(sorted(os.listdir(self.work)), ["h.h", "s.c", "s.o"])


if __name__ == "__main__":
    unittest.main()
