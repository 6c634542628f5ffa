# SPDX-License-Identifier: MIT
"""mprox serve, spoken to with raw sockets on loopback: every protocol, exact replies, limits, the end.

MPROX names the program (default: build/bin/mprox in the working tree).
"""

import contextlib
import os
import pathlib
import resource
import select
import signal
import socket
import struct
import subprocess
import threading
import time
import unittest

MPROX = os.environ.get("MPROX", str(pathlib.Path(__file__).resolve().parents[2] / "build/bin/mprox"))
PATIENCE = 20  # seconds: only ever waited out when something is broken


class Server:
    """`mprox serve` on a free port, stopped when the test ends."""

    def __init__(self, test, *options, listen=("127.0.0.1:0",), env=None, nofile=None):
        words = [MPROX, "serve"]
        for address in listen:
            words += ["--listen", address]
        limit = (lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (nofile, nofile))) if nofile else None
        self.process = subprocess.Popen(words + list(options), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                        text=True, env={**os.environ, **(env or {})}, preexec_fn=limit)
        test.addCleanup(self.stop)
        self.listening = [self.process.stdout.readline().strip() for _ in listen]
        self.ports = [int(line.rpartition(":")[2]) for line in self.listening]

    def stop(self):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        out, err = self.process.communicate(timeout=PATIENCE)
        return self.process.returncode, out, err

    def connect(self, index=0, host="127.0.0.1"):
        return client((host, self.ports[index]))


def client(address):
    s = socket.create_connection(address, timeout=PATIENCE)
    s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return s


def exactly(s, length):
    data = b""
    while len(data) < length:
        more = s.recv(length - len(data))
        if not more:
            break
        data += more
    return data


def until_end(s):
    data = b""
    with contextlib.suppress(ConnectionResetError):
        while more := s.recv(65536):
            data += more
    return data


class Echo:
    """Sends back what it gets, and ends when the other side has ended."""

    def __init__(self, test, family=socket.AF_INET, host="127.0.0.1"):
        self.listener = socket.create_server((host, 0), family=family, backlog=1024)
        self.port = self.listener.getsockname()[1]
        test.addCleanup(self.listener.close)
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        with contextlib.suppress(OSError):
            while True:
                s, _ = self.listener.accept()
                threading.Thread(target=self.echo, args=(s,), daemon=True).start()

    @staticmethod
    def echo(s):
        with s, contextlib.suppress(OSError):
            while data := s.recv(65536):
                s.sendall(data)


def free_port(family=socket.AF_INET, host="127.0.0.1"):
    with socket.socket(family) as s:
        s.bind((host, 0))
        return s.getsockname()[1]


def host_bytes(host):
    for family, kind in ((socket.AF_INET, b"\x01"), (socket.AF_INET6, b"\x04")):
        with contextlib.suppress(OSError):
            return kind + socket.inet_pton(family, host)
    return b"\x03" + bytes([len(host)]) + host.encode()


def socks5(host, port):
    return b"\x05\x01\x00" + b"\x05\x01\x00" + host_bytes(host) + struct.pack(">H", port)


def socks4(host, port):
    return b"\x04\x01" + struct.pack(">H", port) + socket.inet_aton(host) + b"me\0"


def socks4a(host, port):
    return b"\x04\x01" + struct.pack(">H", port) + b"\0\0\0\x01me\0" + host.encode() + b"\0"


def http(host, port, headers=""):
    at = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    return f"CONNECT {at} HTTP/1.1\r\nHost: {at}\r\n{headers}\r\n".encode()


HTTP_OK = b"HTTP/1.1 200 Connection established\r\n\r\n"


def http_refusal(status, *headers):
    return "\r\n".join([f"HTTP/1.1 {status}", *headers, "Content-Length: 0", "Connection: close", "", ""]).encode()


