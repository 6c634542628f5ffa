# SPDX-License-Identifier: MIT
"""The small world every network test lives in.

          netns app                                   netns wan
    +-------------------+                   +---------------------------+
    |  programs under   |  out          in  |  proxies   10.77.0.1      |
    |  mprox run     10.77.0.2 --------- 10.77.0.1         fd77::1      |
    |                fd77::2  (veth)     fd77::1                        |
    |                   |    ^              |  targets   10.88.0.1, .2  |
    +-------------------+    |              |  (on lo)   fd88::1, ::2   |
                          capture           +---------------------------+

app has a default route through wan, so a direct connection to a target always *works*: one that
escapes the proxy is not lost but seen by the capture. wan answers for what it cannot reach:
10.88.5.0/24 and fd88:5::/64 (a wire with nobody on it) as host unreachable, what has no route as network unreachable.
Every process started here carries MPROX_TEST_RUN in its environment: tests/run finds leftovers by it.
"""
import atexit
import contextlib
import ctypes
import fcntl
import itertools
import os
import select
import shutil
import signal
import socket
import struct
import subprocess
import tempfile
import threading
import time
import unittest
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MPROX = os.path.abspath(os.environ.get("MPROX_BIN", ROOT / "build/bin/mprox"))
PYTHON = "/usr/bin/python3"
SCALE = float(os.environ.get("MPROX_TEST_SCALE", "1"))  # size of the big tests
PATIENCE = float(os.environ.get("MPROX_TEST_PATIENCE", "60"))  # seconds until a wait counts as a hang

FAR4, FAR6, NEAR4, NEAR6 = "10.79.0.1", "fd79::1", "10.79.0.2", "fd79::2"  # wan's and app's ends of World.wire()
PROXY4, PROXY6 = "10.77.0.1", "fd77::1"
APP4, APP6 = "10.77.0.2", "fd77::2"
TARGET4, TARGET4B, TARGET6 = "10.88.0.1", "10.88.0.2", "fd88::1"
HOST_UNREACHABLE4, HOST_UNREACHABLE6 = "10.88.5.5", "fd88:5::5"
NET_UNREACHABLE4, NET_UNREACHABLE6 = "10.99.9.9", "fd99::9"
CLOSED_PORT = 9  # nobody listens on it anywhere
# Where connections are held: at one port of many addresses, and at several of ::1 in turn.
HELD_PORT4, HELD_PORTS6 = 957, range(958, 989)

os.environ.setdefault("MPROX_TEST_RUN", f"{os.getpid()}")
CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)
_counter = itertools.count()
# What would change mprox's mind, or a client's.
_UNWANTED = ("MPROX_PROXY", "ALL_PROXY", "all_proxy", "http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY",
             "HTTPS_PROXY", "NO_PROXY", "SUDO_USER", "SUDO_UID", "SUDO_GID", "SUDO_COMMAND")


def environment(**extra):
    env = {k: v for k, v in os.environ.items() if k not in _UNWANTED}
    return {**env, **extra}


def wait_until(condition, what, seconds=None):
    """Polls `condition` until it holds; fails the test when it does not in time. Returns its value."""
    end = time.monotonic() + (seconds or PATIENCE)
    while not (value := condition()):
        if time.monotonic() > end:
            raise AssertionError(f"gave up waiting: {what}")
        select.select([], [], [], 0.01)
    return value


