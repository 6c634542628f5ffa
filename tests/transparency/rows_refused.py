# SPDX-License-Identifier: MIT
"""Rows about connections that do not come to be."""
import select
import socket

import lib
from rows import (attempt, await_flags, connect_result, echo, error_of, flags, names, poll, row, tcp_state)
from target import COMMAND

EVERY = ("v4", "v6", "v6only", "mapped")


@row(*EVERY)
def refused(peer):
    s = peer.socket()
    return [connect_result(s, peer.at(lib.CLOSED_PORT)), error_of(s), names(s), poll(s), tcp_state(s),
            attempt(s.send, b"x"), attempt(s.recv, 1)]


@row(*EVERY)
def refused_then_connected(peer):
    s = peer.socket()
    return [connect_result(s, peer.at(lib.CLOSED_PORT)), connect_result(s, peer.at(lib.CLOSED_PORT)),
            connect_result(s, peer.at(COMMAND)), names(s), echo(s)]


@row(*EVERY)
def refused_nonblocking(peer):
    s = peer.socket(blocking=False)
    return [connect_result(s, peer.at(lib.CLOSED_PORT)), await_flags(s, "OUT"), names(s), error_of(s), error_of(s),
            poll(s), tcp_state(s)]


@row("v4", "v6")
def refused_nonblocking_again(peer):
    """The refusal learnt through SO_ERROR, then connect() until it works."""
    s = peer.socket(blocking=False)
    first = connect_result(s, peer.at(lib.CLOSED_PORT))
    await_flags(s, "OUT")
    told = error_of(s)
    again = [connect_result(s, peer.at(COMMAND)), connect_result(s, peer.at(COMMAND))]
    return [first, told, again, await_flags(s, "OUT"), error_of(s), names(s)]


@row("v4", "v6")
def refused_learnt_by_connect(peer):
    s = peer.socket(blocking=False)
    first = connect_result(s, peer.at(lib.CLOSED_PORT))
    await_flags(s, "OUT")
    return [first, connect_result(s, peer.at(lib.CLOSED_PORT)), error_of(s), names(s),
            connect_result(s, peer.at(COMMAND)), await_flags(s, "OUT"), names(s)]


@row("v4", "v6")
def refused_learnt_by_reading(peer):
    s = peer.socket(blocking=False)
    connect_result(s, peer.at(lib.CLOSED_PORT))
    await_flags(s, "OUT")
    return [attempt(s.recv, 1), attempt(s.recv, 1), attempt(s.send, b"x"), error_of(s)]


@row("v4", "v6")
def refused_learnt_by_writing(peer):
    s = peer.socket(blocking=False)
    connect_result(s, peer.at(lib.CLOSED_PORT))
    await_flags(s, "OUT")
    return [attempt(s.send, b"x"), attempt(s.send, b"x"), error_of(s)]


@row("v4", "v6")
def refused_select(peer):
    s = peer.socket(blocking=False)
    connect_result(s, peer.at(lib.CLOSED_PORT))
    await_flags(s, "OUT")
    return [len(ready) for ready in select.select([s], [s], [s], 0)]


@row("v4", "v6")
def refused_epoll(peer):
    s = peer.socket(blocking=False)
    connect_result(s, peer.at(lib.CLOSED_PORT))
    level, edge = select.epoll(), select.epoll()
    level.register(s, select.EPOLLIN | select.EPOLLOUT | select.EPOLLRDHUP)
    edge.register(s, select.EPOLLIN | select.EPOLLOUT | select.EPOLLRDHUP | select.EPOLLET)
    await_flags(s, "OUT")
    seen = [[flags(mask) for _, mask in poller.poll(lib.PATIENCE)] for poller in (level, edge)]
    return [seen, [[flags(mask) for _, mask in poller.poll(0)] for poller in (level, edge)], error_of(s),
            [flags(mask) for _, mask in level.poll(0)]]


@row(*EVERY)
def host_unreachable(peer):
    s = peer.socket()
    where = peer.at(80, lib.HOST_UNREACHABLE4, lib.HOST_UNREACHABLE6)
    return [connect_result(s, where), error_of(s), names(s), connect_result(s, peer.at(COMMAND)), echo(s)]


@row("v4", "v6", "mapped")
def host_unreachable_nonblocking(peer):
    s = peer.socket(blocking=False)
    where = peer.at(80, lib.HOST_UNREACHABLE4, lib.HOST_UNREACHABLE6)
    return [connect_result(s, where), await_flags(s, "OUT"), error_of(s), poll(s)]


@row(*EVERY)
def network_unreachable(peer):
    """How the refusal is left in the socket depends on whether it came while connect() held it: not asked."""
    s = peer.socket()
    where = peer.at(80, lib.NET_UNREACHABLE4, lib.NET_UNREACHABLE6)
    return [connect_result(s, where), names(s), connect_result(s, peer.at(COMMAND)), echo(s)]


@row("v4", "v6", "mapped")
def network_unreachable_nonblocking(peer):
    s = peer.socket(blocking=False)
    where = peer.at(80, lib.NET_UNREACHABLE4, lib.NET_UNREACHABLE6)
    return [connect_result(s, where), "ERR" in await_flags(s, "OUT"), error_of(s)]


@row("v4", "v6")
def port_zero(peer):
    return connect_result(peer.socket(), peer.at(0))


@row("v4")
def broadcast(peer):
    return [connect_result(peer.socket(), ("255.255.255.255", 80)), connect_result(peer.socket(), ("224.0.0.1", 80))]


@row("v4", "v6")
def refused_many_times(peer):
    """One socket, fifty refusals."""
    s = peer.socket()
    return [sorted({connect_result(s, peer.at(lib.CLOSED_PORT)) for _ in range(50)}),
            connect_result(s, peer.at(COMMAND)), echo(s)]


@row("v4", "v6")
def refused_keeps_bound_port(peer):
    s = peer.socket()
    s.bind((peer.host(lib.APP4, lib.APP6), 0))
    port = s.getsockname()[1]
    result = connect_result(s, peer.at(lib.CLOSED_PORT))
    return [result, s.getsockname()[0], s.getsockname()[1] == port, connect_result(s, peer.at(COMMAND)),
            s.getsockname()[1] == port, attempt(s.shutdown, socket.SHUT_RDWR)]