REFUSED = {
    "SOCKS5": b"\x05\x00" + b"\x05\x05\x00\x01" + bytes(6),
    "SOCKS4": b"\x00\x5b" + bytes(6),
    "SOCKS4a": b"\x00\x5b" + bytes(6),
    "HTTP": http_refusal("502 Bad Gateway", "Proxy-Status: mprox; error=connection_refused"),
}
# (protocol, request, destination host, where it really is)
WAYS = [
    ("SOCKS5", socks5, "127.0.0.1", "4"),
    ("SOCKS5", socks5, "::1", "6"),
    ("SOCKS5", socks5, "localhost", "4"),
    ("SOCKS4", socks4, "127.0.0.1", "4"),
    ("SOCKS4a", socks4a, "localhost", "4"),
    ("HTTP", http, "127.0.0.1", "4"),
    ("HTTP", http, "::1", "6"),
    ("HTTP", http, "localhost", "4"),
]


def read_ok(test, protocol, s):
    """Reads a granting reply, to its last byte and not further."""
    if protocol == "SOCKS5":
        test.assertEqual(exactly(s, 5), b"\x05\x00" + b"\x05\x00\x00")
        kind = exactly(s, 1)
        test.assertIn(kind, (b"\x01", b"\x04"))
        exactly(s, (4 if kind == b"\x01" else 16) + 2)
    elif protocol.startswith("SOCKS4"):
        test.assertEqual(exactly(s, 2), b"\x00\x5a")
        exactly(s, 6)
    else:
        test.assertEqual(exactly(s, len(HTTP_OK)), HTTP_OK)


