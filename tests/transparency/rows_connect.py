# SPDX-License-Identifier: MIT
"""Rows about connections that come to be: every way to wait for connect()."""
import fcntl
import os
import select
import signal
import socket
import struct
import termios

import lib
from rows import (attempt, await_flags, connect_result, disconnect, echo, error_of, flags, names, poll, read_exactly,
                  row, tcp_state)
from target import COMMAND, FULL, GREETING, RESETTING

EVERY = ("v4", "v6", "v6only", "mapped")


@row(*EVERY)
def blocking(peer):
    s = peer.socket()
    before = names(s)
    result = connect_result(s, peer.at(COMMAND))
    return [before, result, names(s), error_of(s), poll(s), tcp_state(s), connect_result(s, peer.at(COMMAND)), echo(s)]


@row(*EVERY)
def nonblocking_select(peer):
    s = peer.socket(blocking=False)
    first = connect_result(s, peer.at(COMMAND))
    readable, writable, exceptional = select.select([s], [s], [s], lib.PATIENCE)
    return [first, len(readable), len(writable), len(exceptional), error_of(s), names(s),
            connect_result(s, peer.at(COMMAND)), connect_result(s, peer.at(COMMAND)), echo(s)]


@row("v4", "v6")
def nonblocking_poll(peer):
    s = peer.socket(blocking=False)
    return [poll(s), connect_result(s, peer.at(COMMAND)), await_flags(s, "OUT"), error_of(s), names(s), echo(s)]


@row("v4", "v6")
def nonblocking_epoll_level(peer):
    s = peer.socket(blocking=False)
    epoll = select.epoll()
    epoll.register(s, select.EPOLLIN | select.EPOLLOUT | select.EPOLLRDHUP)
    unconnected = [flags(mask) for _, mask in epoll.poll(0)]
    first = connect_result(s, peer.at(COMMAND))
    await_flags(s, "OUT")
    return [unconnected, first, [[flags(mask) for _, mask in epoll.poll(0)] for _ in range(3)], echo(s)]


@row("v4", "v6")
def nonblocking_epoll_edge(peer):
    s = peer.socket(blocking=False)
    first = connect_result(s, peer.at(COMMAND))
    epoll = select.epoll()
    epoll.register(s, select.EPOLLIN | select.EPOLLOUT | select.EPOLLRDHUP | select.EPOLLET)
    connected = [flags(mask) for _, mask in epoll.poll(lib.PATIENCE)]
    quiet = [flags(mask) for _, mask in epoll.poll(0)]
    s.sendall(b"close\n")
    seen = set()
    while "RDHUP" not in seen:
        events = epoll.poll(lib.PATIENCE)
        seen.update(name for _, mask in events for name in flags(mask).split("|"))
        if not events:
            break
    return [first, connected, quiet, sorted(seen), attempt(s.recv, 1), [flags(mask) for _, mask in epoll.poll(0)]]


@row("v4", "v6")
def oneshot_epoll(peer):
    s = peer.socket(blocking=False)
    connect_result(s, peer.at(COMMAND))
    epoll = select.epoll()
    epoll.register(s, select.EPOLLOUT | select.EPOLLONESHOT)
    first = [flags(mask) for _, mask in epoll.poll(lib.PATIENCE)]
    again = [flags(mask) for _, mask in epoll.poll(0)]
    epoll.modify(s, select.EPOLLOUT | select.EPOLLONESHOT)
    return [first, again, [flags(mask) for _, mask in epoll.poll(lib.PATIENCE)], echo(s)]


@row(*EVERY)
def pending(peer):
    """The destination does not answer: everything an application can ask in the meantime."""
    s = peer.socket(blocking=False)
    return [connect_result(s, peer.at(FULL)), connect_result(s, peer.at(FULL)), poll(s, milliseconds=100),
            attempt(s.send, b"early"), attempt(s.recv, 1), names(s), error_of(s), tcp_state(s),
            struct.unpack("i", fcntl.ioctl(s, termios.FIONREAD, bytes(4)))[0],
            connect_result(s, peer.at(COMMAND)), attempt(s.close)]


@row("v4", "v6")
def pending_then_shutdown(peer):
    s = peer.socket(blocking=False)
    connect_result(s, peer.at(FULL))
    stopped = attempt(s.shutdown, socket.SHUT_RDWR)
    after = [stopped, poll(s), error_of(s), tcp_state(s), names(s)]
    return [after, connect_result(s, peer.at(COMMAND)), await_flags(s, "OUT"), names(s)]


@row("v4")
def pending_then_disconnect(peer):
    """connect() to AF_UNSPEC ends the attempt; the same socket can connect elsewhere."""
    s = peer.socket(blocking=False)
    connect_result(s, peer.at(FULL))
    return [disconnect(s), names(s), poll(s), connect_result(s, peer.at(COMMAND)), await_flags(s, "OUT"),
            names(s), echo(s)]


