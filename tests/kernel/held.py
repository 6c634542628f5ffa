#!/usr/bin/python3
# SPDX-License-Identifier: MIT
"""held.py MODULE [NAME...]: what an application sees of a connect() that the kernel provider holds, and what becomes of it.

As root, on a kernel with proxy descriptors and with the module MODULE (a path) loaded. Proxies are threads of this
program on loopback, destinations are addresses that nobody has; a member is a forked child. Where Linux has a behaviour
of its own (a pending connect(), a refused one) the record of a member must equal that of a plain process.
A line for each test, `ok NAME` or `FAIL NAME` with the reason below.
"""
import contextlib
import ctypes
import errno
import faulthandler
import fcntl
import itertools
import json
import mmap
import os
import resource
import select
import signal
import socket
import struct
import subprocess
import sys
import termios
import threading
import time
import traceback
from pathlib import Path

PATIENCE = float(os.environ.get("MPROX_TEST_PATIENCE", "60"))
SCALE = float(os.environ.get("MPROX_TEST_SCALE", "1"))
SHOW = Path("/sys/kernel/mutex_proxy")
ENABLE, GET_STATS = 0xB701, 0xC060B705
DESTINATION, DESTINATION6 = ("192.0.2.1", 80), ("2001:db8::1", 80)
SILENT = "198.51.100.2"  # behind a device that swallows everything
OWN = "198.51.100.1"  # the address on that device, behind which DESTINATION is as well
SIOCOUTQ = termios.TIOCOUTQ
SIOCOUTQNSD = 0x894B
SO_PEERNAME = 28
MSG_FASTOPEN = 0x20000000
TCP_FASTOPEN_CONNECT, TCP_ULP = 30, 31
IPPROTO_MPTCP = 262
libc = ctypes.CDLL(None, use_errno=True)
TESTS = {}
PROXIES = []  # of the test that runs


def test(function):
    TESTS[function.__name__] = function
    return function


def name_of(code):
    return errno.errorcode.get(code, str(code)) if code else "ok"


def attempt(function, *args):
    try:
        value = function(*args)
    except OSError as error:
        return name_of(error.errno)
    if isinstance(value, bytes):
        return value.decode("latin-1")
    return value if isinstance(value, (int, str, list, tuple)) else "ok"


def expect(got, wanted, what=""):
    if got != wanted:
        raise AssertionError(f"{what}: {got!r} instead of {wanted!r}")


def wait_until(condition, what, seconds=PATIENCE):
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise AssertionError(f"gave up waiting: {what}")
        time.sleep(0.01)


# ---- proxies ----


class Gone(Exception):
    pass


class Proxy:
    """Plays `script(conversation)` for each connection, in a thread."""

    def __init__(self, script, family=socket.AF_INET, backlog=4096):
        self.listener = socket.create_server(("127.0.0.1" if family == socket.AF_INET else "::1", 0), family=family,
                                             backlog=backlog)
        self.uri = ("socks5://127.0.0.1:%d" if family == socket.AF_INET else "socks5://[::1]:%d") % self.listener.getsockname()[1]
        self.script, self.conversations, self.accepted = script, [], 0
        PROXIES.append(self)
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self):
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self.listener.accept()
                self.accepted += 1
                conversation = Conversation(connection)
                self.conversations.append(conversation)
                threading.Thread(target=self.play, args=(conversation,), daemon=True).start()

    def play(self, conversation):
        with contextlib.suppress(OSError, Gone):
            self.script(conversation)
        conversation.connection.close()
        conversation.over.set()

    def close(self):
        with contextlib.suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        for conversation in self.conversations:
            conversation.connection.close()


class Conversation:
    def __init__(self, connection):
        self.connection = connection
        self.connection.settimeout(PATIENCE)
        self.over, self.go_on, self.reached = threading.Event(), threading.Event(), threading.Event()
        self.end = None

    def read(self, n):
        data = b""
        while len(data) < n:
            try:
                part = self.connection.recv(n - len(data))
            except ConnectionResetError:
                self.end = "reset"
                raise Gone from None
            if not part:
                self.end = "end"
                raise Gone
            data += part
        return data

    def send(self, data, flags=0):
        self.connection.sendall(data, flags)

    def greeting(self):
        _, methods = self.read(2)
        self.read(methods)
        self.send(b"\5\0")

    def request(self):
        """The destination asked for."""
        kind = self.read(4)[3]
        return self.read({1: 4, 4: 16}[kind]) + self.read(2)

    def pause(self):
        """Until the test says go_on, or the other end goes."""
        self.reached.set()
        poller = select.poll()
        poller.register(self.connection, select.POLLRDHUP)
        while not self.go_on.is_set():
            if poller.poll(20):
                self.read(1 << 20)

    def echo(self):
        while True:
            self.send(self.read(1))


GRANTED = b"\5\0\0\1\0\0\0\0\0\0"


def refusal(code):
    return bytes([5, code]) + GRANTED[2:]


def grant(conversation, more=b""):
    conversation.greeting()
    conversation.request()
    conversation.send(GRANTED + more)
    conversation.echo()


def grant_once(conversation, size):
    """Reads `size` bytes, sends three times as many, and goes when there is one more or the end."""
    conversation.greeting()
    conversation.request()
    conversation.send(GRANTED)
    conversation.read(size)
    conversation.send(bytes(3 * size))
    conversation.read(1)


