"""The servers that are measured: how each is started on a Unix socket in a folder, and stopped."""

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import time

START_SECONDS = 30
STOP_SECONDS = 60
SETTLE_SECONDS = 30
SAME_SECONDS = 6  # memory that has not changed for so long has settled


class Missing(Exception):
    """What is to be measured is not there; the text says what to install or build."""


def program(name):
    path = shutil.which(name)
    if path is None:
        raise Missing(f"{name} is not installed")
    return path


def answers(path):
    """Whether somebody accepts connections at the socket."""
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(path)
            return True
        except OSError:
            return False


class Server:
    """One server process. peer is what the load generator calls its protocol."""

    peer = None
    own_value = True

    def __init__(self, name, folder, workers):
        self.name = name
        self.folder = folder
        self.workers = workers
        self.socket = os.path.join(folder, name + ".socket")
        self.process = None
        self.helpers = []

    def command(self):
        raise NotImplementedError

    def start(self):
        log = open(os.path.join(self.folder, self.name + ".log"), "ab")
        with log:
            self.process = subprocess.Popen(self.command(), stdin=subprocess.DEVNULL, stdout=log,
                                            stderr=log, cwd=self.folder)
        end = time.monotonic() + START_SECONDS
        while not answers(self.socket):
            if self.process.poll() is not None or time.monotonic() > end:
                self.stop()
                raise Missing(f"{self.name} did not start: {self.last_words()}")
            time.sleep(0.001)
        return self

    def last_words(self):
        with open(os.path.join(self.folder, self.name + ".log"), errors="replace") as log:
            lines = log.read().strip().splitlines()
        return lines[-1] if lines else "it said nothing"

    def stop(self):
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self.process = None
        if os.path.exists(self.socket):
            os.unlink(self.socket)
        for helper in self.helpers:
            helper.stop()

    @property
    def pid(self):
        return self.process.pid

    def pids(self):
        """All processes whose CPU time a request to this server costs."""
        return [self.pid] + [helper.pid for helper in self.helpers]

    def ticks(self):
        """CPU time used so far, in the kernel's ticks."""
        with open(f"/proc/{self.pid}/stat") as stat:
            fields = stat.read().rsplit(")", 1)[1].split()
        return int(fields[11]) + int(fields[12])

    def threads(self):
        """{thread's number: its name}"""
        found = {}
        for thread in os.listdir(f"/proc/{self.pid}/task"):
            with contextlib.suppress(OSError), open(f"/proc/{self.pid}/task/{thread}/comm") as comm:
                found[thread] = comm.read().strip()
        return found

    def cpu_ns(self, name=None):
        """CPU time so far of all threads that there are, or of those of a name."""
        total = 0
        for thread, its_name in self.threads().items():
            if name is not None and its_name != name:
                continue
            with contextlib.suppress(OSError), \
                    open(f"/proc/{self.pid}/task/{thread}/schedstat") as stat:
                total += int(stat.read().split()[0])
        return total

    def written(self):
        """Bytes that it has had the kernel write to disks, as whole pages; and by its calls to
        write()."""
        with open(f"/proc/{self.pid}/io") as counters:
            found = dict(line.split(": ") for line in counters.read().splitlines())
        return int(found["write_bytes"]), int(found["wchar"])

    def kill(self):
        """Ends it without a chance to do anything."""
        self.process.kill()
        self.stop()

    def settle(self):
        """Waits until it has ended what it does in the background: others are measured next."""
        end = time.monotonic() + SETTLE_SECONDS
        before = None
        while before != self.ticks() and time.monotonic() < end:
            before = self.ticks()
            time.sleep(0.2)

    def memory(self):
        """Resident bytes: all, and those that are no file's."""
        with open(f"/proc/{self.pid}/status") as status:
            text = status.read()
        found = {key: int(value) * 1024
                 for key, value in re.findall(r"(VmRSS|RssAnon):\s+(\d+) kB", text)}
        return found["VmRSS"], found["RssAnon"]

    def all_memory(self):
        """Resident bytes, and those of files in memory that are not mapped at the moment."""
        with open(f"/proc/{self.pid}/status") as status:
            found = {key: int(value) * 1024
                     for key, value in re.findall(r"(Rss\w+):\s+(\d+) kB", status.read())}
        files = {}
        for name in os.listdir(f"/proc/{self.pid}/fd"):
            path = f"/proc/{self.pid}/fd/{name}"
            with contextlib.suppress(OSError):
                if os.readlink(path).startswith("/memfd:"):
                    status = os.stat(path)
                    files[status.st_ino] = status.st_blocks * 512
        return found["RssAnon"] + found["RssFile"] + max(found["RssShmem"], sum(files.values()))

    def settled_memory(self):
        """The same once it does not change any more: allocators give back late."""
        end = time.monotonic() + SETTLE_SECONDS
        last, since = self.all_memory(), time.monotonic()
        while time.monotonic() < min(end, since + SAME_SECONDS):
            time.sleep(0.2)
            now = self.all_memory()
            if abs(now - last) > 1 << 18:
                last, since = now, time.monotonic()
        return self.all_memory()


