"""Attributes of messages.

pyroute2 does not decode received ones, because its message classes raise TypeError and other errors for
malformed input. The compiled decoder skips malformed attributes, and so does this one.
"""

from __future__ import annotations

import socket
import sys

from sriov_fast.kernel.netlink.constants import ATTR, NLA_TYPE_MASK

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator


def aligned(size: int) -> int:
    """Return a size with its padding to a multiple of 4 bytes."""
    return (size + 3) & ~3


def packed(kind: int, payload: bytes) -> bytes:
    """Return an attribute (struct nlattr), padded."""
    return ATTR.pack(ATTR.size + len(payload), kind) + payload + bytes(-len(payload) % 4)


def attributes(data: bytes, at: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Yield type, start and end of each attribute (header included) that fits."""
    while end - at >= ATTR.size:
        size, kind = ATTR.unpack_from(data, at)
        if size < ATTR.size or size > end - at:
            return
        yield kind & NLA_TYPE_MASK, at, at + size
        at += aligned(size)


def payloads(data: bytes, at: int = 0) -> list[tuple[int, bytes]]:
    """Return type and payload of each attribute from ``at`` on."""
    return [(kind, data[start + ATTR.size : end]) for kind, start, end in attributes(data, at, len(data))]


def inner(nest: bytes, wanted: int) -> bytes | None:
    """Return the payload of the first attribute of one kind in a nest, None without one."""
    return next((payload for kind, payload in payloads(nest) if kind == wanted), None)


def u32(payload: bytes) -> int:
    """Return a number of 4 bytes, 0 for fewer bytes."""
    return int.from_bytes(payload[:4], sys.byteorder) if len(payload) >= 4 else 0


def inner_u32(nest: bytes, wanted: int) -> int:
    """Return the number of one kind in a nest, 0 without one."""
    return u32(inner(nest, wanted) or b"")


def text(payload: bytes) -> str:
    """Return a text that ends at the first NUL byte."""
    return payload.partition(b"\0")[0].decode("utf-8", "surrogateescape")


def hardware_address(payload: bytes) -> str:
    """Return an address of 1 to 32 bytes (MAX_ADDR_LEN, linux/netdevice.h), "" for any other length."""
    return payload.hex(":") if 1 <= len(payload) <= 32 else ""


def ip_text(family: int, payload: bytes) -> str:
    """Return an IP address of a family, "" for too few bytes."""
    size = 4 if family == socket.AF_INET else 16
    if len(payload) < size or family not in (socket.AF_INET, socket.AF_INET6):
        return ""
    return socket.inet_ntop(family, payload[:size])
