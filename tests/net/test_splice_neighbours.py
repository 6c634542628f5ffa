# SPDX-License-Identifier: MIT
"""Out of the path in other surroundings: bridges and masquerading, devices without Ethernet header, several devices and
rules, routes that move, stateful firewalls, lines that change the order of packets."""
import re
import subprocess

import lib
import servers
from lib import APP4, CLIENT, PROXY4, PYTHON, TARGET4, TARGET6

STATS = ["--data-path", "splice", "--stats"]
MEBIBYTES = max(int(48 * lib.SCALE), 12)
SECOND4, SECOND_APP4 = "10.78.0.1", "10.78.0.2"  # a second wire between app and wan
ANYWHERE4 = "10.77.9.1"  # the proxy's address, whichever wire leads there


class Surroundings(lib.NetTest):
    @classmethod
    def prepare(cls):
        world = cls.world
        world.target()
        world.wan.ip(f"link add in2 type veth peer name out2 netns {world.app.name}", "link set in2 up",
                     f"addr add {SECOND4}/24 dev in2", f"addr add {ANYWHERE4}/32 dev lo")
        world.app.ip("link set out2 up", f"addr add {SECOND_APP4}/24 dev out2")
        cls.uri = servers.mprox_serve(world)
        cls.uri_anywhere = servers.mprox_serve(world, address=ANYWHERE4)

    def undo(self, *lines, ns=None):
        self.addCleanup((ns or self.world.app).ip, *lines)

    def volume(self, uri, address=TARGET4, spliced=True, **more):
        bad = self.world.app.tcp("InCsumErrors")
        result = self.world.proxied(uri, PYTHON, CLIENT, "volume", address, MEBIBYTES, options=STATS,
                                    seconds=10 * lib.PATIENCE, **more)
        self.assertEqual(self.world.app.tcp("InCsumErrors"), bad)
        self.assertEqual((result.code, result.out), (0, "ok\n"), result.err)
        count = int(result.err.splitlines()[-1].split()[1])
        if spliced:
            self.assertRegex(result.err.splitlines()[-1], rf"; {count} spliced$")
        return result.err

    def sent(self, device):
        return self.world.app.packets(device)[1]