class Liara(Server):
    """This project's daemon on one of its backends."""

    peer = "liara"

    def __init__(self, name, folder, workers, build, backend="memory", options=()):
        super().__init__(name, folder, workers)
        self.build = build
        self.backend = backend
        self.options = list(options)  # KEY=VALUE, or KEY= to leave it to the configuration
        self.config = None            # a file; None: there is none

    def directory(self):
        return os.path.join(self.folder, self.name + ".store")

    def command(self):
        path = os.path.join(self.build, "liara-cached")
        if not os.access(path, os.X_OK):
            raise Missing(f"{path} is not built")
        directory = self.directory()
        os.makedirs(directory, mode=0o700, exist_ok=True)
        options = {"config": self.config or "/dev/null", "socket": self.socket, "backend": self.backend,
                   "directory": directory, "max-size": "8G", "workers": self.workers,
                   "max-connections": 9000, "log-level": "warning"}
        if self.backend == "redis":
            options["redis-socket"] = self.helpers[0].socket
        for option in self.options:
            key, _, value = option.partition("=")
            options[key] = value
        return [path] + [f"--{key}={value}" for key, value in options.items() if value != ""]

    def start(self):
        if self.backend == "redis" and not self.helpers:
            self.helpers.append(Redis(self.name + "-backend", self.folder, self.workers))
        for helper in self.helpers:
            helper.start()
        return super().start()


class Memcached(Server):
    """memcached with as many threads as our workers; values of more than 1 MB need -I."""

    peer = "memcached"

    def __init__(self, name, folder, workers, largest=0, megabytes=8192):
        super().__init__(name, folder, workers)
        self.largest = largest
        self.megabytes = megabytes

    def command(self):
        user = ["-u", "root"] if os.getuid() == 0 else []
        item = ["-I", "64m"] if self.largest >= 1000000 else []
        return [program("memcached"), "-s", self.socket, "-t", str(self.workers), "-m",
                str(self.megabytes), "-c", "9000"] + item + user


class Redis(Server):
    """redis-server that keeps nothing; its io-threads are left at their default."""

    peer = "redis"

    def __init__(self, name, folder, workers, options=()):
        super().__init__(name, folder, workers)
        self.options = list(options)

    def command(self):
        return [self.program(), "--port", "0", "--unixsocket", self.socket, "--save", "",
                "--appendonly", "no", "--maxclients", "9000", "--dir", self.folder, *self.options]

    def program(self):
        """Without the package redis-server its program is there under another name, in
        redis-tools; it goes by the name that it is called by."""
        if shutil.which("redis-server") is None and shutil.which("redis-check-rdb") is not None:
            path = os.path.join(self.folder, "redis-server")
            if not os.path.lexists(path):
                os.symlink(program("redis-check-rdb"), path)
            return path
        return program("redis-server")


class Bare(Server):
    """The bare epoll server, with a fixed reply to each request."""

    peer = "bare"
    own_value = False

    def __init__(self, name, folder, workers, build, size, puts=False):
        super().__init__(name, folder, workers)
        self.build = build
        self.size = size
        self.puts = puts

    def command(self):
        reply = ["-p"] if self.puts else ["-v", str(self.size)]
        return [os.path.join(self.build, "bench", "bare"), "-t", str(self.workers)] + reply + [
            self.socket]
