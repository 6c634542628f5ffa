# SPDX-License-Identifier: MIT
"""The rows of the transparency suite, and the program that runs them.

A row is a function that does something with sockets and returns everything an application can observe of it,
as JSON. test_transparency.py runs this program directly and behind proxies and compares the records, so a row
must return what is determined by TCP alone: errno names, flags, addresses; never a time, an ephemeral port or
how the bytes were cut into pieces.

    rows.py FAMILY[,FAMILY...] [NAME-SUBSTRING]     prints one line {"row": ..., "record": ...} for each
"""
import contextlib
import ctypes
import errno
import fcntl
import itertools
import json
import os
import select
import signal
import socket
import struct
import sys
import termios
import traceback
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "net"))
import lib  # noqa: E402
import target  # noqa: E402

ROW_LIMIT = lib.PATIENCE  # seconds
ROWS = {}
_libc = ctypes.CDLL(None, use_errno=True)
_keys = itertools.count()
EVENT_NAMES = {"IN": 1, "PRI": 2, "OUT": 4, "ERR": 8, "HUP": 16, "RDHUP": 0x2000}


def row(*families):
    """Registers a row for socket families: v4, v6, v6only (IPV6_V6ONLY set), mapped (::ffff:a.b.c.d)."""
    def register(function):
        for family in families:
            ROWS[f"{function.__name__}_{family}"] = (function, family)
        return function
    return register


class Peer:
    """The target as seen through one socket family."""

    def __init__(self, family):
        self.family = family
        self.domain = socket.AF_INET if family == "v4" else socket.AF_INET6

    def host(self, v4=lib.TARGET4, v6=lib.TARGET6):
        return {"v4": v4, "mapped": f"::ffff:{v4}"}.get(self.family, v6)

    def at(self, port, v4=lib.TARGET4, v6=lib.TARGET6):
        return (self.host(v4, v6), port)

    def socket(self, blocking=True, protocol=0):
        s = socket.socket(self.domain, socket.SOCK_STREAM, protocol)
        s.setblocking(blocking)
        if self.family == "v6only":
            s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        return s

    def open(self, command=None, port=target.COMMAND):
        """A connected socket on which `command` was sent."""
        s = self.socket()
        s.connect(self.at(port))
        if command:
            s.sendall(f"{command}\n".encode())
        return s

    def ask(self, command):
        """One command on a connection of its own; its answer line."""
        with self.open(command) as s:
            return read_all(s).decode().strip()


def key():
    """A name for a report that no other run of a row uses."""
    return f"{os.getpid()}-{next(_keys)}"


def attempt(function, *args):
    """The errno's name, or "ok", or what the call returned when that is a plain value."""
    try:
        value = function(*args)
    except OSError as error:
        return errno.errorcode.get(error.errno, str(error))
    if isinstance(value, bytes):
        return value.decode("latin-1")
    return value if isinstance(value, (int, str, list)) else "ok"


def connect_result(sock, address):
    """As attempt(), without Python's own waiting after EINTR."""
    return outcome(_libc.connect(sock.fileno(), *packed(address)))


def outcome(result):
    return "ok" if result == 0 else errno.errorcode[ctypes.get_errno()]


def packed(address):
    host, port, *rest = address
    if ":" in host:
        host, _, zone = host.partition("%")
        raw = struct.pack("=HHI16sI", socket.AF_INET6, socket.htons(port), 0, socket.inet_pton(socket.AF_INET6, host),
                          socket.if_nametoindex(zone) if zone else 0)
    else:
        raw = struct.pack("=HH4s8x", socket.AF_INET, socket.htons(port), socket.inet_aton(host))
    return raw, len(raw)


def disconnect(sock):
    """connect() to AF_UNSPEC."""
    return outcome(_libc.connect(sock.fileno(), struct.pack("=H14x", socket.AF_UNSPEC), 16))


def error_of(sock):
    code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    return errno.errorcode.get(code, code)


