# SPDX-License-Identifier: MIT
"""Rows about sockets that are special: bound, with options, of other kinds, or not for the proxy at all."""
import errno
import socket
import struct

import lib
from rows import (attempt, await_flags, connect_result, echo, error_of, names, poll, read_exactly, row, tcp_state)
from target import COMMAND, DATAGRAM, FULL

IPPROTO_MPTCP = 262
MSG_FASTOPEN = 0x20000000
TCP_FASTOPEN_CONNECT = 30
IP_BIND_ADDRESS_NO_PORT = 24
BOTH = ("v4", "v6")

# ---- bound ----


@row("v4", "v6", "v6only", "mapped")
def bound_to_address(peer):
    s = peer.socket()
    s.bind((peer.host(lib.APP4, lib.APP6), 0))
    port = s.getsockname()[1]
    return [names(s), connect_result(s, peer.at(COMMAND)), names(s), s.getsockname()[1] == port, echo(s)]


@row("v4", "v6")
def bound_to_address_late_port(peer):
    s = peer.socket()
    s.setsockopt(socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
    s.bind((peer.host(lib.APP4, lib.APP6), 0))
    return [names(s), connect_result(s, peer.at(COMMAND)), names(s), echo(s)]


@row("v4", "v6", "mapped")
def bound_to_port(peer):
    s = peer.socket()
    s.bind(("" if peer.family == "v4" else "::", 0))
    port = s.getsockname()[1]
    return [connect_result(s, peer.at(COMMAND)), names(s), s.getsockname()[1] == port, echo(s)]


@row("v4")
def bound_port_is_taken(peer):
    s, other = peer.socket(), peer.socket()
    s.bind((lib.APP4, 0))
    connect_result(s, peer.at(COMMAND))
    return attempt(other.bind, s.getsockname())


@row("v4")
def same_port_to_two_destinations(peer):
    first, second = peer.socket(), peer.socket()
    for s in (first, second):
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    first.bind((lib.APP4, 0))
    second.bind(first.getsockname())
    return [connect_result(first, peer.at(COMMAND)), connect_result(second, peer.at(COMMAND, lib.TARGET4B)),
            first.getsockname() == second.getsockname(), names(first), names(second), echo(first), echo(second)]


@row("v4", "v6")
def bound_to_device(peer):
    s = peer.socket()
    s.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"out\0")
    return [connect_result(s, peer.at(COMMAND)), names(s), echo(s)]


@row("v4", "v6")
def refused_bound_to_device(peer):
    s = peer.socket()
    s.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"out\0")
    return [connect_result(s, peer.at(lib.CLOSED_PORT)), connect_result(s, peer.at(COMMAND)), names(s), echo(s)]


# ---- options ----

OPTIONS = {
    "SO_KEEPALIVE": (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    "SO_PRIORITY": (socket.SOL_SOCKET, socket.SO_PRIORITY, 5),
    "SO_MARK": (socket.SOL_SOCKET, socket.SO_MARK, 77),
    "SO_RCVLOWAT": (socket.SOL_SOCKET, socket.SO_RCVLOWAT, 3),
    "SO_RCVBUF": (socket.SOL_SOCKET, socket.SO_RCVBUF, 70_000),
    "SO_SNDBUF": (socket.SOL_SOCKET, socket.SO_SNDBUF, 70_000),
    "SO_REUSEADDR": (socket.SOL_SOCKET, socket.SO_REUSEADDR, 1),
    "TCP_NODELAY": (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
    "TCP_CORK": (socket.IPPROTO_TCP, socket.TCP_CORK, 1),
    "TCP_KEEPIDLE": (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 33),
    "TCP_KEEPINTVL": (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 22),
    "TCP_KEEPCNT": (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 4),
    "TCP_USER_TIMEOUT": (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 12_345),
    "TCP_SYNCNT": (socket.IPPROTO_TCP, socket.TCP_SYNCNT, 3),
    "TCP_LINGER2": (socket.IPPROTO_TCP, socket.TCP_LINGER2, 9),
    "TCP_NOTSENT_LOWAT": (socket.IPPROTO_TCP, 25, 8192),
    "IP_TOS": (socket.IPPROTO_IP, socket.IP_TOS, 0x20),
    "IP_TTL": (socket.IPPROTO_IP, socket.IP_TTL, 61),
}


def option_values(s):
    """Every option, what the socket was made as, and the congestion control."""
    values = {name: s.getsockopt(level, option) for name, (level, option, _) in OPTIONS.items()}
    values["made as"] = [s.getsockopt(socket.SOL_SOCKET, option) for option in
                         (socket.SO_DOMAIN, socket.SO_TYPE, socket.SO_PROTOCOL, socket.SO_ACCEPTCONN)]
    values["TCP_CONGESTION"] = s.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16).decode()
    values["SO_LINGER"] = s.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 8).hex()
    values["SO_BINDTODEVICE"] = s.getsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, 16).decode()
    values["TCP_FASTOPEN_CONNECT"] = s.getsockopt(socket.IPPROTO_TCP, TCP_FASTOPEN_CONNECT)
    return values


