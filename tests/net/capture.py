# SPDX-License-Identifier: MIT
"""A wire tap on app's outer interface. Whatever goes out to anything but the proxy's host is a leak."""
import ctypes
import ipaddress
import socket
import struct

ETH_P_ALL = 3
SO_ATTACH_FILTER, SO_RCVBUFFORCE = 26, 33
SOL_PACKET, PACKET_STATISTICS = 263, 6
LOAD_HALF, EQUAL, RETURN = 0x28, 0x15, 0x06

# (code, skip if equal, skip if not, value): what goes to neither 10.77.0.0/16 nor fd77::/16 passes.
_FILTER = [
    (LOAD_HALF, 0, 0, 12),
    (EQUAL, 0, 2, 0x0800),
    (LOAD_HALF, 0, 0, 30),
    (EQUAL, 4, 3, 0x0A4D),
    (EQUAL, 0, 3, 0x86DD),
    (LOAD_HALF, 0, 0, 38),
    (EQUAL, 1, 0, 0xFD77),
    (RETURN, 0, 0, 128),
    (RETURN, 0, 0, 0),
]


class Capture:
    """Open from construction to close(). Packets are queued as they are sent, so `leaks` misses none."""

    def __init__(self, ns, interface="out"):
        self._socket = ns.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        program = b"".join(struct.pack("HBBI", *step) for step in _FILTER)
        buffer = ctypes.create_string_buffer(program)
        self._socket.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER,
                                struct.pack("HP", len(_FILTER), ctypes.addressof(buffer)))
        self._socket.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 16 << 20)
        self._socket.bind((interface, ETH_P_ALL))
        self._socket.setblocking(False)

    def leaks(self):
        """Every TCP and UDP packet that left for elsewhere since the last call, as text: "tcp 10.88.0.1:80"."""
        found = []
        while True:
            try:
                packet = _describe(self._socket.recv(256))
            except BlockingIOError:
                break
            if packet:
                found.append(packet)
        _, dropped = struct.unpack("II", self._socket.getsockopt(SOL_PACKET, PACKET_STATISTICS, 8))
        if dropped:
            found.append(f"{dropped} packets more")
        return found

    def close(self):
        self._socket.close()


def _describe(frame):
    if frame[12:14] == b"\x08\x00":
        protocol, address, payload = frame[23], frame[30:34], frame[14 + 4 * (frame[14] & 15):]
    else:
        protocol, address, payload = frame[20], frame[38:54], frame[54:]
    if protocol not in (6, 17):
        return None  # neighbour discovery and the like
    port = int.from_bytes(payload[2:4], "big")
    return f"{'tcp' if protocol == 6 else 'udp'} {ipaddress.ip_address(address)}:{port}"
