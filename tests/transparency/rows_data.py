# SPDX-License-Identifier: MIT
"""Rows about bytes and how connections end."""
import fcntl
import hashlib
import os
import select
import socket
import struct
import tempfile
import threading

import lib
from rows import (attempt, await_flags, await_value, error_of, key, names, poll, read_all, read_exactly, readable_bytes,
                  row, tcp_state)
from target import stream

RESET = struct.pack("ii", 1, 0)
SIOCOUTQNSD = 0x894B
SIOCOUTQ = 0x5411
BOTH = ("v4", "v6")


def queued(s, which):
    """Bytes on their way: not acknowledged (SIOCOUTQ), or not even sent (SIOCOUTQNSD)."""
    return struct.unpack("i", fcntl.ioctl(s, which, bytes(4)))[0]


def digest(length):
    seen = hashlib.sha1()
    for piece in stream(length):
        seen.update(piece)
    return seen.hexdigest()


@row("v4", "v6", "v6only", "mapped")
def large_echo(peer):
    s = peer.open("echo")
    size = 4 << 20
    sender = threading.Thread(target=lambda: ([s.sendall(piece) for piece in stream(size)],
                                              s.shutdown(socket.SHUT_WR)))
    sender.start()
    back = read_all(s)
    sender.join()
    return [len(back), hashlib.sha1(back).hexdigest() == digest(size)]


@row(*BOTH)
def large_source(peer):
    data = read_all(peer.open(f"source {8 << 20}"))
    return [len(data), hashlib.sha1(data).hexdigest() == digest(8 << 20)]


@row(*BOTH)
def large_sink(peer):
    """Our end of stream goes over, then the answer comes: a half-close."""
    s = peer.open("sink")
    for piece in stream(8 << 20):
        s.sendall(piece)
    s.shutdown(socket.SHUT_WR)
    return [read_all(s).decode() == f"{8 << 20} {digest(8 << 20)}\n", tcp_state(s)]


@row(*BOTH)
def half_closed_by_client(peer):
    s = peer.open("sink")
    s.sendall(b"abc")
    s.shutdown(socket.SHUT_WR)
    return [attempt(s.send, b"more"), read_all(s).decode(), poll(s), attempt(s.recv, 1), names(s)]


@row(*BOTH)
def half_closed_by_server(peer):
    """After the server's end of stream we still send, and it still arrives."""
    name = key()
    s = peer.open(f"halfclose {name}")
    first = read_all(s).decode()
    state = [await_flags(s, "RDHUP"), tcp_state(s), attempt(s.recv, 1)]
    for piece in stream(300_000):
        s.sendall(piece)
    s.close()
    end, total, seen = peer.ask(f"report {name}").split()
    return [first, state, end, total, seen == digest(300_000)]


@row(*BOTH)
def closed_by_server(peer):
    s = peer.open("close")
    flags = await_flags(s, "RDHUP")
    return [flags, readable_bytes(s), attempt(s.recv, 1), error_of(s), tcp_state(s), names(s)]


@row(*BOTH)
def closed_at_both_ends(peer):
    s = peer.open("close")
    await_flags(s, "RDHUP")
    first = attempt(s.shutdown, socket.SHUT_WR)
    await_flags(s, "PRI")  # nothing but HUP can come
    return [first, poll(s), await_value(lambda: tcp_state(s), "CLOSE"), attempt(s.recv, 1), attempt(s.send, b"x"),
            names(s), attempt(s.shutdown, socket.SHUT_RDWR)]


@row(*BOTH)
def reset_by_server(peer):
    """A reset after 1000 bytes: the bytes can be read, then the reset shows."""
    s = peer.open("reset 1000")
    await_value(lambda: readable_bytes(s), 1000)
    s.sendall(b"x")
    poll(s, "PRI", lib.PATIENCE * 1000)  # only ERR or HUP can wake this
    return [poll(s), readable_bytes(s), len(s.recv(5000)), attempt(s.recv, 1), attempt(s.recv, 1),
            attempt(s.send, b"x"), error_of(s), names(s), tcp_state(s)]


@row(*BOTH)
def reset_by_server_while_reading(peer):
    s = peer.open("reset")
    return [attempt(s.recv, 1), attempt(s.recv, 1), attempt(s.send, b"x"), poll(s)]


@row(*BOTH)
def reset_by_server_while_writing(peer):
    """Ends with ECONNRESET or EPIPE, as the reset finds the socket; then EPIPE for good."""
    s = peer.open("reset")
    result = 1
    while isinstance(result, int):
        result = attempt(s.send, bytes(1 << 16))
    return [result in ("ECONNRESET", "EPIPE"), attempt(s.send, b"x") in ("ECONNRESET", "EPIPE"),
            attempt(s.send, b"x")]


@row(*BOTH)
def reset_by_client(peer):
    name = key()
    s = peer.open(f"watch {name}")
    s.sendall(b"12345")
    await_value(lambda: queued(s, SIOCOUTQ), 0)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    s.close()
    return peer.ask(f"report {name}").split()[0]


@row(*BOTH)
def reset_behind_bytes(peer):
    """Often, as the reset should overtake whoever carries the bytes; they are not lost for that."""
    for _ in range(20):
        name = key()
        s = peer.open(f"watch {name}")
        s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        s.sendall(b"12345")
        # What is not sent yet, a reset takes away.
        await_value(lambda s=s: queued(s, SIOCOUTQNSD), 0)
        s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        s.close()
        end, count, _ = peer.ask(f"report {name}").split()
        if (end, count) != ("ECONNRESET", "5"):
            return f"{end} after {count} bytes"
    return "reset after all bytes"


