# SPDX-License-Identifier: MIT
"""What the engine does between the connections that it relays; what an application can observe is the transparency suite's."""
import unittest

import lib
import servers
from lib import PROXY6, PYTHON, TARGET4, TARGET6

COUNT = 300
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
        if state == "01" and local.endswith(":" + mine): return remote
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

    def test_more_than_are_kept(self):
        self.assertLess(self.held_addresses(self.uri, TARGET4, 100, 1000), 1000)

    def test_nothing_is_kept_of_those_that_go_out_of_the_path(self):
        self.assertEqual(self.held_addresses(self.uri, TARGET4, 1, options=()), COUNT)


if __name__ == "__main__":
    unittest.main(verbosity=2)