class Neighbours(Surroundings):
    # ---- devices ----

    def test_device_without_ethernet_header(self):
        self.world.wire(test=self)
        self.volume(servers.mprox_serve(self.world, address=lib.FAR4))
        self.volume(servers.mprox_serve(self.world, address=lib.FAR6), TARGET6)

    def test_packets_out_of_order(self):
        self.world.wire("--reorder", test=self)
        uri = servers.mprox_serve(self.world, address=lib.FAR4)
        result = self.world.proxied(uri, PYTHON, CLIENT, "volume", TARGET4, 12, options=STATS, seconds=10 * lib.PATIENCE)
        self.assertEqual(result.out, "ok\n", result.err)
        self.assertNotIn("; 0 spliced", result.err)

    # ---- routes and rules ----

    def test_rule_by_mark(self):
        """What the application has marked goes where marked packets go."""
        app = self.world.app
        app.ip(f"route add default via {SECOND4} dev out2 table 100", "rule add fwmark 7 lookup 100")
        self.undo("rule del fwmark 7 lookup 100", "route flush table 100")
        code = f"""
import socket, sys; sys.path.insert(0, {str(lib.ROOT / "tests/net")!r}); import target
s = socket.socket(); s.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, 7); s.connect(({TARGET4!r}, target.COMMAND))
s.sendall(b"source 4000000\\n"); print(*target.drain(s)[:2])
"""
        before = self.sent("out2")
        result = self.world.proxied(self.uri_anywhere, PYTHON, "-c", code, options=STATS)
        self.assertEqual(result.out, "eof 4000000\n", result.err)
        self.assertRegex(result.err, r"; 1 spliced$")
        self.assertGreater(self.sent("out2"), before + 20)

    def test_route_moves(self):
        """To another device, and back, while connections stand: they move along."""
        app, wan = self.world.app, self.world.wan
        first = f"route replace {ANYWHERE4} via {PROXY4} dev out src {APP4}"
        app.ip(first)
        self.undo(f"route del {ANYWHERE4}")
        shell = self.world.shell(self.uri_anywhere, ["--data-path", "splice"])
        self.assertEqual(shell("connect", "a", TARGET4, 7000), "ok")
        self.assertEqual(shell("send", "a", "echo"), "ok")
        self.assertEqual(shell("echo", "a", "before"), "before")
        app.ip(f"route replace {ANYWHERE4} via {SECOND4} dev out2 src {APP4}")
        wan.ip(f"route add {APP4}/32 via {SECOND_APP4} dev in2")
        self.undo(f"route del {APP4}/32", ns=wan)

        def goes_through(device):
            before = self.sent(device)
            self.assertEqual(shell("echo", "a", "hello"), "hello")
            return self.sent(device) > before
        lib.wait_until(lambda: goes_through("out2"), "the other device")
        before = self.sent("out")
        for _ in range(20):
            self.assertEqual(shell("echo", "a", "hello"), "hello")
        self.assertLess(self.sent("out"), before + 10)  # neighbour discovery, at most
        app.ip(first)
        lib.wait_until(lambda: goes_through("out"), "the first device again")
        self.assertEqual(shell("close", "a"), "ok")
        shell("quit")
        self.assertClean()

    def test_link_goes_down_and_comes_up(self):
        app = self.world.app
        shell = self.world.shell(servers.mprox_serve(self.world, address=SECOND4), ["--data-path", "splice"])
        self.assertEqual(shell("connect", "a", TARGET4, 7000), "ok")
        self.assertEqual(shell("send", "a", "echo"), "ok")
        self.assertEqual(shell("echo", "a", "before"), "before")
        app.ip("link set out2 down")
        shell.tell("echo", "a", "while-it-is-down")
        app.ip("link set out2 up")
        self.assertEqual(shell.answer(), "while-it-is-down")
        shell("quit")

    # ---- a firewall that tracks nothing ----

    def wall(self, rule):
        subprocess.run(self.world.app.command("nft", "-f", "-"), check=True, text=True, input=f"""table inet wall {{
            chain in {{
                type filter hook input priority 0
                iif "out" tcp sport {self.uri.rsplit(":", 1)[1]} {rule} counter drop
            }}
        }}""")
        self.addCleanup(subprocess.run, self.world.app.command("nft", "flush", "ruleset"))

    def dropped(self):
        told = subprocess.run(self.world.app.command("nft", "list", "ruleset"), check=True, text=True, stdout=subprocess.PIPE)
        return int(re.search(r"counter packets (\d+)", told.stdout)[1])

    def test_data_is_let_in_by_lo_only(self):
        """What is dropped on its way straight to the application's socket gets there through lo."""
        self.wall("meta length > 200")
        code = f"""
import socket, sys; sys.path.insert(0, {str(lib.ROOT / "tests/net")!r}); import target
for number in range(3):
    s = socket.create_connection(({TARGET4!r}, target.COMMAND))
    s.sendall(b"source 4000000\\n"); print(*target.drain(s)[:2])
"""
        result = self.world.proxied(self.uri, PYTHON, "-c", code, options=STATS)
        self.assertEqual(result.out, "eof 4000000\n" * 3, result.err)
        self.assertRegex(result.err, r"; 3 spliced$")
        self.assertGreater(self.dropped(), 0)

    def test_nothing_is_let_in_any_more(self):
        """Nor by lo only, when the connections are there: one that sends and gets, and one whose peer ends."""
        shell = self.world.shell(self.uri, ["--data-path", "splice"])
        for name in ("a", "b"):
            self.assertEqual(shell("connect", name, TARGET4, 7000), "ok")
            self.assertEqual(shell("send", name, "echo"), "ok")
            self.assertEqual(shell("echo", name, "before"), "before")
        self.wall("")
        self.assertEqual(shell("echo", "a", "after"), "after")
        self.assertEqual(shell("close", "b"), "ok")
        self.assertGreater(self.dropped(), 0)
        self.assertEqual(shell("close", "a"), "ok")
        shell("quit")


