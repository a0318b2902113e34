"""The frames of gratuitous ARP and of neighbour advertisements, byte for byte."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sriov_fast.vf import announce

MAC = "02:00:00:00:00:0a"

# A gratuitous ARP request for 10.0.0.2 (RFC 5227, section 3): sender and target address are equal.
ARP = bytes.fromhex(
    "ffffffffffff 02000000000a 0806"  # broadcast, own MAC, ARP
    "0001 0800 06 04 0001"  # Ethernet, IPv4, 6 and 4 bytes, request
    "02000000000a 0a000002"  # sender
    "000000000000 0a000002"  # target
)

# An unsolicited neighbour advertisement for fd00::2 (RFC 4861, sections 4.4 and 7.2.6).
NA = bytes.fromhex(
    "333300000001 02000000000a 86dd"  # all nodes, own MAC, IPv6
    "60000000 0020 3a ff"  # 32 bytes of ICMPv6, hop limit 255
    "fd000000000000000000000000000002 ff020000000000000000000000000001"
    "88 00 5a90 20000000"  # advertisement, checksum, override
    "fd000000000000000000000000000002"
    "02 01 02000000000a"  # the target's link-layer address
)


def test_arp() -> None:
    assert announce.frames(MAC, ["10.0.0.2/24"]) == [ARP]


def test_neighbour_advertisement() -> None:
    assert announce.frames(MAC, ["fd00::2/64"]) == [NA]


def test_one_frame_for_each_address() -> None:
    assert announce.frames(MAC, ["fd00::2/64", "10.0.0.2/24", "fd00::2/128"]) == [NA, ARP, NA]
    assert announce.frames(MAC, []) == []


@given(st.binary(min_size=16, max_size=16), st.binary(min_size=6, max_size=6))
def test_the_checksum_is_right_for_every_address(ip: bytes, mac: bytes) -> None:
    """The sum over pseudo header and message, checksum included, is all ones (RFC 1071)."""
    import socket

    (frame,) = announce.frames(mac.hex(":"), [f"{socket.inet_ntop(socket.AF_INET6, ip)}/64"])
    message, addresses = frame[54:], frame[22:54]
    data = addresses + len(message).to_bytes(4, "big") + b"\0\0\0\x3a" + message
    total = sum(int.from_bytes(data[at : at + 2], "big") for at in range(0, len(data), 2))
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    assert total == 0xFFFF
    assert frame[62:78] == ip
