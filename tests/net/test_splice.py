# SPDX-License-Identifier: MIT
"""Out of the path: what goes there, what does not, and what is left when it ends.

What an application can observe is the transparency suite's; here it is bytes, packets on a bad line, and the life of
what was put into the kernel.
"""
import fcntl
import json
import os
import random
import re
import signal
import socket
import struct
import subprocess
import termios
import unittest
from pathlib import Path

import capture
import fake
import lib
import servers
from lib import APP4, CLIENT, PROXY4, PROXY6, PYTHON, TARGET4, TARGET6

SPLICE = ["--data-path", "splice"]
MEBIBYTES = max(int(512 * lib.SCALE), 24)
CONNECTS = max(int(1000 * lib.SCALE), 50)
# A download of argv[3] bytes; says "begun", and at its end the bytes and their hash.
DOWNLOAD = f"""
import sys, socket; sys.path.insert(0, {str(lib.ROOT / "tests/net")!r}); import target
s = socket.create_connection((sys.argv[1], target.COMMAND))
s.sendall(b"source %s\\n" % sys.argv[2].encode())
print("begun", flush=True)
print(*target.drain(s), flush=True)
"""
# Says what argv[2:] say, one after the other, on connections to argv[1]: "ok" for each that ends as wanted.
SCRIPT = f"""
import sys, socket, struct; sys.path.insert(0, {str(lib.ROOT / "tests/net")!r}); import target
def end(s):
    try: return "more" if s.recv(1) else "end"
    except OSError as error: return type(error).__name__
for line in sys.argv[2:]:
    with socket.create_connection((sys.argv[1], target.COMMAND)) as s:
        {{body}}
"""

HELD_PORTS = len(lib.HELD_PORTS6)
PORTS = 16
# Makes argv[2] connections to argv[1] from each of some ports, one after the other, and prints the two bytes that each gets. The
# last one from each port leaves its remains there.
FROM_PORTS = f"""
import socket, struct, sys; sys.path.insert(0, {str(lib.ROOT / "tests/net")!r}); import target
for port in range(20000, 20000 + {PORTS}):
    for left in reversed(range(int(sys.argv[2]))):
        with socket.socket(socket.AF_INET6) as s:
            s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            s.bind(("::", port))
            s.connect((sys.argv[1], target.COMMAND))
            s.sendall(b"echo\\nhi")
            print(s.recv(2, socket.MSG_WAITALL).decode(), end="")
            if left: s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
print()
"""
TCP_REPAIR, TCP_REPAIR_OFF_NO_WP, TCP_TIMESTAMP = 19, -1, 24


def clock(sock):
    """What a segment of the socket would bear now as its timestamp."""
    return sock.getsockopt(socket.IPPROTO_TCP, TCP_TIMESTAMP) & ~1


def set_clock(sock, value):
    sock.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, 1)
    sock.setsockopt(socket.IPPROTO_TCP, TCP_TIMESTAMP, struct.pack("I", value % (1 << 32) & ~1))
    sock.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, TCP_REPAIR_OFF_NO_WP)


def unacknowledged(sock):
    """Bytes; SIOCOUTQ."""
    return struct.unpack("i", fcntl.ioctl(sock, termios.TIOCOUTQ, bytes(4)))[0]


def entries():
    """Of the map of spliced connections; none when it is not there."""
    found = list(Path("/run/mprox/bpf").glob("*/splices"))
    if not found:
        return []
    done = subprocess.run(["bpftool", "--json", "map", "dump", "pinned", found[0]], capture_output=True, text=True)
    return json.loads(done.stdout) if done.returncode == 0 else []


def filters(ns):
    """tc's own view of a namespace: our filters, and the qdiscs that carry them."""
    out = ""
    for device in ("lo", "out"):
        for where in ("ingress", "egress"):
            out += subprocess.run(ns.command("tc", "filter", "show", "dev", device, where), capture_output=True, text=True).stdout
    out += subprocess.run(ns.command("tc", "qdisc", "show"), capture_output=True, text=True).stdout
    return [line for line in out.splitlines() if "mprox" in line or "clsact" in line]


