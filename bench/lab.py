# SPDX-License-Identifier: MIT
"""The laboratory: pairs of network namespaces and the processes inside them. Whatever it makes, close() removes.

    app namespace                                 server namespace
    bench_load + proxifier   198.18.N.1 ==veth== 198.18.N.2   bench_load server (the targets)
                                                 198.18.N.3   the SOCKS server

198.18.0.0/15 is the range set aside for benchmarks (RFC 2544).
"""

import json
import os
import re
import resource
import select
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

BUILD = Path(__file__).resolve().parent.parent / "build" / "bin"
WIRE = Path(__file__).resolve().parent.parent / "tests" / "net" / "wire.py"
PREFIX = "mproxb"
FILES = 262144
SETTINGS = {
    # Ports and time-waits must not run out: every contender opens tens of thousands of connections.
    "net.ipv4.ip_local_port_range": "10000 65535",
    "net.ipv4.tcp_tw_reuse": "1",
    # A receive buffer that need not grow first. How fast the kernel lets it grow depends on its first guess at the round-trip
    # time, and that on whether a SOCKS dialogue came first: the rows with eight streams would show little else.
    "net.ipv4.tcp_rmem": "4096 4194304 33554432",
    # No address detection in the middle of a measurement.
    "net.ipv6.conf.all.disable_ipv6": "1",
    "net.ipv6.conf.default.disable_ipv6": "1",
}


class Failed(Exception):
    """A measurement, or something that it stands on, did not work."""


def command(*words, check=True):
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True)
    if check and done.returncode:
        raise Failed(f"{' '.join(map(str, words))}: {done.stderr.strip()}")
    return done.stdout


def raise_limits():
    """As many descriptors as we may have, for us and all that we start."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for wanted in (max(FILES, hard), hard):
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, wanted))
            return
        except (ValueError, PermissionError):
            continue  # a container that must not raise its hard limit


def files():
    """How many descriptors a process may have."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[1]


def remove_stale():
    """Removes the namespaces of a run that was killed before it could do so."""
    for name in re.findall(rf"^{PREFIX}-\d+-\S+", command("ip", "netns", "list"), re.M):
        if not Path("/proc", name.split("-")[1]).exists():
            remove_namespace(name)


def remove_namespace(name):
    for number in (0, signal.SIGTERM, signal.SIGKILL):  # an engine that is just ending does so by itself
        pids = command("ip", "netns", "pids", name, check=False).split()
        for pid in pids:
            try:
                os.kill(int(pid), number)
            except ProcessLookupError:
                pass
        deadline = time.monotonic() + 3
        while pids and time.monotonic() < deadline:
            pids = command("ip", "netns", "pids", name, check=False).split()
            time.sleep(0.02)
    command("ip", "netns", "del", name, check=False)


class Process:
    """A program inside a namespace, or in ours. It does not survive us, however we end."""

    def __init__(self, namespace, words, log):
        self.words = [str(word) for word in words]
        self.log = log
        inside = ["nsenter", f"--net=/run/netns/{namespace}"] if namespace else []
        self.popen = subprocess.Popen(
            [*inside, "setpriv", "--pdeathsig", "KILL", "--", *self.words],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, start_new_session=True)
        self.pid = self.popen.pid
        self.pending = b""

    def __str__(self):
        """Its command line, and the last thing it complained about."""
        self.log.seek(max(0, self.log.seek(0, os.SEEK_END) - 400))
        complaint = self.log.read().decode(errors="replace").strip().rpartition("\n")[2]
        return " ".join(self.words) + (f" ({complaint})" if complaint else "")

    def line(self, timeout):
        """The next line of its output."""
        deadline = time.monotonic() + timeout
        while b"\n" not in self.pending:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self.popen.stdout], [], [], left)[0]:
                raise Failed(f"no answer within {timeout:g} s from {self}")
            read = os.read(self.popen.stdout.fileno(), 65536)
            if not read:
                raise Failed(f"exit status {self.popen.wait()} of {self}")
            self.pending += read
        line, self.pending = self.pending.split(b"\n", 1)
        return line.decode()

    def say(self, text):
        self.popen.stdin.write(text.encode())
        self.popen.stdin.flush()

    def end(self, patience=0.0):
        """Ends its input, and it: by itself if it has `patience` seconds, else by a signal."""
        try:
            self.popen.stdin.close()
        except BrokenPipeError:
            pass
        for timeout, number in ((patience, signal.SIGTERM), (3, signal.SIGKILL)):
            try:
                self.popen.wait(timeout)
                break
            except subprocess.TimeoutExpired:
                self.popen.send_signal(number)
        self.popen.wait()
        self.popen.stdout.close()


