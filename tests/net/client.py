# SPDX-License-Identifier: MIT
"""A small program to be run behind mprox. Prints one line per thing done, flushed.

    client.py connect HOST PORT         "ok", or the errno's name, of one blocking connect()
    client.py peer HOST                 whom the target sees as its peer
    client.py shell                     commands on stdin, see Shell
    client.py many HOST PORT COUNT      COUNT non-blocking connects at once from one thread, an echo on each
    client.py hold HOST PORT COUNT      the same on the target's IDLE port, COUNT held until stdin ends
    client.py volume HOST MEBIBYTES     streams of all kinds at once, hashed at both ends; "ok", or what differed
    client.py stall HOST COUNT          COUNT connections whose reader stops: the most that one of them could write
    client.py send-udp HOST PORT        sendto(), connect() and send() of datagrams
"""
import collections
import concurrent.futures
import contextlib
import ctypes
import errno
import functools
import hashlib
import os
import resource
import select
import signal
import socket
import subprocess
import sys
import threading

import target

CLONE_FILES = 0x400
HOLDERS = 3  # threads of `hold`
AT_ONCE = 2000  # connects of a thread
PATIENCE = float(os.environ.get("MPROX_TEST_PATIENCE", "60"))


def name_of(code):
    return errno.errorcode.get(code, str(code)) if code else "ok"


def family(host):
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def attempt(function, *args):
    try:
        value = function(*args)
        return "ok" if value is None else value
    except OSError as error:
        return name_of(error.errno) if error.errno else type(error).__name__


def say(*words):
    print(*words, flush=True)


def connect(host, port):
    s = socket.socket(family(host))
    return name_of(s.connect_ex((host, int(port)))), s


class Shell:
    """connect NAME HOST PORT (blocking), start NAME,... HOST PORT (non-blocking, one after the other), wait NAME (its result),
    names NAME (its own address, its peer's), echo NAME TEXT, send NAME TEXT, receive NAME, close NAME, daemon COMMAND ARGS... (as an orphan in a session of its
    own), setsid, pid, quit. Each answers with one line."""

    def __init__(self):
        self.sockets = {}

    def run(self):
        for line in sys.stdin:
            command, *words = line.split()
            say(getattr(self, f"do_{command}")(*words))

    def do_connect(self, name, host, port):
        result, self.sockets[name] = connect(host, port)
        return result

    def do_start(self, names, host, port):
        results = []
        for name in names.split(","):
            s = self.sockets[name] = socket.socket(family(host))
            s.setblocking(False)
            results.append(name_of(s.connect_ex((host, int(port)))))
        return " ".join(results)

    def do_wait(self, name, seconds=PATIENCE):
        s = self.sockets[name]
        poller = select.poll()
        poller.register(s, select.POLLOUT)
        if not poller.poll(float(seconds) * 1000):
            return "nothing"
        return name_of(s.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))

    def do_names(self, name):
        s = self.sockets[name]
        host, port = s.getpeername()[:2]
        return f"{s.getsockname()[0]} {host}:{port}"

    def do_send(self, name, text):
        return attempt(self.sockets[name].sendall, text.encode() + b"\n")

    def do_echo(self, name, text):
        s = self.sockets[name]
        s.setblocking(True)
        sent = attempt(s.sendall, text.encode())
        if sent != "ok":
            return sent
        back = b""
        while len(back) < len(text):
            part = attempt(s.recv, len(text) - len(back))
            if not part or isinstance(part, str):
                return part or "end"
            back += part
        return back.decode()

    def do_receive(self, name):
        s = self.sockets[name]
        s.settimeout(PATIENCE)
        data = attempt(s.recv, 65536)
        return data.decode() or "end" if isinstance(data, bytes) else data

    def do_close(self, name):
        self.sockets.pop(name).close()
        return "ok"

    def do_daemon(self, *argv):
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                os.execvp(argv[0], argv)
            os._exit(0)
        os.wait()
        return "ok"

    def do_run(self, *argv):
        done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True)
        return (done.stdout + done.stderr).strip().replace("\n", " ") or f"exit {done.returncode}"

    def do_setsid(self):
        return attempt(os.setsid)

    def do_pid(self):
        return os.getpid()

    def do_quit(self):
        say("bye")
        os._exit(0)


