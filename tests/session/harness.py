"""What the session tests share: a daemon, a Redis server and clients, each in a folder of its own.

Every wait is bounded and looks for a condition; nothing sleeps for a fixed time and hopes. A daemon
that ends otherwise than it was told to, or whose log has a sanitizer's report, fails its test.
"""

import array
import contextlib
import fcntl
import os
import re
import resource
import select
import shutil
import signal
import socket
import subprocess
import tempfile
import termios
import threading
import time
import unittest
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BUILD = Path(os.environ.get("LIARA_BUILD", ROOT / "build")).resolve()
DAEMON = BUILD / "liara-cached"
FAULTY = BUILD / "tests" / "faulty-cached"
CLI = BUILD / "liara-cache-cli"
LOAD = BUILD / "tests" / "load"

WAIT = 120  # seconds for what should take milliseconds; sanitizers and busy machines are slow
BACKENDS = ("memory", "filesystem", "sqlite", "redis", "null")
STORING = ("memory", "filesystem", "sqlite", "redis")
PERSISTENT = ("filesystem", "sqlite")
TITLES = {"memory": "In-Memory", "filesystem": "Filesystem", "sqlite": "Sqlite3",
          "redis": "Redis", "null": "Null"}

REPORTS = re.compile(r"(ERROR: \w+Sanitizer|WARNING: ThreadSanitizer|runtime error:|"
                     r"ERROR: LeakSanitizer|Assertion .* failed)")


def until(condition, what, seconds=WAIT):
    """Waits until condition() is true and returns what it returned."""
    end = time.monotonic() + seconds
    while True:
        result = condition()
        if result:
            return result
        if time.monotonic() > end:
            raise AssertionError(f"waited {seconds} s in vain: {what}")
        time.sleep(0.002)


def encode(key):
    """A key as it is written in a line."""
    key = key.encode() if isinstance(key, str) else key
    return "".join(chr(b) if 0x21 <= b <= 0x7E and b != 0x25 else f"%{b:02X}" for b in key)


class Closed(AssertionError):
    """The daemon has closed the connection where a reply was expected."""


class Client:
    """One connection, as a person with socat would have it."""

    def __init__(self, path, timeout=WAIT):
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.settimeout(timeout)
        try:
            self.socket.connect(str(path))
        except OSError:
            self.socket.close()
            raise
        self.buffer = b""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        self.socket.close()

    def send(self, data):
        self.socket.sendall(data.encode("latin-1") if isinstance(data, str) else data)

    def send_descriptors(self, data, descriptors):
        rights = array.array("i", descriptors)
        self.socket.sendmsg([data.encode("latin-1")],
                            [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])

    def taken(self, seconds=WAIT):
        """Waits until the daemon has read all that was sent; False where it does not in time."""
        end = time.monotonic() + seconds
        left = bytearray(4)
        while True:
            fcntl.ioctl(self.socket, termios.TIOCOUTQ, left)
            if not any(left):
                return True
            if time.monotonic() > end:
                return False
            time.sleep(0.0002)

    def _more(self):
        try:
            data = self.socket.recv(1 << 20)
        except socket.timeout:
            raise AssertionError(f"no reply in time; so far {self.buffer[:200]!r}") from None
        except ConnectionResetError:
            data = b""
        if not data:
            raise Closed(f"the connection was closed; so far {self.buffer[:200]!r}")
        self.buffer += data

    def line(self):
        """The next line, without its LF."""
        while b"\n" not in self.buffer:
            self._more()
        line, self.buffer = self.buffer.split(b"\n", 1)
        return line.decode("latin-1")

    def exactly(self, count):
        if count > len(self.buffer):
            parts, have = [self.buffer], len(self.buffer)
            self.buffer = b""
            while have < count:
                self._more()
                parts.append(self.buffer)
                have += len(self.buffer)
                self.buffer = b""
            self.buffer = b"".join(parts)
        data, self.buffer = self.buffer[:count], self.buffer[count:]
        return data

    def ask(self, line):
        """Sends a line; returns the line of the reply."""
        self.send(line + "\n")
        return self.line()

    def value(self, line):
        """The bytes that follow a VALUE line; None for a MISS."""
        if line.startswith("MISS"):
            return None
        word, length = line.split(" ")[:2]
        if word != "VALUE":
            raise AssertionError(line)
        data = self.exactly(int(length) + 1)
        if data[-1:] != b"\n":
            raise AssertionError("a value is not followed by LF")
        return data[:-1]

    def get(self, key, options=""):
        return self.value(self.ask(f"GET {encode(key)}{options}"))

    def put(self, key, value, options=""):
        value = value.encode() if isinstance(value, str) else value
        self.send(f"PUT {encode(key)} {len(value)}{options}\n".encode() + value + b"\n")
        return self.line()

    def inspect(self):
        text = self.value(self.ask("INSPECT")).decode()
        return dict(line.split(" ", 1) for line in text.splitlines())

    def silent(self, seconds=0):
        """Whether nothing comes for so long, no end either."""
        return not self.buffer and not select.select([self.socket], [], [], seconds)[0]

    def closed(self, seconds=WAIT):
        """Waits for the daemon to close; whatever still comes is dropped."""
        self.socket.settimeout(seconds)
        try:
            while self.socket.recv(1 << 16):
                pass
        except socket.timeout:
            return False
        except ConnectionResetError:
            pass
        return True