def refuse(code):
    def script(conversation):
        conversation.greeting()
        conversation.request()
        conversation.send(refusal(code))
    return script


def silent_at(stage):
    """Goes on as `grant` when told to."""
    def script(conversation):
        if stage == "greeting":
            conversation.pause()
        conversation.greeting()
        conversation.request()
        conversation.pause()
        conversation.send(GRANTED)
        conversation.echo()
    return script


# ---- members ----


class Child:
    """A forked process that runs function(...) and hands back what it returns, as JSON."""

    def __init__(self, function, config=None, user=0):
        out, into = os.pipe()
        self.control, theirs = socket.socketpair()
        sys.stdout.flush()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(out)
            self.control.close()
            faulthandler.dump_traceback_later(PATIENCE * 0.9, exit=False)
            with contextlib.suppress(BaseException):
                try:
                    descriptor = member(config) if config is not None else -1
                    result = {"value": function(theirs, descriptor)}
                except BaseException:
                    result = {"trace": traceback.format_exc()}
                os.write(into, json.dumps(result).encode())
            os._exit(0)
        os.close(into)
        theirs.close()
        self.out = out

    def result(self, seconds=PATIENCE):
        data, poller = b"", select.poll()
        poller.register(self.out)
        while True:
            if not poller.poll(seconds * 1000):
                self.kill()
                raise AssertionError("the child hangs")
            part = os.read(self.out, 65536)
            if not part:
                break
            data += part
        os.close(self.out)
        os.waitpid(self.pid, 0)
        self.control.close()
        result = json.loads(data) if data else {"trace": "killed"}
        if "trace" in result:
            raise AssertionError(result["trace"])
        return result["value"]

    def hear(self):
        """Waits for the child to say something."""
        self.control.settimeout(PATIENCE * 5)
        if not attempt(self.control.recv, 1).strip("\0") == "x":
            self.result()
            raise AssertionError("the child has ended early")

    def tell(self, word=b"x"):
        if attempt(self.control.send, word) != 1:
            self.result()

    def kill(self):
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        self.control.close()


def descriptor_of(config, flags=0):
    fd = libc.syscall(int((SHOW / "syscall_number").read_text()), flags)
    if fd < 0:
        raise OSError(ctypes.get_errno(), "mprox_create")
    os.write(fd, config.encode())
    return fd


def member(config):
    fd = descriptor_of(config)
    fcntl.ioctl(fd, ENABLE)
    return fd


def field(descriptor, key):
    for line in os.read(descriptor, 32768).decode().splitlines():
        if line.startswith(key + ": "):
            return line.partition(": ")[2]


def run(function, config=None):
    return Child(function, config).result()


def through(proxy, function, more=""):
    return run(function, f"server {proxy.uri}\n{more}")


def stream(family=socket.AF_INET, blocking=True):
    s = socket.socket(family)
    s.setblocking(blocking)
    return s


def answer(s):
    """What a pending connect() came to."""
    poller = select.poll()
    poller.register(s, select.POLLOUT)
    if not poller.poll(PATIENCE * 1000):
        return "hangs"
    return name_of(s.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))


def echo(s, data=b"hello"):
    s.setblocking(True)
    s.settimeout(PATIENCE)
    s.sendall(data)
    back = b""
    while len(back) < len(data):
        part = s.recv(len(data) - len(back))
        if not part:
            return f"end after {back!r}"
        back += part
    return back.decode()


def flows():
    return int((SHOW / "flows").read_text())


def no_flows():
    wait_until(lambda: flows() == 0, "flows to end")


# ---- as a pending connect() of Linux ----


def ends_of_poll(s):
    poller = select.poll()
    poller.register(s, select.POLLIN | select.POLLOUT | select.POLLPRI | select.POLLRDHUP)
    return poller.poll(50)


def peer_name(s):
    """SO_PEERNAME of an IPv4 socket: also of one that is being connected."""
    _, port, address = struct.unpack("!HH4s8x", s.getsockopt(socket.SOL_SOCKET, SO_PEERNAME, 16))
    return socket.inet_ntoa(address), port


def pending(s, again):
    """Everything that can be asked of a socket without changing it."""
    epoll = select.epoll()
    epoll.register(s, select.EPOLLIN | select.EPOLLOUT | select.EPOLLET | select.EPOLLRDHUP)
    pipe, full = os.pipe(), os.pipe()
    os.write(full[1], b"x")
    file = os.memfd_create("file")
    os.write(file, b"x")
    record = {
        "poll": ends_of_poll(s), "epoll": epoll.poll(0.05),
        "recv": attempt(s.recv, 10), "peek": attempt(s.recv, 10, socket.MSG_PEEK), "send": attempt(s.send, b"x"),
        "splice": attempt(os.splice, s.fileno(), pipe[1], 10), "splice to it": attempt(os.splice, full[0], s.fileno(), 1),
        "sendfile": attempt(os.sendfile, s.fileno(), file, 0, 1),
        "peer": attempt(s.getpeername), "peer's name": peer_name(s) == again,
        "error": s.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR),
        "in": int.from_bytes(fcntl.ioctl(s, termios.FIONREAD, bytes(4)), sys.byteorder),
        "out": int.from_bytes(fcntl.ioctl(s, SIOCOUTQ, bytes(4)), sys.byteorder),
        "not sent": int.from_bytes(fcntl.ioctl(s, SIOCOUTQNSD, bytes(4)), sys.byteorder),
        "bind": attempt(s.bind, ("127.0.0.1", 0)), "listen": attempt(s.listen), "accept": attempt(s.accept),
        "again": name_of(s.connect_ex(again)),
        "tls": attempt(s.setsockopt, socket.IPPROTO_TCP, TCP_ULP, b"tls"),
    }
    s.settimeout(0.05)
    with contextlib.suppress(TimeoutError):
        record["recv waits"] = attempt(s.recv, 10)
    s.setblocking(False)
    return record


