"""README.md's first session, pasted into a shell as a block: what its comments say comes out."""

import os
import re
import signal
import subprocess
import unittest

from harness import ROOT, WAIT, SessionTest

LIMIT = 10 * WAIT  # `make` is among the lines; mostly it has nothing to do
PING = "timeout 30 sh -c 'until liara-cache-cli ping 2>/dev/null; do sleep 0.1; done'"
# The commands of the block, their exit statuses and what they print; None: anything.
PROMISED = [
    ("make", 0, None),
    ("build/liara-cached &", 0, ""),
    ("export PATH=$PWD/build:$PATH", 0, ""),
    (PING, 0, r"OK .*/socket\n"),
    ("echo 'hello' | liara-cache-cli put greeting", 0, ""),
    ("liara-cache-cli get greeting", 0, r"hello\n"),
    ("echo 'other' | liara-cache-cli put greeting", 1, ""),
    ("liara-cache-cli memo date -- date", 0, r"\S.*\n"),
    ("liara-cache-cli memo date -- date", 0, r"\S.*\n"),
    ("liara-cache-cli -p docs/ put page README.md", 0, ""),
    ("liara-cache-cli inspect", 0, r"(.*\n)*entries 3\n(.*\n)*"),
    ("liara-cache-cli persist", 0, r"OK\n"),
]
# What persist promises, and the end of both daemons.
AFTERWARDS = [
    ("kill -9 $!; wait $!", 128 + signal.SIGKILL, ""),
    ("build/liara-cached &", 0, ""),
    (PING, 0, r"OK .*/socket\n"),
    ("liara-cache-cli get greeting", 0, r"hello\n"),
    ("liara-cache-cli -p docs/ get page | cmp - README.md", 0, ""),
    ("kill $!; wait $!", 0, ""),
]


def first_session():
    """The lines of the block, as they stand there."""
    text = (ROOT / "README.md").read_text()
    block = re.search(r"^## A first session\n\n((?:    .*\n)+)", text, re.M)
    return [line[4:] for line in block.group(1).splitlines()]


def command_of(line):
    return re.split(r"\s+# ", line)[0]


class FirstSession(SessionTest):
    def environment(self):
        """A user's who has just logged in: none of what make and the tests have set."""
        home = self.folder
        for folder in ("run", "config"):
            (home / folder).mkdir(mode=0o700)
        (home / "config" / "liara-cached.conf").touch()
        kept = {name: os.environ[name] for name in ("PATH", "TMPDIR") if name in os.environ}
        return {**kept, "HOME": str(home), "XDG_RUNTIME_DIR": str(home / "run"),
                "XDG_CACHE_HOME": str(home / ".cache"), "XDG_CONFIG_HOME": str(home / "config"),
                "PROMPT_COMMAND": r'printf "<%s>\n" $?', "LC_ALL": "C"}

    def paste(self, lines):
        """Pastes them into a shell; the exit status and the output of each."""
        pasted, output = self.folder / "pasted", self.folder / "output"
        pasted.write_text("".join(line + "\n" for line in lines))
        # Files, not pipes: what is left running does not hold up the end.
        with open(pasted) as stdin, open(output, "w") as stdout, open(self.complaints, "w") as stderr:
            shell = subprocess.Popen(["bash", "--norc", "--noprofile", "-i"], cwd=ROOT,
                                     env=self.environment(), stdin=stdin, stdout=stdout,
                                     stderr=stderr, start_new_session=True)
        self.addCleanup(self.end, shell)
        shell.wait(LIMIT)
        # The first prompt comes before the first line.
        pieces = re.split(r"<(\d+)>\n", output.read_text())[2:]
        return list(zip(map(int, pieces[1::2]), pieces[0::2]))

    def end(self, shell):
        """Ends the shell where it has not ended, and whatever it has left."""
        try:
            os.killpg(shell.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        shell.wait(WAIT)

    def test_pasted_as_a_block(self):
        block = first_session()
        self.assertEqual([command_of(line) for line in block], [row[0] for row in PROMISED])
        self.complaints = self.folder / "complaints"
        results = self.paste(block + [row[0] for row in AFTERWARDS])
        complaints = self.complaints.read_text()
        promised = PROMISED + AFTERWARDS
        self.assertEqual(len(results), len(promised), complaints)
        for (command, status, output), (got, printed) in zip(promised, results):
            self.assertEqual(got, status, f"{command}: {printed}\n{complaints}")
            if output is not None:
                self.assertTrue(re.fullmatch(output, printed), f"{command}: {printed}")
        memo = [printed for (command, *_), (_, printed) in zip(promised, results)
                if " memo " in command]
        self.assertEqual(memo[0], memo[1])


if __name__ == "__main__":
    unittest.main()