def raise_limits():
    """As many descriptors as this user may have: 1,000 clients are no more than that here."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


class Process:
    """A program that was started, its log, and its end."""

    def __init__(self, arguments, log, environment=None, descriptors=(), before=None):
        self.log_path = log
        with open(log, "ab") as out:
            self.process = subprocess.Popen(
                [str(a) for a in arguments], stdin=subprocess.DEVNULL, stdout=out, stderr=out,
                env=environment, pass_fds=descriptors, preexec_fn=before)

    @property
    def pid(self):
        return self.process.pid

    def log(self):
        return self.log_path.read_text(errors="replace")

    def signal(self, number):
        self.process.send_signal(number)

    def running(self):
        return self.process.poll() is None

    def wait(self, seconds=WAIT):
        return self.process.wait(seconds)

    def kill(self):
        if self.running():
            self.process.kill()
        self.process.wait(WAIT)


class Redis(Process):
    """A Redis server of our own, on a Unix socket."""

    def __init__(self, folder, *arguments):
        self.folder = Path(folder)
        self.socket = self.folder / "redis.sock"
        self.arguments = ["redis-server", "--port", "0", "--unixsocket", self.socket, "--save", "",
                          "--dir", self.folder, *arguments]
        self.start()

    def start(self):
        super().__init__(self.arguments, self.folder / "redis.log")
        until(self.answers, "redis-server answers")

    def answers(self):
        if not self.running():
            raise AssertionError("redis-server ended:\n" + self.log())
        try:
            return self.command("PING") == b"+PONG"
        except OSError:
            return False

    def command(self, *words):
        """One inline command; the first line of the reply."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as s:
            s.settimeout(WAIT)
            s.connect(str(self.socket))
            s.sendall(" ".join(words).encode() + b"\r\n")
            return s.recv(1 << 16).split(b"\r\n")[0]


class Daemon(Process):
    """A daemon on one backend. Options are those of the configuration, with _ for -."""

    def __init__(self, folder, backend, program=DAEMON, environment=None, descriptors=(),
                 before=None, start=True, **options):
        self.folder = Path(folder)
        self.folder.mkdir(exist_ok=True)
        self.backend = backend
        self.socket = self.folder / "socket"
        self.directory = self.folder / "store"
        self.config = self.folder / "conf"
        self.program = program
        self.environment = environment
        self.descriptors = descriptors
        self.before = before
        self.config.touch()
        self.options = {"config": self.config, "socket": self.socket, "backend": backend,
                        "directory": self.directory, "workers": 2}
        if backend == "redis":  # a busy machine is no outage; tests of those say otherwise
            self.options.update(redis_timeout="1h", redis_connect_timeout="1h")
        self.options.update(options)
        self.expected = 0
        if start:
            self.start()

    def command_line(self):
        return [self.program] + [f"--{name.replace('_', '-')}={value}"
                                 for name, value in self.options.items() if value is not None]

    def launch(self):
        """Starts it without waiting for it to answer."""
        self.expected = 0
        log = self.folder / "log"
        self.served_before = log.read_text().count("serving ") if log.exists() else 0
        super().__init__(self.command_line(), self.folder / "log", self.environment,
                         self.descriptors, self.before)

    def start(self):
        self.launch()
        until(self.answers, "the daemon answers")

    def answers(self):
        if not self.running():
            raise AssertionError(f"the daemon ended with {self.process.returncode}:\n{self.log()}")
        # The first worker answers before the last one is started; tests count descriptors.
        if self.log().count("serving ") <= self.served_before:
            return False
        with Client(self.options["socket"]) as client:
            return client.ask("PING") == "OK"

    def client(self, **options):
        return Client(self.options["socket"], **options)

    def kill9(self):
        self.expected = -signal.SIGKILL
        self.signal(signal.SIGKILL)
        self.wait()

    def stop(self):
        """Ends it as systemd would, and holds it to a clean end."""
        if self.running():
            self.signal(signal.SIGTERM)
        try:
            status = self.wait()
        except subprocess.TimeoutExpired:
            self.signal(signal.SIGABRT)
            self.kill()
            raise AssertionError("the daemon does not stop:\n" + self.log()) from None
        if status != self.expected:
            raise AssertionError(f"the daemon ended with {status}:\n{self.log()}")

    def restart(self):
        self.stop()
        self.start()

    def check_log(self):
        if REPORTS.search(self.log()):
            raise AssertionError("a sanitizer's report:\n" + self.log())

    def suspended(self):
        return all(" (stopped)" in path.read_text() for path in
                   Path(f"/proc/{self.pid}/task").glob("*/status"))

    def descriptors_open(self):
        """How many it has open beside those of its store's own files."""
        def is_own(fd):
            try:
                return os.readlink(fd).startswith(str(self.directory))
            except FileNotFoundError:
                return True
        folder = f"/proc/{self.pid}/fd"
        return sum(not is_own(os.path.join(folder, name)) for name in os.listdir(folder))

    def descriptors_settled(self):
        """How many are open once those of connections that have ended are closed."""
        def settled():
            count = self.descriptors_open()
            return all(self.descriptors_open() == count for _ in range(50)) and count

        return until(settled, "the daemon's descriptors settle")

    def memory(self):
        """Bytes of it that are resident."""
        fields = Path(f"/proc/{self.pid}/statm").read_text().split()
        return int(fields[1]) * resource.getpagesize()