class Load:
    """One measurement: bench_load, started and waiting. Who enters may look around before run() and after it."""

    def __init__(self, lab, prefix, mode, **options):
        words = [*prefix, BUILD / "bench_load", mode, lab.target, "--attended"]
        for name, value in options.items():
            words += [f"--{name}", value]
        self.process = Process(lab.app, words, lab.log)
        self.timeout = 60 if mode == "idle" else 20

    def __enter__(self):
        try:
            if (line := self.process.line(20)) != "ready":
                raise Failed(f"'{line}' where 'ready' was expected")
        except BaseException:
            self.process.end()
            raise
        return self

    def __exit__(self, *_):
        self.process.end(patience=10)

    def run(self, tolerated=0.0):
        """The result. More than the `tolerated` share of errors is a failure."""
        self.process.say("go\n")
        result = json.loads(self.process.line(self.timeout))
        if result["errors"] > tolerated * result.get("count", 0):
            raise Failed(f"{result['errors']} errors in {self.process}")
        return result


class Lab:
    """One pair of namespaces with targets and an upstream SOCKS server; a packet takes `delay` milliseconds between them."""

    def __init__(self, number, upstream, delay=0):
        self.app = f"{PREFIX}-{os.getpid()}-app{number}"
        self.server = f"{PREFIX}-{os.getpid()}-srv{number}"
        self.source, self.target, self.proxy = (f"198.18.{number}.{host}" for host in (1, 2, 3))
        self.proxy_port = 1080
        self.processes = []
        self.configs = []
        self.log = tempfile.TemporaryFile()
        try:
            self._build(delay)
            threads = min(os.cpu_count(), 4)
            self.start(self.server, [BUILD / "bench_load", "server", self.target, "--streams", threads]).line(5)
            if upstream == "microsocks":
                self.start(self.server, ["microsocks", "-i", self.proxy, "-p", self.proxy_port])
            else:
                self.start(self.server, [BUILD / "mprox", "serve", "--listen", f"{self.proxy}:{self.proxy_port}"])
            self.wait_for(self.server, self.proxy_port)
        except BaseException:
            self.close()
            raise

    def _build(self, delay):
        for name in (self.app, self.server):
            command("ip", "netns", "add", name)
            for setting, value in SETTINGS.items():
                self.inside(name, "sysctl", "-qw", f"{setting}={value}")
            command("ip", "-n", name, "link", "set", "lo", "up")
        if delay:
            wire = self.start(None, [sys.executable, "-B", WIRE, self.app, self.server, "eth0", "--delay", delay])
            if (line := wire.line(5)) != "ready":
                raise Failed(f"'{line}' where 'ready' was expected")
        else:
            command("ip", "-n", self.app, "link", "add", "eth0", "type", "veth", "peer", "eth0", "netns", self.server)
        for name, addresses in ((self.app, [self.source]), (self.server, [self.target, self.proxy])):
            for address in addresses:
                command("ip", "-n", name, "addr", "add", f"{address}/24", "dev", "eth0")
            command("ip", "-n", name, "link", "set", "eth0", "up")

    def config(self, text):
        """The name of a file with this text, which lives in memory and is gone when we are."""
        file = os.memfd_create("config")
        os.write(file, text.encode())
        self.configs.append(file)
        return f"/proc/{os.getpid()}/fd/{file}"

    @staticmethod
    def inside(namespace, *words):
        return command("nsenter", f"--net=/run/netns/{namespace}", *words)

    def start(self, namespace, words):
        process = Process(namespace, words, self.log)
        self.processes.append(process)
        return process

    def stop(self, process):
        self.processes.remove(process)
        process.end()

    def wait_for(self, namespace, port):
        """Until somebody listens on `port`."""
        for _ in range(250):
            if self.inside(namespace, "ss", "-Hltn", f"sport = :{port}"):
                return
            time.sleep(0.02)
        raise Failed(f"nobody listens on port {port}: {self.processes[-1]}")

    def close(self):
        for process in reversed(self.processes):
            process.end()
        self.processes.clear()
        for name in (self.app, self.server):
            remove_namespace(name)
        for file in self.configs:
            os.close(file)
        self.configs.clear()
        self.log.close()
