# SPDX-License-Identifier: MIT
"""connect() tells the truth: one test for every reply a proxy can give.

Each also demands the reason, with the server and its reply, from -v and from --stats. The table is the one in
docs/how-it-works.md.
"""
import unittest

import fake
import lib
from lib import CLOSED_PORT, PROXY4, TARGET4, TARGET6

REFUSED, HOST, NETWORK, TIMEOUT = "ECONNREFUSED", "EHOSTUNREACH", "ENETUNREACH", "ETIMEDOUT"

# reply code: (errno, words of the reason)
SOCKS5 = {
    1: (HOST, "without saying why"),
    2: (HOST, "not allowed"),
    3: (NETWORK, "network unreachable"),
    4: (HOST, "host unreachable"),
    5: (REFUSED, "connection refused"),
    6: (HOST, "timed out|host unreachable"),  # "TTL expired"
    7: (NETWORK, "cannot carry"),
    8: (NETWORK, "cannot carry"),
    9: (HOST, "without saying why"),
    255: (HOST, "without saying why"),
}
SOCKS4 = {
    91: (REFUSED, "connection refused"),
    92: (NETWORK, "user"),
    93: (NETWORK, "user"),
    94: (NETWORK, "does not speak"),
}
HTTP = {
    400: (NETWORK, "cannot carry"),
    401: (NETWORK, "user and password"),
    403: (HOST, "not allowed"),
    404: (HOST, "resolve the name"),
    405: (NETWORK, "cannot carry"),
    407: (NETWORK, "user and password"),
    418: (HOST, "without saying why|not allowed"),
    500: (REFUSED, "connection refused"),
    501: (NETWORK, "cannot carry"),
    502: (REFUSED, "connection refused"),
    503: (REFUSED, "connection refused"),
    504: (HOST, "host unreachable|timed out"),
}