class Firewalls(Surroundings):
    """Each with a proxy of its own: the firewall goes on for a while to do what it did to connections with the same names,
    also when its rules have gone."""

    def setUp(self):
        self.uri = servers.mprox_serve(self.world)

    # ---- bridges and masquerading ----

    def test_behind_a_bridge_that_masquerades(self):
        """As a container has it: app is its host."""
        app = self.world.app
        inner = self.world._namespace(app.name.removesuffix("app") + "inner")
        inner.sysctl(ipv6__conf__default__accept_dad=0)
        app.ip("link add name bridge0 type bridge", "link set bridge0 up", "addr add 172.31.0.1/24 dev bridge0",
               f"link add port type veth peer name eth netns {inner.name}", "link set port master bridge0", "link set port up")
        self.undo("link del bridge0", "link del port")
        inner.ip("link set lo up", "link set eth up", "addr add 172.31.0.2/24 dev eth", "route add default via 172.31.0.1")
        app.sysctl(ipv4__ip_forward=1)
        subprocess.run(app.command("nft", "-f", "-"), check=True, text=True, input="""table ip host {
            chain out {
                type nat hook postrouting priority 100
                oifname "out" masquerade
            }
        }""")
        self.addCleanup(subprocess.run, app.command("nft", "flush", "ruleset"))
        self.volume(self.uri, ns=inner)

    # ---- rules of this host ----

    def test_stateful_firewall(self):
        """Only what belongs to a connection comes in, and nothing invalid goes through. It works, whichever way."""
        subprocess.run(self.world.app.command("nft", "-f", "-"), check=True, text=True, input="""table inet wall {
            chain in {
                type filter hook input priority 0
                policy drop
                ct state invalid drop
                ct state established,related accept
                meta l4proto ipv6-icmp accept
            }
            chain out {
                type filter hook output priority 0
                ct state invalid drop
            }
        }""")
        self.addCleanup(subprocess.run, self.world.app.command("nft", "flush", "ruleset"))
        self.assertEqual(self.world.proxied(self.uri, PYTHON, CLIENT, "connect", TARGET4, 7000, options=["--no-warm"]).out, "ok\n")
        self.volume(self.uri, spliced=False)

    def test_firewall_that_tracks_and_lets_lo_alone(self):
        """The usual one. It would never see a spliced connection end."""
        subprocess.run(self.world.app.command("nft", "-f", "-"), check=True, text=True, input="""table inet wall {
            chain in {
                type filter hook input priority 0
                policy drop
                iif "lo" accept
                ct state established,related accept
                meta l4proto ipv6-icmp accept
            }
        }""")
        self.addCleanup(subprocess.run, self.world.app.command("nft", "flush", "ruleset"))
        self.assertIn("the firewall tracks connections", self.volume(self.uri, spliced=False))

    def test_source_is_translated_on_the_way(self):
        """A rule of this host that gives the engine's connections another source."""
        self.world.app.ip("addr add 10.77.0.99/24 dev out")
        self.undo("addr del 10.77.0.99/24 dev out")
        subprocess.run(self.world.app.command("nft", "-f", "-"), check=True, text=True, input="""table ip other {
            chain out {
                type nat hook postrouting priority 100
                oifname "out" snat to 10.77.0.99
            }
        }""")
        self.addCleanup(subprocess.run, self.world.app.command("nft", "flush", "ruleset"))
        self.assertIn("relayed", self.volume(self.uri, spliced=False))


if __name__ == "__main__":
    lib.unittest.main(verbosity=2)