def start(address):
    s = stream(blocking=False)
    expect(name_of(s.connect_ex(address)), "EINPROGRESS", "connect()")
    return s


def plain_pending(control, descriptor):
    s = start((SILENT, 80))
    return pending(s, (SILENT, 80))


@test
def held_socket_is_as_in_syn_sent():
    plain = run(plain_pending)
    for stage in ("connection", "greeting", "request"):
        proxy = Proxy(silent_at(stage))
        uri = f"socks5://{SILENT}:1080" if stage == "connection" else proxy.uri

        def held(control, descriptor):
            s = start(DESTINATION)
            control.recv(1)
            record = pending(s, DESTINATION)
            control.send(b"x")
            if stage != "connection":
                expect(answer(s), "ok", "in the end")
                expect(echo(s), "hello", "and then")
            return record
        child = Child(held, f"server {uri}\n")
        if stage != "connection":
            wait_until(lambda: proxy.conversations and proxy.conversations[0].reached.is_set(), "the proxy is reached")
        child.tell(b"x")
        child.hear()
        for conversation in proxy.conversations:
            conversation.go_on.set()
        expect(child.result(), plain, stage)
        proxy.close()


@test
def shutdown_disconnect_and_close_as_in_syn_sent():
    def ended(s, how):
        record = {}
        if how == "disconnect":
            record["result"] = libc.connect(s.fileno(), struct.pack("=H14x", socket.AF_UNSPEC), 16)
        else:
            record["result"] = attempt(s.shutdown, how)
        return {**record, "poll": [e for _, e in ends_of_poll(s)], "error": s.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR),
                "name": s.getsockname()[0], "peer": attempt(s.getpeername), "recv": attempt(s.recv, 1),
                "send": attempt(s.send, b"x")}

    for how in (socket.SHUT_RD, socket.SHUT_WR, socket.SHUT_RDWR, "disconnect"):
        plain = run(lambda control, descriptor: ended(start((SILENT, 80)), how))
        for stage in ("connection", "greeting", "request"):
            proxy = Proxy(silent_at(stage))

            def held(control, descriptor):
                s = start(DESTINATION)
                control.recv(1)
                record = ended(s, how)
                os.write(descriptor, f"server {proxy.uri}\n".encode())
                expect(name_of(s.connect_ex(DESTINATION)), "EINPROGRESS", "connect() afterwards")
                control.send(b"x")
                expect((answer(s), echo(s)), ("ok", "hello"), "the socket afterwards")
                return record
            child = Child(held, f"server {'socks5://%s:1080' % SILENT if stage == 'connection' else proxy.uri}\n")
            if stage != "connection":
                wait_until(lambda: proxy.conversations and proxy.conversations[0].reached.is_set(), "the proxy is reached")
            child.tell(b"x")
            child.hear()
            wait_until(lambda: len(proxy.conversations) >= (1 if stage == "connection" else 2), "the second conversation")
            if stage != "connection":
                wait_until(proxy.conversations[0].over.is_set, "the first conversation's end")
                expect(proxy.conversations[0].end, "reset", "the proxy saw")
            for conversation in proxy.conversations:
                conversation.go_on.set()
            expect(child.result(), plain, f"{how} at {stage}")
            proxy.close()

    proxy = Proxy(silent_at("request"))

    def closes(control, descriptor):
        s = start(DESTINATION)
        control.recv(1)
        s.close()
    child = Child(closes, f"server {proxy.uri}\n")
    wait_until(lambda: proxy.conversations and proxy.conversations[0].reached.is_set(), "the proxy is reached")
    child.tell(b"x")
    child.result()
    wait_until(proxy.conversations[0].over.is_set, "the conversation's end")
    expect(proxy.conversations[0].end, "reset", "the proxy saw")
    proxy.close()
    no_flows()


@test
def timeouts_and_signals_as_in_syn_sent():
    def waits(address):
        def inside(control, descriptor):
            s = stream()
            s.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", 0, 100000))
            raw = struct.pack("=HH4s8x", socket.AF_INET, socket.htons(address[1]), socket.inet_aton(address[0]))
            record = [libc.connect(s.fileno(), raw, 16), name_of(ctypes.get_errno())]
            record += [libc.connect(s.fileno(), raw, 16), name_of(ctypes.get_errno())]
            t = stream()
            signal.signal(signal.SIGALRM, lambda *_: None)
            libc.siginterrupt(signal.SIGALRM, 1)
            signal.setitimer(signal.ITIMER_REAL, 0.1, 0.1)  # again and again: the first may come before connect() waits
            record += [libc.connect(t.fileno(), raw, 16), name_of(ctypes.get_errno())]
            signal.setitimer(signal.ITIMER_REAL, 0)
            record += [[e for _, e in ends_of_poll(t)]]
            control.send(b"x")
            if control.recv(1) == b"p":
                expect([answer(s), answer(t), echo(s), echo(t)], ["ok", "ok", "hello", "hello"], "in the end")
            return record
        return inside
    plain = Child(waits((SILENT, 80)))
    plain.hear()
    plain.tell(b"d")
    proxy = Proxy(silent_at("request"))
    child = Child(waits(DESTINATION), f"server {proxy.uri}\n")
    child.hear()
    wait_until(lambda: len(proxy.conversations) == 2, "both conversations")
    for conversation in proxy.conversations:
        conversation.go_on.set()
    child.tell(b"p")
    expect(child.result(), plain.result(), "the results")
    proxy.close()


