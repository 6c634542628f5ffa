# SPDX-License-Identifier: MIT
"""Several --proxy: the next one is tried when a server fails, not when the destination refuses."""
import select
import unittest

import fake
import lib
from lib import CLOSED_PORT, PROXY4, TARGET4

DEAD = f"socks5://{PROXY4}:{CLOSED_PORT}"


class Failover(lib.NetTest):
    def proxy(self, script=None, scheme="socks5"):
        server = fake.FakeProxy(self.world.wan, script or fake.granting(scheme), scheme=scheme)
        self.addCleanup(server.close)
        return server

    def test_first_is_used(self):
        first, second = self.proxy(), self.proxy()
        self.assertEqual(self.connect([first.uri, second.uri], TARGET4, 80).out, "ok")
        self.assertEqual((first.asked, second.asked), (1, 0))

    def test_dead_server_is_passed_over(self):
        second = self.proxy()
        told = self.connect([DEAD, second.uri], TARGET4, 80, options=["-v"])
        self.assertEqual((told.out, second.asked), ("ok", 1))
        self.assertIn(f"{PROXY4}:{CLOSED_PORT}", told.err)

    def test_quiet_when_all_is_well_in_the_end(self):
        self.assertEqual(self.connect([DEAD, self.proxy().uri], TARGET4, 80).err, "")

    def test_server_at_fault(self):
        """Each way a server itself can fail sends the flow to the next one."""
        faults = {
            "hangs up": lambda c: None,
            "resets": fake.Conversation.reset,
            "babbles": lambda c: (c.read(3), c.send(b"what do you want from me"), c.stall()),
            "wants a password": lambda c: (c.read(3), c.send(b"\x05\xff"), c.stall()),
        }
        for name, script in faults.items():
            with self.subTest(name):
                first, second = self.proxy(script), self.proxy()
                self.assertEqual(self.connect([first.uri, second.uri], TARGET4, 80).out, "ok")
                self.assertEqual((first.accepted, second.asked), (1, 1))

    def test_silent_server(self):
        """A server that says nothing leaves time for the next one."""
        first, second = self.proxy(fake.Conversation.stall), self.proxy()
        self.assertEqual(self.connect([first.uri, second.uri], TARGET4, 80, options=["--timeout", "4"]).out, "ok")

    def test_silent_server_and_an_impatient_program(self):
        """It gives up before the first server has had its time: the next connect() asks the second one."""
        first, second = self.proxy(fake.Conversation.stall), self.proxy()
        shell = self.world.shell([first.uri, second.uri])
        self.assertEqual(shell("start", "a", TARGET4, 80), "EINPROGRESS")
        lib.wait_until(lambda: first.accepted, "the dial")
        select.select([], [], [], 1.2)  # a second of silence is what counts
        shell("close", "a")
        self.assertEqual(shell("connect", "b", TARGET4, 80), "ok")
        self.assertEqual((first.accepted, second.asked), (1, 1))

    def test_slow_destination_is_not_the_servers_fault(self):
        """A server that has greeted us lives: it loses the flow when its time is over, but stays the first choice."""
        answers = [fake.Conversation.stall, lambda c: (c.send(fake.socks5_reply(0)), c.stall())]
        first, second = self.proxy(lambda c: (c.read_socks5(), answers.pop(0)(c))), self.proxy()
        shell = self.world.shell([first.uri, second.uri], ["--timeout", "4"])
        self.assertEqual(shell("connect", "a", TARGET4, 80), "ok")
        self.assertEqual((first.asked, second.asked), (1, 1))
        self.assertEqual(shell("connect", "b", TARGET4, 80), "ok")
        self.assertEqual((first.asked, second.asked), (2, 1))

    def test_refusal_of_the_destination_is_final(self):
        for code, error in ((5, "ECONNREFUSED"), (4, "EHOSTUNREACH"), (3, "ENETUNREACH")):
            with self.subTest(code):
                first = self.proxy(fake.answering("socks5", fake.socks5_reply(code)))
                second = self.proxy()
                self.assertEqual(self.connect([first.uri, second.uri], TARGET4, 80).out, error)
                self.assertEqual((first.asked, second.asked), (1, 0))

    def test_server_that_cannot_carry_it(self):
        """IPv6 does not fit into SOCKS4, but into the next one."""
        first, second = self.proxy(scheme="socks4"), self.proxy(scheme="http")
        self.assertEqual(self.connect([first.uri, second.uri], lib.TARGET6, 80).out, "ok")
        self.assertEqual((first.seen, second.asked), ([], 1))

    def test_all_dead(self):
        told = self.connect([DEAD, f"http://{PROXY4}:10"], TARGET4, 80, options=["-v"])
        self.assertEqual(told.out, "ENETUNREACH")
        self.assertIn(f"{PROXY4}:{CLOSED_PORT}", told.err)
        self.assertIn(f"{PROXY4}:10", told.err)

    def test_failed_server_rests(self):
        """After a failure the next connections do not start with it."""
        first, second = self.proxy(lambda c: None), self.proxy()
        shell = self.world.shell([first.uri, second.uri])
        for number in range(5):
            self.assertEqual(shell("connect", f"c{number}", TARGET4, 80), "ok")
        self.assertEqual((first.accepted, second.asked), (1, 5))

    def test_order_of_three(self):
        third = self.proxy()
        shell = self.world.shell([DEAD, f"http://{PROXY4}:10", third.uri])
        self.assertEqual(shell("connect", "c", TARGET4, 80), "ok")
        self.assertEqual(third.asked, 1)

    def test_server_dies_and_another_takes_over(self):
        """Open connections are reset; new ones go to the next server."""
        first, second = self.proxy(), self.proxy()
        shell = self.world.shell([first.uri, second.uri])
        self.assertEqual(shell("connect", "a", TARGET4, 80), "ok")
        self.assertEqual(shell("echo", "a", "hello"), "hello")
        first.close()
        self.assertIn(shell("receive", "a"), ("ECONNRESET", "end"))
        self.assertEqual(shell("connect", "b", TARGET4, 80), "ok")
        self.assertEqual((shell("echo", "b", "hello"), second.asked), ("hello", 1))


if __name__ == "__main__":
    unittest.main(verbosity=2)