class Protocols(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.addCleanup = cls.addClassCleanup  # Server and Echo live as long as the class
        cls.server = Server(cls)
        cls.echo = {"4": Echo(cls), "6": Echo(cls, socket.AF_INET6, "::1")}

    def test_connected(self):
        for protocol, request, host, where in WAYS:
            with self.subTest(protocol=protocol, host=host), self.server.connect() as s:
                s.sendall(request(host, self.echo[where].port))
                read_ok(self, protocol, s)
                s.sendall(b"hello")
                self.assertEqual(exactly(s, 5), b"hello")
                s.shutdown(socket.SHUT_WR)
                self.assertEqual(until_end(s), b"")

    def test_refused(self):
        for protocol, request, host, where in WAYS:
            family, address = (socket.AF_INET6, "::1") if where == "6" else (socket.AF_INET, "127.0.0.1")
            with self.subTest(protocol=protocol, host=host), self.server.connect() as s:
                s.sendall(request(host, free_port(family, address)) + b"early bytes that nobody will read")
                self.assertEqual(until_end(s), REFUSED[protocol])

    def test_early_data_and_half_close(self):
        for protocol, request, host, where in WAYS:
            with self.subTest(protocol=protocol, host=host), self.server.connect() as s:
                s.sendall(request(host, self.echo[where].port) + b"early")
                s.shutdown(socket.SHUT_WR)
                read_ok(self, protocol, s)
                self.assertEqual(until_end(s), b"early")

    def test_byte_by_byte(self):
        for protocol, request, host, where in WAYS:
            with self.subTest(protocol=protocol, host=host), self.server.connect() as s:
                for byte in request(host, self.echo[where].port) + b"early":
                    s.sendall(bytes([byte]))
                    time.sleep(0.001)
                read_ok(self, protocol, s)
                self.assertEqual(exactly(s, 5), b"early")

    def test_destination_speaks_first_and_closes_first(self):
        with socket.create_server(("127.0.0.1", 0)) as listener, self.server.connect() as s:
            s.sendall(socks5("127.0.0.1", listener.getsockname()[1]))
            with listener.accept()[0] as destination:
                destination.sendall(b"220 welcome\r\n")
                destination.shutdown(socket.SHUT_WR)
                read_ok(self, "SOCKS5", s)
                self.assertEqual(until_end(s), b"220 welcome\r\n")
                s.sendall(b"still here")
                self.assertEqual(exactly(destination, 10), b"still here")

    def test_bound_address_is_the_outgoing_one(self):
        with socket.create_server(("127.0.0.1", 0)) as listener, self.server.connect() as s:
            s.sendall(socks5("127.0.0.1", listener.getsockname()[1]))
            reply = exactly(s, 12)
            with listener.accept()[0] as destination:
                host, port = destination.getpeername()
            self.assertEqual(reply, b"\x05\x00\x05\x00\x00\x01" + socket.inet_aton(host) + struct.pack(">H", port))

    def test_bulk_both_ways(self):
        block = bytes(range(256)) * 4096
        with self.server.connect() as s:
            s.sendall(http("127.0.0.1", self.echo["4"].port))
            read_ok(self, "HTTP", s)

            def send():
                for _ in range(32):
                    s.sendall(block)
                s.shutdown(socket.SHUT_WR)

            sender = threading.Thread(target=send)
            sender.start()
            got = 0
            for _ in range(32):
                piece = exactly(s, len(block))
                self.assertEqual(piece, block)
                got += len(piece)
            self.assertEqual(until_end(s), b"")
            sender.join()

    def test_what_is_turned_away(self):
        nowhere = b"\x00\x01" + bytes(6)
        cases = {
            b"\x05\x01\x02" + b"\x01\x01u\x01p" + socks5("127.0.0.1", 1)[3:]:  # everybody may, with any password
                b"\x05\x02\x01\x00" + REFUSED["SOCKS5"][2:],
            b"\x05\x01\x01": b"\x05\xff",
            b"\x05\x01\x00\x05\x03\x00\x01\x7f\x00\x00\x01\x00\x01": b"\x05\x00\x05\x07" + nowhere,
            b"\x05\x01\x00\x05\x02\x00\x01\x7f\x00\x00\x01\x00\x01": b"\x05\x00\x05\x07" + nowhere,
            b"\x05\x01\x00\x05\x01\x00\x09": b"\x05\x00\x05\x08" + nowhere,
            b"\x04\x02\x00\x01\x7f\x00\x00\x01\x00": REFUSED["SOCKS4"],
            b"GET http://localhost/ HTTP/1.1\r\nHost: localhost\r\n\r\n":
                http_refusal("405 Method Not Allowed", "Allow: CONNECT"),
            b"CONNECT localhost HTTP/1.1\r\n\r\n": http_refusal("400 Bad Request"),
            b"\x16\x03\x01 this is TLS": b"",
            socks5("no-such-name.invalid", 80): b"\x05\x00\x05\x04" + nowhere,
            socks4a("no-such-name.invalid", 80): REFUSED["SOCKS4"],
            http("no-such-name.invalid", 80):
                http_refusal("502 Bad Gateway", "Proxy-Status: mprox; error=dns_error"),
        }
        for request, reply in cases.items():
            with self.subTest(request=request), self.server.connect() as s:
                s.sendall(request)
                self.assertEqual(until_end(s), reply)

    def test_clients_that_go_away(self):
        for start in (b"", b"\x05", b"\x05\x01\x00\x05\x01", b"CONNECT 127.0.0.1:1 HT"):
            with self.server.connect() as s:
                s.sendall(start)
            with self.server.connect() as s:  # and one that resets
                s.sendall(start)
                s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.test_connected()

    def test_500_at_once(self):
        sockets = [self.server.connect() for _ in range(500)]
        try:
            for i, s in enumerate(sockets):
                s.sendall(socks5("127.0.0.1", self.echo["4"].port) + b"%06d" % i)
            for i, s in enumerate(sockets):
                read_ok(self, "SOCKS5", s)
                self.assertEqual(exactly(s, 6), b"%06d" % i)
        finally:
            for s in sockets:
                s.close()


class Passwords(unittest.TestCase):
    def check(self, server):
        port = Echo(self).port
        request = b"\x05\x01\x00\x01\x7f\x00\x00\x01" + struct.pack(">H", port)
        wanted = http_refusal("407 Proxy Authentication Required", 'Proxy-Authenticate: Basic realm="mprox"')
        ok = b"\x05\x00\x00\x01"
        cases = [
            (b"\x05\x02\x00\x02" + b"\x01\x02me\x06se:ret" + request, b"\x05\x02\x01\x00" + ok),
            (b"\x05\x02\x00\x02" + b"\x01\x02me\x06secret" + request, b"\x05\x02\x01\x01"),
            (b"\x05\x02\x00\x02" + b"\x01\x02me\x00" + request, b"\x05\x02\x01\x01"),
            (b"\x05\x02\x00\x02" + b"\x01\x03you\x06se:ret" + request, b"\x05\x02\x01\x01"),
            (b"\x05\x01\x00" + request, b"\x05\xff"),
            (socks4("127.0.0.1", port), b"\x00\x5d" + bytes(6)),
            (socks4a("localhost", port), b"\x00\x5d" + bytes(6)),
            (http("127.0.0.1", port, "Proxy-Authorization: Basic bWU6c2U6cmV0\r\n"), HTTP_OK),
            (http("127.0.0.1", port, "Proxy-Authorization: Basic bWU6c2VjcmV0\r\n"), wanted),
            (http("127.0.0.1", port), wanted),
        ]
        for request, reply in cases:
            with self.subTest(request=request), server.connect() as s:
                s.sendall(request)
                if b"\x05\x00\x00" in reply or reply == HTTP_OK:
                    self.assertEqual(exactly(s, len(reply)), reply)
                else:
                    self.assertEqual(until_end(s), reply)

    def test_option(self):
        self.check(Server(self, "--user", "me:se:ret"))

    def test_environment(self):
        server = Server(self, env={"MPROX_SERVE_USER": "me:se:ret"})
        self.check(server)
        line = pathlib.Path(f"/proc/{server.process.pid}/cmdline").read_bytes()
        self.assertNotIn(b"se:ret", line)


class Limits(unittest.TestCase):
    def test_out_of_descriptors(self):
        # So few that not everybody can be served at once. Whoever waits is served when others have gone.
        server = Server(self, nofile=128)
        echo = Echo(self)
        first = [server.connect() for _ in range(100)]
        for s in first:
            s.sendall(socks5("127.0.0.1", echo.port) + b"x")
        self.assertGreater(sum(self.served(s) for s in self.readable(first)), 10)
        for s in first:
            s.close()
        self.assert_serves(server, echo)
        code, _, err = server.stop()
        self.assertEqual(code, 0)
        self.assertLess(len(err.splitlines()), 20)

    def test_limit_lowered_while_running(self):
        # Then accept(2) itself fails, for as long as there is no descriptor.
        server = Server(self, "--max-connections", "100")
        echo = Echo(self)
        used = len(os.listdir(f"/proc/{server.process.pid}/fd"))
        resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, (used + 6, used + 6))
        idle = [server.connect() for _ in range(30)]
        time.sleep(1.5)
        self.assertIsNone(server.process.poll())
        with open(f"/proc/{server.process.pid}/stat") as stat:
            before = stat.read().split()[13:15]
        time.sleep(1)
        with open(f"/proc/{server.process.pid}/stat") as stat:
            after = stat.read().split()[13:15]
        self.assertLess(sum(map(int, after)) - sum(map(int, before)), 30, "waits for descriptors without spinning")
        for s in idle:
            s.close()
        self.assert_serves(server, echo)
        code, _, err = server.stop()
        self.assertEqual(code, 0)
        self.assertIn("mprox serve: cannot accept: Too many open files; new clients wait", err)
        self.assertLess(len(err.splitlines()), 20)

    def test_max_connections(self):
        server = Server(self, "--max-connections", "3")
        echo = Echo(self)
        sockets = [server.connect() for _ in range(4)]
        for s in sockets:
            s.sendall(socks5("127.0.0.1", echo.port))
        ready = self.readable(sockets, seconds=1.5)
        self.assertEqual(len(ready), 3)
        waiting = next(s for s in sockets if s not in ready)
        ready[0].close()
        read_ok(self, "SOCKS5", waiting)
        for s in sockets:
            s.close()

    def test_request_timeout(self):
        server = Server(self, "--timeout", "1", "-v")
        with server.connect() as silent, server.connect() as slow:
            slow.sendall(b"\x05\x01\x00\x05")
            self.assertEqual(until_end(silent), b"")
            self.assertEqual(until_end(slow), b"\x05\x00")
            ends = {f"127.0.0.1:{silent.getsockname()[1]} did not finish its request in time",
                    f"127.0.0.1:{slow.getsockname()[1]} SOCKS5 did not finish its request in time"}
        self.assertEqual(set(server.stop()[2].splitlines()), ends)

    def served(self, s):
        return exactly(s, 4) == b"\x05\x00\x05\x00"

    def readable(self, sockets, seconds=2.0):
        """Those that have an answer once nothing has happened for a while."""
        poll = select.poll()
        found = {}
        for s in sockets:
            poll.register(s, select.POLLIN)
        by_fd = {s.fileno(): s for s in sockets}
        while events := poll.poll(seconds * 1000):
            for fd, _ in events:
                found[fd] = by_fd[fd]
                poll.unregister(fd)
        return list(found.values())

    def assert_serves(self, server, echo):
        with server.connect() as s:
            s.sendall(socks5("127.0.0.1", echo.port))
            read_ok(self, "SOCKS5", s)
            s.sendall(b"again")
            self.assertEqual(exactly(s, 5), b"again")


