# SPDX-License-Identifier: MIT
"""Who is behind the proxy: the program's whole tree, however it grows, and nobody else."""
import functools
import os
import unittest

import capture
import fake
import lib
import servers
from lib import CLIENT, PYTHON, TARGET4

DIRECT, PROXIED = lib.APP4, TARGET4  # what the target sees as its peer (the proxy dials from the target's own host)


class Members(lib.NetTest):
    @classmethod
    def prepare(cls):
        cls.world.target()
        cls.uri = servers.mprox_serve(cls.world)

    def peer(self, *prefix, **more):
        """What the target sees when PREFIX... client.py peer runs in app."""
        result = lib.run(self.world.app.command(*prefix, PYTHON, CLIENT, "peer", TARGET4), **more)
        self.assertEqual((result.code, result.err), (0, ""))
        return result.out.strip()

    def run_prefix(self, uri=None):
        return [lib.MPROX, *lib.run_arguments(uri or self.uri)]

    def shell_peer(self, shell):
        return shell("run", PYTHON, CLIENT, "peer", TARGET4)

    def test_program(self):
        self.assertEqual(self.peer(), DIRECT)
        self.assertEqual(self.peer(*self.run_prefix()), PROXIED)

    def test_others_are_not_touched(self):
        """Processes started before, beside and after connect directly all the while."""
        before = self.world.shell()
        member = self.world.shell(self.uri)
        self.assertEqual(self.shell_peer(member), PROXIED)
        beside = self.world.shell()
        for shell in (before, beside):
            self.assertEqual(self.shell_peer(shell), DIRECT)
        self.assertEqual(before("connect", "a", TARGET4, lib.CLOSED_PORT), "ECONNREFUSED")
        self.assertEqual(self.shell_peer(member), PROXIED)

    def test_parent_is_not_touched(self):
        """The shell that typed `mprox run` stays outside."""
        peer = f"{PYTHON} {CLIENT} peer {TARGET4}"
        result = lib.run(self.world.app.command("sh", "-c", f"{peer}; {' '.join(self.run_prefix())} {peer}; {peer}"))
        self.assertEqual(result.out.split(), [DIRECT, PROXIED, DIRECT])

    def test_setsid(self):
        self.assertEqual(self.peer(*self.run_prefix(), "setsid", "-w"), PROXIED)
        shell = self.world.shell(self.uri)
        shell("setsid")
        self.assertEqual(self.shell_peer(shell), PROXIED)

    def test_deep_trees(self):
        self.assertEqual(self.peer(*self.run_prefix(), *(["setsid", "-w", "env", "nice"] * 20)), PROXIED)

    def left_behind_program(self, name):
        """A program that waits to be released and then writes the peer it is seen as into a file.
        Returns (its command line, release, the file)."""
        where = self.world.dir / name
        os.mkfifo(f"{where}.go")
        fifo = os.open(f"{where}.go", os.O_RDWR)  # both ends: what is written waits for the reader
        self.world.defer(os.close, fifo)
        release = functools.partial(os.write, fifo, b"go\n")
        self.addCleanup(release)
        return (f"read line < {where}.go; {PYTHON} {CLIENT} peer {TARGET4} > {where}.tmp; mv {where}.tmp {where}",
                release, where)

    def test_daemons_keep_the_proxy(self):
        """mprox's program is gone, its orphan is not; when that goes, the engine goes."""
        before = lib.engines()
        script, release, where = self.left_behind_program("daemon")
        result = self.world.proxied(self.uri, "sh", "-c", f"setsid sh -c '{script}' >/dev/null 2>&1 & exit 5")
        self.assertEqual(result.code, 5)
        engine, = lib.engines() - before
        pidfd = os.pidfd_open(engine)
        self.addCleanup(os.close, pidfd)
        release()
        lib.wait_until(where.exists, "the daemon's word")
        self.assertEqual(where.read_text().strip(), PROXIED)
        self.assertTrue(lib.select.select([pidfd], [], [], lib.PATIENCE)[0], "the engine stays")

    def test_double_forked_daemon(self):
        script, release, where = self.left_behind_program("double")
        (self.world.dir / "double.sh").write_text(script)
        shell = self.world.shell(self.uri)
        shell("daemon", "sh", self.world.dir / "double.sh")
        shell.process.stdin.close()
        shell.process.finish()
        release()
        lib.wait_until(where.exists, "the daemon's word")
        self.assertEqual(where.read_text().strip(), PROXIED)

    def test_all_is_gone_after_the_last(self):
        self.assertEqual(self.peer(*self.run_prefix()), PROXIED)
        self.assertClean()

    def test_threads_and_vfork(self):
        """subprocess uses vfork; the child of a thread is a member as well."""
        code = (f"import subprocess, threading\n"
                f"def go(): print(subprocess.check_output(['{PYTHON}', '{CLIENT}', 'peer', '{TARGET4}'], text=True))\n"
                f"t = threading.Thread(target=go); t.start(); t.join()")
        result = self.world.proxied(self.uri, PYTHON, "-c", code)
        self.assertEqual(result.out.strip(), PROXIED)

    # ---- network namespaces ----

    def test_inside_ip_netns_exec(self):
        """mprox where /sys shows no cgroups and mounts vanish with the caller."""
        result = lib.run(["ip", "netns", "exec", self.world.app.name, *self.run_prefix(), PYTHON, CLIENT, "peer", TARGET4])
        self.assertEqual((result.code, result.out.strip(), result.err), (0, PROXIED, ""))
        self.assertClean()

    def test_member_enters_another_namespace(self):
        """mprox on the host, the member in app: connections start from where the member is."""
        uri = servers.mprox_serve(self.world)
        for enter in (["ip", "netns", "exec", self.world.app.name], ["nsenter", f"--net={self.world.app.path}"]):
            with self.subTest(enter[0]):
                result = lib.run([lib.MPROX, *lib.run_arguments(uri), *enter, PYTHON, CLIENT, "peer", TARGET4])
                self.assertEqual((result.code, result.out.strip(), result.err), (0, PROXIED, ""))

    def test_member_makes_a_namespace(self):
        """There the proxy cannot be reached: refused, not leaked, not hung."""
        command = f"ip link set lo up; {PYTHON} {CLIENT} connect {TARGET4} 7000"
        result = self.world.proxied(self.uri, "unshare", "-n", "sh", "-c", command)
        self.assertEqual(result.out.strip(), "ENETUNREACH")

    def test_new_pid_and_mount_namespace(self):
        self.assertEqual(self.peer(*self.run_prefix(), "unshare", "-m", "-p", "-f", "--mount-proc"), PROXIED)

    def test_new_user_namespace(self):
        self.assertEqual(self.peer(*self.run_prefix(), "unshare", "-U", "-r"), PROXIED)

    # ---- several ----

    def counting_proxy(self):
        server = fake.FakeProxy(self.world.wan, fake.granting("socks5"))
        self.addCleanup(server.close)
        return server

    def test_nested_last_one_wins(self):
        outer, inner = self.counting_proxy(), self.counting_proxy()
        result = self.world.proxied(outer.uri, *self.run_prefix(inner.uri), PYTHON, CLIENT, "connect", TARGET4, 80)
        self.assertEqual((result.out.strip(), result.err), ("ok", ""))
        self.assertEqual((outer.asked, inner.asked), (0, 1))

    def test_outer_after_nested(self):
        """The inner run ends; the outer one's other members are where they were."""
        outer, inner = self.counting_proxy(), self.counting_proxy()
        client = f"{PYTHON} {CLIENT} connect {TARGET4} 80"
        result = self.world.proxied(outer.uri, "sh", "-c",
                                    f"{client}; {' '.join(self.run_prefix(inner.uri))} {client}; {client}")
        self.assertEqual(result.out.split(), ["ok"] * 3)
        self.assertEqual((outer.asked, inner.asked), (2, 1))

    def test_two_runs_stay_apart(self):
        first, second = self.counting_proxy(), self.counting_proxy()
        shells = [self.world.shell(server.uri) for server in (first, second)]
        for number in range(10):
            for shell in shells:
                self.assertEqual(shell("connect", f"c{number}", TARGET4, 80), "ok")
        self.assertEqual((first.asked, second.asked), (10, 10))
        shells[0].process.stdin.close()
        shells[0].process.finish()
        self.assertEqual(shells[1]("connect", "last", TARGET4, 80), "ok")
        self.assertEqual((first.asked, second.asked), (10, 11))

    def test_a_run_in_ip_netns_exec_beside_a_plain_one(self):
        """The two see /run differently; they must not remove each other's pins."""
        shell = self.world.shell(self.uri)
        for _ in range(3):
            result = lib.run(["ip", "netns", "exec", self.world.app.name, *self.run_prefix(), PYTHON, CLIENT, "peer",
                              TARGET4])
            self.assertEqual((result.out.strip(), result.err), (PROXIED, ""))
            self.assertEqual(self.shell_peer(shell), PROXIED)

    def test_many_runs_at_once(self):
        tap = capture.Capture(self.world.app)
        self.addCleanup(tap.close)
        count = int(100 * lib.SCALE) or 10
        processes = [self.world.start_proxied(self.uri, PYTHON, CLIENT, "peer", TARGET4, stdin=lib.subprocess.DEVNULL,
                                              stdout=lib.subprocess.PIPE, stderr=lib.subprocess.PIPE, text=True)
                     for _ in range(count)]
        results = [(*process.communicate(timeout=3 * lib.PATIENCE), process.returncode) for process in processes]
        self.assertEqual(results, [(f"{PROXIED}\n", "", 0)] * count)
        self.assertEqual(tap.leaks(), [])
        self.assertClean()

    def test_many_runs_one_after_the_other(self):
        """What a run leaves to the kernel to free later must not stop the next."""
        for _ in range(int(30 * lib.SCALE) or 5):
            self.assertEqual(self.world.proxied(self.uri, "true"), lib.Result(0, "", ""))
        self.assertClean()

    def test_bypass(self):
        """--bypass goes directly; loopback does so by default and not with --no-default-bypass."""
        server = self.counting_proxy()
        tap = capture.Capture(self.world.app)
        self.addCleanup(tap.close)
        shell = self.world.shell(server.uri, ["--bypass", "10.88.0.2/32", "--bypass", f"{TARGET4}:7001",
                                              "--bypass", "fd88::/16"])
        self.assertEqual(shell("connect", "a", "10.88.0.2", 7000), "ok")
        self.assertEqual(shell("connect", "b", TARGET4, 7001), "ok")
        self.assertEqual(shell("connect", "c", lib.TARGET6, 7000), "ok")
        self.assertEqual(server.asked, 0)
        self.assertEqual(sorted({leak for leak in tap.leaks()}),
                         ["tcp 10.88.0.1:7001", "tcp 10.88.0.2:7000", "tcp fd88::1:7000"])
        self.assertEqual(shell("connect", "d", TARGET4, 7000), "ok")
        self.assertEqual(server.asked, 1)
        self.assertEqual(shell("connect", "e", "127.0.0.1", lib.CLOSED_PORT), "ECONNREFUSED")
        self.assertEqual(server.asked, 1)
        strict = self.world.shell(server.uri, ["--no-default-bypass"])
        for number, address in enumerate(("127.0.0.1", "::1", "169.254.1.1", "fe80::1")):
            self.assertEqual(strict("connect", "f", address, 7000), "ok", address)
            self.assertEqual(server.asked, 2 + number)


if __name__ == "__main__":
    unittest.main(verbosity=2)