def programs():
    """Of this machine, that translate; however they are attached."""
    shown = subprocess.run(["bpftool", "--json", "prog", "show"], capture_output=True, text=True, check=True).stdout
    names = ("mprox_lo", "mprox_ether", "mprox_bare")
    return [program["id"] for program in json.loads(shown) if program.get("name") in names]


class SpliceTest(lib.NetTest):
    @classmethod
    def prepare(cls):
        cls.world.target()
        cls.uri = servers.mprox_serve(cls.world)
        cls.uri6 = servers.mprox_serve(cls.world, address=PROXY6)
        cls.tap = capture.Capture(cls.world.app)
        cls.addClassCleanup(cls.tap.close)

    def client(self, uri, *words, spliced=True, **more):
        """client.py with its account: every connection was spliced, or none was. The account."""
        return self.program(uri, CLIENT, *words, spliced=spliced, **more)

    def program(self, uri, *words, spliced=True, said="ok", near=False, **more):
        result = self.world.proxied(uri, PYTHON, *words, options=[*SPLICE, "--stats"], **more)
        self.assertEqual((result.code, result.out.strip()), (0, said), result.err)
        account = result.err.splitlines()[-1]
        count = int(account.split()[1])
        if spliced:
            self.assertRegex(account, rf"; {count} spliced$")
        else:
            self.assertRegex(account, rf"; 0 spliced, {count} relayed \(")
        leaks = self.tap.leaks()  # a proxy in app makes its own connections
        self.assertEqual([] if near else leaks, [])
        return account

    def assertGone(self):
        self.assertClean()
        self.assertEqual(filters(self.world.app), [])
        lib.wait_until(lambda: not programs(), "the programs' end")  # the kernel frees a link in its own time