class Truth(lib.NetTest):
    def refused(self, script, error, reason, said, scheme="socks5", address=TARGET4, options=(), proxy=PROXY4):
        """One connect through a fake that plays `script`. `said`: how the message names the reply."""
        server = fake.FakeProxy(self.world.wan, script, proxy, scheme)
        self.addCleanup(server.close)
        quiet = self.connect(server.uri, address, 80, options=options)
        self.assertEqual((quiet.out, quiet.err), (error, ""))
        for option in ("-v", "--stats"):
            told = self.connect(server.uri, address, 80, options=[option, *options])
            self.assertEqual(told.out, error)
            where = f"{server.uri.split('://')[0]}://"
            self.assertIn(server.uri.removeprefix(where), told.err, option)
            self.assertIn(said, told.err, option)
            self.assertRegex(told.err, reason, option)
            if option == "--stats":
                self.assertRegex(told.err.splitlines()[-1], r"0 connections, .*\b1 refused")
        return server

    # ---- what goes wrong around the replies ----

    def test_granted(self):
        for scheme in ("socks5", "socks5h", "socks4", "socks4a", "http"):
            with self.subTest(scheme):
                server = fake.FakeProxy(self.world.wan, fake.granting(scheme), scheme=scheme)
                self.addCleanup(server.close)
                told = self.connect(server.uri, TARGET4, 80, options=["--stats"])
                self.assertEqual(told.out, "ok")
                self.assertRegex(told.err, r"\b1 connection, .*\b0 refused")
                lib.wait_until(lambda: server.seen, "the fake's record")
                self.assertEqual(server.seen, [f"{TARGET4}:80"])

    def test_granted_over_ipv6(self):
        for scheme in ("socks5", "http"):
            with self.subTest(scheme):
                server = fake.FakeProxy(self.world.wan, fake.granting(scheme), lib.PROXY6, scheme)
                self.addCleanup(server.close)
                self.assertEqual(self.connect(server.uri, TARGET6, 80).out, "ok")
                lib.wait_until(lambda: server.seen, "the fake's record")
                self.assertEqual(server.seen, [{"socks5": f"{TARGET6}:80", "http": f"[{TARGET6}]:80"}[scheme]])

    def test_proxy_not_listening(self):
        result = self.connect(f"socks5://{PROXY4}:{CLOSED_PORT}", TARGET4, 80, options=["-v"])
        self.assertEqual(result.out, NETWORK)
        self.assertIn(f"{PROXY4}:{CLOSED_PORT}", result.err)
        self.assertIn("connection refused", result.err.lower())

    def test_proxy_host_unreachable(self):
        self.assertEqual(self.connect(f"socks5://{lib.HOST_UNREACHABLE4}:1080", TARGET4, 80).out, NETWORK)

    def test_proxy_network_unreachable(self):
        self.assertEqual(self.connect(f"http://{lib.NET_UNREACHABLE4}:8080", TARGET4, 80).out, NETWORK)

    def test_no_answer(self):
        for scheme in ("socks5", "socks4", "http"):
            with self.subTest(scheme):
                self.refused(fake.Conversation.stall, TIMEOUT, "no answer|timed out", "", scheme,
                             options=["--timeout", "1"])

    def test_no_answer_ipv6(self):
        self.refused(fake.Conversation.stall, TIMEOUT, "no answer|timed out", "", address=TARGET6,
                     options=["--timeout", "1"])

    def test_no_answer_after_the_greeting(self):
        def script(conversation):
            conversation.read_socks5()
            conversation.stall()
        self.refused(script, TIMEOUT, "no answer|timed out", "", options=["--timeout", "1"])

    def test_closed_at_once(self):
        for scheme in ("socks5", "socks4", "http"):
            with self.subTest(scheme):
                self.refused(lambda conversation: None, NETWORK, "hung up|lost|cannot reach", "", scheme)

    def test_reset_at_once(self):
        for scheme in ("socks5", "socks4", "http"):
            with self.subTest(scheme):
                self.refused(fake.Conversation.reset, NETWORK, "lost|cannot reach", "", scheme)

    def test_garbage(self):
        for scheme in ("socks5", "socks4", "http"):
            with self.subTest(scheme):
                self.refused(lambda c: (c.read(3), c.send(b"\xffwhat?" * 100), c.stall()), NETWORK,
                             "does not speak", "", scheme)

    def test_ipv6_through_socks4(self):
        """SOCKS4 has no words for it; the server is not even asked."""
        server = self.refused(fake.granting("socks4"), NETWORK, "cannot carry", "SOCKS4", "socks4", TARGET6)
        self.assertEqual(server.seen, [])

    # ---- user and password ----

    def test_credentials(self):
        """What stands percent-encoded in the URI arrives decoded, and is never shown."""
        user, password = b"al:ice", "p@ss/w%rd é".encode()
        server = fake.FakeProxy(self.world.wan, lambda c: (c.read_socks5(user, password),
                                                           c.send(fake.SOCKS5_GRANTED), c.echo()))
        self.addCleanup(server.close)
        uri = server.uri.replace("//", "//al%3Aice:p%40ss%2Fw%25rd%20%C3%A9@")
        result = self.connect(uri, TARGET4, 80, options=["-v", "--stats", "--no-warm"])
        self.assertEqual((result.out, server.errors), ("ok", []))
        self.assertNotIn("p@ss", result.err)
        self.assertNotIn("p%40ss", result.err)

    def test_credentials_rejected(self):
        def script(conversation):
            conversation.read(conversation.read(2)[1])
            conversation.send(b"\x05\x02")
            conversation.read(conversation.read(2)[1])
            conversation.read(conversation.read(1)[0])
            conversation.send(b"\x01\x01")
            conversation.stall()
        server = fake.FakeProxy(self.world.wan, script)
        self.addCleanup(server.close)
        result = self.connect(server.uri.replace("//", "//a:secret@"), TARGET4, 80, options=["-v"])
        self.assertEqual(result.out, NETWORK)
        self.assertIn("rejects the user or password", result.err)
        self.assertNotIn("secret", result.err)

    def test_no_acceptable_method(self):
        self.refused(lambda c: (c.read(c.read(2)[1]), c.send(b"\x05\xff"), c.stall()), NETWORK,
                     "user and password", "SOCKS5")

    def test_basic_authentication(self):
        def script(conversation):
            destination = conversation.read_http()
            good = b"\r\nProxy-Authorization: Basic YWxpY2U6cDpA\r\n" in conversation.head  # alice:p:@
            conversation.send(fake.HTTP_GRANTED if good else fake.http_reply(407))
            conversation.echo()
            return destination
        server = fake.FakeProxy(self.world.wan, script, scheme="http")
        self.addCleanup(server.close)
        self.assertEqual(self.connect(server.uri.replace("//", "//alice:p%3A%40@"), TARGET4, 80).out, "ok")
        self.assertEqual(self.connect(server.uri, TARGET4, 80).out, NETWORK)

    def test_socks4_user(self):
        def script(conversation):
            destination = conversation.read_socks4()
            conversation.send(fake.SOCKS4_GRANTED)
            conversation.echo()
            return f"{conversation.user.decode()} {destination}"
        server = fake.FakeProxy(self.world.wan, script, scheme="socks4")
        self.addCleanup(server.close)
        self.assertEqual(self.connect(server.uri.replace("//", "//alice@"), TARGET4, 80).out, "ok")
        lib.wait_until(lambda: server.seen, "the fake's record")
        self.assertEqual(server.seen, [f"alice {TARGET4}:80"])


def _add(scheme, code, error, reason, reply, said):
    def test(self):
        self.refused(fake.answering(scheme, reply), error, reason, said, scheme)
    setattr(Truth, f"test_{scheme}_reply_{code}", test)


for _code, (_error, _reason) in SOCKS5.items():
    _add("socks5", _code, _error, _reason, fake.socks5_reply(_code), f"SOCKS5 reply {_code}")
for _code, (_error, _reason) in SOCKS4.items():
    _add("socks4", _code, _error, _reason, fake.socks4_reply(_code), f"SOCKS4 reply {_code}")
for _code, (_error, _reason) in HTTP.items():
    _add("http", _code, _error, _reason, fake.http_reply(_code), f"HTTP status {_code}")


if __name__ == "__main__":
    unittest.main(verbosity=2)