def refused(s, address, blocking):
    s.setblocking(blocking)
    record = {"connect": name_of(s.connect_ex(address))}
    if not blocking:
        poller = select.poll()
        poller.register(s, select.POLLIN | select.POLLOUT | select.POLLRDHUP)
        record["poll"] = [e for _, e in poller.poll(PATIENCE * 1000)]
        epoll = select.epoll()
        epoll.register(s, select.EPOLLIN | select.EPOLLOUT | select.EPOLLET | select.EPOLLRDHUP)
        record["epoll"] = [e for _, e in epoll.poll(PATIENCE)]
        record["peer before"] = attempt(s.getpeername)
        record["error"] = name_of(s.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))
        record["error again"] = name_of(s.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))
    record.update(poll_after=[e for _, e in ends_of_poll(s)], recv=attempt(s.recv, 1), send=attempt(s.send, b"x"),
                  peer=attempt(s.getpeername), bound=s.getsockname()[0])
    return record


@test
def refusal_as_a_reset_in_syn_sent():
    with socket.create_server(("127.0.0.1", 0)) as unused:
        closed = unused.getsockname()
    for blocking in (True, False):
        plain = run(lambda control, descriptor: refused(stream(), closed, blocking))
        if not blocking:
            plain["bound"] = OWN  # as of a direct connection to that destination
        bad, good = Proxy(refuse(5)), Proxy(grant)

        def held(control, descriptor):
            s = stream()
            record = refused(s, DESTINATION, blocking)
            os.write(descriptor, f"server {good.uri}\n".encode())
            s.setblocking(True)
            first = name_of(s.connect_ex(DESTINATION))
            if not blocking:
                expect(first, "ECONNABORTED", "the next connect()")
                first = name_of(s.connect_ex(DESTINATION))
            expect((first, echo(s)), ("ok", "hello"), "the socket afterwards")
            return record
        expect(through(bad, held), plain, f"blocking={blocking}")
        bad.close()
        good.close()


@test
def refusal_leaves_nothing_to_read():
    def script(conversation):
        conversation.read(1)
        conversation.send(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 5\r\n\r\nhello")
    proxy = Proxy(script)

    def held(control, descriptor):
        s = start(DESTINATION)
        return [answer(s), attempt(s.recv, 10), int.from_bytes(fcntl.ioctl(s, termios.FIONREAD, bytes(4)), sys.byteorder)]
    expect(run(held, f"server {proxy.uri.replace('socks5', 'http')}\n"), ["ECONNREFUSED", "", 0], "after the refusal")
    proxy.close()


# ---- success ----


@test
def success_is_seen_once_and_whole():
    proxy = Proxy(lambda conversation: grant(conversation, b"first words"))

    def held(control, descriptor):
        s = stream(blocking=False)
        epoll = select.epoll()
        epoll.register(s, select.EPOLLOUT | select.EPOLLET)
        epoll.poll(0.01)  # what a socket that was never connected has to say
        expect(name_of(s.connect_ex(DESTINATION)), "EINPROGRESS", "connect()")
        events = [e for _, e in epoll.poll(PATIENCE)]
        again = [name_of(s.connect_ex(DESTINATION)), name_of(s.connect_ex(DESTINATION))]
        words = b""
        s.settimeout(PATIENCE)
        while len(words) < 11:
            words += s.recv(20)
        return [events, epoll.poll(0.05), again, words.decode(), echo(s), s.getpeername()]
    expect(through(proxy, held), [[select.EPOLLOUT], [], ["ok", "EISCONN"], "first words", "hello", list(DESTINATION)], "")
    proxy.close()


@test
def names_families_and_counters():
    for family in (socket.AF_INET, socket.AF_INET6):
        proxy = Proxy(grant, family)

        def held(control, descriptor):
            record = []
            for kind, address in ((socket.AF_INET, DESTINATION), (socket.AF_INET6, DESTINATION6),
                                  (socket.AF_INET6, ("::ffff:192.0.2.1", 80))):
                s = stream(kind)
                result = name_of(s.connect_ex(address))
                record.append([result] + ([s.getpeername()[:2], echo(s)] if result == "ok" else []))
            s = stream(socket.AF_INET6)
            s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            record.append(name_of(s.connect_ex(DESTINATION6)))
            record.append([s.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY),
                           name_of(stream(socket.AF_INET6).connect_ex(DESTINATION6))])
            return record
        ip6 = [["ok", list(DESTINATION6), "hello"], ["ok", ["::ffff:192.0.2.1", 80], "hello"]]
        expect(through(proxy, held), [["ok", list(DESTINATION), "hello"], *ip6, "ok", [1, "ok"]] if family == socket.AF_INET else
               [["ENETUNREACH"], *ip6, "ok", [1, "ok"]], f"proxy of family {family}")
        proxy.close()
    no_flows()


