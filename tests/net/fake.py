# SPDX-License-Identifier: MIT
"""A proxy that says exactly what a test tells it to say, one script per connection."""
import contextlib
import ipaddress
import socket
import struct
import threading

import lib

SOCKS5_GRANTED = bytes.fromhex("05000001 00000000 0000")
SOCKS4_GRANTED = bytes.fromhex("005a 0000 00000000")
HTTP_GRANTED = b"HTTP/1.1 200 Connection established\r\n\r\n"


class Conversation:
    """One accepted connection, as a script sees it."""

    def __init__(self, sock, on_request=lambda: None):
        self.socket = sock
        self.on_request = on_request
        self.socket.settimeout(lib.PATIENCE)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def read(self, count):
        data = b""
        while len(data) < count:
            part = self.socket.recv(count - len(data))
            if not part:
                raise EOFError(f"closed after {len(data)} of {count} bytes")
            data += part
        return data

    def read_until(self, mark):
        data = b""
        while not data.endswith(mark):
            data += self.read(1)
        return data

    def send(self, data):
        self.socket.sendall(data)

    def send_split(self, data):
        """One byte per segment."""
        for byte in data:
            self.socket.sendall(bytes([byte]))

    def stall(self):
        """Says nothing more until the other side goes."""
        with contextlib.suppress(OSError):
            while self.socket.recv(4096):
                pass

    def echo(self):
        """Plays the destination: sends everything back until end of stream."""
        while data := self.socket.recv(65536):
            self.socket.sendall(data)

    def reset(self):
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    # The client's half of each protocol, up to where it waits for the verdict. All return "host:port".

    def read_socks5(self, user=None, password=None):
        methods = self.read(self.read(2)[1])
        if user is None:
            self.send(b"\x05\x00")
        else:
            if 2 not in methods:
                raise AssertionError(f"no user/password offered: {methods!r}")
            self.send(b"\x05\x02")
            given = self.read(self.read(2)[1]), self.read(self.read(1)[0])
            good = given == (user, password)
            self.send(b"\x01\x00" if good else b"\x01\x01")
            if not good:
                raise AssertionError(f"wrong credentials {given}")
        kind = self.read(4)[3]
        host = (self.read(self.read(1)[0]).decode() if kind == 3
                else str(ipaddress.ip_address(self.read(4 if kind == 1 else 16))))
        port = int.from_bytes(self.read(2), "big")
        self.on_request()
        return f"{host}:{port}"

    def read_socks4(self):
        head = self.read(8)
        self.user = self.read_until(b"\0")[:-1]
        host = str(ipaddress.ip_address(head[4:8]))
        if host.startswith("0.0.0.") and host != "0.0.0.0":
            host = self.read_until(b"\0")[:-1].decode()
        self.on_request()
        return f"{host}:{int.from_bytes(head[2:4], 'big')}"

    def read_http(self):
        self.head = self.read_until(b"\r\n\r\n")
        self.on_request()
        return self.head.split()[1].decode()


class FakeProxy:
    """Listens in `ns`; `script(conversation)` runs in a thread per connection. What it returns is kept in `seen`.

    `accepted` counts connections, `asked` those that have sent a request: others may have been made ahead.
    """

    def __init__(self, ns, script, address=lib.PROXY4, scheme="socks5"):
        self.script = script
        self.seen = []
        self.errors = []
        self.accepted = self.asked = 0
        self._listener = ns.listen(address)
        self.port = self._listener.getsockname()[1]
        host = f"[{address}]" if ":" in address else address
        self.uri = f"{scheme}://{host}:{self.port}"
        self._open = set()
        self._lock = threading.Lock()
        self._thread = lib.in_thread(self._accept)

    def _accept(self):
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            with self._lock:
                self.accepted += 1
                self._open.add(sock)
            lib.in_thread(self._converse, sock)

    def _count_request(self):
        with self._lock:
            self.asked += 1

    def _converse(self, sock):
        try:
            self.seen.append(self.script(Conversation(sock, self._count_request)))
        except (EOFError, OSError, AssertionError) as error:
            self.errors.append(error)
        finally:
            with self._lock:
                self._open.discard(sock)
                sock.close()

    def close(self):
        """Takes everything down; connections still open are reset."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(lib.PATIENCE)
        with self._lock:
            for sock in self._open:
                with contextlib.suppress(OSError):
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    sock.shutdown(socket.SHUT_RDWR)


# ---- ready scripts ----

READERS = {"socks5": Conversation.read_socks5, "socks5h": Conversation.read_socks5,
           "socks4": Conversation.read_socks4, "socks4a": Conversation.read_socks4, "http": Conversation.read_http}
GRANTED = {"socks5": SOCKS5_GRANTED, "socks5h": SOCKS5_GRANTED,
           "socks4": SOCKS4_GRANTED, "socks4a": SOCKS4_GRANTED, "http": HTTP_GRANTED}


def granting(scheme, then=Conversation.echo):
    """Grants every request, then plays the destination itself."""
    def script(conversation):
        destination = READERS[scheme](conversation)
        conversation.send(GRANTED[scheme])
        then(conversation)
        return destination
    return script


def answering(scheme, reply):
    """Reads the request, answers with `reply` and closes."""
    def script(conversation):
        destination = READERS[scheme](conversation)
        conversation.send(reply)
        conversation.socket.shutdown(socket.SHUT_WR)
        conversation.stall()
        return destination
    return script


def socks5_reply(code):
    return bytes([5, code, 0, 1]) + bytes(6)


def socks4_reply(code):
    return bytes([0, code]) + bytes(6)


def http_reply(status, reason="Reason"):
    return f"HTTP/1.1 {status} {reason}\r\nContent-Length: 0\r\n\r\n".encode()
