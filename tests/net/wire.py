# SPDX-License-Identifier: MIT
"""wire.py NETNS1 NETNS2 NAME [--reorder]: a device NAME without Ethernet header in each of two network namespaces, and what
goes into one comes out of the other; with --reorder now and then a packet after its successor. Says "ready"; ends with its
standard input."""
import fcntl
import os
import select
import struct
import sys

import lib

TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x1, 0x1000


def tun(netns, name):
    with open(f"/run/netns/{netns}") as there, open("/proc/thread-self/ns/net") as home:
        lib._setns(there.fileno())
        fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TUN | IFF_NO_PI))
        lib._setns(home.fileno())
    return fd


def main():
    first, second, name = sys.argv[1:4]
    every = 7 if "--reorder" in sys.argv else 0
    ends = [tun(first, name), tun(second, name)]
    other = {ends[0]: ends[1], ends[1]: ends[0]}
    late, passed = {}, 0
    print("ready", flush=True)
    while True:
        ready = select.select([0, *ends], [], [], 0.01 if late else None)[0]
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
            for packet in packets:
                try:
                    os.write(other[end], packet)
                except OSError:
                    pass  # the device is not up yet, or has no room: as on any line


main()