def stats(descriptor):
    """GET_STATS, by name."""
    names = ("generation", "members", "active", "connecting", "connected", "refused", "failed", "bypassed", "blocked",
             "sent", "received")
    buffer = bytearray(struct.pack("=II11Q", 96, 0, *[0] * 11))
    fcntl.ioctl(descriptor, GET_STATS, buffer)
    return dict(zip(names, struct.unpack("=II11Q", buffer)[2:]))


@test
def bytes_are_the_applications_own():
    def script(conversation):
        grant_once(conversation, 100000)
    for end in ("ours", "theirs", "reset"):
        proxy = Proxy(script)

        def held(control, descriptor):
            s = stream()
            expect(name_of(s.connect_ex(DESTINATION)), "ok", "connect()")
            s.sendall(bytes(100000))
            received = 0
            while received < 300000:
                received += len(s.recv(100000))
            now = stats(descriptor)
            if end == "ours":
                s.shutdown(socket.SHUT_WR)
                expect(s.recv(1), b"", "the end")
            elif end == "theirs":
                s.sendall(b"x")
                expect(s.recv(1), b"", "the end")
            else:
                s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            s.close()
            wait_until(lambda: stats(descriptor)["active"] == 0, "the flow to end")
            later = stats(descriptor)
            return [now["connected"], now["active"], now["sent"], now["received"], later["sent"], later["received"]]
        expect(through(proxy, held), [1, 1, 100000, 300000, 100000 + (end == "theirs"), 300000], end)
        proxy.close()


@test
def settings_before_connect_do_no_harm():
    for name, settings in {"low water mark": [(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 100000)],
                           "cork": [(socket.IPPROTO_TCP, socket.TCP_CORK, 1)],
                           "small buffers": [(socket.SOL_SOCKET, socket.SO_SNDBUF, 1), (socket.SOL_SOCKET, socket.SO_RCVBUF, 1),
                                             (socket.IPPROTO_TCP, socket.TCP_MAXSEG, 536)]}.items():
        proxy = Proxy(grant)

        def held(control, descriptor):
            s = stream()
            for setting in settings:
                s.setsockopt(*setting)
            before = time.monotonic()
            expect(name_of(s.connect_ex(DESTINATION)), "ok", name)
            took = time.monotonic() - before
            values = [s.getsockopt(*setting[:2]) for setting in settings]
            s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)
            s.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 0)
            expect(echo(s), "hello", name)
            return values[0]
        got = through(proxy, held)
        expect(got, settings[0][2] if name != "small buffers" else got, name)
        proxy.close()


@test
def a_server_by_name_is_passed_over():
    """Names are for whoever writes the configuration to look up."""
    proxy = Proxy(grant)

    def held(control, descriptor):
        s = stream()
        record = [name_of(s.connect_ex(DESTINATION)), echo(s)]
        os.write(descriptor, b"server socks5://proxy.example:1080\n")
        record.append(name_of(stream().connect_ex(DESTINATION)))
        snapshot = os.read(descriptor, 32768).decode().splitlines()
        return record + [line for line in snapshot if line.startswith(("server: ", "error: "))]
    expect(run(held, f"server socks5://proxy.example:1080\nserver {proxy.uri}\n"),
           ["ok", "hello", "ENETUNREACH",
            "server: 0 socks5://proxy.example:1080 weight=1 priority=0 state=down connected=0 refused=0 failed=1",
            "error: socks5://proxy.example:1080: the kernel does not resolve names; give the server's address"], "")
    proxy.close()


@test
def settings_survive_a_failover():
    good = Proxy(grant)
    bad = Proxy(lambda conversation: conversation.read(3))

    def held(control, descriptor):
        s = stream(socket.AF_INET6)
        s.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 1000)
        s.setsockopt(socket.IPPROTO_TCP, socket.TCP_WINDOW_CLAMP, 20000)
        s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        s.bind(("::", 45678))
        expect(name_of(s.connect_ex(("::ffff:192.0.2.1", 80))), "ok", "connect()")
        return [s.getsockopt(socket.IPPROTO_TCP, socket.TCP_WINDOW_CLAMP), s.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY),
                s.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG) <= 1000, s.getsockname()[1], echo(s)]
    six = Proxy(lambda conversation: conversation.read(3), socket.AF_INET6)
    for order in ([bad, good], [six, bad, good], [bad, six, good]):
        config = "".join(f"server {proxy.uri}\n" for proxy in order)
        expect(run(held, config), [20000, 1, True, 45678, "hello"], f"{len(order)} servers")
    last6 = Proxy(grant, socket.AF_INET6)
    expect(run(held, f"server {bad.uri}\nserver {last6.uri}\n"), [20000, 1, True, 45678, "hello"], "IPv4, then IPv6")
    for proxy in (good, bad, six, last6):
        proxy.close()


@test
def fast_open_sends_after_the_handshake():
    Path("/proc/sys/net/ipv4/tcp_fastopen").write_text("3")
    proxy = Proxy(grant)

    def held(control, descriptor):
        s = stream()
        record = [attempt(s.sendto, b"hello", MSG_FASTOPEN, DESTINATION), s.recv(5, socket.MSG_WAITALL).decode()]
        s = stream(blocking=False)
        record += [attempt(s.sendto, b"hello", MSG_FASTOPEN, DESTINATION), answer(s), echo(s)]
        s = stream()
        s.setsockopt(socket.IPPROTO_TCP, TCP_FASTOPEN_CONNECT, 1)
        record += [name_of(s.connect_ex(DESTINATION)), echo(s), s.getpeername()]
        return record
    for _ in range(2):  # the second time there might be a cookie
        expect(through(proxy, held), [5, "hello", "EINPROGRESS", "ok", "hello", "ok", "hello", list(DESTINATION)], "")
    proxy.close()


