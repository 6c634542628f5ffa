# SPDX-License-Identifier: MIT
"""Every row, directly and through proxies: the records must be equal.

A row's test fails when its direct record shows an exception (the row itself is wrong then) or when any proxy's
record differs. Rows live in rows_*.py. MPROX_TEST_PROXIES selects proxies by name.
"""
import json
import os
import subprocess
import sys
import unittest
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "net")]
import capture  # noqa: E402
import lib  # noqa: E402
import rows  # noqa: E402
import servers  # noqa: E402

rows.load()

ALL_FAMILIES = "v4,v6,v6only,mapped"
RELAY = ["--data-path", "relay"]
# name: (how to start it, families it can carry, options of mprox run)
PROXIES = {
    "socks5": (lambda world: servers.mprox_serve(world, "socks5"), ALL_FAMILIES, ()),
    "socks4": (lambda world: servers.mprox_serve(world, "socks4"), "v4,mapped", ()),
    "http": (lambda world: servers.mprox_serve(world, "http"), ALL_FAMILIES, ()),
    "socks5 over IPv6": (lambda world: servers.mprox_serve(world, "socks5", address=lib.PROXY6), ALL_FAMILIES, ()),
    "socks5 relayed": (lambda world: servers.mprox_serve(world, "socks5"), ALL_FAMILIES, RELAY),
    "http relayed over IPv6": (lambda world: servers.mprox_serve(world, "http", address=lib.PROXY6), ALL_FAMILIES, RELAY),
}
# What a protocol or a server cannot say, so that no client of it can know.
EXPECTED = {
    # SOCKS4 knows one refusal for everything.
    ("socks4", "host_unreachable"), ("socks4", "network_unreachable"), ("socks4", "broadcast"),
    # Port 0 is no destination in HTTP.
    ("http", "port_zero"), ("http relayed over IPv6", "port_zero"),
}


def failed(record):
    return isinstance(record, dict) and "exception" in record


def build_tools(directory):
    """The compiled programs that rows run, in `directory`."""
    subprocess.run(["cc", "-O1", "-Wall", "-Werror", "-o", directory / "uring_connect", HERE / "uring_connect.c",
                    "-luring"], check=True)
    go = {**os.environ, "CGO_ENABLED": "0", "GO111MODULE": "off", "GOCACHE": str(directory / "go-cache")}
    subprocess.run(["go", "build", "-o", directory / "dial", HERE / "dial.go"], check=True, env=go)


def prepare_link_local(world):
    world.wan.ip("addr add fe80::77/64 dev in nodad", "addr add 169.254.7.7/16 dev in")
    world.app.ip("addr add 169.254.7.8/16 dev out")


class Transparency(lib.NetTest):
    maxDiff = None

    @classmethod
    def prepare(cls):
        prepare_link_local(cls.world)
        cls.world.target()
        build_tools(cls.world.dir)
        cls.env = lib.environment(MPROX_TEST_TOOLS=str(cls.world.dir))
        cls.records = {"directly": cls.collect(ALL_FAMILIES, lambda *program: program)}
        # The reference is the kernel's own. Where it fails (MPTCP, once in many runs on a busy emulated machine) it gets another try.
        for name, record in list(cls.records["directly"].items()):
            if failed(record):
                print(f"{name} failed without any proxy, once more: {record}", file=sys.stderr)
                cls.records["directly"] |= cls.collect(rows.ROWS[name][1], lambda *program: program, name)
        chosen = os.environ.get("MPROX_TEST_PROXIES", ",".join(PROXIES)).split(",")
        tap = capture.Capture(cls.world.app)
        cls.addClassCleanup(tap.close)
        for name in chosen:
            if name == "again":
                cls.records[name] = cls.collect(ALL_FAMILIES, lambda *program: program)
                continue
            start, families, options = PROXIES[name]
            uri = start(cls.world)
            tap.leaks()
            cls.records[name] = cls.collect(families, lambda *program: (lib.MPROX, *lib.run_arguments(uri, options), *program))
            cls.records[name]["leaks"] = tap.leaks()

    @classmethod
    def collect(cls, families, wrap, pattern=os.environ.get("MPROX_TEST_ROWS", "")):
        """Runs rows.py, wrapped in a command; the records by row name."""
        result = lib.run(cls.world.app.command(*wrap(lib.PYTHON, HERE / "rows.py", families, pattern)),
                         env=cls.env, seconds=10 * lib.PATIENCE)
        if result.code or result.err:
            print(f"rows.py: exit status {result.code}\n{result.err}", file=sys.stderr)
        return {line["row"]: line["record"] for line in map(json.loads, result.out.splitlines())}

    def check(self, name, function, family):
        direct = self.records["directly"].get(name)
        self.assertIsNotNone(direct, "the row did not run")
        self.assertFalse(failed(direct), direct)
        for proxy, records in self.records.items():
            carried = name in records or family in PROXIES.get(proxy, ("", ""))[1].split(",")
            if carried and not any(proxy == who and function.__name__.startswith(what) for who, what in EXPECTED):
                with self.subTest(proxy):
                    self.assertEqual(json.dumps(direct), json.dumps(records.get(name)))

    def test_no_packet_went_around_a_proxy(self):
        """Only datagrams and link-local connections may (they are not the proxy's)."""
        for proxy, records in self.records.items():
            tcp = [leak for leak in records.get("leaks", ()) if leak.startswith("tcp") and "fe80:" not in leak
                   and "169.254." not in leak]
            self.assertEqual(tcp, [], f"through {proxy}")


def _add_tests():
    part = os.environ.get("MPROX_TEST_ROWS", "")
    for name, (function, family) in rows.ROWS.items():
        if part in name:
            def test(self, name=name, function=function, family=family):
                self.check(name, function, family)
            test.__doc__ = None
            setattr(Transparency, f"test_{name}", test)


_add_tests()

if __name__ == "__main__":
    unittest.main(verbosity=2)