def names(sock):
    """Peer exactly; of the local name the address exactly and whether there is a port."""
    def local():
        name = sock.getsockname()
        return [name[0], "a port" if name[1] else 0, *name[2:]]
    return {"peer": attempt(lambda: list(sock.getpeername())), "local": attempt(local)}


def flags(mask):
    return "|".join(name for name, bit in EVENT_NAMES.items() if mask & bit)


def poll(sock, wanted="IN|OUT|PRI|RDHUP", milliseconds=0):
    """The flags poll() gives at once, or within a time."""
    poller = select.poll()
    poller.register(sock, sum(EVENT_NAMES[name] for name in wanted.split("|")))
    return "".join(flags(mask) for _, mask in poller.poll(milliseconds))


def await_flags(sock, wanted):
    """Waits until poll() shows one of the wanted flags (or an error); then everything it shows.

    The kernel sets a refused socket's error before it closes the socket, and poll() may look in between, whoever
    refuses: an error alone is followed by the hang-up."""
    poll(sock, wanted, lib.PATIENCE * 1000)
    await_value(lambda: poll(sock) != "ERR", True)
    return poll(sock)


def await_value(function, value):
    """What function() gives in the end: `value`, or whatever it still is after a long time."""
    with contextlib.suppress(AssertionError):
        lib.wait_until(lambda: function() == value, "", lib.PATIENCE / 4)
    return function()


def readable_bytes(sock):
    return struct.unpack("i", fcntl.ioctl(sock, termios.FIONREAD, bytes(4)))[0]


def tcp_state(sock):
    states = ("", "ESTABLISHED", "SYN_SENT", "SYN_RECV", "FIN_WAIT1", "FIN_WAIT2", "TIME_WAIT", "CLOSE",
              "CLOSE_WAIT", "LAST_ACK", "LISTEN", "CLOSING")
    return states[sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]]


def read_all(sock):
    return b"".join(iter(lambda: sock.recv(1 << 16), b""))


def read_exactly(sock, count):
    data = b""
    while len(data) < count and (part := sock.recv(count - len(data))):
        data += part
    return data


def echo(sock, text=b"over and back"):
    """One echo on a connection that has said nothing yet: what came back, then whether the end came."""
    sock.setblocking(True)
    sock.sendall(b"echo\n" + text)
    back = read_exactly(sock, len(text)).decode()
    sock.shutdown(socket.SHUT_WR)
    return [back, "end" if sock.recv(1) == b"" else "more"]


def child(function, *args):
    """The record of function(*args) in a forked child."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(reader)
            text = json.dumps(record_of(function, *args)).encode()
            while text:
                text = text[os.write(writer, text):]
        finally:
            os._exit(0)
    os.close(writer)
    pidfd = os.pidfd_open(pid)
    text = b""
    with os.fdopen(reader, "rb", 0) as source:
        while select.select([source], [], [], ROW_LIMIT)[0] and (part := source.read(1 << 16)):
            text += part
    if not select.select([pidfd], [], [], 5 if text else 0)[0]:
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    os.waitpid(pid, 0)
    os.close(pidfd)
    return json.loads(text) if text else {"exception": "hung"}


def record_of(function, *args):
    try:
        return function(*args)
    except Exception as error:
        return {"exception": f"{error!r}\n{traceback.format_exc(limit=-3)}"}


def main():
    families = sys.argv[1].split(",")
    part = sys.argv[2] if len(sys.argv) > 2 else ""
    for name, (function, family) in ROWS.items():
        if family in families and part in name:
            print(json.dumps({"row": name, "record": child(function, Peer(family))}), flush=True)


def load():
    """Every row, from the files beside this one."""
    import rows_connect, rows_data, rows_programs, rows_refused, rows_sockets  # noqa: E401, F401


if __name__ == "__main__":
    sys.modules["rows"] = sys.modules["__main__"]  # the row files import this one
    load()
    main()