@test
def no_way_around_by_another_transport():
    proxy = Proxy(grant)
    expect(through(proxy, lambda *_: attempt(socket.socket, socket.AF_INET, socket.SOCK_STREAM, IPPROTO_MPTCP)),
           "EPROTONOSUPPORT", "MPTCP")
    proxy.close()


def segment_routing(address):
    """An IPv6 routing header that leads by way of one host. Anybody may give a socket one."""
    return bytes([0, 2, 4, 0, 0, 0, 0, 0]) + socket.inet_pton(socket.AF_INET6, address)


@test
def no_way_around_by_a_routing_header():
    header = (socket.IPPROTO_IPV6, socket.IPV6_RTHDR, segment_routing("::1"))
    no_header = (socket.IPPROTO_IPV6, socket.IPV6_RTHDR, b"")
    proxy = Proxy(grant)

    def as_a_member(control, descriptor):
        s, u = stream(socket.AF_INET6), socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
        record = [attempt(s.setsockopt, *header), attempt(s.setsockopt, *no_header), attempt(s.connect, DESTINATION6), echo(s)]
        record += [attempt(s.setsockopt, *header), attempt(u.sendto, b"x", ("::1", 9)), attempt(u.setsockopt, *header)]
        return record + [attempt(u.sendto, b"x", ("::1", 9))]
    expect(run(as_a_member, f"server {proxy.uri}\nudp block\nbypass ::1\n"),
           ["EPERM", "ok", "ok", "hello", "EPERM", 1, "ok", "ENETUNREACH"], "a member")

    def before_it_was_one(control, descriptor):
        s = stream(socket.AF_INET6)
        record = [attempt(s.setsockopt, *header)]
        enabled = member(f"server {proxy.uri}\nbypass ::1\n")
        record += [attempt(s.connect, DESTINATION6), attempt(s.connect, ("::1", 9)), stats(enabled)["blocked"]]
        return record + [attempt(s.setsockopt, *no_header), attempt(s.connect, DESTINATION6), echo(s)]
    expect(run(before_it_was_one), ["ok", "ENETUNREACH", "ENETUNREACH", 2, "ok", "ok", "hello"], "one that became a member")
    proxy.close()


@test
def errors_on_the_way_stay_hidden():
    """The first server is unreachable: neither SO_ERROR nor EPOLLERR nor the error queue may tell."""
    subprocess.run(["ip", "route", "replace", "unreachable", "203.0.113.0/24"], check=True)
    proxy = Proxy(grant)

    def held(control, descriptor):
        s = start(DESTINATION)
        return [answer(s), [e for _, e in ends_of_poll(s)], s.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR),
                attempt(s.recv, 10, socket.MSG_ERRQUEUE), echo(s)]
    config = f"server socks5://203.0.113.1:1080\nserver socks5://{SILENT}:1080\ntimeout 10\nserver {proxy.uri}\n"
    expect(run(held, config), ["ok", [select.POLLOUT], 0, "EAGAIN", "hello"], "")
    proxy.close()


@test
def user_timeout_counts():
    proxy = Proxy(silent_at("request"))
    for milliseconds in (1, 300):
        def held(control, descriptor):
            s = stream()
            s.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)
            return name_of(s.connect_ex(DESTINATION))
        expect(through(proxy, held), "ETIMEDOUT", f"{milliseconds} ms")
    proxy.close()


# ---- hostile proxies ----


@test
def strange_answers_end_with_an_error():
    def urgent(conversation):
        conversation.read(3)
        conversation.send(b"\5", socket.MSG_OOB)
        conversation.pause()

    def late_reset(conversation):
        conversation.greeting()
        conversation.request()
        conversation.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        conversation.connection.close()

    def flood(conversation):
        conversation.read(3)
        conversation.send(b"\0" * (1 << 20))

    def half_closed(conversation):
        conversation.greeting()
        conversation.connection.shutdown(socket.SHUT_WR)
        conversation.pause()

    def drop_by_drop(conversation):
        for byte in b"\5\0" + refusal(4):
            conversation.send(bytes([byte]))
            time.sleep(0.005)
        conversation.pause()

    def endless_head(conversation):
        conversation.read(1)
        while True:
            conversation.send(b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 4000)

    for name, script, scheme, result in (
            ("urgent byte", urgent, "socks5", "ENETUNREACH"), ("reset", late_reset, "socks5", "ENETUNREACH"),
            ("flood", flood, "socks5", "ENETUNREACH"), ("half-close", half_closed, "socks5", "ENETUNREACH"),
            ("drop by drop", drop_by_drop, "socks5", "EHOSTUNREACH"), ("endless head", endless_head, "http", "ENETUNREACH")):
        proxy = Proxy(script)
        for blocking in (True, False):
            def held(control, descriptor):
                s = stream(blocking=blocking)
                first = name_of(s.connect_ex(DESTINATION))
                return first if blocking else answer(s)
            expect(run(held, f"server {proxy.uri.replace('socks5', scheme)}\ntimeout 600\n"), result, name)
        proxy.close()
    no_flows()


