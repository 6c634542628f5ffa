# SPDX-License-Identifier: MIT
"""Proxies that answer in odd pieces, too much, too little, or something else."""
import unittest

import fake
import lib
from lib import TARGET4

NETWORK = "ENETUNREACH"
PAYLOAD = b"the-destination's-first-bytes"


class Hostile(lib.NetTest):
    def shell(self, scheme, script, options=()):
        server = fake.FakeProxy(self.world.wan, script, scheme=scheme)
        self.addCleanup(server.close)
        return self.world.shell(server.uri, options)

    def outcomes(self, scheme, scripts):
        """The result of one connect for each script; the proxy plays them in turn, to whoever comes: nobody comes early."""
        turns = iter(scripts)
        shell = self.shell(scheme, lambda conversation: next(turns)(conversation), ["--no-warm"])
        for number in range(len(scripts)):
            yield number, shell("connect", "c", TARGET4, 80), shell

    def test_split_at_every_byte(self):
        """The reply in two pieces, cut at each place; the application's bytes follow the second at once."""
        for scheme, reply in fake.GRANTED.items():
            def cut(at, scheme=scheme, reply=reply):
                def script(conversation):
                    fake.READERS[scheme](conversation)
                    conversation.send(reply[:at])
                    conversation.send(reply[at:] + PAYLOAD)
                    conversation.stall()
                return script
            for at, result, shell in self.outcomes(scheme, [cut(at) for at in range(1, len(reply) + 1)]):
                with self.subTest(scheme, at=at):
                    self.assertEqual(result, "ok")
                    self.assertEqual(shell("receive", "c"), PAYLOAD.decode())

    def test_every_byte_alone(self):
        for scheme, reply in fake.GRANTED.items():
            with self.subTest(scheme):
                def script(conversation, scheme=scheme, reply=reply):
                    fake.READERS[scheme](conversation)
                    conversation.send_split(reply + PAYLOAD)
                    conversation.echo()
                shell = self.shell(scheme, script)
                self.assertEqual(shell("connect", "c", TARGET4, 80), "ok")
                got = ""
                while len(got) < len(PAYLOAD):
                    got += shell("receive", "c")
                self.assertEqual(got, PAYLOAD.decode())
                self.assertEqual(shell("echo", "c", "there-and-back"), "there-and-back")

    def test_much_together_with_the_reply(self):
        """A megabyte in the same stream as the reply, then the end."""
        size = 1 << 20
        for scheme, reply in fake.GRANTED.items():
            with self.subTest(scheme):
                def script(conversation, scheme=scheme, reply=reply):
                    fake.READERS[scheme](conversation)
                    conversation.send(reply + b"x" * size)
                server = fake.FakeProxy(self.world.wan, script, scheme=scheme)
                self.addCleanup(server.close)
                result = self.world.proxied(server.uri, "busybox", "nc", TARGET4, "80")
                self.assertEqual((result.code, len(result.out), result.err), (0, size, ""))

    def test_long_bound_address(self):
        """A SOCKS5 reply may name its side by IPv6 address or by the longest name."""
        replies = [bytes([5, 0, 0, 4]) + bytes(18), bytes([5, 0, 0, 3, 255]) + b"n" * 255 + bytes(2),
                   bytes([5, 0, 0, 3, 0]) + bytes(2)]

        def answer(reply):
            return lambda c: (c.read_socks5(), c.send(reply + PAYLOAD), c.stall())
        for number, result, shell in self.outcomes("socks5", [answer(reply) for reply in replies]):
            with self.subTest(number):
                self.assertEqual(result, "ok")
                self.assertEqual(shell("receive", "c"), PAYLOAD.decode())

    def test_malformed_socks5(self):
        replies = [b"\x04\x00\x00\x01" + bytes(6), b"\x05\x00\x00\x09" + bytes(20), b"HTTP/1.1 200 OK\r\n\r\n"]
        scripts = [lambda c, reply=reply: (c.read_socks5(), c.send(reply), c.stall()) for reply in replies]
        scripts += [lambda c: (c.read(3), c.send(b"\x05\x01"), c.stall()),  # GSSAPI, which nobody offered
                    lambda c: (c.read(3), c.send(b"\x05\x02"), c.stall())]  # a password, which nobody offered
        for number, result, _ in self.outcomes("socks5", scripts):
            with self.subTest(number):
                self.assertEqual(result, NETWORK)

    def test_malformed_socks4(self):
        for number, result, _ in self.outcomes("socks4", [
                lambda c, reply=reply: (c.read_socks4(), c.send(reply), c.stall())
                for reply in (b"\x04\x5a" + bytes(6), b"\x05\x00" + bytes(8), b"\x00\x00" + bytes(6))]):
            with self.subTest(number):
                self.assertEqual(result, NETWORK)

    def test_malformed_http(self):
        replies = [b"HTTP/2 200\r\n\r\n", b"ICY 200 OK\r\n\r\n", b"HTTP/1.1 2000 OK\r\n\r\n", b"HTTP/1.1 2xx\r\n\r\n",
                   b"HTTP/1.1\r\n\r\n", b"\r\n\r\n\r\n", b"<html>no</html>\r\n\r\n", b"HTTP/1.1 101 Switching\r\n\r\n"]
        for number, result, _ in self.outcomes("http", [
                lambda c, reply=reply: (c.read_http(), c.send(reply), c.socket.shutdown(1), c.stall())
                for reply in replies]):
            with self.subTest(replies[number]):
                self.assertEqual(result, NETWORK)

    def test_long_http_heads(self):
        """A big head passes; an endless one is refused, not waited for."""
        def big(conversation):
            conversation.read_http()
            conversation.send(b"HTTP/1.1 200 OK\r\n" + b"X-Padding: " + b"p" * 8000 + b"\r\n\r\n" + PAYLOAD)
            conversation.stall()

        def endless(conversation):
            conversation.read_http()
            conversation.send(b"HTTP/1.1 200 OK\r\n")
            while True:
                conversation.send(b"X-Padding: " + b"p" * 5000 + b"\r\n")

        def one_line(conversation):
            conversation.read_http()
            while True:
                conversation.send(b"HTTP/1.1 200 " + b"p" * 5000)
        expected = ["ok", NETWORK, NETWORK]
        for number, result, shell in self.outcomes("http", [big, endless, one_line]):
            with self.subTest(number):
                self.assertEqual(result, expected[number])
                if result == "ok":
                    self.assertEqual(shell("receive", "c"), PAYLOAD.decode())

    def test_http_variants(self):
        """What servers send instead of the usual line, and is fine."""
        replies = [b"HTTP/1.0 200 Connection established\r\n\r\n", b"HTTP/1.1 200\r\n\r\n", b"HTTP/1.1 200 \r\n\r\n",
                   b"HTTP/1.1 204 None\r\n\r\n", b"HTTP/1.1 200 OK\nVia: x\n\n",
                   b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
                   b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n\r\n"]

        def answer(reply):
            return lambda c: (c.read_http(), c.send(reply + PAYLOAD), c.stall())
        for number, result, shell in self.outcomes("http", [answer(reply) for reply in replies]):
            with self.subTest(replies[number]):
                self.assertEqual(result, "ok")
                self.assertEqual(shell("receive", "c"), PAYLOAD.decode())

    def test_refusal_with_a_body(self):
        body = b"<html>" + b"e" * 100_000 + b"</html>"
        for _, result, _ in self.outcomes("http", [lambda c: (
                c.read_http(), c.send(b"HTTP/1.1 503 No\r\nContent-Length: %d\r\n\r\n" % len(body) + body), c.stall())]):
            self.assertEqual(result, "ECONNREFUSED")

    def test_closed_at_every_place(self):
        """The server goes in the middle of each reply: refused at once, never hung."""
        for scheme, reply in fake.GRANTED.items():
            def stop(at, scheme=scheme, reply=reply):
                return lambda c: (fake.READERS[scheme](c), c.send(reply[:at]))
            for at, result, _ in self.outcomes(scheme, [stop(at) for at in range(len(reply))]):
                with self.subTest(scheme, at=at):
                    self.assertEqual(result, NETWORK)

    def test_reset_after_the_grant(self):
        """That is the destination's reset; the application sees it as such."""
        for scheme, reply in fake.GRANTED.items():
            with self.subTest(scheme):
                shell = self.shell(scheme, lambda c, s=scheme, r=reply: (fake.READERS[s](c), c.send(r), c.read(5),
                                                                         c.reset()))
                self.assertEqual(shell("connect", "c", TARGET4, 80), "ok")
                self.assertEqual(shell("send", "c", "1234"), "ok")
                self.assertEqual(shell("receive", "c"), "ECONNRESET")

    def test_application_gone_during_the_handshake(self):
        """Closing a pending socket ends the conversation with the proxy, too."""
        for scheme in ("socks5", "http"):
            with self.subTest(scheme):
                server = fake.FakeProxy(self.world.wan, lambda c: c.stall(), scheme=scheme)
                self.addCleanup(server.close)
                shell = self.world.shell(server.uri)
                self.assertEqual(shell("start", "c", TARGET4, 80), "EINPROGRESS")
                lib.wait_until(lambda: server.accepted, "the dial")
                self.assertEqual(shell("wait", "c", "0.05"), "nothing")
                shell("close", "c")
                lib.wait_until(lambda: server.seen, "the dial to be given up")


if __name__ == "__main__":
    unittest.main(verbosity=2)
