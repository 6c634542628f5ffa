# SPDX-License-Identifier: MIT
"""wire.py NETNS1 NETNS2 NAME [--reorder] [--delay MILLISECONDS]: a device NAME without Ethernet header in each of two network
namespaces, and what goes into one comes out of the other; with --reorder now and then a packet after its successor, with
--delay so much later. Says "ready"; ends with its standard input."""
import argparse
import collections
import fcntl
import os
import select
import struct
import time

import lib

TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x1, 0x1000


def tun(netns, name):
    with open(f"/run/netns/{netns}") as there, open("/proc/thread-self/ns/net") as home:
        lib._setns(there.fileno())
        fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TUN | IFF_NO_PI))
        lib._setns(home.fileno())
    return fd


def send(end, packet):
    try:
        os.write(end, packet)
    except OSError:
        pass  # the device is not up yet, or has no room: as on any line


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("netns", nargs=2)
    parser.add_argument("name")
    parser.add_argument("--reorder", action="store_true")
    parser.add_argument("--delay", type=float, default=0)
    options = parser.parse_args()
    every = 7 if options.reorder else 0
    ends = [tun(netns, options.name) for netns in options.netns]
    other = {ends[0]: ends[1], ends[1]: ends[0]}
    late, passed = {}, 0  # by where they came in: one that its successor is to overtake
    line = collections.deque()  # when they come out, where, and what
    print("ready", flush=True)
    while True:
        patience = max(0, line[0][0] - time.monotonic()) if line else 0.01 if late else None
        ready = select.select([0, *ends], [], [], patience)[0]
        if 0 in ready:
            return
        for end in ready or list(late):
            packets = []
            if end in ready:
                try:
                    packets = [os.read(end, 65536)]
                except BlockingIOError:
                    continue
                passed += 1
                if every and passed % every == 0 and end not in late:
                    late[end] = packets.pop()
                    continue
            if end in late:
                packets.append(late.pop(end))
            out = time.monotonic() + options.delay / 1000
            line.extend((out, other[end], packet) for packet in packets)
        while line and line[0][0] <= time.monotonic():
            send(*line.popleft()[1:])


main()
