# SPDX-License-Identifier: MIT
"""The command line: the program's own world is untouched, and mistakes get one clear sentence."""
import os
import shutil
import signal
import subprocess
import unittest

import fake
import lib
import servers
from lib import CLIENT, PYTHON, TARGET4

NOBODY = "socks5://10.77.0.1:9"  # a proxy that no test here needs to reach

# Everything of /proc/self that a program inherits and could notice.
INHERITED = r"""
import os, resource, signal
def lines(path, *starts):
    return [line.strip() for line in open(path) if line.startswith(starts)]
print(sorted((fd, os.readlink(f'/proc/self/fd/{fd}').split(':')[0]) for fd in os.listdir('/proc/self/fd')
             if int(fd) < 3 or os.path.exists(f'/proc/self/fd/{fd}')))
print(lines('/proc/self/status', 'Umask', 'Uid', 'Gid', 'Groups', 'Sig', 'Shd', 'Cap', 'NoNewPrivs', 'Seccomp',
            'Cpus_allowed', 'Speculation'))
print(open('/proc/self/limits').read())
print(open('/proc/self/oom_score_adj').read(), open('/proc/self/cgroup').read(), os.getcwd(), os.nice(0))
print({name: os.readlink(f'/proc/self/ns/{name}') for name in os.listdir('/proc/self/ns')})
print(open('/proc/self/loginuid').read(), os.getpgid(0) == os.getpid(), os.getsid(0), os.getppid())
print(sorted(os.environ.items()))
try:
    print(os.waitpid(-1, os.WNOHANG))
except ChildProcessError:
    print('no children')
"""


