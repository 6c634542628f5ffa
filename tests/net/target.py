# SPDX-License-Identifier: MIT
"""The destination of the tests: one process in wan, listening on every address.

A connection to COMMAND starts with one line that says how the server shall behave; see the functions below.
What a server saw after the client was gone is asked for by a later connection: `report ID`.
Other ports: GREETING speaks first, RESETTING resets at once, FULL never completes a handshake (its accept queue
is full, so SYNs are dropped), HTTP serves one page, IDLE echoes without a thread per connection (100,000 fit).
"""
import contextlib
import ctypes
import errno
import hashlib
import resource
import select
import socket
import struct
import threading

import lib

COMMAND, GREETING, RESETTING, FULL, HTTP, IDLE, DATAGRAM = 7000, 7001, 7002, 7003, 7080, 7004, 7005
IDLE_LOOPS = 7
CLONE_FILES = 0x400
PAGE = bytes(range(32, 127)) * 1000
BLOCK = hashlib.shake_128(b"stream").digest((1 << 20) + 4093)  # an odd length: no offset repeats block-wise


def stream(length, offset=0):
    """`length` bytes of the endless test stream, in large pieces."""
    while length:
        start = offset % len(BLOCK)
        piece = BLOCK[start:start + min(length, 1 << 18)]
        yield piece
        offset += len(piece)
        length -= len(piece)


def drain(sock):
    """Reads to the end: (how it ended, bytes, their hash)."""
    seen, total = hashlib.sha1(), 0
    buffer = bytearray(1 << 18)
    try:
        while count := sock.recv_into(buffer):
            seen.update(memoryview(buffer)[:count])
            total += count
        end = "eof"
    except OSError as error:
        end = errno_name(error)
    return end, total, seen.hexdigest()


def errno_name(error):
    return errno.errorcode.get(error.errno, str(error))


class Service:
    def __init__(self):
        self.reports = {}
        self.changed = threading.Condition()

    def report(self, key, value):
        with self.changed:
            self.reports[key] = value
            self.changed.notify_all()

    def wait_report(self, key):
        with self.changed:
            self.changed.wait_for(lambda: key in self.reports, 60)
            return self.reports.pop(key, "nothing")

    # ---- one method per command; `lines` already holds the arguments ----

    def do_echo(self, sock):
        while data := sock.recv(1 << 16):
            sock.sendall(data)

    def do_peer(self, sock):
        sock.sendall(sock.getpeername()[0].removeprefix("::ffff:").encode() + b"\n")

    def do_close(self, sock):
        pass

    def do_reset(self, sock, length="0"):
        """Sends `length` bytes, waits for one byte (when length is not 0), resets."""
        for piece in stream(int(length)):
            sock.sendall(piece)
        if int(length):
            sock.recv(1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def do_source(self, sock, length):
        for piece in stream(int(length)):
            sock.sendall(piece)
        sock.shutdown(socket.SHUT_WR)
        drain(sock)

    def do_sink(self, sock):
        _, total, digest = drain(sock)
        sock.sendall(f"{total} {digest}\n".encode())

    def do_duplex(self, sock, length, key):
        """Both ways at once, to both ends of stream. Its report: what arrived."""
        sender = threading.Thread(target=lambda: ([sock.sendall(p) for p in stream(int(length))],
                                                  sock.shutdown(socket.SHUT_WR)))
        sender.start()
        end, total, digest = drain(sock)
        sender.join()
        self.report(key, f"{end} {total} {digest}")

    def do_watch(self, sock, key):
        """Only reads; its report tells how that ended."""
        self.report(key, "{} {} {}".format(*drain(sock)))

    def do_halfclose(self, sock, key):
        """Says bye, ends its own direction, then reads on."""
        sock.sendall(b"bye\n")
        with contextlib.suppress(OSError):  # the client's reset may be here before its turn comes
            sock.shutdown(socket.SHUT_WR)
        self.report(key, "{} {} {}".format(*drain(sock)))

    def do_stall(self, sock, key):
        """Reads nothing until `report KEY-go` was asked for, then everything."""
        self.wait_report(f"{key}-go")
        self.report(key, "{} {} {}".format(*drain(sock)))

    def do_post(self, sock, key, value):
        self.report(key, value)
        sock.sendall(b"ok\n")

    def do_report(self, sock, key):
        sock.sendall(self.wait_report(key).encode() + b"\n")

    def do_dial(self, sock, host, port):
        """Connects to the client's side and says hello there."""
        with socket.create_connection((host, int(port)), timeout=30) as there:
            there.sendall(b"hello\n")
            sock.sendall(there.recv(100))

    # ---- the ports ----

    def command(self, sock):
        name, *words = read_line(sock).split()
        getattr(self, f"do_{name}")(sock, *words)

    def greeting(self, sock):
        sock.sendall(b"220 ready\n")
        self.do_echo(sock)

    def resetting(self, sock):
        self.do_reset(sock)

    def http(self, sock):
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            data = sock.recv(4096)
            if not data:
                return
            head += data
        sock.sendall(b"HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n\r\n" % len(PAGE) + PAGE)
        sock.shutdown(socket.SHUT_WR)
        drain(sock)


def read_line(sock):
    line = b""
    while not line.endswith(b"\n"):
        byte = sock.recv(1)
        if not byte:
            raise OSError("closed before a line")
        line += byte
    return line.decode().strip()


def listener(port, backlog=4096, reuse_port=False):
    return socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=backlog,
                                reuse_port=reuse_port)


