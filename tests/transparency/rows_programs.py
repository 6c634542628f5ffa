# SPDX-License-Identifier: MIT
"""Rows about who connects: threads, children, other programs, other system calls."""
import array
import asyncio
import hashlib
import os
import socket
import subprocess
import threading

import lib
from rows import attempt, await_flags, child, connect_result, echo, error_of, names, read_all, read_exactly, row
from target import COMMAND, GREETING, HTTP, PAGE

TOOLS = os.environ.get("MPROX_TEST_TOOLS", "")  # where the compiled programs lie
BOTH = ("v4", "v6")


def url(peer, port):
    host = peer.host()
    return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"


def output_of(*argv):
    done = subprocess.run(list(map(str, argv)), stdin=subprocess.DEVNULL, capture_output=True, timeout=lib.PATIENCE)
    return [done.returncode, done.stdout.decode("latin-1"), done.stderr.decode("latin-1")]


def page_of(*argv):
    code, out, err = output_of(*argv)
    return [code, out.encode("latin-1") == PAGE, err]


@row(*BOTH)
def fork_before_connect(peer):
    """The child connects the parent's socket; the parent uses it."""
    s = peer.socket()
    result = child(lambda: [connect_result(s, peer.at(COMMAND)), names(s)])
    return [result, names(s), echo(s)]


@row(*BOTH)
def fork_after_connect(peer):
    s = peer.open()
    return [child(lambda: [names(s), echo(s)]), names(s), s.recv(1).decode()]


@row("v4")
def fork_while_pending(peer):
    """The parent starts, the child finishes."""
    s = peer.socket(blocking=False)
    first = connect_result(s, peer.at(COMMAND))
    return [first, child(lambda: [await_flags(s, "OUT"), error_of(s), names(s), echo(s)])]


@row("v4")
def connected_twice_over(peer):
    """A grandchild that nobody waits for."""
    def grandchild():
        os.setsid()
        return child(lambda: [connect_result(s := peer.socket(), peer.at(COMMAND)), names(s), echo(s)])
    return child(grandchild)


@row("v4")
def orphan(peer):
    """Double-forked: its parent is gone when it connects."""
    reader, writer = os.pipe()
    alive, dead = os.pipe()
    if os.fork() == 0:
        if os.fork() == 0:
            os.close(dead)
            os.read(alive, 1)
            s = peer.socket()
            os.write(writer, f"{connect_result(s, peer.at(COMMAND))} {echo(s)}".encode())
        os._exit(0)
    os.wait()
    os.close(writer)
    os.close(dead)
    return os.read(reader, 200).decode()


@row(*BOTH)
def threads(peer):
    results = []

    def one():
        s = peer.socket()
        results.append([connect_result(s, peer.at(COMMAND)), names(s), echo(s)])
    workers = [threading.Thread(target=one) for _ in range(16)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return [len(results), all(result == results[0] for result in results), results[0]]


@row("v4")
def two_threads_one_socket(peer):
    """One connects without blocking, the other waits for it."""
    s = peer.socket(blocking=False)
    seen = []
    connect_result(s, peer.at(GREETING))
    waiter = threading.Thread(target=lambda: seen.extend([await_flags(s, "IN"), s.recv(100).decode()]))
    waiter.start()
    waiter.join()
    return seen


@row(*BOTH)
def passed_socket(peer):
    """SCM_RIGHTS, both ways: an unconnected one that another process connects, and a connected one."""
    ours, theirs = socket.socketpair()
    s = peer.socket()
    ours.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [s.fileno()]))])
    s.close()

    def other():
        got = socket.socket(fileno=received(theirs))
        result = connect_result(got, peer.at(COMMAND))
        theirs.sendmsg([b"y"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [got.fileno()]))])
        return [result, names(got)]
    result = child(other)
    back = socket.socket(fileno=received(ours))
    return [result, names(back), echo(back)]


