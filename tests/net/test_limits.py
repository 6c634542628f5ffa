# SPDX-License-Identifier: MIT
"""At the limits: twenty and a hundred thousand flows, as many connects as go, and too few descriptors."""
import json
import os
import re
import signal
import unittest
from pathlib import Path

import lib
import servers
import target
from lib import CLIENT, PYTHON, TARGET4


# The engine takes two descriptors a flow and shares them among threads with a table each.
FLOWS = max(int(20_000 * lib.SCALE), 100)
FEW = 400
# A ring has room for some 3,000 events, and there are four.
MANY_ENDS = 14_000


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

    def test_hundred_thousand_flows(self):
        """Out of the path, of four engines: a proxy's address has no more ports for one host."""
        share, before = 5 * FLOWS // 4, lib.engines()
        holders = []
        for number in range(4):
            address = f"10.88.0.{11 + number}"
            self.world.wan.ip(f"addr add {address}/32 dev lo")
            uri = servers.mprox_serve(self.world, options=["--max-connections", str(share + 1000)])
            holders.append(self.world.start_proxied(uri, PYTHON, CLIENT, "hold", address, target.IDLE, share,
                                                    options=["--stats"], stdin=lib.subprocess.PIPE,
                                                    stdout=lib.subprocess.PIPE, stderr=lib.subprocess.PIPE, text=True))
        for holder in holders:
            self.assertEqual(holder.stdout.readline(), f"ok={share}\n")
        memory = sum(int(re.search(r"^Pss:\s+(\d+)", Path(f"/proc/{engine}/smaps_rollup").read_text(), re.M)[1])
                     for engine in lib.engines() - before)
        self.assertLess(memory / (4 * share), 8 if lib.SCALE == 1 else 400, "KiB of the engines' memory for a flow")
        for holder in holders:
            holder.stdin.write("alive?\n")
            holder.stdin.flush()
        for holder in holders:
            self.assertEqual(holder.stdout.readline(), f"{share}\n")
        for holder in holders:
            _, told = holder.communicate(timeout=5 * lib.PATIENCE)
            self.assertRegex(told, rf"^mprox: {share} connections, .* 0 refused; {share} spliced\n$")
        self.assertClean()

    def test_connects_without_pause(self):
        """As many short connections as the machine can make: no entry, no port and no memory stays behind."""
        before = lib.engines()
        load = lib.ROOT / "build/bin/bench_load"
        seconds = max(8 * lib.SCALE, 2)
        shell = self.world.shell(self.uri, ["--stats"])
        self.assertEqual(shell("connect", "x", TARGET4, target.COMMAND), "ok")
        engine, = lib.engines() - before
        grown = []
        for _ in range(3):
            told = json.loads(shell("run", load, "connect", TARGET4, "--port", target.IDLE - 2, "--streams", 16,
                                    "--seconds", seconds))
            self.assertEqual(told["errors"], 0, told)
            self.assertGreater(told["count"], 100)  # how fast the machine is, is nothing to test
            grown.append(int(re.search(r"^Pss:\s+(\d+)", Path(f"/proc/{engine}/smaps_rollup").read_text(), re.M)[1]))
        self.assertLess(grown[2], grown[1] * 1.2 + 512, f"KiB after each run: {grown}")
        self.assertEqual(shell("send", "x", "echo"), "ok")
        self.assertEqual(shell("echo", "x", "still"), "still")

    def test_an_engine_that_is_told_of_too_many_ends_at_once(self):
        """More connections end while it sleeps than its rings can tell of. It finds out all the same."""
        before = lib.engines()
        process = self.world.start_proxied(self.uri, PYTHON, CLIENT, "hold", TARGET4, target.IDLE, MANY_ENDS,
                                           options=["--stats"], stdin=lib.subprocess.PIPE, stdout=lib.subprocess.PIPE,
                                           stderr=lib.subprocess.PIPE, text=True)
        self.assertEqual(process.stdout.readline(), f"ok={MANY_ENDS}\n")
        engine, = lib.engines() - before
        os.kill(engine, signal.SIGSTOP)
        try:
            process.stdin.close()
            holder, = (int(child) for child in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split())
            lib.wait_until(lambda: not Path(f"/proc/{holder}/fd").exists() or not os.listdir(f"/proc/{holder}/fd"), "the end")
        finally:
            os.kill(engine, signal.SIGCONT)
        self.assertRegex(process.stderr.read(), rf"^mprox: {MANY_ENDS} connections, .* 0 refused; {MANY_ENDS} spliced\n$")
        self.assertClean()

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