# ---- many, and sudden ends ----


def raise_limit(count):
    resource.setrlimit(resource.RLIMIT_NOFILE, (count, max(count, resource.getrlimit(resource.RLIMIT_NOFILE)[1])))


class Crowd:
    """A proxy for thousands: one thread, no scripts. Speaks SOCKS5 at once and holds every reply until `release`."""

    def __init__(self):
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=16384)
        self.uri = "socks5://127.0.0.1:%d" % self.listener.getsockname()[1]
        self.waiting, self.open, self.gone, self.asked = [], {}, 0, 0
        self.release, self.stop = threading.Event(), threading.Event()
        PROXIES.append(self)
        self.thread = threading.Thread(target=self.serve, daemon=True)
        self.thread.start()

    def serve(self):
        epoll = select.epoll()
        self.listener.setblocking(False)
        epoll.register(self.listener, select.EPOLLIN)
        while not self.stop.is_set():
            if self.release.is_set():
                for s in self.waiting:
                    attempt(s.send, GRANTED)
                self.waiting = []
            for fd, _ in epoll.poll(0.02):
                if fd == self.listener.fileno():
                    with contextlib.suppress(BlockingIOError):
                        while True:
                            s = self.listener.accept()[0]
                            s.setblocking(False)
                            self.open[s.fileno()] = [s, 0]
                            epoll.register(s, select.EPOLLIN)
                    continue
                entry = self.open[fd]
                try:
                    data = entry[0].recv(4096)
                except OSError:
                    data = b""
                if not data:
                    epoll.unregister(fd)
                    entry[0].close()
                    del self.open[fd]
                    self.gone += 1
                elif entry[1] == 0:
                    entry[1] = 1
                    attempt(entry[0].send, b"\5\0")
                elif entry[1] == 1:
                    entry[1] = 2
                    self.asked += 1
                    self.waiting.append(entry[0])
                else:
                    attempt(entry[0].send, data)

    def close(self):
        self.stop.set()
        self.thread.join()
        self.listener.close()
        for entry in list(self.open.values()):
            entry[0].close()


def crowd(count, go=None):
    """`count` non-blocking connects; says so when all are on their way; then the tally of their ends."""
    def inside(control, descriptor):
        raise_limit(count + 100)
        epoll, sockets, tally = select.epoll(), {}, {}
        for number in range(count):
            s = stream(blocking=False)
            code = name_of(s.connect_ex(("192.0.2.%d" % (number % 250 + 1), 80)))
            if code == "EINPROGRESS":
                sockets[s.fileno()] = s
                epoll.register(s, select.EPOLLOUT | select.EPOLLET)
            else:
                tally[code] = tally.get(code, 0) + 1
        control.send(b"x")
        kept = []
        while sockets:
            events = epoll.poll(PATIENCE * 5)
            if not events:
                tally["hangs"] = len(sockets)
                break
            for fd, _ in events:
                s = sockets.pop(fd)
                epoll.unregister(fd)
                code = name_of(s.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))
                tally[code] = tally.get(code, 0) + 1
                kept.append(s)
        control.send(b"x")
        control.recv(1)
        good = sum(attempt(echo, s) == "hello" for s in kept if tally.get("ok"))
        return [tally, good]
    return inside


@test
def thousands_in_flight():
    count = int(10000 * SCALE)
    raise_limit(count + 200)
    proxy = Crowd()
    child = Child(crowd(count), f"server {proxy.uri}\ntimeout 600\n")
    child.hear()
    wait_until(lambda: proxy.asked == count, "every handshake to be in flight", PATIENCE * 5)
    proxy.release.set()
    child.hear()
    child.tell(b"x")
    expect(child.result(PATIENCE * 5), [{"ok": count}, count], "")
    proxy.close()
    no_flows()


@test
def killed_in_the_middle():
    count = int(2000 * SCALE)
    proxy = Crowd()
    child = Child(crowd(count), f"server {proxy.uri}\ntimeout 600\n")
    child.hear()
    wait_until(lambda: proxy.asked == count, "every handshake to be in flight", PATIENCE * 5)
    child.kill()
    wait_until(lambda: proxy.gone == count, "the proxy to see them go", PATIENCE * 5)
    proxy.close()
    no_flows()


def load(module):
    subprocess.run(["busybox", "insmod", module], check=True)


def unload():
    """A reference of a moment ago may still be there."""
    subprocess.run(["busybox", "rmmod", "mutex_proxy"], check=True)


@test
def unloading_with_handshakes_in_flight():
    count = int(1000 * SCALE)
    established, proxy = Proxy(grant), Crowd()

    def lasts(control, descriptor):
        s = stream()
        expect(name_of(s.connect_ex(DESTINATION)), "ok", "connect()")
        control.send(b"x")
        control.recv(1)
        record = [echo(s), s.getpeername(), name_of(stream().connect_ex(DESTINATION))]
        control.send(b"x")
        control.recv(1)
        return record + [name_of(stream().connect_ex(DESTINATION))]
    lasting = Child(lasts, f"server {established.uri}\n")
    lasting.hear()
    child = Child(crowd(count), f"server {proxy.uri}\ntimeout 600\n")
    child.hear()
    wait_until(lambda: proxy.asked == count, "every handshake to be in flight", PATIENCE * 5)
    unload()
    child.hear()
    child.tell(b"x")
    expect(child.result(PATIENCE * 5), [{"ENETUNREACH": count}, 0], "handshakes in flight")
    lasting.tell(b"x")
    lasting.hear()
    load(MODULE)
    lasting.tell(b"x")
    expect(lasting.result(), ["hello", list(DESTINATION), "ENETUNREACH", "ok"], "established before, new without, new with")
    established.close()
    proxy.close()
    no_flows()