@row("v4", "v6")
def disconnect_and_reconnect(peer):
    s = peer.open("echo")
    s.sendall(b"x")
    read_exactly(s, 1)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    return [disconnect(s), names(s), connect_result(s, peer.at(COMMAND, lib.TARGET4B, "fd88::2")), names(s), echo(s)]


@row("v4", "v6")
def send_timeout(peer):
    """SO_SNDTIMEO bounds connect()."""
    s = peer.socket()
    s.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", 0, 100_000))
    return [connect_result(s, peer.at(FULL)), connect_result(s, peer.at(FULL)), poll(s), error_of(s)]


@row("v4")
def receive_timeout(peer):
    """SO_RCVTIMEO does not bound connect(), only recv()."""
    s = peer.socket()
    s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", 0, 50_000))
    return [connect_result(s, peer.at(COMMAND)), attempt(s.recv, 1),
            list(struct.unpack("ll", s.getsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, 16)))]


@row("v4")
def syn_count(peer):
    """The kernel's own limit on connect(), shortened."""
    s = peer.socket()
    s.setsockopt(socket.IPPROTO_TCP, socket.TCP_SYNCNT, 1)
    return [connect_result(s, peer.at(FULL)), s.getsockopt(socket.IPPROTO_TCP, socket.TCP_SYNCNT), error_of(s),
            connect_result(s, peer.at(COMMAND)), s.getsockopt(socket.IPPROTO_TCP, socket.TCP_SYNCNT)]


@row("v4")
def user_timeout(peer):
    s = peer.socket(blocking=False)
    s.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 500)
    first = connect_result(s, peer.at(FULL))
    return [first, await_flags(s, "OUT"), error_of(s), s.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)]


@row("v4", "v6")
def interrupted(peer):
    """A signal without SA_RESTART ends a blocking connect(); the attempt goes on."""
    s = peer.socket()
    signal.signal(signal.SIGALRM, lambda *_: None)
    signal.siginterrupt(signal.SIGALRM, True)
    signal.setitimer(signal.ITIMER_REAL, 0.1)
    first = connect_result(s, peer.at(FULL))
    s.setblocking(False)
    return [first, connect_result(s, peer.at(FULL)), poll(s), error_of(s)]


@row("v4", "v6", "mapped")
def server_speaks_first(peer):
    s = peer.socket()
    return [connect_result(s, peer.at(GREETING)), read_exactly(s, 10).decode(), names(s)]


@row("v4", "v6")
def reset_at_once(peer):
    """The reset may come before connect() returns; it shows once, there or in recv()."""
    s = peer.socket()
    shown = [connect_result(s, peer.at(RESETTING)), await_flags(s, "IN") and attempt(s.recv, 1)]
    return ["ECONNRESET" in shown, error_of(s), attempt(s.send, b"x"), names(s)["peer"]]


@row("v4", "v6")
def bad_arguments(peer):
    s = peer.socket()
    other = ("fd88::1", COMMAND) if peer.family == "v4" else (lib.TARGET4, COMMAND)
    from rows import _libc, outcome, packed
    raw, _ = packed(peer.at(COMMAND))
    return [outcome(_libc.connect(s.fileno(), raw, 4)), connect_result(s, other) if peer.family == "v4" else "",
            outcome(_libc.connect(s.fileno(), None, 16)), outcome(_libc.connect(0, raw, len(raw))),
            outcome(_libc.connect(999, raw, len(raw))), connect_result(s, peer.at(COMMAND)), echo(s)]


@row("v4", "v6")
def connect_listener(peer):
    """A listening socket cannot connect."""
    s = peer.socket()
    s.bind((peer.host(lib.APP4, lib.APP6), 0))
    s.listen()
    return [connect_result(s, peer.at(COMMAND)), names(s)]


@row("v4", "v6")
def many_waiting(peer):
    """Two hundred at once from one thread, good and refused in turn."""
    pending_sockets = {}
    epoll = select.epoll()
    for number in range(200):
        s = peer.socket(blocking=False)
        connect_result(s, peer.at(COMMAND if number % 2 else lib.CLOSED_PORT))
        epoll.register(s, select.EPOLLOUT | select.EPOLLONESHOT)
        pending_sockets[s.fileno()] = (number % 2, s)
    counts = {}
    while pending_sockets and (events := epoll.poll(lib.PATIENCE)):
        for fd, mask in events:
            good, s = pending_sockets.pop(fd)
            result = f"{'good' if good else 'closed'} {flags(mask)} {error_of(s)}"
            counts[result] = counts.get(result, 0) + 1
            s.close()
    return [sorted(counts.items()), len(pending_sockets)]


@row("v4")
def duplicated(peer):
    """connect() through one descriptor, everything else through its copy, the first one closed."""
    s = peer.socket()
    copy = socket.socket(fileno=os.dup(s.fileno()))
    first = connect_result(s, peer.at(COMMAND))
    s.close()
    return [first, names(copy), echo(copy)]
