# SPDX-License-Identifier: MIT
"""A connect() that finds a greeted connection waiting, or a port to make one from, is answered by the BPF programs alone: what
that looks like while the engine stands still, when the server says anything but yes, and when somebody ends in the middle."""
import contextlib
import json
import os
import signal
import subprocess
import time
import unittest
from pathlib import Path

import capture
import fake
import lib
from lib import APP4, PROXY4, PROXY6, TARGET4, TARGET6

SPLICE = ["-v", "--data-path", "splice"]


def bpftool(*words):
    done = subprocess.run(["bpftool", "--json", *words], capture_output=True, text=True)
    return json.loads(done.stdout) if done.returncode == 0 else []


CONNECTIONS, PORTS = 0, 12  # where a pool says how many of them wait


def waiting(field):
    """What waits in any pool."""
    pools = [pool["id"] for pool in bpftool("map", "show") if pool.get("name") == "mprox_pool"]
    elements = [element for pool in pools for element in bpftool("map", "dump", "id", str(pool))]
    return sum(int.from_bytes(bytes(int(byte, 16) for byte in element["value"][field:field + 4]), "little") for element in elements)


class Cases:
    options = SPLICE
    addresses = (PROXY4, PROXY6)
    source = APP4

    def setUp(self):
        self.log = self.world.dir / "ask.log"

    def proxy(self, script=None, **more):
        server = fake.FakeProxy(self.world.wan, script or fake.granting("socks5"), **more)
        self.addCleanup(server.close)
        return server

    def begin(self, server, destination=TARGET4):
        """A shell behind `server`, for which something waits; and its engine."""
        before = lib.engines()
        log = self.log.open("w")
        self.addCleanup(log.close)
        shell = self.world.shell(server.uri, self.options, stderr=log)
        self.assertEqual(shell("connect", "first", destination, 80), "ok")
        engine, = lib.engines() - before
        self.one_waits(server)
        return shell, engine

    @contextlib.contextmanager
    def stopped(self, engine):
        os.kill(engine, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(engine, signal.SIGCONT)

    def counting(self, then):
        """A script that says of each connection when it has been greeted."""
        def script(conversation):
            conversation.read(3)
            conversation.send(b"\x05\x00")
            server.greeted += 1
            asked = conversation.read(10 if server.uri.count(":") == 2 else 22)
            conversation.on_request()
            then(conversation, asked)
            return asked
        server = self.proxy(script, address=self.addresses[self.ip6])
        server.greeted = 0
        return server

    ip6 = False

    @staticmethod
    def grant(conversation, _asked):
        conversation.send(fake.SOCKS5_GRANTED)
        conversation.echo()

    def test_without_the_engine(self):
        """It stands still; the connect() is answered, bytes flow both ways, and the end arrives."""
        for self.ip6, destination in ((False, TARGET4), (True, TARGET6)):
            with self.subTest(destination):
                server = self.counting(self.grant)
                shell, engine = self.begin(server, destination)
                with self.stopped(engine):
                    self.assertEqual(shell("connect", "second", destination, 80), "ok")
                    self.assertEqual(shell("echo", "second", "hello"), "hello")
                    self.assertEqual(server.asked, 2)
                    self.assertEqual(shell("close", "second"), "ok")
                    lib.wait_until(lambda: len(server.seen) == 1, "the end")
                lib.wait_until(lambda: self.log.read_text().count(", spliced\n") == 2, "the engine's word of it")
                shell("quit")
                self.assertClean()
        self.ip6 = False

    def test_request_names_the_destination(self):
        server = self.counting(self.grant)
        shell, engine = self.begin(server)
        with self.stopped(engine):
            self.assertEqual(shell("connect", "second", TARGET4, 4321), "ok")
            self.assertEqual(shell("close", "second"), "ok")
            lib.wait_until(lambda: server.seen, "the end")
        self.assertEqual(server.seen[0], bytes([5, 1, 0, 1, *map(int, TARGET4.split(".")), 4321 >> 8, 4321 & 255]))

    def test_engine_killed_in_between(self):
        """Asked, and the engine is gone: the answer arrives all the same, and so do the bytes. The next connect() fails."""
        def slowly(conversation, asked):
            if server.asked == 2:
                os.kill(engine, signal.SIGKILL)
                lib.wait_until(lambda: engine not in lib.engines(), "its end")
            self.grant(conversation, asked)
        server = self.counting(slowly)
        shell, engine = self.begin(server)
        tap = capture.Capture(self.world.app)
        self.addCleanup(tap.close)
        self.assertEqual(shell("connect", "second", TARGET4, 80), "ok")
        self.assertEqual(shell("echo", "second", "hello"), "hello")
        self.assertEqual(shell("connect", "third", TARGET4, 80), "ENETUNREACH")
        self.assertEqual(shell("close", "second"), "ok")
        lib.wait_until(lambda: len(server.seen) == 1, "the end")
        shell("quit")
        self.assertEqual(tap.leaks(), [])

    def test_engine_killed_while_one_waits(self):
        server = self.counting(self.grant)
        shell, engine = self.begin(server)
        os.kill(engine, signal.SIGKILL)
        lib.wait_until(lambda: engine not in lib.engines(), "its end")
        self.assertEqual(shell("connect", "second", TARGET4, 80), "ENETUNREACH")
        self.assertEqual(server.asked, 1)
        shell("quit")

    def answered(self, then, said="ok", requests=2):
        """The second connect() finds one waiting, and `then` to answer it."""
        server = self.counting(lambda conversation, asked: (then if server.asked == 2 else self.grant)(conversation, asked))
        shell, _engine = self.begin(server)
        began = time.monotonic()
        self.assertEqual(shell("connect", "second", TARGET4, 80), said)
        took = time.monotonic() - began
        if said == "ok":
            self.assertEqual(shell("echo", "second", "hello"), "hello")
        self.assertEqual(server.asked, requests)
        shell("quit")
        self.assertClean()
        return took

    def test_refusals(self):
        """Known at once, with the errno that the reply stands for, and told with its reason."""
        for code, said in ((1, "EHOSTUNREACH"), (3, "ENETUNREACH"), (4, "EHOSTUNREACH"), (5, "ECONNREFUSED")):
            with self.subTest(code):
                self.answered(lambda c, _, code=code: c.send(fake.socks5_reply(code)), said)
                self.assertRegex(self.log.read_text(), f"SOCKS5 reply {code}")

    def test_reply_in_pieces(self):
        def pieces(conversation, asked):
            conversation.send_split(fake.SOCKS5_GRANTED)
            conversation.echo()
        self.answered(pieces)

    def test_reply_with_a_name(self):
        def named(conversation, asked):
            conversation.send(b"\x05\x00\x00\x03\x05proxy\x00\x00")
            conversation.echo()
        self.answered(named)

    def test_reply_with_a_name_and_much_behind_it(self):
        """More than is handed over: the engine relays, by the socket that carries on."""
        much = b"220-ready-" * 5000

        def named(conversation, _asked):
            conversation.send(b"\x05\x00\x00\x03\x05proxy\x00\x00" + much)
            conversation.echo()
        server = self.counting(lambda conversation, asked: (named if server.asked == 2 else self.grant)(conversation, asked))
        shell, _engine = self.begin(server)
        self.assertEqual(shell("connect", "second", TARGET4, 80), "ok")
        heard = ""
        while len(heard) < len(much):
            heard += shell("receive", "second")
        self.assertEqual(heard, much.decode())
        for _ in range(3):
            self.assertEqual(shell("echo", "second", "hello"), "hello")
        self.assertEqual(server.asked, 2)
        shell("quit")
        self.assertClean()

    def test_silence_for_a_while(self):
        """Longer than the programs wait; the engine goes on."""
        def late(conversation, asked):
            time.sleep(1.2)
            self.grant(conversation, asked)
        self.answered(late)

    def test_server_ends_in_place_of_an_answer(self):
        for name, end in (("hangs up", lambda c, _: None), ("resets", lambda c, _: c.reset())):
            with self.subTest(name):
                # The flow dials anew.
                self.answered(end, requests=3)

    def test_bytes_with_the_reply(self):
        """The destination speaks first, in the very segment of the reply: nothing is lost or doubled."""
        greeting = b"220-ready-" * 100

        def talks(conversation, _asked):
            conversation.send(fake.SOCKS5_GRANTED + greeting)
            conversation.echo()
        server = self.counting(talks)
        shell, _engine = self.begin(server)
        for name in ("second", "third"):
            self.assertEqual(shell("connect", name, TARGET4, 80), "ok")
            heard = ""
            while len(heard) < len(greeting):
                heard += shell("receive", name)
            self.assertEqual(heard, greeting.decode())
            self.assertEqual(shell("echo", name, "hello"), "hello")
            self.one_waits(server)

    def test_application_gives_up(self):
        """It closes while it is asked for: the server sees an end, and nothing is left."""
        ended = []

        def waits(conversation, _asked):
            if server.asked == 1:
                return self.grant(conversation, _asked)
            conversation.stall()
            return ended.append(conversation)
        server = self.counting(waits)
        shell, _engine = self.begin(server)
        self.assertEqual(shell("start", "second", TARGET4, 80), "EINPROGRESS")
        lib.wait_until(lambda: server.asked == 2, "the request")
        self.assertEqual(shell("close", "second"), "ok")
        lib.wait_until(lambda: ended, "the end")
        shell("quit")
        self.assertClean()

    def test_names_are_those_of_a_direct_connection(self):
        server = self.counting(self.grant)
        shell, engine = self.begin(server)
        with self.stopped(engine):
            self.assertEqual(shell("connect", "second", TARGET4, 80), "ok")
            self.assertEqual(shell("names", "second"), f"{self.source} {TARGET4}:80")

    def lose_once(self, chain, which):
        """The second connect() is answered, although a packet that matches is lost: the first of its connection."""
        port, other = ("dport", "sport") if chain == "input" else ("sport", "dport")
        server = self.counting(self.grant)
        shell, _engine = self.begin(server)
        rule = f"""table inet lose {{
            set lost {{
                type inet_service
                flags dynamic
                size 1000
            }}
            chain one {{
                type filter hook {chain} priority 0
                tcp {port} {server.port} {which} tcp {other} != @lost add @lost {{ tcp {other} }} counter drop
            }}
        }}"""
        subprocess.run(self.world.wan.command("nft", "-f", "-"), input=rule, text=True, check=True)
        try:
            self.assertEqual(shell("connect", "second", TARGET4, 80), "ok")
            shown = subprocess.run(self.world.wan.command("nft", "list", "ruleset"), capture_output=True, text=True)
            self.assertRegex(shown.stdout, "counter packets [1-9]")
        finally:
            subprocess.run(self.world.wan.command("nft", "flush", "ruleset"), check=True)
        self.assertEqual(shell("echo", "second", "hello"), "hello")
        self.assertEqual(server.asked, 2)
        shell("quit")
        self.assertClean()


class Ask(Cases, lib.NetTest):
    """One that waits, as the proxy is some way off."""
    addresses = (lib.FAR4, lib.FAR6)
    source = lib.NEAR4

    @classmethod
    def prepare(cls):
        cls.world.wire("--delay", "2")

    def one_waits(self, server):
        lib.wait_until(lambda: server.greeted > server.asked, "one made ahead")
        # The engine has its greeting, and has nothing else to do then: it sleeps.
        lib.wait_until(lambda: waiting(CONNECTIONS) > 0, "one in the pool")

    def test_lost_packets(self):
        """The first request, the first reply: they are sent again."""
        for lost, chain in (("request", "input"), ("reply", "output")):
            with self.subTest(lost):
                self.lose_once(chain, "tcp flags & (psh | syn) == psh")


class Dial(Cases, lib.NetTest):
    """From a port."""
    options = [*SPLICE, "--no-warm"]

    def one_waits(self, _server):
        lib.wait_until(lambda: waiting(PORTS) > 0, "a port in the pool")

    def test_makes_no_connection_ahead(self):
        server = self.counting(self.grant)
        shell, _engine = self.begin(server)
        for number in range(2, 6):
            self.assertEqual(shell("connect", f"c{number}", TARGET4, 80), "ok")
        self.assertEqual(server.accepted, 5)

    def test_device_without_ethernet_header(self):
        self.world.wire(test=self)
        for at, destination in ((lib.FAR4, TARGET4), (lib.FAR6, TARGET6)):
            with self.subTest(at):
                server = self.proxy(address=at)
                shell, engine = self.begin(server, destination)
                with self.stopped(engine):
                    self.assertEqual(shell("connect", "second", destination, 80), "ok")
                    self.assertEqual(shell("echo", "second", "hello"), "hello")
                shell("quit")
                self.assertClean()

    def test_lost_packets(self):
        """Any of the first six."""
        ip, tcp = 20, 32
        for lost, chain, which in (
                ("SYN", "input", "tcp flags & (syn | ack) == syn"), ("SYN-ACK", "output", "tcp flags & (syn | ack) == (syn | ack)"),
                ("greeting", "input", f"meta length {ip + tcp + 3}"), ("method", "output", f"meta length {ip + tcp + 2}"),
                ("request", "input", f"meta length {ip + tcp + 10}"), ("reply", "output", f"meta length {ip + tcp + 10}")):
            with self.subTest(lost):
                self.lose_once(chain, which)

    def test_carried_on_by_the_engine(self):
        """A reply that is not for the programs to judge, with whatever clock: the connection goes out of the path all the same."""
        def named(conversation, _asked):
            conversation.send(b"\x05\x00\x00\x03\x05proxy\x00\x00")
            conversation.echo()
        server = self.counting(lambda conversation, asked: (self.grant if server.asked == 1 else named)(conversation, asked))
        shell, _engine = self.begin(server)
        for number in range(2, 11):
            self.one_waits(server)
            self.assertEqual(shell("connect", f"c{number}", TARGET4, 80), "ok")
            self.assertEqual(shell("echo", f"c{number}", "hello"), "hello")
        self.assertEqual((server.accepted, server.asked), (10, 10))
        lib.wait_until(lambda: self.log.read_text().count(" connected through ") == 10, "the engine's word of all")
        self.assertEqual(self.log.read_text().count(", spliced\n"), 10, self.log.read_text())

    def test_slow_server(self):
        """One that takes its time for every word: it is not asked twice."""
        def script(conversation):
            conversation.read(3)
            slow = server.greeted > 0
            time.sleep(1.2 * slow)
            conversation.send(b"\x05\x00")
            server.greeted += 1
            conversation.read(10)
            conversation.on_request()
            time.sleep(1.2 * slow)
            conversation.send(fake.SOCKS5_GRANTED)
            conversation.echo()
        server = self.proxy(script)
        server.greeted = 0
        shell, _engine = self.begin(server)
        self.assertEqual(shell("connect", "second", TARGET4, 80), "ok")
        self.assertEqual(shell("echo", "second", "hello"), "hello")
        self.assertEqual((server.accepted, server.asked), (2, 2))

    def test_server_wants_a_password_by_now(self):
        def script(conversation):
            conversation.read(3)
            conversation.send(b"\x05\x00" if server.accepted == 1 else b"\x05\xff")
            conversation.read(10)
            conversation.on_request()
            self.grant(conversation, None)
        server = self.proxy(script)
        shell, _engine = self.begin(server)
        self.assertEqual(shell("connect", "second", TARGET4, 80), "ENETUNREACH")
        self.assertIn("wants a user and password", self.log.read_text())
        self.assertEqual(server.accepted, 3)
        shell("quit")
        self.assertClean()

    def test_password(self):
        """What it takes to give one is the engine's to know."""
        server = self.proxy(lambda conversation: (conversation.read_socks5(b"alice", b"secret"), self.grant(conversation, None)))
        shell = self.world.shell(server.uri.replace("//", "//alice:secret@"), self.options)
        for name in ("first", "second"):
            self.assertEqual(shell("connect", name, TARGET4, 80), "ok")
            self.assertEqual(shell("echo", name, "hello"), "hello")
        self.assertEqual(waiting(PORTS), 0)

    def test_server_is_gone(self):
        server = self.counting(self.grant)
        shell, _engine = self.begin(server)
        server.close()
        began = time.monotonic()
        self.assertEqual(shell("connect", "second", TARGET4, 80), "ENETUNREACH")
        self.assertLess(time.monotonic() - began, 0.7, "a reset is an answer")
        self.assertIn("Connection refused", self.log.read_text())
        shell("quit")
        self.assertClean()

    def test_application_gives_up_early(self):
        """Before the server has said a word: it hears of it."""
        ended = []

        def script(conversation):
            conversation.read(3)
            if server.greeted:
                conversation.stall()
                return ended.append(conversation)
            server.greeted += 1
            conversation.send(b"\x05\x00")
            conversation.read(10)
            conversation.on_request()
            return self.grant(conversation, None)
        server = self.proxy(script)
        server.greeted = 0
        shell, _engine = self.begin(server)
        self.assertEqual(shell("start", "second", TARGET4, 80), "EINPROGRESS")
        lib.wait_until(lambda: server.accepted == 2, "the connection")
        self.assertEqual(shell("close", "second"), "ok")
        lib.wait_until(lambda: ended, "the end")
        shell("quit")
        self.assertClean()

    def test_kernel_knows_of_connections_that_last(self):
        """So it does not reset what comes in by another way than the programs'."""
        server = self.counting(self.grant)
        shell, engine = self.begin(server)
        with self.stopped(engine):
            self.assertEqual(shell("connect", "second", TARGET4, 80), "ok")

        def known():
            shown = subprocess.run(self.world.app.command("ss", "-Htn", "state", "established", "dst", f"{PROXY4}:{server.port}"),
                                   capture_output=True, text=True, check=True)
            return len(shown.stdout.splitlines())
        lib.wait_until(lambda: known() == 2, "the first one's socket, and the second one's")
        self.assertEqual(shell("echo", "second", "hello"), "hello")
        shell("quit")
        self.assertClean()

    def test_ports_are_given_back(self):
        """When nobody connects any more, and there are none in use then."""
        server = self.counting(self.grant)
        shell, engine = self.begin(server)
        self.assertEqual(shell("close", "first"), "ok")

        def sockets():
            return sum(os.readlink(path).startswith("socket:") for path in Path(f"/proc/{engine}/task").glob("*/fd/*"))
        many = sockets()
        lib.wait_until(lambda: waiting(PORTS) == 0, "them to be given back")
        self.assertLess(sockets(), many)


if __name__ == "__main__":
    unittest.main(verbosity=2)