@test
def unloading_under_traffic():
    """Loading and unloading again and again while members connect, talk, refuse, hang up and are killed."""
    proxies = [Proxy(grant), Proxy(refuse(5)), Proxy(lambda conversation: conversation.read(3)), Proxy(silent_at("request"))]
    config = "strategy random\ntimeout 20\n" + "".join(f"server {proxy.uri}\n" for proxy in proxies)
    results = ("ok", "ECONNREFUSED", "ENETUNREACH")
    seen = mmap.mmap(-1, len(results))  # by any of the children since it was cleared: a byte for each result

    def busy(control, descriptor):
        control.setblocking(False)
        for turn in itertools.count():
            with contextlib.suppress(BlockingIOError):
                control.recv(1)
                return
            sockets = [stream(blocking=False) for _ in range(8)]
            for number, s in enumerate(sockets):
                s.connect_ex(DESTINATION)
                if number % 3 == 0:
                    s.close()
                elif number % 3 == 1:
                    attempt(s.shutdown, socket.SHUT_RDWR)
            for s in sockets:
                if s.fileno() >= 0:
                    poller = select.poll()
                    poller.register(s, select.POLLOUT)
                    poller.poll(100)
                    attempt(s.send, b"x")
                    s.close()
            t = stream()
            # Most give up on the silent server; the others see what comes in the end, however slow the machine is.
            t.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", 0, 200000 if turn % 4 else 0))
            code = name_of(t.connect_ex(DESTINATION))
            if code in results:
                seen[results.index(code)] = 1
            t.close()
    children = [Child(busy, config) for _ in range(4)]
    for _ in range(max(3, int(20 * SCALE))):
        victim = Child(busy, config)
        time.sleep(0.3)
        unload()
        time.sleep(0.1)
        load(MODULE)
        victim.kill()
    seen[:] = bytes(len(results))
    wait_until(lambda: seen[:2] == b"\1\1", "members to connect and to be refused")
    unload()
    seen[:] = bytes(len(results))
    wait_until(lambda: seen[2], "members to fail without the module")
    load(MODULE)
    for child in children:
        child.tell(b"x")
    for child in children:
        child.result()
    for proxy in proxies:
        proxy.close()
    no_flows()


@test
def threads_at_cross_purposes():
    """connect, close, shutdown, dup2, poll and disconnect of the same descriptor by several threads."""
    proxies = [Proxy(grant), Proxy(refuse(4)), Proxy(silent_at("greeting"))]
    config = "strategy round-robin\ntimeout 1\n" + "".join(f"server {proxy.uri}\n" for proxy in proxies)

    def inside(control, descriptor):
        slots = [stream(blocking=False).detach() for _ in range(4)]
        end = time.monotonic() + max(3, 15 * SCALE)
        raw = struct.pack("=HH4s8x", socket.AF_INET, socket.htons(80), socket.inet_aton(DESTINATION[0]))
        unspec = struct.pack("=H14x", socket.AF_UNSPEC)

        def connects():
            while time.monotonic() < end:
                for fd in slots:
                    libc.connect(fd, raw, 16)

        def replaces():
            while time.monotonic() < end:
                for fd in slots:
                    s = stream(blocking=False)
                    os.dup2(s.fileno(), fd)
                    s.close()
                    time.sleep(0.01)

        def disturbs():
            while time.monotonic() < end:
                for fd in slots:
                    libc.connect(fd, unspec, 16)
                    libc.shutdown(fd, 2)
                    attempt(os.write, fd, b"x")
                    attempt(os.read, fd, 10)
                    poller = select.poll()
                    poller.register(fd)
                    poller.poll(1)
                    buffer = ctypes.create_string_buffer(28)
                    libc.getpeername(fd, buffer, ctypes.byref(ctypes.c_int(28)))
        threads = [threading.Thread(target=what) for what in (connects, connects, replaces, disturbs, disturbs)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    run(inside, config)
    for proxy in proxies:
        proxy.close()
    no_flows()


def prepare():
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    subprocess.run(["ip", "link", "add", "swallow", "type", "dummy"], check=True)
    subprocess.run(["ip", "addr", "add", f"{OWN}/24", "dev", "swallow"], check=True)
    subprocess.run(["ip", "link", "set", "swallow", "up"], check=True)
    subprocess.run(["ip", "route", "add", "192.0.2.0/24", "dev", "swallow"], check=True)


def main():
    global MODULE
    MODULE, *names = sys.argv[1:]
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    prepare()
    failed = 0
    for name, function in TESTS.items():
        if names and not any(word in name for word in names):
            continue
        PROXIES.clear()
        try:
            function()
            print(f"ok held.{name}", flush=True)
        except BaseException as error:
            failed += 1
            text = str(error) if isinstance(error, AssertionError) else traceback.format_exc()
            while PROXIES:
                PROXIES.pop().close()
            print(f"FAIL held.{name}", *(f"    {line}" for line in text.splitlines()), sep="\n", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
