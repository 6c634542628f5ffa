# SPDX-License-Identifier: MIT
"""What is not TCP: passes by default, fails with --block-udp."""
import unittest

import capture
import lib
import servers
import target
from lib import CLIENT, PYTHON, TARGET4, TARGET6

SOCKETS = """
import errno, socket
def make(*kind):
    try:
        socket.socket(*kind)
        return 'ok'
    except OSError as error:
        return errno.errorcode[error.errno]
print(make(socket.AF_INET, socket.SOCK_DGRAM), make(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP),
      make(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6), make(socket.AF_UNIX, socket.SOCK_DGRAM))
"""
LOOPBACK = """
import socket
for family, address in ((socket.AF_INET, '127.0.0.1'), (socket.AF_INET6, '::1')):
    server, client = (socket.socket(family, socket.SOCK_DGRAM) for _ in range(2))
    server.bind((address, 0))
    client.sendto(b'x', server.getsockname())
    client.connect(server.getsockname())
    client.send(b'y')
    print(server.recv(1).decode(), server.recv(1).decode())
"""


class Udp(lib.NetTest):
    @classmethod
    def prepare(cls):
        cls.world.target()
        cls.uri = servers.mprox_serve(cls.world)

    def setUp(self):
        self.tap = capture.Capture(self.world.app)
        self.addCleanup(self.tap.close)

    def python(self, *words, options=()):
        result = self.world.proxied(self.uri, PYTHON, *words, options=options)
        self.assertEqual((result.code, result.err), (0, ""))
        return result.out.strip()

    def test_passes_by_default(self):
        for address in (TARGET4, TARGET6):
            self.assertEqual(self.python(CLIENT, "send-udp", address, target.DATAGRAM), "3 ok 3 b'one' b'two'")
        self.assertEqual(sorted(set(self.tap.leaks())), ["udp 10.88.0.1:7005", "udp fd88::1:7005"])

    def test_blocked(self):
        for address in (TARGET4, TARGET6):
            self.assertEqual(self.python(CLIENT, "send-udp", address, target.DATAGRAM, options=["--block-udp"]),
                             "ENETUNREACH ENETUNREACH")
        self.assertEqual(self.tap.leaks(), [])

    def test_blocked_keeps_tcp(self):
        self.assertEqual(self.connect(self.uri, TARGET4, target.COMMAND, options=["--block-udp"]).out, "ok")

    def test_blocked_keeps_loopback(self):
        self.assertEqual(self.python("-c", LOOPBACK, options=["--block-udp"]), "x y\nx y")

    def test_blocked_keeps_the_bypassed(self):
        out = self.python(CLIENT, "send-udp", TARGET4, target.DATAGRAM, options=["--block-udp", "--bypass", "10.88.0.0/16"])
        self.assertEqual(out, "3 ok 3 b'one' b'two'")

    def test_other_sockets(self):
        self.assertEqual(self.python("-c", SOCKETS), "ok ok ok ok")
        self.assertEqual(self.python("-c", SOCKETS, options=["--block-udp"]), "ok EPERM EPERM ok")

    def test_others_are_not_touched(self):
        shell = self.world.shell(self.uri, ["--block-udp"])
        shell("pid")
        outside = lib.run(self.world.app.command(PYTHON, CLIENT, "send-udp", TARGET4, target.DATAGRAM))
        self.assertEqual(outside.out.strip(), "3 ok 3 b'one' b'two'")


if __name__ == "__main__":
    unittest.main(verbosity=2)