def serve(sock, behave):
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    with sock:
        try:
            behave(sock)
        except OSError:
            pass


def serve_port(port, behave):
    server = listener(port)

    def accept():
        while True:
            try:
                sock, _ = server.accept()
            except OSError:
                select.select([], [], [], 0.01)  # out of descriptors
                continue
            threading.Thread(target=serve, args=(sock, behave), daemon=True).start()
    threading.Thread(target=accept, daemon=True).start()


def idle_port():
    """Echo from an epoll loop; what cannot be echoed at once is dropped (tests send a few bytes). Several of them
    share the port, each with a descriptor table of its own, because the limit on open files holds for each table."""
    ctypes.CDLL(None).unshare(CLONE_FILES)
    server = listener(IDLE, 65535, reuse_port=True)
    server.setblocking(False)
    poll = select.epoll()
    poll.register(server, select.EPOLLIN)
    connections = {}
    while True:
        for fd, _ in poll.poll():
            if fd == server.fileno():
                try:
                    sock, _ = server.accept()
                except OSError:
                    continue
                sock.setblocking(False)
                connections[sock.fileno()] = sock
                poll.register(sock, select.EPOLLIN)
                continue
            try:
                data = connections[fd].recv(4096)
                if data:
                    connections[fd].send(data)
                    continue
            except OSError:
                pass
            poll.unregister(fd)
            connections.pop(fd).close()


def datagram_port(address):
    s = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM)
    s.bind((address, DATAGRAM))
    while True:
        data, where = s.recvfrom(65535)
        s.sendto(data, where)


def main():
    limit = min(resource.getrlimit(resource.RLIMIT_NOFILE)[1], 1 << 20)
    try:
        limit = max(limit, 65536)
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    except (OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    threading.stack_size(256 << 10)
    full = listener(FULL, 0)
    filler = socket.create_connection(("::1", FULL))
    service = Service()
    for port, behave in ((COMMAND, service.command), (GREETING, service.greeting),
                         (RESETTING, service.resetting), (HTTP, service.http)):
        serve_port(port, behave)
    for _ in range(IDLE_LOOPS):
        threading.Thread(target=idle_port, daemon=True).start()
    for address in (lib.TARGET4, lib.TARGET6):
        threading.Thread(target=datagram_port, args=(address,), daemon=True).start()
    print("ready", flush=True)
    threading.Event().wait()
    del full, filler


if __name__ == "__main__":
    main()
