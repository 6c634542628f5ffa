# SPDX-License-Identifier: MIT
"""What the engine does between the connections that it relays; what an application can observe is the transparency suite's."""
import unittest

import lib
import servers
from lib import PROXY6, PYTHON, TARGET4, TARGET6

COUNT = 300
HELD_PORTS = (lib.HELD_PORT4, *lib.HELD_PORTS6)
# Makes argv[2] connections to argv[1], argv[3] at a time, each with an echo of its own and an end of its own kind. Prints at how
# many addresses they were held.
CONNECTS = f"""
import socket, struct, sys; sys.path.insert(0, {str(lib.ROOT / "tests/net")!r}); import target
host, count, width = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
family = socket.AF_INET6 if ":" in host else socket.AF_INET
held = set()
def held_at(s):
    mine = f"{{s.getsockname()[1]:04X}}"
    for line in open("/proc/self/net/tcp6" if family == socket.AF_INET6 else "/proc/self/net/tcp"):
        _, local, remote, state, *_ = line.split()
        if state == "01" and local.endswith(":" + mine) and int(remote.rpartition(":")[2], 16) in {HELD_PORTS}: return remote
    raise LookupError("it is held nowhere")
for first in range(0, count, width):
    sockets = [socket.create_connection((host, target.COMMAND)) for _ in range(width)]
    for number, s in enumerate(sockets, first):
        held.add(held_at(s))
        text = b"this is number %d" % number
        s.sendall(b"echo\\n" + text)
        said = s.recv(len(text), socket.MSG_WAITALL)
        assert said == text, (said, text)
        if number % 3 == 0:
            s.shutdown(socket.SHUT_WR)
            assert s.recv(1) == b"", "no end"
        elif number % 3 == 1 and number % 7 == 0:
            s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        s.close()
print(len(held))
"""

# Makes argv[2] connections to argv[1] from one port, after some from others.
FROM_ONE_PORT = f"""
import socket, sys; sys.path.insert(0, {str(lib.ROOT / "tests/net")!r}); import target
for port in [0] * 5 + [20000] * int(sys.argv[2]):
    with socket.socket() as s:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        s.bind(("", port))
        s.connect((sys.argv[1], target.COMMAND))
        s.sendall(b"echo\\nhi")
        assert s.recv(2, socket.MSG_WAITALL) == b"hi"
print("ok")
"""


class Relay(lib.NetTest):
    @classmethod
    def prepare(cls):
        cls.world.target()
        cls.uri = servers.mprox_serve(cls.world)
        cls.uri6 = servers.mprox_serve(cls.world, address=PROXY6)

    def held_addresses(self, uri, address, width, count=COUNT, options=("--data-path", "relay")):
        """Of so many connections, some at a time."""
        result = self.world.proxied(uri, PYTHON, "-c", CONNECTS, address, count, width, options=["--stats", *options])
        self.assertEqual(result.code, 0, result.err)
        self.assertIn(f"{count} connections", result.err)
        return int(result.out)

    def test_addresses_are_used_again(self):
        """A socket that is bound to one serves the next connection; one that was reset does not, nor does one a hundred times."""
        for width in (1, 10):
            with self.subTest(width=width):
                held = self.held_addresses(self.uri, TARGET4, width)
                self.assertGreater(held, COUNT / 100)
                self.assertLess(held, COUNT / 2)

    def test_ipv6(self):
        for width in (1, 10):
            with self.subTest(width=width):
                self.assertGreater(self.held_addresses(self.uri6, TARGET6, width), 0)

    def test_when_all_are_relayed(self):
        """Where the better way never suits, that is so as well."""
        held = self.held_addresses(self.uri6, TARGET4, 1, options=())
        self.assertLess(held, COUNT / 2)

    def test_from_one_port(self):
        """Such a connection is not held where its predecessor was: without timestamps TIME_WAIT would be in its way."""
        self.world.app.sysctl(ipv4__tcp_timestamps=0)
        self.addCleanup(self.world.app.sysctl, ipv4__tcp_timestamps=1)
        result = self.world.proxied(self.uri, PYTHON, "-c", FROM_ONE_PORT, TARGET4, 20, options=["--data-path", "relay"])
        self.assertEqual((result.code, result.out), (0, "ok\n"), result.err)

    def test_more_than_are_kept(self):
        self.assertLess(self.held_addresses(self.uri, TARGET4, 100, 1000), 1000)

    def test_nothing_is_kept_of_those_that_go_out_of_the_path(self):
        self.assertEqual(self.held_addresses(self.uri, TARGET4, 1, options=()), COUNT)


if __name__ == "__main__":
    unittest.main(verbosity=2)