class Cli(lib.NetTest):
    @classmethod
    def prepare(cls):
        cls.world.target()

    def program(self, *argv, options=(), **more):
        return self.world.proxied(NOBODY, *argv, options=options, **more)

    def complains(self, *argv, code=125, env=None):
        """One line on stderr, nothing else; returns it without mprox's name."""
        result = self.world.mprox(*argv, env=env or lib.environment())
        self.assertEqual((result.code, result.out), (code, ""), result.err)
        self.assertRegex(result.err, r"\Amprox( run)?: [^\n]+\n\Z")
        return result.err.split(": ", 1)[1].strip()

    # ---- the program's own world ----

    def test_nothing_is_printed(self):
        self.assertEqual(self.program("true"), lib.Result(0, "", ""))

    def test_exit_status(self):
        for status in (0, 1, 7, 125, 126, 127, 255):
            self.assertEqual(self.program("sh", "-c", f"exit {status}").code, status)
            self.assertEqual(self.program("sh", "-c", f"exit {status}", options=["--stats"]).code, status)

    def test_killed_program(self):
        """A shell shows both forms as 128 + signal."""
        for number in (signal.SIGTERM, signal.SIGKILL, signal.SIGABRT, signal.SIGUSR1):
            script = f"{lib.MPROX} run --proxy {NOBODY} %s -- sh -c 'kill -{int(number)} $$'; echo $?"
            for option in ("", "--stats"):
                result = lib.run(self.world.app.command("sh", "-c", script % option))
                self.assertEqual(result.out.strip().splitlines()[-1], str(128 + number), option)

    def test_program_not_found(self):
        self.assertIn("no-such-program", self.complains("run", "--proxy", NOBODY, "--", "no-such-program", code=127))
        self.assertIn("/no/such", self.complains("run", "--proxy", NOBODY, "--", "/no/such", code=127))
        told = self.program("/no/such", options=["--stats"])
        self.assertEqual(told.code, 127)
        self.assertIn("/no/such", told.err.splitlines()[0])

    def test_program_not_executable(self):
        self.assertIn("/etc/passwd", self.complains("run", "--proxy", NOBODY, "--", "/etc/passwd", code=126))
        self.complains("run", "--proxy", NOBODY, "--", "/etc", code=126)

    def test_world_is_untouched(self):
        """Descriptors, signals, limits, capabilities, namespaces, environment, children: as without mprox."""
        with open("/dev/null") as extra:
            results = [lib.run(self.world.app.command(*prefix, PYTHON, "-c", INHERITED), pass_fds=[extra.fileno()],
                               env=lib.environment(ODD="a=b\nc", EMPTY=""))
                       for prefix in ([], [lib.MPROX, *lib.run_arguments(NOBODY)])]
        self.assertEqual(results[0].out.splitlines(), results[1].out.splitlines())
        self.assertEqual(results[1].err, "")

    def test_ignored_signals_stay_ignored(self):
        script = "trap '' HUP INT PIPE; exec %s grep -E 'Sig(Ign|Blk|Cgt)' /proc/self/status"
        prefix = " ".join([lib.MPROX, *lib.run_arguments(NOBODY)])
        plain, proxied = (lib.run(self.world.app.command("bash", "-c", script % word)) for word in ("", prefix))
        self.assertEqual(plain.out, proxied.out)

    def test_ignored_children(self):
        """A starter that lets the kernel collect its children hands that on; we wait for ours all the same."""
        script = "trap '' CHLD; exec %s grep SigIgn /proc/self/status"
        for options in ("", "--stats"):
            prefix = f"{lib.MPROX} run --proxy {NOBODY} {options} --"
            plain, proxied = (lib.run(self.world.app.command("bash", "-c", script % word)) for word in ("", prefix))
            self.assertEqual((plain.out, 0), (proxied.out, proxied.code))

    def test_inherited_descriptors_close(self):
        """A pipe that the starter gave to the program ends when the program closes it."""
        for options in ([], ["--stats"]):
            reader, writer = os.pipe()
            process = self.world.start_proxied(NOBODY, "sh", "-c", f"exec {writer}>&-; read x", options=options,
                                               stdin=subprocess.PIPE, pass_fds=[writer])
            os.close(writer)
            self.assertTrue(lib.select.select([reader], [], [], lib.PATIENCE)[0], options)
            self.assertEqual(os.read(reader, 1), b"")
            os.close(reader)
            process.stdin.close()
            process.finish()

    def test_same_process(self):
        """The process that was started is the program: its pid is what `$!` says."""
        script = f"echo $$; exec {lib.MPROX} run --proxy {NOBODY} -- sh -c 'echo $$'"
        first, second = lib.run(self.world.app.command("sh", "-c", script)).out.split()
        self.assertEqual(first, second)

    def test_closed_standard_descriptors(self):
        """The program finds them as mprox did."""
        for closed, which in (("<&-", "0"), (">&-", "1"), ("2>&-", "2"), ("<&- >&- 2>&-", "0 1 2")):
            program = f"for fd in {which}; do test -e /proc/self/fd/$fd && exit 1; done; exit 3"
            script = f"{lib.MPROX} run --proxy {NOBODY} -- sh -c '{program}' {closed}; echo $?"
            self.assertEqual(lib.run(self.world.app.command("sh", "-c", script)).out, "3\n", closed)

    def test_input_and_output_pass(self):
        data = os.urandom(1 << 20)
        result = subprocess.run(self.world.app.command(lib.MPROX, *lib.run_arguments(NOBODY), "cat"), input=data,
                                capture_output=True, timeout=lib.PATIENCE, env=lib.environment())
        self.assertEqual((result.stdout, result.stderr), (data, b""))

    def test_output_ends_with_the_program(self):
        """The engine must not keep the caller's pipes open: `mprox run ... | cat` ends, a daemon left or not."""
        script = f"{lib.MPROX} run --proxy {NOBODY} -- sh -c 'setsid sleep {lib.PATIENCE:g} >/dev/null 2>&1 & echo $!' | cat"
        result = lib.run(self.world.app.command("sh", "-c", script), seconds=lib.PATIENCE / 2)
        os.kill(int(result.out), signal.SIGKILL)

    def test_working_directory_can_be_unmounted(self):
        """The engine holds on to no directory of the caller's."""
        home = self.world.dir / "home"
        home.mkdir()
        process = self.world.start_proxied(NOBODY, "cat", stdin=subprocess.PIPE, cwd=home)
        lib.wait_until(lambda: os.readlink(f"/proc/{process.pid}/exe").endswith("cat"), "the program")
        for engine in lib.engines():
            self.assertNotEqual(os.readlink(f"/proc/{engine}/cwd"), str(home))
        process.stdin.close()

    def test_arguments_pass(self):
        words = ["", "a b", "--proxy", "-v", "--", "é\n"]
        result = self.program(PYTHON, "-c", "import sys; print(sys.argv[1:])", *words)
        self.assertEqual(result.out.strip(), str(words))

    def test_separator_is_not_needed(self):
        """Options after the program's name are the program's."""
        self.assertEqual(self.world.mprox("run", "--proxy", NOBODY, "echo", "-v", "--stats").out, "-v --stats\n")

    # ---- --stats ----

    def test_stats(self):
        proxy = fake.FakeProxy(self.world.wan, fake.granting("socks5"))
        self.addCleanup(proxy.close)
        result = self.world.proxied(proxy.uri, "sh", "-c", f"echo hello | busybox nc {TARGET4} 80", options=["--stats"])
        self.assertEqual(result.out, "hello\n")
        self.assertEqual(result.err, "mprox: 1 connection, 6 bytes up, 6 bytes down, 0 refused; 1 spliced\n")

    def test_stats_nothing_happened(self):
        self.assertEqual(self.program("true", options=["--stats"]).err,
                         "mprox: 0 connections, 0 bytes up, 0 bytes down, 0 refused\n")

    # ---- where the proxy comes from ----

    def test_proxy_from_the_environment(self):
        servers_by_name = {name: fake.FakeProxy(self.world.wan, fake.granting("socks5"))
                           for name in ("--proxy", "MPROX_PROXY", "ALL_PROXY", "all_proxy")}
        for server in servers_by_name.values():
            self.addCleanup(server.close)
        env = {name: server.uri for name, server in servers_by_name.items() if name != "--proxy"}
        for chosen in servers_by_name:
            given = ["--proxy", servers_by_name[chosen].uri] if chosen == "--proxy" else []
            before = servers_by_name[chosen].asked
            result = self.world.mprox("run", *given, "--", PYTHON, CLIENT, "connect", TARGET4, 80,
                                      env=lib.environment(**env))
            self.assertEqual((result.out, result.err, servers_by_name[chosen].asked), ("ok\n", "", before + 1), chosen)
            env.pop(chosen, None)

    def test_proxy_by_name(self):
        proxy = fake.FakeProxy(self.world.app, fake.granting("socks5"), "127.0.0.1")
        self.addCleanup(proxy.close)
        self.assertEqual(self.connect(f"socks5://localhost:{proxy.port}", TARGET4, 80).out, "ok")

    def test_no_proxy(self):
        self.assertRegex(self.complains("run", "--", "true"), "(?i)proxy")
        self.complains("run", "--", "true", env=lib.environment(ALL_PROXY=""))

    # ---- --user ----

    def test_user(self):
        """As sudo does it: identity, groups, and the variables that name them; the rest of the environment stays."""
        out = self.program("sh", "-c", "id -u; id -g; id -G; echo $HOME $USER $LOGNAME $ODD",
                           options=["--user", "nobody"], env=lib.environment(HOME="/root", USER="root", ODD="x")).out
        self.assertEqual(out.split(), ["65534", "65534", "65534", "/nonexistent", "nobody", "nobody", "x"])

    def test_user_keeps_no_privileges(self):
        out = self.program("grep", "-E", "Cap(Inh|Prm|Eff|Amb)", "/proc/self/status", options=["--user", "nobody"]).out
        self.assertEqual({line.split()[1] for line in out.splitlines()}, {"0000000000000000"})

    def test_user_is_proxied(self):
        program = self.world.dir / "client"
        shutil.copytree(lib.ROOT / "tests/net", program, dirs_exist_ok=True)
        program.chmod(0o755)
        uri = servers.mprox_serve(self.world)
        result = self.world.proxied(uri, PYTHON, "-B", program / "client.py", "peer", TARGET4,
                                    options=["--user", "nobody"], cwd="/")
        self.assertEqual((result.out.strip(), result.err), (TARGET4, ""))

    def test_invoking_user(self):
        """Under sudo, --user alone goes back to who typed sudo."""
        env = lib.environment(SUDO_USER="nobody", SUDO_UID="65534", SUDO_GID="65534")
        result = self.program("id", "-u", options=["--user"], env=env)
        self.assertEqual((result.out, result.err), ("65534\n", ""))
        real = lib.run(self.world.app.command("sudo", lib.MPROX, "run", "--proxy", NOBODY, "--user", "--", "id", "-un"))
        self.assertEqual((real.out, real.err), ("root\n", ""))

    def test_invoking_user_without_sudo(self):
        self.assertRegex(self.complains("run", "--proxy", NOBODY, "--user", "--", "true"), "(?i)sudo|--user")

    def test_unknown_user(self):
        self.assertIn("no-such-user", self.complains("run", "--proxy", NOBODY, "--user", "no-such-user", "--", "true"))

    # ---- mistakes ----

    def test_bad_uris(self):
        for uri in ("", "socks5://", "socks9://10.0.0.1:1", "https://10.0.0.1:1", "socks5://10.0.0.1:0",
                    "socks5://10.0.0.1:99999", "socks5://10.0.0.1:x", "socks5://[::1", "socks5://10.0.0.1/path",
                    "socks5://u:%zz@10.0.0.1", "ftp://x", "socks5://a b", "socks5://" + "n" * 300):
            with self.subTest(uri):
                self.complains("run", "--proxy", uri, "--", "true")

    def test_password_is_not_repeated(self):
        self.assertNotIn("secret", self.complains("run", "--proxy", "socks5://me:secret@10.0.0.1:99999", "--", "true"))

    def test_bad_options(self):
        for words in (["--bypass", "10.0.0.0/33"], ["--bypass", "what"], ["--bypass", "10.1.1.1/8"],
                      ["--timeout", "soon"], ["--timeout", "-1"], ["--no-such-option"], ["--proxy"]):
            with self.subTest(words):
                message = self.complains("run", "--proxy", NOBODY, *words, *([] if words == ["--proxy"] else ["--", "true"]))
                self.assertIn(words[0].lstrip("-"), message)

    def test_no_program(self):
        self.complains("run", "--proxy", NOBODY)
        self.complains("run", "--proxy", NOBODY, "--")

    def test_unknown_command(self):
        self.complains("walk", code=2)
        self.complains(code=2)

    def test_unresolvable_proxy(self):
        self.assertIn("no-such-host.invalid", self.complains("run", "--proxy", "socks5://no-such-host.invalid", "--", "true"))

    def test_without_privileges(self):
        program = self.world.dir / "mprox"
        shutil.copy(lib.MPROX, program)
        program.chmod(0o755)
        result = lib.run(self.world.app.command("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", program,
                                                *lib.run_arguments(NOBODY), "true"))
        self.assertEqual((result.code, result.out), (125, ""))
        self.assertRegex(result.err, r"\Amprox run: [^\n]*(?i:root|sudo|CAP_)[^\n]*\n\Z")

    def test_help_and_version(self):
        for words in (["--help"], ["run", "--help"], ["serve", "--help"], ["--version"]):
            result = self.world.mprox(*words)
            self.assertEqual((result.code, result.err), (0, ""), words)
            self.assertTrue(result.out)
        self.assertIn("--proxy", self.world.mprox("run", "--help").out)


if __name__ == "__main__":
    unittest.main(verbosity=2)