def received(channel):
    _, ancillary, _, _ = channel.recvmsg(1, socket.CMSG_SPACE(4))
    return array.array("i", ancillary[0][2])[0]


@row("v4", "v6", "mapped")
def asyncio_streams(peer):
    async def talk():
        reader, writer = await asyncio.open_connection(*peer.at(COMMAND))
        peer_name = writer.get_extra_info("peername")
        writer.write(b"echo\n" + b"a" * 100_000)
        writer.write_eof()
        data = await reader.read(-1)
        writer.close()
        return [list(peer_name), len(data), data == b"a" * 100_000]

    async def refused():
        try:
            await asyncio.open_connection(*peer.at(lib.CLOSED_PORT))
        except OSError as error:
            return [type(error).__name__, str(error)]

    async def everything():
        return await asyncio.gather(talk(), refused(), *(talk() for _ in range(20)))
    return asyncio.run(everything())


@row(*BOTH)
def create_connection(peer):
    """What Python offers with a time limit: connect() without blocking, then poll()."""
    with socket.create_connection(peer.at(COMMAND), timeout=lib.PATIENCE) as s:
        good = [names(s), echo(s)]
    return [good, attempt(socket.create_connection, peer.at(lib.CLOSED_PORT), lib.PATIENCE)]


@row(*BOTH)
def io_uring(peer):
    """connect, send and receive as one chain of io_uring requests, then a refused one."""
    return output_of(f"{TOOLS}/uring_connect", peer.host(), COMMAND, lib.CLOSED_PORT)


@row(*BOTH)
def go_program(peer):
    """Static, with a network poller of its own and no libc."""
    return output_of(f"{TOOLS}/dial", peer.host(), COMMAND, lib.CLOSED_PORT)


@row(*BOTH)
def static_program(peer):
    return page_of("busybox", "wget", "-q", "-O", "-", url(peer, HTTP))


@row(*BOTH)
def curl_program(peer):
    return page_of("curl", "-sS", url(peer, HTTP))


@row("v4")
def curl_refused(peer):
    code, out, _ = output_of("curl", "-sS", url(peer, lib.CLOSED_PORT))
    return [code, out]


@row("v4")
def spawned(peer):
    """posix_spawn, and vfork as subprocess does it."""
    reader, writer = os.pipe()
    pid = os.posix_spawn("/bin/busybox", ["busybox", "wget", "-q", "-O", "-", url(peer, HTTP)], dict(os.environ),
                         file_actions=[(os.POSIX_SPAWN_DUP2, writer, 1)])
    os.close(writer)
    with os.fdopen(reader, "rb") as source:
        page = source.read()
    return [os.waitpid(pid, 0)[1], page == PAGE, page_of("busybox", "wget", "-q", "-O", "-", url(peer, HTTP))]


@row("v4")
def shell_pipeline(peer):
    code, out, err = output_of("sh", "-c", f"curl -sS {url(peer, HTTP)} | sha1sum; curl -sS {url(peer, HTTP)} | wc -c")
    return [code, out.split()[0] == hashlib.sha1(PAGE).hexdigest(), out.split()[-1], err]


@row("v4")
def interleaved_with_exec(peer):
    """A connected socket outlives exec."""
    s = peer.open()
    s.sendall(b"echo\n")
    os.set_inheritable(s.fileno(), True)
    done = subprocess.run(["sh", "-c", f"printf hello >&{s.fileno()}; head -c 5 <&{s.fileno()}"],
                          close_fds=False, capture_output=True, timeout=lib.PATIENCE)
    return [done.stdout.decode(), names(s)]


@row("v4")
def descriptors_untouched(peer):
    """A connect uses up no descriptor but its own."""
    before = os.listdir("/proc/self/fd")
    s = peer.open("echo")
    during = os.listdir("/proc/self/fd")
    s.sendall(b"x")
    read_exactly(s, 1)
    s.shutdown(socket.SHUT_WR)
    read_all(s)
    s.close()
    return [len(during) - len(before), os.listdir("/proc/self/fd") == before]
