# SPDX-License-Identifier: MIT
"""Many bytes, many connections, and readers that stop."""
import unittest
from pathlib import Path

import capture
import lib
import servers
import target
from lib import CLIENT, PYTHON, TARGET4, TARGET6

MEBIBYTES = max(int(2048 * lib.SCALE), 24)
CONNECTS = max(int(2000 * lib.SCALE), 50)
STALLED = 20


class Volume(lib.NetTest):
    @classmethod
    def prepare(cls):
        cls.world.target()
        cls.uri = servers.mprox_serve(cls.world)
        cls.tap = capture.Capture(cls.world.app)
        cls.addClassCleanup(cls.tap.close)

    def client(self, uri, *words, options=(), **more):
        result = self.world.proxied(uri, PYTHON, CLIENT, *words, options=options, **more)
        self.assertEqual(result.code, 0, result.err)
        self.assertEqual(self.tap.leaks(), [])
        return result

    def volume(self, uri, address, mebibytes):
        result = self.client(uri, "volume", address, mebibytes, options=["--stats"], seconds=10 * lib.PATIENCE)
        self.assertEqual(result.out, "ok\n")
        self.assertRegex(result.err, r"^mprox: \d+ connections, \d+ bytes up, \d+ bytes down, 0 refused")
        up, down = (int(result.err.split(f" bytes {way}")[0].split()[-1]) for way in ("up", "down"))
        self.assertGreaterEqual(up, (mebibytes << 20) // 2)
        self.assertGreaterEqual(down, (mebibytes << 20) // 2)

    def test_two_gibibytes(self):
        self.volume(self.uri, TARGET4, MEBIBYTES)

    def test_ipv6(self):
        self.volume(self.uri, TARGET6, MEBIBYTES // 8)

    def test_through_http(self):
        self.volume(self.uri.replace("socks5", "http"), TARGET4, MEBIBYTES // 8)

    def test_through_dante(self):
        """A server that is not ours. (microsocks would close both directions at the first end of stream.)"""
        self.volume(servers.dante(self.world), TARGET4, MEBIBYTES // 8)

    def many(self, uri, address, count=CONNECTS, port=target.COMMAND):
        return self.client(uri, "many", address, port, count, seconds=3 * lib.PATIENCE).out.strip()

    def test_two_thousand_connects_at_once(self):
        self.assertEqual(self.many(self.uri, TARGET4), f"ok={CONNECTS}")

    def test_two_thousand_connects_ipv6(self):
        self.assertEqual(self.many(self.uri, TARGET6), f"ok={CONNECTS}")

    def test_two_thousand_connects_http(self):
        self.assertEqual(self.many(self.uri.replace("socks5", "http"), TARGET4), f"ok={CONNECTS}")

    def test_two_thousand_refusals_at_once(self):
        self.assertEqual(self.many(self.uri, TARGET4, port=lib.CLOSED_PORT), f"ECONNREFUSED={CONNECTS}")

    def test_reader_that_stops(self):
        """What the writers can push in, and what the engine holds for it, are both small."""
        before = lib.engines()
        process = self.world.start_proxied(self.uri, PYTHON, CLIENT, "stall", TARGET4, STALLED,
                                           stdin=lib.subprocess.PIPE, stdout=lib.subprocess.PIPE, text=True)
        most = int(process.stdout.readline())
        engine, = lib.engines() - before
        # The buffers of the three connections on the way, as far as the kernel lets them grow, and little more.
        buffers = sum(int(Path(f"/proc/sys/net/ipv4/tcp_{which}mem").read_text().split()[2]) for which in "rw")
        self.assertLess(most, 3 * buffers + (16 << 20))
        self.assertLess(memory_of(engine), 64 << 20)
        process.stdin.close()
        process.finish()


def memory_of(pid):
    """Resident bytes that are the process's own."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) << 10
    raise AssertionError("no RssAnon")


if __name__ == "__main__":
    unittest.main(verbosity=2)
