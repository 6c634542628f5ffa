# SPDX-License-Identifier: MIT
"""At the limits: twenty thousand flows, and too few descriptors."""
import re
import unittest
from pathlib import Path

import lib
import servers
import target
from lib import CLIENT, PYTHON, TARGET4


# The engine takes two descriptors a flow and shares them among threads with a table each.
FLOWS = max(int(20_000 * lib.SCALE), 100)
FEW = 400


class Limits(lib.NetTest):
    @classmethod
    def prepare(cls):
        for ns in (cls.world.app, cls.world.wan):
            ns.sysctl(core__somaxconn=65535, ipv4__tcp_max_syn_backlog=65535,
                      ipv4__ip_local_port_range="1024 65000")
        cls.world.target()
        cls.uri = servers.mprox_serve(cls.world)

    def test_twenty_thousand_flows(self):
        before = lib.engines()
        process = self.world.start_proxied(self.uri, PYTHON, CLIENT, "hold", TARGET4, target.IDLE, FLOWS,
                                           stdin=lib.subprocess.PIPE, stdout=lib.subprocess.PIPE, text=True)
        self.assertEqual(process.stdout.readline(), f"ok={FLOWS}\n")
        process.stdin.write("alive?\n")
        process.stdin.flush()
        self.assertEqual(process.stdout.readline(), f"{FLOWS}\n")
        engine, = lib.engines() - before
        threads = len(list(Path(f"/proc/{engine}/task").iterdir()))
        self.assertLess(threads, 64, "a thread per flow?")
        process.stdin.close()
        process.finish(3 * lib.PATIENCE)
        self.assertEqual(process.returncode, 0)

    def test_too_few_descriptors(self):
        """Connects that cannot be carried are refused, with a line that says why; the engine lives on."""
        before = lib.engines()
        log = self.world.dir / "few"
        with open(log, "w") as err:
            process = self.world.start(
                self.world.app, "prlimit", f"--nofile={FEW}:{FEW}", "setpriv", "--bounding-set=-sys_resource",
                "--inh-caps=-sys_resource", lib.MPROX, *lib.run_arguments(self.uri, ["-v"]), PYTHON,
                CLIENT, "shell", stdin=lib.subprocess.PIPE, stdout=lib.subprocess.PIPE, stderr=err, text=True)
        shell = lib.Shell(process)
        shell("pid")
        engine, = lib.engines() - before
        result = ""
        for number in range(FEW):
            result = shell("connect", f"c{number}", TARGET4, target.COMMAND)
            if result != "ok":
                break
        self.assertIn(result, ("ENETUNREACH", "ECONNREFUSED"))
        self.assertRegex(log.read_text(), "(?i)open-file limit|descriptor|too many open files")
        self.assertIn(engine, lib.engines())
        for freed in range(number):
            shell("close", f"c{freed}")
        lib.wait_until(lambda: shell("connect", "again", TARGET4, target.COMMAND) == "ok", "room for one more")
        self.assertEqual(shell("send", "again", "echo"), "ok")
        self.assertEqual(shell("echo", "again", "hello"), "hello")
        self.assertIn(engine, lib.engines())
        self.assertLess(len(re.findall("\n", log.read_text())), 10 * FEW)


if __name__ == "__main__":
    unittest.main(verbosity=2)