class Command(unittest.TestCase):
    def test_listeners_and_log(self):
        server = Server(self, "-v", listen=("127.0.0.1:0", "[::1]:0"))
        self.assertEqual(server.listening, [f"listening on 127.0.0.1:{server.ports[0]}",
                                            f"listening on [::1]:{server.ports[1]}"])
        echo, closed = Echo(self), free_port()
        with server.connect() as s:
            s.sendall(socks5("127.0.0.1", echo.port))
            read_ok(self, "SOCKS5", s)
            connected = f"127.0.0.1:{s.getsockname()[1]} SOCKS5 127.0.0.1:{echo.port} connected"
        with server.connect(1, "::1") as s:
            s.sendall(socks4a("localhost", closed))
            until_end(s)
            refused = f"[::1]:{s.getsockname()[1]} SOCKS4a localhost:{closed} refused: connection refused"
        code, out, err = server.stop()
        self.assertEqual((code, out), (0, ""))
        self.assertEqual(sorted(err.splitlines()), sorted([connected, refused]))

    def test_signals_end_it_cleanly(self):
        for number in (signal.SIGINT, signal.SIGTERM):
            server = Server(self)
            echo = Echo(self)
            with server.connect() as asking, server.connect() as relayed:
                asking.sendall(b"\x05")
                relayed.sendall(socks5("127.0.0.1", echo.port))
                read_ok(self, "SOCKS5", relayed)
                server.process.send_signal(number)
                _, err = server.process.communicate(timeout=PATIENCE)
                self.assertEqual((server.process.returncode, err), (0, ""))
                with self.assertRaises(ConnectionResetError):  # a cut stream is no finished one
                    relayed.recv(1)

    def test_port_in_use(self):
        with socket.create_server(("127.0.0.1", 0)) as s:
            self.assert_taken(s.getsockname()[1])
        self.assert_taken(Server(self).ports[0])  # by another mprox, too

    def assert_taken(self, port):
        result = subprocess.run([MPROX, "serve", "--listen", f"127.0.0.1:{port}"], capture_output=True, text=True,
                                timeout=PATIENCE)
        self.assertEqual((result.returncode, result.stdout, result.stderr),
                         (1, "", f"mprox serve: cannot listen on 127.0.0.1:{port}: Address already in use; "
                                 "choose another with --listen\n"))

    def test_usage_errors(self):
        for words in (["--listen", "nonsense"], ["--listen", "127.0.0.1:70000"], ["--listen", "::1:1"],
                      ["--user", "nocolon"], ["--max-connections", "0"], ["--timeout", "x"], ["--nonsense"]):
            with self.subTest(words=words):
                result = subprocess.run([MPROX, "serve", *words], capture_output=True, text=True, timeout=PATIENCE)
                self.assertEqual((result.returncode, result.stdout), (2, ""))
                self.assertEqual(len(result.stderr.splitlines()), 1)
                self.assertNotIn("nocolon", result.stderr)


if __name__ == "__main__":
    unittest.main()