class Splice(SpliceTest):
    def volume(self, uri, address, mebibytes=MEBIBYTES, **more):
        bad = self.world.app.tcp("InCsumErrors")
        account = self.client(uri, "volume", address, mebibytes, seconds=10 * lib.PATIENCE, **more)
        self.assertEqual(self.world.app.tcp("InCsumErrors"), bad)
        return [int(account.split(f" bytes {way}")[0].split()[-1]) for way in ("up", "down")]

    # ---- bytes ----

    def test_volume(self):
        self.volume(self.uri, TARGET4)
        self.assertGone()

    def test_volume_ipv6(self):
        self.volume(self.uri6, TARGET6)

    def test_volume_http(self):
        self.volume(self.uri.replace("socks5", "http"), TARGET4, MEBIBYTES // 4)

    def test_counts_what_a_relay_counts(self):
        told = self.world.proxied(self.uri, PYTHON, CLIENT, "volume", TARGET4, 24,
                                  options=["--data-path", "relay", "--stats"]).err
        up, down = self.volume(self.uri, TARGET4, 24)
        self.assertIn(f"{up} bytes up, {down} bytes down", told)

    def test_proxy_on_this_host(self):
        for address in ("127.0.0.1", APP4):
            with self.subTest(address):
                uri = servers.mprox_serve(self.world, address=address, ns=self.world.app)
                self.volume(uri, TARGET4, MEBIBYTES // 4, near=True)

    def test_proxy_on_this_host_ipv6(self):
        uri = servers.mprox_serve(self.world, address="::1", ns=self.world.app)
        self.volume(uri, TARGET6, MEBIBYTES // 4, near=True)

    def test_device_that_leaves_all_to_the_kernel(self):
        """No segmentation, no checksums, and an MTU below those of lo and of the peer."""
        app = self.world.app
        for what in ("tso", "gso", "gro", "tx", "rx"):
            for ns, device in ((app, "out"), (self.world.wan, "in")):
                lib.offload(ns, device, what, False)
                self.world.defer(lib.offload, ns, device, what, True)
        app.ip("link set out mtu 1400")
        self.world.defer(app.ip, "link set out mtu 1500")
        self.volume(self.uri, TARGET4, MEBIBYTES // 4)
        self.volume(self.uri6, TARGET6, MEBIBYTES // 4)

    def download(self, uri, address, options=""):
        code = f"""
import sys, socket; sys.path.insert(0, {str(lib.ROOT / "tests/net")!r}); import target
s = socket.socket(socket.AF_INET6 if ":" in {address!r} else socket.AF_INET); {options}
s.connect(({address!r}, target.COMMAND))
s.sendall(b"source 40000000\\n"); print(*target.drain(s)[:2])
"""
        bad = self.world.app.tcp("InCsumErrors")
        lo, out = (self.world.app.packets(device)[0] for device in ("lo", "out"))
        self.program(uri, "-c", code, said="eof 40000000")
        self.assertEqual(self.world.app.tcp("InCsumErrors"), bad)
        lo, out = (self.world.app.packets(device)[0] - before for device, before in (("lo", lo), ("out", out)))
        return lo / out

    def test_nothing_comes_in_through_lo(self):
        for uri, address in ((self.uri, TARGET4), (self.uri6, TARGET6)):
            with self.subTest(address):
                self.assertLess(self.download(uri, address), 0.1)

    def test_sniffer(self):
        """It has the kernel copy each packet, and a copy has lost its socket. Of a connection from a port nobody else knows."""
        shell = self.world.shell(self.uri, [*SPLICE, "--no-warm"])
        self.assertEqual(shell("connect", "first", TARGET4, 7000), "ok")
        resets = self.world.app.tcp("OutRsts")
        with self.world.app.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(0x0800)) as sniffer:
            sniffer.bind(("out", 0x0800))
            for name in ("second", "third", "first"):
                if name != "first":
                    self.assertEqual(shell("connect", name, TARGET4, 7000), "ok")
                self.assertEqual(shell("send", name, "echo"), "ok")
                self.assertEqual(shell("echo", name, "heard"), "heard")
            self.assertTrue(sniffer.recv(65536, socket.MSG_DONTWAIT))
        self.assertEqual(self.world.app.tcp("OutRsts"), resets)
        shell("quit")

    def test_socket_that_shares_its_port(self):
        """Linux 6.1 gives those nothing directly."""
        self.download(self.uri, TARGET4, "s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)")

    def test_short_connects(self):
        for number in range(4):
            self.client(self.uri, "many", TARGET4, 7000, CONNECTS // 4, said=f"ok={CONNECTS // 4}")
        self.assertGone()

    # ---- words at the moment of handing over ----

    def speaks_first(self, *words):
        """The proxy's reply and the words come together, or in one packet each, at once."""
        def script(conversation):
            conversation.read_socks5()
            conversation.send(words[0])
            for word in words[1:]:
                conversation.send(word)
            conversation.echo()
        server = fake.FakeProxy(self.world.wan, script)
        self.addCleanup(server.close)
        text = b"".join(words)[len(fake.SOCKS5_GRANTED):]
        body = f"""
        got = b""
        while len(got) < {len(text)}:
            got += s.recv({len(text)} - len(got))
        good = got == {text!r}
        s.sendall(b"back"); good = good and s.recv(4) == b"back"
        s.shutdown(1); good = good and end(s) == "end"
        if not good: print(line, got[:50])
        """
        self.program(server.uri, "-c", SCRIPT.format(body=body), TARGET4, *map(str, range(40)), said="")

    def test_server_speaks_with_the_reply(self):
        self.speaks_first(fake.SOCKS5_GRANTED + b"220 hello")

    def test_server_speaks_after_the_reply(self):
        self.speaks_first(fake.SOCKS5_GRANTED, b"220 hello")

    def test_server_speaks_at_length(self):
        self.speaks_first(fake.SOCKS5_GRANTED + b"220 " * 400, b"hello " * 30, b"world " * 3)

    def test_server_says_more_than_is_handed_over(self):
        """More than fits is relayed, or arrives spliced, as it happens; it arrives."""
        self.world.proxied(self.uri, PYTHON, "-c", "")
        text = bytes(range(256)) * 2000

        def script(conversation):
            conversation.read_socks5()
            conversation.send(fake.SOCKS5_GRANTED + text)
        server = fake.FakeProxy(self.world.wan, script)
        self.addCleanup(server.close)
        code = ("import socket, hashlib, target" "\n"
                "s = socket.create_connection(('10.88.0.1', 80)); print(target.drain(s)[1:])")
        for _ in range(5):
            result = self.world.proxied(server.uri, PYTHON, "-c", code, options=SPLICE,
                                        env=lib.environment(PYTHONPATH=str(lib.ROOT / "tests/net")))
            self.assertIn(str(len(text)), result.out)

    # ---- ends ----

    def each_end(self, line, body, said=""):
        for uri, address in ((self.uri, TARGET4), (self.uri6, TARGET6)):
            with self.subTest(address):
                self.program(uri, "-c", SCRIPT.format(body=body), address, *[line] * 10, said=said)
        self.assertGone()

    def test_server_ends_first(self):
        self.each_end("close", 's.sendall(line.encode() + b"\\n"); what = end(s)\n        if what != "end": print(what)')

    def test_server_resets(self):
        self.each_end("reset", 's.sendall(line.encode() + b"\\n"); what = end(s)\n'
                               '        if what != "ConnectionResetError": print(what)')

    def application_ends(self, how, seen):
        for number, (uri, address) in enumerate(((self.uri, TARGET4), (self.uri6, TARGET6))):
            key = f"end-{os.getpid()}-{how[:6]}-{number}".replace(" ", "-")
            body = f's.sendall(b"watch {key}\\nabc"); {how}'
            self.program(uri, "-c", SCRIPT.format(body=body), address, "once", said="")
            with self.world.wan.socket(lib.socket.AF_INET) as asking:
                asking.connect((TARGET4, 7000))
                asking.sendall(f"report {key}\n".encode())
                self.assertRegex(asking.makefile().read(), seen)
        self.assertGone()

    def test_application_ends_first(self):
        self.application_ends("s.shutdown(1); end(s)", r"^eof 3 ")

    def test_application_closes(self):
        self.application_ends("s.close()", r"^eof 3 ")

    def test_application_resets(self):
        self.application_ends('s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)); s.close()',
                              r"^ECONNRESET ")

    def test_entries_go_with_their_connections(self):
        """While the engine lives on."""
        shell = self.world.shell(self.uri, [*SPLICE, "--no-warm"])
        for number in range(5):
            self.assertEqual(shell("connect", number, TARGET4, 7000), "ok")
        self.assertEqual(len(entries()), 10)
        for number in range(5):
            self.assertEqual(shell("send", number, "close"), "ok")
            self.assertEqual(shell("receive", number), "end")
            self.assertEqual(shell("close", number), "ok")
        lib.wait_until(lambda: not entries(), "the entries", 5)
        # Refused ones leave nothing either.
        self.assertEqual(shell("connect", "x", TARGET4, lib.CLOSED_PORT), "ECONNREFUSED")
        self.assertEqual(entries(), [])
        shell("quit")
        self.assertGone()

    # ---- the engine's death ----

    def test_engine_killed(self):
        """Spliced connections go on to their ends; new ones fail; the next run cleans up."""
        others = lib.engines()
        size = max(int((1 << 30) * lib.SCALE), 1 << 26)
        process = self.world.start_proxied(self.uri, PYTHON, "-c", DOWNLOAD, TARGET4, size, options=SPLICE,
                                           stdout=subprocess.PIPE, text=True)
        self.assertEqual(process.stdout.readline(), "begun\n")
        shell = self.world.shell(self.uri, SPLICE)
        self.assertEqual(shell("connect", "a", TARGET4, 7000), "ok")
        self.assertEqual(shell("send", "a", "echo"), "ok")
        self.assertEqual(shell("echo", "a", "before"), "before")
        for engine in lib.engines() - others:
            os.kill(engine, signal.SIGKILL)
        lib.wait_until(lambda: not lib.engines() - others, "the engines' end")
        self.assertEqual(shell("echo", "a", "after"), "after")
        self.assertEqual(shell("connect", "b", TARGET4, 7000), "ENETUNREACH")
        self.assertRegex(process.stdout.readline(), rf"^eof {size} ")
        process.finish()
        self.assertEqual(shell("send", "a", "on"), "ok")
        self.assertEqual(shell("close", "a"), "ok")
        shell("quit")
        shell.process.finish()
        self.client(self.uri, "connect", TARGET4, 7000)
        self.assertEqual(self.tap.leaks(), [])
        self.assertGone()

    def test_ports_of_connections_without_an_engine(self):
        """The kernel would give them to others; their connections take other ports, and disturb nobody."""
        before = lib.run(self.world.app.command("sysctl", "-n", "net.ipv4.ip_local_port_range")).out.strip()
        self.addCleanup(self.world.app.sysctl, ipv4__ip_local_port_range=before)
        self.world.app.sysctl(ipv4__ip_local_port_range="40000 40003")
        others = lib.engines()
        orphan = self.world.shell(self.uri, [*SPLICE, "--no-warm"])
        self.assertEqual(orphan("connect", "a", TARGET4, 7000), "ok")
        self.assertEqual(orphan("send", "a", "echo"), "ok")
        for engine in lib.engines() - others:
            os.kill(engine, signal.SIGKILL)
        lib.wait_until(lambda: not lib.engines() - others, "the engine's end")
        shell = self.world.shell(self.uri, [*SPLICE, "--no-warm"])
        for name in ("b", "c", "d"):  # all the ports that are left
            self.assertEqual(shell("connect", name, TARGET4, 7000), "ok")
            self.assertEqual(shell("send", name, "echo"), "ok")
        self.assertEqual(len(entries()), 2 + 2 * 3)
        for name in ("b", "c", "d"):
            self.assertEqual(shell("echo", name, name), name)
        self.assertEqual(orphan("echo", "a", "still"), "still")
        self.assertEqual(orphan("close", "a"), "ok")
        orphan("quit")
        orphan.process.finish()
        shell("quit")
        self.assertGone()

    # ---- neighbours ----

    def test_what_was_there_stays(self):
        app = self.world.app
        self.assertGone()
        for words in ("qdisc add dev lo clsact", "filter add dev lo egress prio 7 protocol ip u32 match u32 0 0 flowid 1:1"):
            subprocess.run(app.command("tc", *words.split()), check=True)
        self.addCleanup(subprocess.run, app.command("tc", "qdisc", "del", "dev", "lo", "clsact"))
        before = subprocess.run(app.command("tc", "filter", "show", "dev", "lo", "egress"), capture_output=True).stdout
        self.client(self.uri, "connect", TARGET4, 7000)
        self.assertClean()
        after = subprocess.run(app.command("tc", "filter", "show", "dev", "lo", "egress"), capture_output=True).stdout
        self.assertEqual(before, after)
        self.assertTrue(before)

    def test_others_remove_everything_of_tc(self):
        """Links are nobody's to remove but ours. A kernel without them has filters, and those are gone then."""
        shell = self.world.shell(self.uri, SPLICE)
        self.assertEqual(shell("connect", "a", TARGET4, 7000), "ok")
        self.assertEqual(shell("send", "a", "echo"), "ok")
        self.assertEqual(shell("echo", "a", "before"), "before")
        if filters(self.world.app):
            self.assertEqual(len(filters(self.world.app)), 4)
        else:
            for device in ("lo", "out"):
                subprocess.run(self.world.app.command("tc", "qdisc", "add", "dev", device, "clsact"), check=True)
                subprocess.run(self.world.app.command("tc", "qdisc", "del", "dev", device, "clsact"), check=True)
        self.assertEqual(len(programs()), 2)
        self.assertEqual(shell("echo", "a", "after"), "after")
        self.assertEqual(shell("close", "a"), "ok")
        shell("quit")
        self.assertGone()

    def test_devices_come_and_go(self):
        """With their programs, while an engine lives that keeps all that is pinned."""
        app, wan = self.world.app, self.world.wan
        shell = self.world.shell(self.uri, SPLICE)
        self.assertEqual(shell("connect", "a", TARGET4, 7000), "ok")
        for _ in range(2):
            wan.ip(f"link add second type veth peer name other netns {app.name}", "link set second up",
                   "addr add 10.77.8.1/24 dev second")
            app.ip("link set other up", "addr add 10.77.8.2/24 dev other", "route add 10.77.0.1/32 via 10.77.8.1")
            self.client(self.uri, "connect", TARGET4, 7000)
            wan.ip("link del second")
        self.assertEqual(shell("send", "a", "echo"), "ok")
        self.assertEqual(shell("echo", "a", "word"), "word")
        shell("quit")
        self.assertGone()

    def test_relayed_where_another_clock_was(self):
        """A socket that gets the port of one in TIME_WAIT takes no SYN older than what that one has heard: a server's clock."""
        def with_any_clock(conversation):
            conversation.read_socks5()
            conversation.send(fake.SOCKS5_GRANTED)
            wanted = random.getrandbits(32)
            for steps in (2, 1):  # as far as a receiver follows, which takes note of what it gets when it owes no acknowledgement
                lib.wait_until(lambda: unacknowledged(conversation.socket) == 0, "the acknowledgement")
                now = clock(conversation.socket)
                set_clock(conversation.socket, now + (wanted - now) % (1 << 32) // steps)
                conversation.send(b"x")
            conversation.stall()

        server = fake.FakeProxy(self.world.wan, with_any_clock, address=PROXY6)
        self.addCleanup(server.close)
        self.program(server.uri, "-c", FROM_PORTS, TARGET6, 1, said="xx" * PORTS)
        before = self.world.app.tcp("RetransSegs")
        result = self.world.proxied(self.uri6, PYTHON, "-c", FROM_PORTS, TARGET6, HELD_PORTS, options=["--data-path", "relay"])
        self.assertEqual((result.code, result.out), (0, "hi" * HELD_PORTS * PORTS + "\n"), result.err)
        # Every other clock is ahead of ours.
        self.assertGreater(self.world.app.tcp("RetransSegs"), before, "none met another clock")


class Relayed(SpliceTest):
    """What cannot go out of the path is relayed, and works."""

    def rules(self, family, hook, rule):
        """A rule of nftables in app, for one test."""
        text = f"table {family} t {{\nchain c {{\n{hook}\n{rule}\n}}\n}}\n"
        subprocess.run(self.world.app.command("nft", "-f", "-"), input=text, text=True, check=True)
        self.addCleanup(subprocess.run, self.world.app.command("nft", "flush", "ruleset"))

    def why(self, uri, address, reason, **more):
        account = self.client(uri, "volume", address, 24, spliced=False, seconds=10 * lib.PATIENCE, **more)
        self.assertRegex(account, reason)

    def test_other_ip_version(self):
        self.why(self.uri, TARGET6, "not of one IP version")
        self.why(self.uri6, TARGET4, "not of one IP version")

    def test_redirected(self):
        port = self.uri.rsplit(":", 1)[1]
        self.rules("ip", "type nat hook output priority -100", f"ip daddr 10.77.0.77 tcp dport {port} dnat to {PROXY4}")
        self.why(self.uri.replace(PROXY4, "10.77.0.77"), TARGET4, "the firewall tracks connections")

    def test_tracked_on_loopback(self):
        self.rules("inet", "type filter hook output priority 0", "ct state invalid drop")
        self.world.proxied(self.uri, PYTHON, CLIENT, "connect", TARGET4, 7000)
        uri = servers.mprox_serve(self.world, address="127.0.0.1", ns=self.world.app)
        self.why(uri, TARGET4, "firewall", near=True)

    def test_firewall_that_drops_the_answer(self):
        self.rules("inet", "type filter hook input priority 0", "ct state invalid drop")
        result = self.world.proxied(self.uri, PYTHON, CLIENT, "connect", TARGET4, 7000, options=[*SPLICE, "-v"])
        self.assertEqual(result.out, "ok\n", result.err)


class BadLine(SpliceTest):
    """Packets that are lost or come twice."""

    @classmethod
    def prepare(cls):
        super().prepare()
        subprocess.run(cls.world.wan.command("nft", "-f", "-"), check=True, text=True, input="""
            table inet loss {
                chain in { type filter hook prerouting priority -300;
                    iifname "in" meta l4proto tcp numgen random mod 100 < 2 drop; }
                chain out { type filter hook postrouting priority 300;
                    oifname "in" meta l4proto tcp numgen random mod 100 < 2 drop; }
            }
            table netdev twice {
                chain out { type filter hook egress device "in" priority 0;
                    meta l4proto tcp numgen random mod 100 < 3 dup to "in"; }
            }""")

    def test_loss(self):
        for uri, address in ((self.uri, TARGET4), (self.uri6, TARGET6)):
            with self.subTest(address):
                result = self.world.proxied(uri, PYTHON, CLIENT, "volume", address, 24, options=[*SPLICE, "--stats"],
                                            seconds=5 * lib.PATIENCE)
                self.assertEqual(result.out, "ok\n", result.err)
                self.assertGreater(int(re.search(r"(\d+) spliced", result.err)[1]), 100, result.err)


class Options(SpliceTest):
    """Every combination of what the two ends agree on."""

    def prepare_sysctl(self, ns, values):
        before = {}
        with ns.entered():
            for key in values:
                before[key] = Path(f"/proc/sys/net/ipv4/{key}").read_text().strip()
        ns.sysctl(**{f"ipv4__{key}": value for key, value in values.items()})
        self.addCleanup(ns.sysctl, **{f"ipv4__{key}": value for key, value in before.items()})

    def test_options(self):
        for ours in range(8):
            for theirs in range(8):
                if ours & theirs != theirs and lib.SCALE < 1:
                    continue
                with self.subTest(ours=ours, theirs=theirs):
                    for ns, bits in ((self.world.app, ours), (self.world.wan, theirs)):
                        self.prepare_sysctl(ns, {name: bits >> bit & 1 for bit, name in enumerate(
                            ("tcp_timestamps", "tcp_sack", "tcp_window_scaling"))})
                    self.client(self.uri, "volume", TARGET4, 12)
                    self.doCleanups()

    def test_small_buffers(self):
        """Window scales differ between the application's socket and the engine's."""
        for size in (2048, 20000, 8 << 20):
            code = DOWNLOAD.replace("s = socket.create_connection((sys.argv[1], target.COMMAND))", f"""
s = socket.socket(); s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, {size})
s.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, {size}); s.connect((sys.argv[1], target.COMMAND))""")
            result = self.world.proxied(self.uri, PYTHON, "-c", code, TARGET4, 3_000_000, options=[*SPLICE, "--stats"])
            self.assertRegex(result.out, r"begun\neof 3000000 ")
            self.assertRegex(result.err, r"1 spliced$")


if __name__ == "__main__":
    unittest.main(verbosity=2)