def raise_limit(count):
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    limit = count + 100
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, max(limit, hard)))
    except (OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def open_many(host, port, count, greeting):
    """Makes `count` connections, AT_ONCE of them at a time, waits for them with epoll, echoes `greeting` once on each.
    (results, open sockets)"""
    raise_limit(count)
    epoll = select.epoll()
    waiting, opened, results = {}, [], collections.Counter()

    def finish(s, result):
        results[result] += 1
        if s.fileno() in waiting:
            epoll.unregister(s)
            del waiting[s.fileno()]
        if result == "ok":
            opened.append(s)
        else:
            s.close()

    begun = 0
    while waiting or begun < count:
        while begun < count and len(waiting) < AT_ONCE:
            begun += 1
            s = socket.socket(family(host))
            s.setblocking(False)
            code = s.connect_ex((host, port))
            if code != errno.EINPROGRESS:
                finish(s, name_of(code))
                continue
            waiting[s.fileno()] = [s, "connecting"]
            epoll.register(s, select.EPOLLOUT)
        if not waiting:
            break
        events = epoll.poll(PATIENCE)
        if not events:
            results["hung"] += len(waiting)
            break
        for fd, _ in events:
            s, state = waiting[fd]
            if state == "connecting":
                code = s.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                if code:
                    finish(s, name_of(code))
                    continue
                waiting[fd][1] = "asked"
                epoll.modify(s, select.EPOLLIN)
                if attempt(s.send, greeting) != len(greeting):
                    finish(s, "not sent")
            else:
                back = attempt(s.recv, 4096)
                finish(s, "ok" if back and greeting.endswith(back) else f"echo {back!r}")
    return results, opened


def show(results):
    say(" ".join(f"{result}={number}" for result, number in sorted(results.items())))


def many(host, port, count):
    show(open_many(host, int(port), int(count), b"echo\n12345678")[0])


def own_descriptors():
    """Gives the calling thread a descriptor table of its own: the limit on open files holds for each table."""
    if ctypes.CDLL(None, use_errno=True).unshare(CLONE_FILES) != 0:
        raise OSError(ctypes.get_errno(), "unshare")


def echo_all(opened, text):
    """How many of the connections gave `text` back."""
    for s in opened:
        attempt(s.send, text)
    good = 0
    for s in opened:
        s.setblocking(True)
        s.settimeout(PATIENCE)
        good += attempt(s.recv, len(text)) == text
    return good


def hold(host, port, count):
    share = -(-int(count) // HOLDERS)
    shares = [min(share, int(count) - first) for first in range(0, int(count), share)]
    holders = [concurrent.futures.ThreadPoolExecutor(1, initializer=own_descriptors) for _ in shares]
    asked = [holder.submit(open_many, host, int(port), number, b"12345678")
             for holder, number in zip(holders, shares)]
    results = [future.result() for future in asked]
    show(sum((counted for counted, _ in results), collections.Counter()))
    for line in sys.stdin:  # each line: one more echo on every connection
        text = line.strip().encode()
        echoes = [holder.submit(echo_all, opened, text) for holder, (_, opened) in zip(holders, results)]
        say(sum(future.result() for future in echoes))


def one_stream(host, kind, size, key, problems):
    """One connection of `kind` carrying `size` bytes each way it sends; adds what is wrong to `problems`."""
    try:
        s = socket.create_connection((host, target.COMMAND), timeout=PATIENCE * 5)
        expected = f"eof {size} {digest(size)}"
        s.sendall(f"{dict(up='watch ' + key, down=f'source {size}', both=f'duplex {size} {key}')[kind]}\n".encode())
        if kind != "down":
            sender = threading.Thread(target=lambda: ([s.sendall(piece) for piece in target.stream(size)],
                                                      s.shutdown(socket.SHUT_WR)))
            sender.start()
        if kind != "up":
            got = "{} {} {}".format(*target.drain(s))
            if got != expected:
                problems.append(f"{kind} received {got} instead of {expected}")
        if kind != "down":
            sender.join()
            asking = socket.create_connection((host, target.COMMAND), timeout=PATIENCE * 5)
            asking.sendall(f"report {key}\n".encode())
            got = asking.makefile().read().strip()
            if got != expected:
                problems.append(f"{kind} sent {expected}, arrived {got}")
        s.close()
    except OSError as error:
        problems.append(f"{kind} {size}: {error!r}")


@functools.cache
def digest(size):
    seen = hashlib.sha1()
    for piece in target.stream(size):
        seen.update(piece)
    return seen.hexdigest()


def volume(host, mebibytes):
    """Eight big flows (up, down, both) and two hundred small ones beside them."""
    share = (int(mebibytes) << 20) // 12  # 3 up + 3 down + 3 both, which counts twice
    problems, flows = [], []
    for number in range(9):
        flows.append((("up", "down", "both")[number % 3], share + number % 3))
    flows += [(("up", "down", "both")[number % 3], number * 977) for number in range(200)]
    for size in {size for _, size in flows}:
        digest(size)
    workers = [threading.Thread(target=one_stream, args=(host, kind, size, f"volume-{os.getpid():08}-{number}", problems))
               for number, (kind, size) in enumerate(flows)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    say("; ".join(problems) or "ok")


def stall(host, count):
    """Writes to each until nothing has moved for a second; then waits for stdin to end."""
    sockets, written = [], []
    for number in range(int(count)):
        s = socket.create_connection((host, target.COMMAND), timeout=PATIENCE)
        s.sendall(f"stall stall-{os.getpid()}-{number}\n".encode())
        s.setblocking(False)
        sockets.append(s)
        written.append(0)
    block = bytes(1 << 18)
    while ready := select.select([], sockets, [], 1)[1]:
        for s in ready:
            sent = attempt(s.send, block)
            written[sockets.index(s)] += sent if isinstance(sent, int) else 0
    say(max(written))
    sys.stdin.read()


def peer(host):
    result, s = connect(host, 7000)
    if result == "ok":
        s.sendall(b"peer\n")
        result = s.makefile().read().strip()
    say(result)


def send_udp(host, port):
    s = socket.socket(family(host), socket.SOCK_DGRAM)
    s.settimeout(PATIENCE)
    results = [attempt(s.sendto, b"one", (host, int(port)))]
    results.append(attempt(s.connect, (host, int(port))))
    if results[-1] == "ok":
        results.append(attempt(s.send, b"two"))
        results += sorted(str(attempt(s.recv, 10)) for _ in range(2))
    say(*results)


def main():
    command, *words = sys.argv[1:]
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    with contextlib.suppress(BrokenPipeError):
        if command == "shell":
            Shell().run()
        elif command == "connect":
            say(connect(*words)[0])
        else:
            {"peer": peer, "many": many, "hold": hold, "send-udp": send_udp,
             "volume": volume, "stall": stall}[command](*words)


if __name__ == "__main__":
    main()
