# SPDX-License-Identifier: MIT
"""Connections to the proxy that are made before they are needed: when there are any, what goes wrong with them, and their
end."""
import contextlib
import select
import threading
import unittest

import fake
import lib
from lib import TARGET4


class Warm(lib.NetTest):
    """The proxy is some way off: to one nearby the programs connect from ports first."""

    @classmethod
    def prepare(cls):
        cls.world.wire("--delay", "2")

    def proxy(self, script=None, scheme="socks5", **more):
        server = fake.FakeProxy(self.world.wan, script or fake.granting(scheme), **{"address": lib.FAR4, "scheme": scheme, **more})
        self.addCleanup(server.close)
        return server

    def connect(self, shell, name="c", said="ok"):
        self.assertEqual(shell("connect", name, TARGET4, 80), said)
        if said == "ok":
            self.assertEqual(shell("echo", name, "hello"), "hello")

    def test_next_one_waits(self):
        """Greeted, authenticated, and told nothing of where to go; used by the next connect()."""
        for scheme in ("socks5", "socks4", "http"):
            with self.subTest(scheme):
                server = self.proxy(scheme=scheme)
                shell = self.world.shell(server.uri)
                for number in range(1, 6):
                    self.connect(shell, f"c{number}")
                    lib.wait_until(lambda: server.accepted > number, "the one made ahead")
                    self.assertEqual(server.asked, number)
                shell("quit")

    def test_password_is_given_ahead(self):
        greeted = []

        def script(conversation):
            conversation.read(4)
            conversation.send(b"\x05\x02")
            conversation.read(2 + 5 + 1 + 6)
            conversation.send(b"\x01\x00")
            greeted.append(conversation)
            conversation.read(10)
            conversation.on_request()
            conversation.send(fake.SOCKS5_GRANTED)
            conversation.echo()
        server = self.proxy(script)
        shell = self.world.shell(server.uri.replace("//", "//alice:secret@"))
        self.connect(shell, "a")
        lib.wait_until(lambda: len(greeted) == 2, "the one made ahead")
        self.connect(shell, "b")
        self.assertEqual(server.asked, 2)

    def test_none_when_not_wanted(self):
        server = self.proxy()
        shell = self.world.shell(server.uri, ["--no-warm"])
        for number in range(3):
            self.connect(shell, f"c{number}")
        self.assertEqual(server.accepted, 3)

    def test_as_many_as_have_come_at_once_to_a_distant_one(self):
        """Also when those that found none waiting were answered without the engine."""
        server = self.proxy()
        shell = self.world.shell(server.uri)
        self.connect(shell)
        names = [f"c{number}" for number in range(8)]
        self.assertEqual(shell("start", ",".join(names), TARGET4, 80), " ".join(["EINPROGRESS"] * 8))
        for name in names:
            self.assertEqual(shell("wait", name), "ok")
        lib.wait_until(lambda: server.accepted - server.asked >= 8, "those made ahead")
        shell("quit")
        self.assertClean()

    def test_as_many_as_come_at_once(self):
        all_there = threading.Event()

        def script(conversation):
            if server.accepted == 8:
                all_there.set()
            all_there.wait()
            fake.granting("socks5")(conversation)
        server = self.proxy(script)
        shell = self.world.shell(server.uri)
        for number in range(8):
            self.assertEqual(shell("start", f"c{number}", TARGET4, 80), "EINPROGRESS")
        for number in range(8):
            self.assertEqual(shell("wait", f"c{number}"), "ok")
        lib.wait_until(lambda: server.accepted == 8 + 8, "those made ahead")
        for number in range(8):
            self.assertEqual(shell("echo", f"c{number}", "hello"), "hello")

    def test_closed_by_the_server_while_it_waits(self):
        """Nobody notices; and a server that will not have it is not asked for ever."""
        hung_up = []

        def script(conversation):
            conversation.read(3)
            conversation.send(b"\x05\x00")
            if not select.select([conversation.socket], [], [], 0.05)[0]:
                return hung_up.append(conversation)
            conversation.read(10)
            conversation.on_request()
            conversation.send(fake.SOCKS5_GRANTED)
            return conversation.echo()
        server = self.proxy(script)
        shell = self.world.shell(server.uri)
        for number in range(12):
            self.connect(shell, f"c{number}")
            lib.wait_until(lambda: server.accepted == server.asked + len(hung_up), "the others are hung up on")
        self.assertEqual(server.asked, 12)
        self.assertGreater(len(hung_up), 0)
        self.assertLess(len(hung_up), 8)

    def test_lost_in_the_moment_of_asking(self):
        """The server hangs up, or resets, when it hears the request: the flow dials anew."""
        for name, end in (("hangs up", lambda c: None), ("resets", fake.Conversation.reset)):
            def script(conversation):
                mine = server.accepted
                conversation.read(3)
                conversation.send(b"\x05\x00")
                conversation.read(10)
                if mine == 2:
                    return end(conversation)
                conversation.on_request()
                conversation.send(fake.SOCKS5_GRANTED)
                return conversation.echo()
            with self.subTest(name):
                server = self.proxy(script)
                shell = self.world.shell(server.uri)
                self.connect(shell, "a")
                lib.wait_until(lambda: server.accepted == 2, "the one made ahead")
                self.connect(shell, "b")
                self.assertEqual(server.asked, 2)
                shell("quit")

    def test_path_dies_without_a_word(self):
        """What waits has lost its way since: no packet of it comes through. New ones do."""
        server = self.proxy()
        shell = self.world.shell(server.uri)
        self.connect(shell, "a")
        lib.wait_until(lambda: server.accepted == 2, "the one made ahead")
        # From now on wan takes no packet of a connection that stands, but lets new ones begin.
        rule = f"""table inet cut {{
            set alive {{
                type inet_service
                flags dynamic, timeout
                timeout 1h
                size 1000
            }}
            chain in {{
                type filter hook input priority 0
                tcp dport {server.port} tcp flags & (syn | ack) == syn add @alive {{ tcp sport }}
                tcp dport {server.port} tcp sport != @alive drop
            }}
        }}
        """
        lib.subprocess.run(self.world.wan.command("nft", "-f", "-"), input=rule, text=True, check=True)
        self.addCleanup(lib.subprocess.run, self.world.wan.command("nft", "flush", "ruleset"))
        self.connect(shell, "b")
        self.assertEqual(server.asked, 2)

    def test_server_that_waits_is_found_dead(self):
        """A warm dial that fails sends the next connect() to the next server at once."""
        first, second = self.proxy(), self.proxy()
        shell = self.world.shell([first.uri, second.uri])
        self.connect(shell, "a")
        lib.wait_until(lambda: first.accepted == 2, "the one made ahead")
        first.close()
        self.connect(shell, "b")
        self.assertEqual((first.asked, second.asked), (1, 1))

    def test_refusal_is_the_servers_word(self):
        server = self.proxy(fake.answering("socks5", fake.socks5_reply(5)))
        shell = self.world.shell(server.uri)
        for number in range(4):
            self.connect(shell, f"c{number}", "ECONNREFUSED")
        self.assertEqual(server.asked, 4)

    def test_none_is_left(self):
        """They end with the engine, and when nobody connects any more."""
        ended = []

        def script(conversation):
            with contextlib.suppress(EOFError):
                fake.granting("socks5")(conversation)
            ended.append(conversation)
        server = self.proxy(script)
        shell = self.world.shell(server.uri)
        self.connect(shell, "a")
        lib.wait_until(lambda: server.accepted == 2, "the one made ahead")
        lib.wait_until(lambda: len(ended) == 1, "its end")
        self.connect(shell, "b")
        lib.wait_until(lambda: server.accepted == 4, "another one made ahead")
        shell("quit")
        lib.wait_until(lambda: len(ended) == 4, "all ends")
        self.assertClean()


class Nearby(lib.NetTest):
    def test_made_ahead_while_there_is_time(self):
        """Also when the programs could connect from a port: these connects do not follow each other closely."""
        server = fake.FakeProxy(self.world.wan, fake.granting("socks5"), scheme="socks5")
        self.addCleanup(server.close)
        shell = self.world.shell(server.uri)
        for number in range(1, 6):
            self.assertEqual(shell("connect", f"c{number}", TARGET4, 80), "ok")
            self.assertEqual(shell("echo", f"c{number}", "hello"), "hello")
            lib.wait_until(lambda: server.accepted > number, "one made ahead")
            self.assertEqual(server.asked, number)
        shell("quit")
        self.assertClean()


if __name__ == "__main__":
    unittest.main(verbosity=2)
