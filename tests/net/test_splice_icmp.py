# SPDX-License-Identifier: MIT
"""Errors that routers report about a spliced connection reach the application's socket: of its path, and of the end.

    netns app                     netns wan                       netns far
    programs  10.77.0.2 -------- 10.77.0.1  router               proxy
              fd77::2              fd77::1  10.77.9.1 -------- 10.77.9.2
                                            fd77:9::1          fd77:9::2

The router's routes are made narrow when the connection stands. Every interface keeps its MTU of 1500.
"""
import subprocess

import lib
import servers
from lib import APP4, APP6, PYTHON, TARGET4, TARGET6

FAR4, FAR6 = "10.77.9.2", "fd77:9::2"
NARROW = 1300
MEBIBYTES = 8
# Connects twice to argv[1]. When stdin says so: bytes up on one connection and down on the other, or a word that cannot
# arrive. Says what came of it, and the path MTU that the first connection knows.
PROGRAM = f"""
import sys, socket, struct; sys.path.insert(0, {str(lib.ROOT / "tests/net")!r}); import target
host, what = sys.argv[1:]
size = {MEBIBYTES} << 20
up, down = (socket.create_connection((host, target.COMMAND)) for _ in "12")
v6 = up.family == socket.AF_INET6
if what == "errors": up.setsockopt(*((41, 25) if v6 else (0, 11)), 1)  # IPV6_RECVERR, IP_RECVERR
print("connected", flush=True)
sys.stdin.readline()
try:
    if what == "volume":
        up.sendall(b"sink\\n")
        for piece in target.stream(size): up.sendall(piece)
        up.shutdown(1)
        total, there = up.makefile().read().split()
        down.sendall(b"source %d\\n" % size)
        _, came, here = target.drain(down)
        said = "ok" if int(total) == came == size and here == there else f"{{total}} up, {{came}} down"
    else:
        up.sendall(b"echo\\n")
        said = up.recv(1)
except OSError as error:
    said = target.errno_name(error)
print(said, struct.unpack_from("I", up.getsockopt(6, socket.TCP_INFO, 104), 60)[0])
"""


class Errors(lib.NetTest):
    @classmethod
    def prepare(cls):
        world = cls.world
        world.far = world._namespace(world.wan.name.removesuffix("wan") + "far")
        world.far.sysctl(ipv6__conf__default__accept_dad=0, ipv6__conf__all__accept_dad=0)
        world.wan.ip(f"link add far type veth peer name in netns {world.far.name}", "link set far up",
                     "addr add 10.77.9.1/24 dev far", "addr add fd77:9::1/64 dev far nodad")
        world.far.ip("link set lo up", "link set in up", f"addr add {FAR4}/24 dev in", f"addr add {FAR6}/64 dev in nodad",
                     "route add default via 10.77.9.1", "route add default via fd77:9::1")
        for ns in (world.app, world.wan, world.far):
            ns.sysctl(ipv4__tcp_mtu_probing=0)
        world.target()
        cls.uris = {TARGET4: servers.mprox_serve(world, address=FAR4, ns=world.far),
                    TARGET6: servers.mprox_serve(world, address=FAR6, ns=world.far)}

    def narrow(self):
        """The router's routes to the proxy and back."""
        routes = [f"{FAR4}/32 dev far", f"{FAR6}/128 dev far", f"{APP4}/32 dev in", f"{APP6}/128 dev in"]
        self.world.wan.ip(*(f"route add {route} mtu lock {NARROW}" for route in routes))
        self.world.defer(self.world.wan.ip, *(f"route del {route}" for route in routes))

    def after(self, change, what, address):
        """What a program says that was connected before `change` and acts after it."""
        process = self.world.start_proxied(self.uris[address], PYTHON, "-c", PROGRAM, address, what,
                                           options=["--data-path", "splice", "--stats"], stdin=subprocess.PIPE,
                                           stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.assertEqual(process.stdout.readline(), "connected\n")
        with self.world.scope():
            change()
            out, errors = process.communicate("go\n", timeout=2 * lib.PATIENCE)
        self.assertRegex(errors.splitlines()[-1], "; 2 spliced$")
        self.assertClean()
        return out.split()

    def test_path_that_became_narrow(self):
        for address in (TARGET4, TARGET6):
            with self.subTest(address):
                self.assertEqual(self.after(self.narrow, "volume", address), ["ok", str(NARROW)])

    def test_no_way_to_the_proxy_any_more(self):
        def broken():
            self.world.wan.ip(f"route add unreachable {FAR4}/32", f"route add unreachable {FAR6}/128")
            self.world.defer(self.world.wan.ip, f"route del unreachable {FAR4}/32", f"route del unreachable {FAR6}/128")
        for address, error in ((TARGET4, "EHOSTUNREACH"), (TARGET6, "ENETUNREACH")):  # as Linux routers say it
            with self.subTest(address):
                self.assertEqual(self.after(broken, "errors", address)[0], error)