@row(*BOTH)
def closed_with_unread_bytes(peer):
    """TCP answers with a reset; the server must see one."""
    name = key()
    s = peer.open(f"halfclose {name}")
    await_value(lambda: readable_bytes(s), 4)
    s.close()
    return peer.ask(f"report {name}").split()[0]


@row(*BOTH)
def closed_by_client(peer):
    name = key()
    s = peer.open(f"watch {name}")
    s.sendall(b"last words")
    s.close()
    return peer.ask(f"report {name}")


@row("v4")
def lingering_close(peer):
    name = key()
    s = peer.open(f"watch {name}")
    s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 10))
    s.sendall(bytes(100_000))
    s.close()
    return peer.ask(f"report {name}")


@row(*BOTH)
def shutdown_before_reading(peer):
    s = peer.open("echo")
    s.sendall(b"x" * 1000)
    s.shutdown(socket.SHUT_WR)
    await_flags(s, "RDHUP")
    return [await_value(lambda: readable_bytes(s), 1000), poll(s), len(read_all(s)), poll(s)]


@row(*BOTH)
def shutdown_reading(peer):
    s = peer.open("echo")
    s.shutdown(socket.SHUT_RD)
    return [attempt(s.recv, 1), poll(s), attempt(s.send, b"still"), tcp_state(s)]


@row(*BOTH)
def counting_and_peeking(peer):
    s = peer.open("source 1000")
    return [await_value(lambda: readable_bytes(s), 1000), len(s.recv(10, socket.MSG_PEEK)), readable_bytes(s),
            s.recv(4, socket.MSG_PEEK) == s.recv(4), readable_bytes(s), len(s.recv(5000, socket.MSG_WAITALL)),
            readable_bytes(s), attempt(s.recv, 1, socket.MSG_PEEK), attempt(s.recv, 1)]


@row(*BOTH)
def nothing_to_read(peer):
    s = peer.open("echo")
    return [attempt(s.recv, 1, socket.MSG_DONTWAIT), readable_bytes(s), poll(s), poll(s, "IN|RDHUP"),
            await_value(lambda: queued(s, SIOCOUTQ), 0)]


@row(*BOTH)
def back_pressure(peer):
    """A reader that stops: writing stops too, poll() says so; nothing is lost when it goes on."""
    name = key()
    s = peer.open(f"stall {name}")
    s.setblocking(False)
    sent = 0
    for piece in stream(1 << 30):
        view = memoryview(piece)
        while view and poll(s, "OUT", 1000):
            try:
                count = s.send(view)
            except BlockingIOError:
                continue
            sent += count
            view = view[count:]
        if view:
            break
    full = [poll(s), sent < 256 << 20]
    peer.ask(f"post {name}-go now")
    s.setblocking(True)
    s.sendall(view)
    sent += len(view)
    s.shutdown(socket.SHUT_WR)
    end, total, seen = peer.ask(f"report {name}").split()
    return [full, end, int(total) == sent, seen == digest(sent)]


@row(*BOTH)
def sendfile(peer):
    with tempfile.TemporaryFile() as file:
        file.write(b"".join(stream(500_000)))
        file.flush()
        s = peer.open("sink")
        offset = 0
        while offset < 500_000:
            offset += os.sendfile(s.fileno(), file.fileno(), offset, 500_000 - offset)
        end = attempt(os.sendfile, s.fileno(), file.fileno(), offset, 10)
        s.shutdown(socket.SHUT_WR)
        return [offset, end, read_all(s).decode() == f"500000 {digest(500_000)}\n"]


@row(*BOTH)
def splice(peer):
    s = peer.open("echo")
    there, back = os.pipe(), os.pipe()
    os.write(there[1], b"y" * 5000)
    moved = os.splice(there[0], s.fileno(), 5000)
    s.shutdown(socket.SHUT_WR)
    total = 0
    while count := os.splice(s.fileno(), back[1], 5000):
        total += count
    return [moved, total, os.read(back[0], 9999) == b"y" * 5000]


@row("v4")
def zero_copy(peer):
    """MSG_ZEROCOPY tells when it is done with the pages."""
    so_zerocopy, msg_zerocopy = 60, 0x4000000
    s = peer.open("echo")
    s.setsockopt(socket.SOL_SOCKET, so_zerocopy, 1)
    sent = s.send(b"z" * 20_000, msg_zerocopy)
    back = len(read_exactly(s, 20_000))
    poll(s, "PRI", lib.PATIENCE * 1000)
    _, ancillary, _, _ = s.recvmsg(1, 200, socket.MSG_ERRQUEUE)
    extended = struct.unpack("IBBBxII", ancillary[0][2][:16])
    return [sent, back, len(ancillary), extended[0], extended[1], extended[4], extended[5]]


@row("v4")
def vectors(peer):
    s = peer.open("echo")
    sent = s.sendmsg([b"one ", b"two ", b"three"])
    parts = [bytearray(4), bytearray(9)]
    count, _, message_flags, sender = s.recvmsg_into(parts, 0, socket.MSG_WAITALL)
    return [sent, count, b"".join(parts).decode(), message_flags, str(sender)]


@row("v4", "v6")
def edge_triggered_data(peer):
    s = peer.open("source 100000")
    s.setblocking(False)
    epoll = select.epoll()
    epoll.register(s, select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLET)
    total, ended = 0, False
    while not ended and epoll.poll(lib.PATIENCE):
        while isinstance(data := attempt(s.recv, 3000), str) and data != "EAGAIN":
            total += len(data)
            if not data:
                ended = True
                break
    return [total, ended]


@row(*BOTH)
def one_byte_at_a_time(peer):
    s = peer.open("echo")
    s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    text = b"every byte is a segment of its own"
    back = b""
    for byte in text:
        s.sendall(bytes([byte]))
        back += s.recv(1)
    return back.decode()
