"""Announces addresses: gratuitous ARP (RFC 5227 section 3) and unsolicited NA (RFC 4861 section 7.2.6).

It runs after the reply, because it waits for carrier, and closing a packet socket waits in the kernel.
"""

from __future__ import annotations

import _socket
import fcntl
import os
import sys
import time

from sriov_fast.common import descriptors
from sriov_fast.common.interpreter import INTERPRETER
from sriov_fast.kernel.backend import nl

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

_AF_PACKET = 17  # linux/socket.h
_SOCK_RAW = 3
_AF_INET, _AF_INET6 = 2, 10
_SIOCGIFFLAGS = 0x8913  # linux/sockios.h
_IFF_RUNNING = 0x40  # linux/if.h
_IFREQ_SIZE = 40  # struct ifreq, netdevice(7): the name in 16 bytes, then the flags
_BROADCAST = b"\xff" * 6
_CARRIER_WAIT = 2.0  # seconds
_PAUSE = 0.02


def frames(mac: str, addresses: Sequence[str]) -> list[bytes]:
    """Return one Ethernet frame for each address ("10.0.0.2/24", "fd00::2/64")."""
    own = bytes.fromhex(mac.replace(":", ""))
    return [_frame(own, cidr.partition("/")[0]) for cidr in addresses]


def _frame(mac: bytes, ip: str) -> bytes:
    if ":" in ip:
        return _neighbour(mac, _socket.inet_pton(_AF_INET6, ip))
    return _arp(mac, _socket.inet_pton(_AF_INET, ip))


def _arp(mac: bytes, ip: bytes) -> bytes:
    """Return an ARP request for the sender's own address (struct arphdr, linux/if_arp.h)."""
    head = b"\x00\x01\x08\x00\x06\x04\x00\x01"  # Ethernet, IPv4, lengths 6 and 4, request
    return _BROADCAST + mac + b"\x08\x06" + head + mac + ip + bytes(6) + ip


def _neighbour(mac: bytes, ip: bytes) -> bytes:
    """Return a neighbour advertisement to all nodes, override flag set, with the link-layer address."""
    all_nodes = bytes.fromhex("ff02" + "00" * 13 + "01")
    body = b"\x20\x00\x00\x00" + ip + b"\x02\x01" + mac
    message = b"\x88\x00" + _checksum(ip, all_nodes, b"\x88\x00\x00\x00" + body) + body
    header = b"\x60\x00\x00\x00" + len(message).to_bytes(2, "big") + b"\x3a\xff" + ip + all_nodes
    return b"\x33\x33\x00\x00\x00\x01" + mac + b"\x86\xdd" + header + message


def _checksum(source: bytes, target: bytes, message: bytes) -> bytes:
    """Return the Internet checksum over pseudo header and message (RFC 4443 section 2.3)."""
    data = source + target + len(message).to_bytes(4, "big") + b"\x00\x00\x00\x3a" + message
    data += b"\x00" * (len(data) % 2)
    total = sum(int.from_bytes(data[i : i + 2], "big") for i in range(0, len(data), 2))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return (~total & 0xFFFF).to_bytes(2, "big")


def send(netns_fd: int, ifname: str, mac: str, addresses: Sequence[str]) -> None:
    """Wait for carrier for a bounded time, then send one frame for each address."""
    fd = nl.raw_socket(netns_fd, _AF_PACKET, _SOCK_RAW, 0)
    try:
        packet = _socket.socket(_AF_PACKET, _SOCK_RAW, 0, fd)
    except BaseException:
        descriptors.close(fd)
        raise
    try:
        _wait_for_carrier(fd, ifname)
        for frame in frames(mac, addresses):
            packet.sendto(frame, (ifname, 0))
    finally:
        with INTERPRETER.released():  # the kernel waits for RCU
            packet.close()


def _wait_for_carrier(fd: int, ifname: str) -> None:
    deadline = time.monotonic() + _CARRIER_WAIT
    while not _flags(fd, ifname) & _IFF_RUNNING and time.monotonic() < deadline:
        with INTERPRETER.released():
            time.sleep(_PAUSE)


def _flags(fd: int, ifname: str) -> int:
    """Return the interface's flags by ioctl: cheaper than rtnetlink, and the socket exists already."""
    request = os.fsencode(ifname).ljust(_IFREQ_SIZE, b"\0")
    return int.from_bytes(fcntl.ioctl(fd, _SIOCGIFFLAGS, request)[16:18], sys.byteorder)