class Netns:
    """A named network namespace. Sockets made inside keep belonging to it."""

    def __init__(self, name):
        self.name = name
        self.path = f"/run/netns/{name}"
        subprocess.run(["ip", "netns", "add", name], check=True)

    @contextlib.contextmanager
    def entered(self):
        """The calling thread is inside; other threads are not."""
        with open("/proc/thread-self/ns/net") as home, open(self.path) as there:
            _setns(there.fileno())
            try:
                yield
            finally:
                _setns(home.fileno())

    def socket(self, family=socket.AF_INET, kind=socket.SOCK_STREAM, protocol=0):
        with self.entered():
            return socket.socket(family, kind, protocol)

    def listen(self, address, port=0, backlog=4096):
        s = self.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        s.bind((address, port))
        s.listen(backlog)
        return s

    def ip(self, *lines):
        subprocess.run(["ip", "-n", self.name, "-batch", "-"], input="\n".join(lines), text=True, check=True)

    def sysctl(self, **values):
        with self.entered():  # /proc/sys/net follows the reader's namespace
            for key, value in values.items():
                Path("/proc/sys/net", key.replace("__", "/")).write_text(str(value))

    def packets(self, device):
        """That a device has received, and sent."""
        with self.entered():
            lines = Path("/proc/thread-self/net/dev").read_text().splitlines()
        counts = next(line.split(":")[1].split() for line in lines if line.strip().startswith(f"{device}:"))
        return int(counts[1]), int(counts[9])

    def tcp(self, counter):
        """As in /proc/net/snmp."""
        with self.entered():
            names, values = (line.split() for line in Path("/proc/thread-self/net/snmp").read_text().splitlines()
                             if line.startswith("Tcp:"))
        return int(values[names.index(counter)])

    def command(self, *argv):
        return ["nsenter", f"--net={self.path}", "--", *map(str, argv)]

    def remove(self):
        subprocess.run(["ip", "netns", "del", self.name], check=False)


def _setns(fd):
    if _libc.setns(fd, CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")


def offload(ns, device, what, on):
    """As `ethtool -K`, which not every machine has."""
    commands = {"rx": 0x15, "tx": 0x17, "tso": 0x1f, "gso": 0x24, "gro": 0x2c}  # ETHTOOL_SRXCSUM ...
    value = ctypes.create_string_buffer(struct.pack("II", commands[what], on))
    with ns.socket() as s:
        fcntl.ioctl(s, 0x8946, struct.pack("16sP16x", device.encode(), ctypes.addressof(value)))  # SIOCETHTOOL


@dataclass
class Result:
    code: int
    out: str
    err: str


class Process(subprocess.Popen):
    """A child that is waited for and ended by its pidfd."""

    def __init__(self, argv, **options):
        options.setdefault("env", environment())
        super().__init__(list(map(str, argv)), **options)
        self.pidfd = os.pidfd_open(self.pid)

    def ended(self, seconds):
        return bool(select.select([self.pidfd], [], [], seconds)[0])

    def finish(self, seconds=None):
        if not self.ended(seconds or PATIENCE):
            self.stop()
            raise AssertionError(f"still running after {seconds or PATIENCE:g} s: {self.args}")
        return self.wait()

    def stop(self, first=signal.SIGTERM):
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.pidfd, first)
            if not self.ended(5):
                signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
                self.ended(5)
        self.wait()
        if self.pidfd >= 0:
            os.close(self.pidfd)
            self.pidfd = -1
        for pipe in (self.stdin, self.stdout, self.stderr):
            if pipe:
                with contextlib.suppress(OSError):
                    pipe.close()


def run(argv, input=None, seconds=None, **options):
    """Runs to the end and returns its Result; a program that does not end fails the test."""
    options.setdefault("env", environment())
    seconds = seconds or PATIENCE
    data = input.encode() if isinstance(input, str) else input
    source = {"input": data} if data is not None else {"stdin": subprocess.DEVNULL}
    if "stdin" in options:
        source = {}
    child = subprocess.Popen(list(map(str, argv)), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                             **({"stdin": subprocess.PIPE} if data is not None else source), **options)
    try:
        out, err = child.communicate(data, timeout=seconds)
    except subprocess.TimeoutExpired as late:
        child.kill()
        child.wait()
        raise AssertionError(f"still running after {seconds:g} s: {argv}\n"
                             f"{(late.stdout or b'')[-2000:]}\n{(late.stderr or b'')[-2000:]}") from None
    return Result(child.returncode, out.decode(errors="replace"), err.decode(errors="replace"))


