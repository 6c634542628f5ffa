# SPDX-License-Identifier: MIT
"""What a program could tell after all, exactly as docs/how-it-works.md says it. A row that vanishes is progress."""
import unittest

import lib
import servers
import target
from lib import PYTHON, TARGET4

MULTIPATH = """
import errno, socket
try:
    socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262)
    print('made')
except OSError as error:
    print(errno.errorcode[error.errno])
"""
DEVICE = """
import socket, sys
s = socket.socket()
s.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b'out\\0')
s.connect((sys.argv[1], int(sys.argv[2])))
print(repr(s.getsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, 16)))
"""


class Differences(lib.NetTest):
    @classmethod
    def prepare(cls):
        cls.world.target()
        cls.uri = servers.mprox_serve(cls.world)

    def python(self, *words):
        result = self.world.proxied(self.uri, PYTHON, *words)
        self.assertEqual((result.code, result.err), (0, ""))
        return result.out.strip()

    def test_members_have_no_multipath(self):
        self.assertEqual(self.python("-c", MULTIPATH), "EPROTONOSUPPORT")

    def test_device_reads_as_none(self):
        self.assertEqual(self.python("-c", DEVICE, TARGET4, str(target.COMMAND)), "b''")

    def test_device_of_an_unprivileged_program(self):
        """Only a privileged one's binding can be lifted; the other's connection must not go out by itself."""
        result = self.world.proxied(self.uri, PYTHON, "-c", DEVICE, TARGET4, str(target.COMMAND),
                                    options=["--user", "nobody"])
        self.assertEqual(result.code, 1)
        self.assertIn("[Errno 101]", result.err)


if __name__ == "__main__":
    unittest.main()
