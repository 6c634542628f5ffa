# SPDX-License-Identifier: MIT
"""Who takes part. A contender turns a program's command line into one whose connections go its way."""

import os
import re
import shlex
import shutil
from pathlib import Path

from lab import BUILD, Failed, Lab, Load, files

IDLE_FLOWS = 10000
TICK = os.sysconf("SC_CLK_TCK")
ENGINES = Path("/run/mprox/engines")


class Direct:
    """No proxy at all."""

    proxied = True
    usual = True  # does it take part unless others are asked for?
    engine = False  # is there a process whose cost can be measured?
    needs = ()
    idle_flows = IDLE_FLOWS
    rows = None  # those that are worth a measurement; all

    def __init__(self, name, number, upstream, delay=0):
        self.name, self.number, self.upstream = name, number, upstream
        self.distant = None
        self.lab = Lab(number, upstream, delay)
        try:
            self.prepare()
        except BaseException:
            self.close()
            raise

    def prepare(self):
        self.proxied = False

    def prefix(self):
        return []

    def renew(self):
        """A fresh engine, where engines outlive a measurement."""

    def engines(self):
        """The process ids of the engine that serves the running measurement. Fails if there should be one."""
        return []

    def load(self, mode, **options):
        return Load(self.lab, self.prefix(), mode, **options)

    def verify(self):
        """Does the traffic go where the table will say it went?"""
        with self.load("peer") as load:
            seen = load.run()["address"]
            if (seen != self.lab.source) != self.proxied:
                raise Failed(f"{self.name}: the server saw the connection come from {seen}")
            self.engines()

    def at_a_distance(self, delay):
        """The same, where a packet to the proxy and the targets takes `delay` milliseconds."""
        self.distant = self.distant or type(self)(self.name, self.number + 100, self.upstream, delay)
        return self.distant

    def close(self):
        if self.distant:
            self.distant.close()
        self.lab.close()


class Proxychains(Direct):
    """A preloaded library that speaks SOCKS inside the program: nothing is between program and proxy."""

    needs = ("proxychains4",)

    def prepare(self):
        self.config = self.lab.config(
            "strict_chain\nquiet_mode\ntcp_read_time_out 15000\ntcp_connect_time_out 8000\n"
            f"[ProxyList]\nsocks5 {self.lab.proxy} {self.lab.proxy_port}\n")

    def prefix(self):
        return ["proxychains4", "-q", "-f", self.config]