def all_hear(daemon):
    """Whether none of some connections is told that Redis does not answer, yet."""
    def one():
        with daemon.client() as client:
            return client.ask("HEAD nothing") == "MISS"

    return all([one() for _ in range(8)])


class SessionTest(unittest.TestCase):
    """A test with a folder of its own, which takes away what it started."""

    def setUp(self):
        self.folder = Path(tempfile.mkdtemp(prefix="liara-"))
        self.addCleanup(shutil.rmtree, self.folder, ignore_errors=True)
        self._count = 0

    def _fresh(self, name):
        self._count += 1
        folder = self.folder / f"{name}{self._count}"
        folder.mkdir()
        return folder

    def redis(self, *arguments):
        server = Redis(self._fresh("redis"), *arguments)
        self.addCleanup(server.kill)
        return server

    def daemon(self, backend, **options):
        """A running daemon; a Redis server comes with it where it needs one."""
        own_redis = backend == "redis" and "redis_socket" not in options
        if own_redis:
            options["redis_socket"] = self.redis().socket
        daemon = self.launched(self.prepared(backend, **options))
        if own_redis:
            until(lambda: all_hear(daemon), "all workers have reached Redis")
        return daemon

    def prepared(self, backend, **options):
        """A daemon that is still to be launched, for which see launched()."""
        return Daemon(self._fresh("daemon"), backend, start=False, **options)

    def launched(self, daemon):
        daemon.launch()
        self.addCleanup(self._end, daemon)
        until(daemon.answers, "the daemon answers")
        return daemon

    def adopt(self, daemon):
        """Takes care of a daemon's end that was launched by hand."""
        self.addCleanup(self._end, daemon)
        return daemon

    def _end(self, daemon):
        try:
            daemon.stop()
        finally:
            daemon.kill()
            daemon.check_log()

    def suspend(self, daemon):
        """Has it hang until the test is over."""
        self.addCleanup(daemon.signal, signal.SIGCONT)
        daemon.signal(signal.SIGSTOP)
        until(daemon.suspended, "the daemon has stopped")

    @contextlib.contextmanager
    def played(self, *scripts):
        """The socket of a daemon that is played: script(connection) for each connection in turn, in a
        thread. It hangs when they are over."""
        path = self._fresh("played") / "socket"
        errors = []

        def serve():
            try:
                for script in scripts:
                    with listener.accept()[0] as connection:
                        connection.settimeout(WAIT)
                        script(connection)
            except (OSError, AssertionError) as error:
                errors.append(error)

        with socket.socket(socket.AF_UNIX) as listener:
            listener.settimeout(WAIT)
            listener.bind(str(path))
            listener.listen(8)
            thread = threading.Thread(target=serve)
            thread.start()
            try:
                yield path
            finally:
                thread.join(WAIT * 2)
        self.assertEqual(errors, [])

    def crowded(self):
        """A socket at which nobody accepts, and whose queue is full."""
        path = self._fresh("crowded") / "socket"
        listener = socket.socket(socket.AF_UNIX)
        self.addCleanup(listener.close)
        listener.bind(str(path))
        listener.listen(0)
        while True:
            waiting = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
            self.addCleanup(waiting.close)
            try:
                waiting.connect(str(path))
            except BlockingIOError:
                return path

    def clients(self, daemon, count):
        made = [daemon.client() for _ in range(count)]
        for client in made:
            self.addCleanup(client.close)
        return made

    def client(self, daemon, **options):
        made = daemon.client(**options)
        self.addCleanup(made.close)
        return made


def in_threads(count, work):
    """Runs work(0) … work(count - 1) at once; their results, or the first of their errors."""
    results, errors = [None] * count, []

    def run(index):
        try:
            results[index] = work(index)
        except BaseException as error:  # it is raised again below
            errors.append(error)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT * 4)
    if errors:
        raise errors[0]
    if any(thread.is_alive() for thread in threads):
        raise AssertionError("a thread of the test did not end")
    return results