class World:
    """app, wan and the wire between them. One per test module; `close` removes everything."""

    def __init__(self):
        self._whole = self._undo = contextlib.ExitStack()
        atexit.register(self.close)  # when the test process is interrupted
        mark = f"mproxt-{os.getpid()}-{next(_counter)}"
        self.app = self._namespace(f"{mark}-app")
        self.wan = self._namespace(f"{mark}-wan")
        for ns in (self.app, self.wan):
            ns.sysctl(ipv6__conf__default__accept_dad=0, ipv6__conf__all__accept_dad=0)
        self.wan.ip(
            f"link add in type veth peer name out netns {self.app.name}",
            "link set lo up", "link set in up",
            f"addr add {PROXY4}/24 dev in", f"addr add {PROXY6}/64 dev in nodad",
            f"addr add {TARGET4}/32 dev lo", f"addr add {TARGET4B}/32 dev lo",
            f"addr add {TARGET6}/128 dev lo nodad", "addr add fd88::2/128 dev lo nodad",
            "link add void type veth peer name nobody", "link set void up", "link set nobody up",
            "addr add 10.88.5.1/24 dev void", "addr add fd88:5::1/64 dev void nodad")
        self.app.ip(
            "link set lo up", "link set out up",
            f"addr add {APP4}/24 dev out", f"addr add {APP6}/64 dev out nodad",
            f"route add default via {PROXY4}", f"route add default via {PROXY6}")
        self.wan.sysctl(ipv4__ip_forward=1, ipv6__conf__all__forwarding=1,
                        ipv4__icmp_ratelimit=0, ipv6__icmp__ratelimit=0,
                        **{f"{ip}__neigh__void__{key}": value for ip in ("ipv4", "ipv6")
                           for key, value in (("mcast_solicit", 1), ("retrans_time_ms", 30))})
        self.dir = Path(tempfile.mkdtemp(prefix="mproxt-"))
        self.dir.chmod(0o755)
        self._undo.callback(shutil.rmtree, self.dir, ignore_errors=True)

    def _namespace(self, name):
        ns = Netns(name)
        self._undo.callback(ns.remove)
        return ns

    def close(self):
        atexit.unregister(self.close)
        self._whole.close()

    @contextlib.contextmanager
    def scope(self):
        """What is started inside ends with it."""
        with contextlib.ExitStack() as inner:
            self._whole.push(inner)  # for when the world is closed in the middle
            self._undo = inner
            try:
                yield
            finally:
                self._undo = self._whole

    def defer(self, function, *args):
        self._undo.callback(function, *args)

    def start(self, ns, *argv, **options):
        """A process inside `ns` that lives until the world ends (or is stopped)."""
        process = Process(ns.command(*argv), **options)
        self.defer(process.stop)
        return process

    def start_listening(self, ns, address, port, *argv, **options):
        """The same, once a connection to address:port is accepted."""
        log = open(self.dir / f"log-{next(_counter)}", "w+")
        self.defer(log.close)
        process = self.start(ns, *argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, **options)
        end = time.monotonic() + PATIENCE
        while True:
            with ns.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as s:
                if s.connect_ex((address, port)) == 0:
                    return process
            if process.ended(0.02) or time.monotonic() > end:
                raise AssertionError(f"{argv} does not listen on {address}:{port}:\n{Path(log.name).read_text()}")

    def target(self):
        """The peer all transparency and volume tests talk to (target.py), on every address of wan."""
        process = self.start(self.wan, PYTHON, ROOT / "tests/net/target.py", stdin=subprocess.DEVNULL,
                             stdout=subprocess.PIPE, text=True)
        line = process.stdout.readline()
        if line != "ready\n":
            raise AssertionError(f"the target did not start: {line!r}")
        return process

    def mprox(self, *argv, ns=None, **options):
        """Runs `mprox ARGV...` in app, to its end."""
        return run((ns or self.app).command(MPROX, *argv), **options)

    def proxied(self, proxies, *program, options=(), **more):
        """`mprox run --proxy ... OPTIONS -- PROGRAM...` in app, to its end."""
        return self.mprox(*run_arguments(proxies, options), *program, **more)

    def start_proxied(self, proxies, *program, options=(), **more):
        return self.start(self.app, MPROX, *run_arguments(proxies, options), *program, **more)

    def wire(self, *options, test=None):
        """Another way between app and wan, where that is FAR4 and FAR6, by wire.py; until the end of the test, or the world's."""
        process = self.start(self.app, PYTHON, ROOT / "tests/net/wire.py", self.app.name, self.wan.name, "bare", *options,
                             stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        if test:
            test.addCleanup(process.stop)
        else:
            self.defer(self._let_engines_end)  # what they have still to say goes over the wire
        if process.stdout.readline() != "ready\n":
            raise AssertionError("wire.py cannot begin")
        for ns, four, six in ((self.app, NEAR4, NEAR6), (self.wan, FAR4, FAR6)):
            ns.ip("link set bare up", f"addr add {four}/24 dev bare", f"addr add {six}/64 dev bare nodad")

    @staticmethod
    def _let_engines_end():
        with contextlib.suppress(AssertionError):
            wait_until(lambda: not engines(), "", PATIENCE / 12)

    def shell(self, proxies=None, options=(), **more):
        """A Shell behind `proxies`, or directly in app when there are none."""
        prefix = [MPROX, *run_arguments(proxies, options)] if proxies else []
        return Shell(self.start(self.app, *prefix, PYTHON, CLIENT, "shell", stdin=subprocess.PIPE,
                                stdout=subprocess.PIPE, text=True, bufsize=1, **more))


class Shell:
    """client.py's shell, running somewhere: one question, one answer."""

    def __init__(self, process):
        self.process = process

    def __call__(self, *words):
        self.tell(*words)
        return self.answer()

    def tell(self, *words):
        self.process.stdin.write(" ".join(map(str, words)) + "\n")
        self.process.stdin.flush()

    def answer(self):
        if not select.select([self.process.stdout], [], [], PATIENCE)[0]:
            raise AssertionError("no answer: the client hangs")
        return self.process.stdout.readline().strip()


def run_arguments(proxies, options=()):
    """`proxies`: one URI or several."""
    uris = [proxies] if isinstance(proxies, str) else proxies
    return ["run", *(part for uri in uris for part in ("--proxy", uri)), *options, "--"]


def engines():
    """Pids of the running engines that this test run started; others may use mprox on the same machine."""
    return _engines()[0]


def _engines():
    mark = f"MPROX_TEST_RUN={os.environ['MPROX_TEST_RUN']}".encode()
    ours, others = set(), set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                if (entry / "cmdline").read_bytes().startswith(b"mprox: engine"):
                    ours_too = mark in (entry / "environ").read_bytes().split(b"\0")
                    (ours if ours_too else others).add(int(entry.name))
    return ours, others


def left_behind():
    """What mprox holds on this machine for us right now: engines, and its directory if nobody else needs that."""
    ours, others = _engines()
    held = [f"engine {pid}" for pid in ours]
    if not others and Path("/run/mprox").exists():
        held.append("/run/mprox")
    if not others and "/run/mprox" in Path("/proc/self/mountinfo").read_text():
        held.append("a mount on /run/mprox")
    return held


def in_thread(function, *args):
    thread = threading.Thread(target=function, args=args, daemon=True)
    thread.start()
    return thread


class NetTest(unittest.TestCase):
    """A test class with one world for all its tests. Subclasses prepare more in `prepare`."""
    world: World

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.world = World()
        cls.addClassCleanup(cls.world.close)
        cls.prepare()

    @classmethod
    def prepare(cls):
        pass

    def run(self, result=None):
        """What one test starts does not live on into the next."""
        with self.world.scope():
            return super().run(result)

    def assertClean(self):
        """Everything mprox made goes away once the last member is gone."""
        try:
            wait_until(lambda: not left_behind(), "")
        except AssertionError:
            self.fail(f"left behind: {left_behind()}")

    def connect(self, proxies, address, port, *, options=(), **more):
        """One blocking connect() by client.py under mprox: its Result, `out` is "ok" or the errno's name."""
        result = self.world.proxied(proxies, PYTHON, CLIENT, "connect", address, port, options=options, **more)
        result.out = result.out.strip()
        return result


CLIENT = ROOT / "tests/net/client.py"
