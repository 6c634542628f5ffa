# SPDX-License-Identifier: MIT
"""kill -9 at any moment: no member ever connects directly, nothing hangs, nothing stays.

A direct connection would succeed in this network, so each test looks at the wire.
"""
import os
import re
import signal
import unittest

import capture
import fake
import lib
import servers
from lib import TARGET4, TARGET6


class FailClosed(lib.NetTest):
    @classmethod
    def prepare(cls):
        cls.world.target()
        cls.uri = servers.mprox_serve(cls.world)

    def setUp(self):
        self.tap = capture.Capture(self.world.app)
        self.addCleanup(self.tap.close)
        self.others = lib.engines()

    def start(self, uri=None, options=()):
        """A client behind mprox, and the pid of its engine."""
        shell = self.world.shell(uri or self.uri, options)
        shell("pid")
        engine, = lib.engines() - self.others
        return shell, engine

    def kill(self, pid):
        pidfd = os.pidfd_open(pid)
        self.addCleanup(os.close, pidfd)
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        self.assertTrue(lib.select.select([pidfd], [], [], lib.PATIENCE)[0])

    def assertClosed(self, shell):
        """Later connects fail at once, blocking or not; nothing has left for a target."""
        for address in (TARGET4, TARGET6, "10.88.0.2", "240.0.0.1"):
            self.assertEqual(shell("connect", "x", address, 7000), "ENETUNREACH")
            result = shell("start", "y", address, 7000)
            if result == "EINPROGRESS":
                result = shell("wait", "y")
            self.assertEqual(result, "ENETUNREACH")
        self.assertEqual(shell("run", lib.PYTHON, lib.CLIENT, "connect", TARGET4, 7000), "ENETUNREACH")
        self.assertEqual(self.tap.leaks(), [])

    def test_the_capture_would_see_a_leak(self):
        """The positive control: without mprox the same client is seen on the wire."""
        self.assertEqual(self.world.shell()("connect", "x", TARGET4, 7000), "ok")
        self.assertIn(f"tcp {TARGET4}:7000", self.tap.leaks())

    def test_engine_killed_at_rest(self):
        shell, engine = self.start()
        self.assertEqual(shell("connect", "a", TARGET4, 7000), "ok")
        self.kill(engine)
        self.assertClosed(shell)

    def test_engine_killed_before_the_first_connect(self):
        shell, engine = self.start()
        self.kill(engine)
        self.assertClosed(shell)

    def test_open_connections_end(self):
        """Relayed ones, with a reset: half a stream must not look like a whole one."""
        shell, engine = self.start(options=["--data-path", "relay"])
        self.assertEqual(shell("connect", "a", TARGET4, 7000), "ok")
        self.assertEqual(shell("send", "a", "echo"), "ok")
        self.assertEqual(shell("echo", "a", "hello"), "hello")
        self.kill(engine)
        self.assertEqual(shell("receive", "a"), "ECONNRESET")
        self.assertClosed(shell)

    def test_pending_connections_end(self):
        """Held connects that nobody will answer any more fail within --timeout."""
        stalling = fake.FakeProxy(self.world.wan, fake.Conversation.stall)
        self.addCleanup(stalling.close)
        shell, engine = self.start(stalling.uri, ["--timeout", "3"])
        for name, address in (("four", TARGET4), ("six", TARGET6)):
            self.assertEqual(shell("start", name, address, 7000), "EINPROGRESS")
        lib.wait_until(lambda: stalling.accepted == 2, "the dials")
        shell.tell("connect", "blocking", TARGET4, 7000)
        lib.wait_until(lambda: stalling.accepted == 3, "the third dial")
        self.kill(engine)
        for name in ("blocking", "four", "six"):
            result = shell.answer() if name == "blocking" else shell("wait", name)
            self.assertIn(result, ("ENETUNREACH", "ETIMEDOUT", "ECONNREFUSED", "ECONNRESET"), name)
        self.assertClosed(shell)

    def test_killed_while_connections_come_and_go(self):
        """Many connects in flight at the moment of the kill; whichever way each ends, it ends, and not directly."""
        count = int(300 * lib.SCALE) or 20
        for _ in range(3):
            before = lib.engines()
            shell = self.world.shell(self.uri, ["--timeout", "3"])
            shell("pid")
            engine, = lib.engines() - before
            shell.tell("run", lib.PYTHON, lib.CLIENT, "many", TARGET4, 7000, count)
            self.kill(engine)
            result = shell.answer()
            self.assertNotIn("hung", result)
            self.assertEqual(sum(map(int, re.findall(r"=(\d+)", result))), count, result)
            self.assertClosed(shell)
            shell.process.stdin.close()
            shell.process.finish()

    def test_next_run_cleans_up(self):
        shell, engine = self.start()
        self.kill(engine)
        self.assertClosed(shell)
        shell.process.stdin.close()
        shell.process.finish()
        self.assertEqual(self.connect(self.uri, TARGET4, 7000).out, "ok")
        self.assertClean()

    def test_next_run_spares_the_living(self):
        """A dead engine's members stay closed while the next run comes and goes."""
        shell, engine = self.start()
        self.kill(engine)
        self.assertEqual(self.connect(self.uri, TARGET4, 7000).out, "ok")
        self.assertClosed(shell)
        other, _ = self.start()
        self.assertEqual(other("connect", "a", TARGET4, 7000), "ok")
        self.assertClosed(shell)

    def test_children_of_the_bereft(self):
        """Forked and exec'd after the kill, whatever they do to get away: still closed."""
        shell, engine = self.start()
        self.kill(engine)
        client = [lib.PYTHON, lib.CLIENT, "connect", TARGET4, 7000]
        for prefix in (["setsid", "-w"], ["nohup"], ["unshare", "-m"], ["unshare", "-p", "-f"],
                       ["nsenter", f"--net={self.world.app.path}"]):
            self.assertEqual(shell("run", *prefix, *client), "ENETUNREACH", prefix)
        self.assertClosed(shell)

    def test_program_killed(self):
        """kill -9 of the member: its engine goes by itself."""
        shell, engine = self.start()
        self.assertEqual(shell("connect", "a", TARGET4, 7000), "ok")
        pidfd = os.pidfd_open(engine)
        self.addCleanup(os.close, pidfd)
        shell.process.kill()
        self.assertTrue(lib.select.select([pidfd], [], [], lib.PATIENCE)[0], "the engine stays")

    def test_mprox_killed_with_stats(self):
        """There mprox is the program's parent; without it the program stays behind the proxy."""
        process = self.world.start_proxied(self.uri, lib.PYTHON, lib.CLIENT, "shell", options=["--stats"],
                                           stdin=lib.subprocess.PIPE, stdout=lib.subprocess.PIPE, text=True)
        shell = lib.Shell(process)
        member = int(shell("pid"))
        self.assertNotEqual(member, process.pid)
        self.kill(process.pid)
        result = shell("connect", "a", TARGET4, 7000)
        self.assertIn(result, ("ok", "ENETUNREACH"))
        self.assertEqual(self.tap.leaks(), [])
        process.stdin.close()

    def test_mprox_killed_while_starting(self):
        """At any moment of its start: a program that runs is behind the proxy, and nothing stays."""
        uri = self.uri
        for step in range(int(12 * lib.SCALE) or 4):
            process = lib.Process(self.world.app.command(lib.MPROX, *lib.run_arguments(uri), lib.PYTHON, lib.CLIENT,
                                                         "connect", TARGET4, 7000),
                                  stdin=lib.subprocess.DEVNULL, stdout=lib.subprocess.DEVNULL)
            process.ended(step * 0.005)
            process.stop(signal.SIGKILL)
        self.assertEqual(self.tap.leaks(), [])
        self.assertEqual(self.connect(uri, TARGET4, 7000).out, "ok")
        lib.wait_until(lambda: lib.engines() <= self.others, "the engines to go")
        self.tap.leaks()

    @classmethod
    def tearDownClass(cls):
        """After all that killing one good run leaves the machine as it was."""
        result = cls.world.proxied(cls.uri, "true")
        if result.code:
            raise AssertionError(result.err)


if __name__ == "__main__":
    unittest.main(verbosity=2)