def without_buffers(values):
    """Buffers that nobody set grow by themselves."""
    return {name: value for name, value in values.items() if name not in ("SO_RCVBUF", "SO_SNDBUF")}


@row("v4", "v6")
def options_untouched(peer):
    """Nobody set anything: nothing has changed after connect(), nor after a refusal."""
    s, refused = peer.socket(), peer.socket()
    s.connect(peer.at(COMMAND))
    result = connect_result(refused, peer.at(lib.CLOSED_PORT))
    return [without_buffers(option_values(s)), result, without_buffers(option_values(refused))]


@row("v4", "v6")
def options_kept(peer):
    s = peer.socket()
    for level, option, value in OPTIONS.values():
        s.setsockopt(level, option, value)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 7))
    before = option_values(s)
    return [connect_result(s, peer.at(COMMAND)), option_values(s) == before, before, option_values(s)]


@row("v4", "v6")
def options_set_while_pending(peer):
    s = peer.socket(blocking=False)
    connect_result(s, peer.at(FULL))
    results = [attempt(s.setsockopt, level, option, value) for level, option, value in OPTIONS.values()]
    return [results, option_values(s)]


# ---- not connected ----


@row("v4", "v6")
def never_connected(peer):
    s = peer.socket(blocking=False)
    return [names(s), attempt(s.send, b"x"), attempt(s.recv, 1), attempt(s.shutdown, socket.SHUT_WR), poll(s),
            error_of(s), tcp_state(s)]


# ---- other kinds ----


@row("v4", "v6")
def fast_open(peer):
    """sendto(MSG_FASTOPEN) connects and sends."""
    s = peer.socket()
    sent = attempt(s.sendto, b"echo\nquick", MSG_FASTOPEN, peer.at(COMMAND))
    return [sent, read_exactly(s, 5).decode(), names(s), connect_result(s, peer.at(COMMAND))]


@row("v4", "v6")
def fast_open_again(peer):
    """Several, one after the other: whatever was learnt from the first must not spoil the next."""
    results = []
    for _ in range(3):
        with peer.socket() as s:
            sent = attempt(s.sendto, b"echo\nquick", MSG_FASTOPEN, peer.at(COMMAND))
            results.append([sent, read_exactly(s, 5).decode()])
    return results


@row("v4", "v6")
def fast_open_nonblocking(peer):
    s = peer.socket(blocking=False)
    first = attempt(s.sendto, b"echo\nquick", MSG_FASTOPEN, peer.at(COMMAND))
    flags = await_flags(s, "OUT")
    return [first, flags, error_of(s), names(s), echo(s)]


@row("v4", "v6")
def fast_open_refused(peer):
    s = peer.socket()
    return [attempt(s.sendto, b"hello", MSG_FASTOPEN, peer.at(lib.CLOSED_PORT)), error_of(s), names(s), poll(s)]


@row("v4", "v6")
def fast_open_connect(peer):
    s = peer.socket()
    s.setsockopt(socket.IPPROTO_TCP, TCP_FASTOPEN_CONNECT, 1)
    return [connect_result(s, peer.at(COMMAND)), echo(s), names(s)]


@row("v4", "v6")
def fast_open_connect_refused(peer):
    s = peer.socket()
    s.setsockopt(socket.IPPROTO_TCP, TCP_FASTOPEN_CONNECT, 1)
    return [connect_result(s, peer.at(lib.CLOSED_PORT)), error_of(s), names(s)]


