# SPDX-License-Identifier: MIT
"""Job control: a program behind mprox stops, goes on and ends at a terminal as any other."""
import os
import pty
import re
import select
import signal
import unittest

import lib

NOBODY = "socks5://10.77.0.1:9"


class Terminal:
    """An interactive bash in app at a terminal of its own."""

    def __init__(self, world):
        argv = world.app.command("bash", "--norc", "--noprofile", "-i")
        env = lib.environment(PS1="prompt> ", TERM="dumb", HISTFILE="")
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.execvpe(argv[0], argv, env)
        self.seen = ""
        self.expect("prompt> ")

    def type(self, text):
        os.write(self.fd, text.encode())

    def expect(self, pattern):
        """Reads until `pattern` shows up; returns its match and forgets all before."""
        while not (match := re.search(pattern, self.seen)):
            if not select.select([self.fd], [], [], lib.PATIENCE)[0]:
                raise AssertionError(f"no {pattern!r} in {self.seen!r}")
            self.seen += os.read(self.fd, 4096).decode(errors="replace")
        self.seen = self.seen[match.end():]
        return match

    def status(self):
        self.type("echo status=$?\n")
        value = int(self.expect(r"\nstatus=(\d+)").group(1))
        self.expect("prompt> ")
        return value

    def close(self):
        os.kill(self.pid, signal.SIGHUP)
        os.close(self.fd)
        os.waitpid(self.pid, 0)


class JobControl(lib.NetTest):
    def start(self, command, *options):
        """COMMAND behind mprox in a fresh terminal; it must print `ready` first."""
        terminal = Terminal(self.world)
        self.addCleanup(terminal.close)
        terminal.type(f"{lib.MPROX} run --proxy {NOBODY} {' '.join(options)} -- sh -c '{command}'\n")
        terminal.expect(r"\nready\r\n")
        return terminal

    def echoes(self, terminal, text):
        """The program reads the terminal: what is typed comes back twice, from the terminal and from cat."""
        terminal.type(text + "\n")
        terminal.expect(f"{text}\r\n{text}\r\n")

    def interrupt(self, *options):
        terminal = self.start("echo ready; exec cat", *options)
        self.echoes(terminal, "one")
        terminal.type("\x03")
        terminal.expect("prompt> ")
        self.assertEqual(terminal.status(), 130)

    def test_interrupt(self):
        self.interrupt()

    def test_interrupt_with_stats(self):
        self.interrupt("--stats")

    def stop_and_continue(self, *options):
        terminal = self.start("echo ready; exec cat", *options)
        self.echoes(terminal, "one")
        terminal.type("\x1a")
        terminal.expect("Stopped")
        terminal.expect("prompt> ")
        terminal.type("fg\n")
        terminal.expect("run --proxy.*\n")
        self.echoes(terminal, "two")
        terminal.type("\x04")
        terminal.expect("prompt> ")
        self.assertEqual(terminal.status(), 0)

    def test_stop_and_continue(self):
        self.stop_and_continue()

    def test_stop_and_continue_with_stats(self):
        self.stop_and_continue("--stats")

    def test_background(self):
        terminal = Terminal(self.world)
        self.addCleanup(terminal.close)
        terminal.type(f"{lib.MPROX} run --proxy {NOBODY} -- sh -c 'exit 9' & wait $!\n")
        terminal.expect("prompt> ")
        self.assertEqual(terminal.status(), 9)

    def survive_interrupt(self, *options):
        """A program that handles SIGINT and goes on is not ended by mprox."""
        terminal = self.start('trap "echo caught" INT; echo ready; read x; read y; echo got $y', *options)
        terminal.type("\x03")
        terminal.expect("caught")
        terminal.type("more\n")
        terminal.type("words\n")
        terminal.expect("got (more|words)")
        terminal.expect("prompt> ")
        terminal.status()

    def test_survive_interrupt(self):
        self.survive_interrupt()

    def test_survive_interrupt_with_stats(self):
        self.survive_interrupt("--stats")

    def test_hang_up(self):
        """The terminal goes, the program gets SIGHUP, the engine follows."""
        before = lib.engines()
        terminal = self.start("echo ready; exec cat")
        self.assertTrue(lib.engines() - before)
        os.kill(terminal.pid, signal.SIGHUP)
        lib.wait_until(lambda: not lib.engines() - before, "the engine to go")

    def test_stats_forwards_signals(self):
        """--stats keeps mprox as the parent: what is sent to it reaches the program."""
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP):
            process = self.world.start_proxied(
                NOBODY, lib.PYTHON, "-c", "import signal\n"
                f"signal.pthread_sigmask(signal.SIG_BLOCK, {{{int(number)}}})\n"
                f"print('ready', flush=True); signal.sigwait({{{int(number)}}})\n"
                "print('got', flush=True); raise SystemExit(4)",
                options=["--stats"], stdin=lib.subprocess.PIPE, stdout=lib.subprocess.PIPE,
                stderr=lib.subprocess.PIPE, text=True)
            self.assertEqual(process.stdout.readline(), "ready\n")
            process.send_signal(number)
            self.assertEqual(process.stdout.readline(), "got\n")
            self.assertEqual(process.finish(), 4)
            self.assertRegex(process.stderr.read(), r"^mprox: 0 connections")


if __name__ == "__main__":
    unittest.main(verbosity=2)