class Redsocks(Direct):
    """An iptables redirection to a relay that splices. Nothing else lives in its namespace, so nobody else pays
    for connection tracking."""

    engine = True
    needs = ("redsocks", "iptables")
    PORT = 8123
    CONFIG = """
        base {{ log_debug = off; log_info = off; log = stderr; daemon = off; redirector = iptables;
                rlimit_nofile = {files}; redsocks_conn_max = {flows}; }}
        redsocks {{ local_ip = 127.0.0.1; local_port = {port}; listenq = 4096; splice = true;
                    type = socks5; ip = {proxy}; port = {proxy_port}; }}
    """

    @property
    def idle_flows(self):
        """As many as the limit on open files allows one process that holds two sockets and two pipes a flow."""
        return min(IDLE_FLOWS, (files() - 300) // 6)

    def prepare(self):
        self.config = self.lab.config(self.CONFIG.format(
            files=files(), flows=self.idle_flows + 10, port=self.PORT,
            proxy=self.lab.proxy, proxy_port=self.lab.proxy_port))
        self.lab.inside(self.lab.app, "iptables", "-w", "-t", "nat", "-A", "OUTPUT", "-p", "tcp",
                        "-d", self.lab.target, "-j", "REDIRECT", "--to-ports", self.PORT)
        self.process = None
        self.renew()

    def renew(self):
        if self.process:
            self.lab.stop(self.process)
        self.process = self.lab.start(self.lab.app, ["redsocks", "-c", self.config])
        self.lab.wait_for(self.lab.app, self.PORT)

    def engines(self):
        return [self.process.pid]


class Mprox(Direct):
    """`mprox run`. Each measurement has an engine of its own."""

    engine = True
    needs = (str(BUILD / "mprox"),)
    options = ()

    def prepare(self):
        self.namespace = os.stat(f"/run/netns/{self.lab.app}").st_ino

    def prefix(self):
        return [BUILD / "mprox", "run", "--proxy", f"socks5://{self.lab.proxy}:{self.lab.proxy_port}",
                *self.options, "--"]

    def engines(self):
        found = [int(entry.name) for entry in ENGINES.glob("[0-9]*") if self._is_ours(entry.name)]
        if not found:
            raise Failed(f"{self.name}: its engine is nowhere to be seen")
        return found

    def _is_ours(self, pid):
        try:
            return os.stat(f"/proc/{pid}/ns/net").st_ino == self.namespace
        except OSError:
            return False


class MproxRelay(Mprox):
    """`mprox run` whose engine moves every byte."""

    options = ("--data-path", "relay")


class MproxCold(Mprox):
    """`mprox run` that makes no connection ahead: only how it connects differs."""

    options = ("--no-warm",)
    rows = ("connect1", "paced", "connect16", "far")


class Native(Direct):
    """A program that speaks SOCKS5 itself, with as few calls as can be."""

    usual = False

    def prepare(self):
        pass

    def load(self, mode, **options):
        return super().load(mode, socks=f"{self.lab.proxy}:{self.lab.proxy_port}", **options)


class Kernel(Direct):
    """mprox_create(): a kernel that speaks SOCKS5 on the program's own socket. Nothing is between program and proxy."""

    usual = False
    needs = (str(BUILD / "mprox_kernel"),)

    def prepare(self):
        pass

    def prefix(self):
        return [BUILD / "mprox_kernel", "run", "--proxy", f"socks5://{self.lab.proxy}:{self.lab.proxy_port}", "--"]


CONTENDERS = {"direct": Direct, "proxychains4": Proxychains, "redsocks": Redsocks, "mprox": Mprox, "mprox-cold": MproxCold,
              "mprox-relay": MproxRelay, "native": Native, "kernel": Kernel}


class Ratio:
    """Two columns of the table, one divided by the other; `targets` says what some rows should come to."""

    def __init__(self, name, base, targets):
        self.name, self.base, self.targets = name, base, targets
        self.title = f"{name} ÷ {base}" + (" (target)" if targets else "")


# What the handshake in the kernel may cost beside the same handshake in the program.
KERNEL_TARGETS = {"down1": "≥ 0.97", "up1": "≥ 0.97", "connect1": "≤ 1.05", "connect16": "≥ 0.95"}


def ratios(names):
    """Those worth a column when these take part."""
    wanted = [Ratio(name, base, {}) for name in names if name.startswith("mprox")
              for base in ("redsocks", "proxychains4")]
    wanted.append(Ratio("kernel", "native", KERNEL_TARGETS))
    return [ratio for ratio in wanted if ratio.name in names and ratio.base in names]


def variant(text):
    """`NAME=OPTIONS` as a contender: `mprox run OPTIONS` in a column of its own."""
    name, options = text.split("=", 1)
    if not name.startswith("mprox"):
        raise ValueError
    CONTENDERS[name] = type("MproxVariant", (Mprox,), {"options": tuple(shlex.split(options))})
    return name


def usual():
    return [name for name, kind in CONTENDERS.items() if kind.usual]


def missing(name):
    return [need for need in CONTENDERS[name].needs if not shutil.which(need)]


def cpu_seconds(pids):
    """What the processes, their threads and the children they waited for have used."""
    ticks = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += sum(map(int, fields[11:15]))
    return ticks / TICK


def machine_seconds():
    """What the whole machine has used, interrupts included."""
    user, nice, system, _idle, _wait, irq, softirq = map(int, Path("/proc/stat").read_text().split()[1:8])
    return (user + nice + system + irq + softirq) / TICK


def memory_bytes(pids):
    """The processes' share of memory."""
    return sum(1024 * int(re.search(r"^Pss:\s+(\d+)", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.M)[1])
               for pid in pids)