def multipath_if_there(peer, **options):
    """As programs ask for MPTCP: where the kernel has none, TCP does. Members have none (docs/how-it-works.md)."""
    try:
        return peer.socket(protocol=IPPROTO_MPTCP, **options)
    except OSError as error:
        if error.errno != errno.EPROTONOSUPPORT:
            raise
        return peer.socket(**options)


@row("v4", "v6", "mapped")
def multipath(peer):
    s = multipath_if_there(peer)
    return [connect_result(s, peer.at(COMMAND)), names(s), error_of(s), echo(s)]


@row("v4", "v6")
def multipath_nonblocking(peer):
    s = multipath_if_there(peer, blocking=False)
    return [connect_result(s, peer.at(COMMAND)), await_flags(s, "OUT"), error_of(s), names(s), echo(s)]


@row("v4", "v6")
def multipath_refused(peer):
    s = multipath_if_there(peer)
    return [connect_result(s, peer.at(lib.CLOSED_PORT)), error_of(s)]


# ---- not for the proxy ----


def with_listener(family, listen_at, connect_to):
    """Connects to a listener of our own; the names at both ends."""
    server = socket.socket(family, socket.SOCK_STREAM)
    server.bind((listen_at, 0))
    server.listen()
    s = socket.socket(family, socket.SOCK_STREAM)
    result = connect_result(s, (connect_to, server.getsockname()[1]))
    if result != "ok":
        return [result]
    accepted, _ = server.accept()
    accepted.sendall(b"hi")
    return [result, s.getpeername()[0], s.getsockname()[0], accepted.getpeername() == s.getsockname(), read_exactly(s, 2).decode()]


@row("v4")
def loopback(peer):
    return [with_listener(socket.AF_INET, "127.0.0.1", where) for where in ("127.0.0.1", "0.0.0.0")] + [
        with_listener(socket.AF_INET, "0.0.0.0", "127.1.2.3"),
        connect_result(peer.socket(), ("127.0.0.1", lib.CLOSED_PORT))]


@row("v6")
def loopback6(peer):
    return [with_listener(socket.AF_INET6, "::1", where) for where in ("::1", "::")] + [
        with_listener(socket.AF_INET6, "::", "::ffff:127.0.0.1"),
        connect_result(peer.socket(), ("::1", lib.CLOSED_PORT))]


@row("v6")
def link_local(peer):
    """To wan's link-local address, where the target listens as well."""
    s = peer.socket()
    with open("/proc/net/if_inet6") as file:
        own = any(line.split()[5] == "out" and line.startswith("fe80") for line in file)
    result = connect_result(s, ("fe80::77%out", COMMAND))
    return [own, result, names(s)["peer"], echo(s)]


@row("v4")
def link_local4(peer):
    s = peer.socket()
    return [connect_result(s, ("169.254.7.7", COMMAND)), names(s), echo(s)]


@row("v4", "v6")
def inbound(peer):
    """A connection that comes in is nobody's business."""
    server = peer.socket()
    server.bind((peer.host(lib.APP4, lib.APP6), 0))
    server.listen()
    control = peer.open(f"dial {peer.host(lib.APP4, lib.APP6)} {server.getsockname()[1]}")
    accepted, _ = server.accept()
    greeting = read_exactly(accepted, 6).decode()
    accepted.sendall(b"well")
    accepted.close()
    return [greeting, read_exactly(control, 4).decode(), accepted.fileno()]


@row("v4", "v6")
def datagrams(peer):
    s = socket.socket(peer.domain, socket.SOCK_DGRAM)
    s.settimeout(lib.PATIENCE)
    s.sendto(b"ping", peer.at(DATAGRAM))
    answer, sender = s.recvfrom(10)
    s.connect(peer.at(DATAGRAM))
    s.send(b"pong")
    return [answer.decode(), sender[:2], s.recv(10).decode(), names(s)]


@row("v4")
def unix_sockets(peer):
    a, b = socket.socketpair()
    named = socket.socket(socket.AF_UNIX)
    a.send(b"x")
    return [b.recv(1).decode(), attempt(named.connect, "\0nobody-listens-here")]
