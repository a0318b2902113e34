"""Checks of arguments. ValueError names the argument and the value that the kernel cannot take."""

from __future__ import annotations

import contextlib
import socket

from sriov_fast.kernel.netlink.constants import ALTIFNAMSIZ, IFNAMSIZ


def number(value: object, what: str, low: int, high: int) -> int:
    """Return a whole number in a range."""
    if not isinstance(value, int) or not low <= value <= high:
        raise ValueError(f"{what} {value!r}: not a number from {low} to {high}")
    return value


def mac_bytes(value: object) -> bytes:
    """Return the six bytes of a MAC."""
    raw = b""
    if isinstance(value, str) and len(value) == 17 and value[2::3] == ":::::":
        with contextlib.suppress(ValueError):
            raw = bytes.fromhex(value.replace(":", ""))
    if len(raw) != 6:
        raise ValueError(f"mac {value!r}: not six bytes in hexadecimal with colons")
    return raw


def interface_name(value: object, size: int = IFNAMSIZ) -> bytes:
    """Return a name that dev_valid_name() (net/core/dev.c, isspace() as in Latin-1) takes, if printable."""
    text = value.encode("utf-8", "replace") if isinstance(value, str) and value.isprintable() else b""
    if not 0 < len(text) < size or text in (b".", b"..") or set(text) & set(b" /:\xa0"):
        raise ValueError(
            f"interface name {value!r}: not 1 to {size - 1} bytes without white space, '/' and ':'"
        )
    return text


def alternative_name(value: object) -> bytes:
    """Return an alternative name with any bytes: a pod may have chosen it, and it must be removable."""
    text = value.encode("utf-8", "surrogateescape") if isinstance(value, str) else b""
    if not 0 < len(text) < ALTIFNAMSIZ or b"\0" in text:
        raise ValueError(f"alternative name {value!r}: not 1 to {ALTIFNAMSIZ - 1} bytes")
    return text


def cidr(value: object) -> tuple[int, str, int]:
    """Return family, address and prefix length."""
    ip, _, bits = value.partition("/") if isinstance(value, str) else ("", "", "")
    family = _family(ip)
    if not family or not (0 < len(bits) <= 3 and bits.isascii() and bits.isdigit()):
        raise ValueError(f"address {value!r}: not an IP address with a prefix length")
    widest = 32 if family == socket.AF_INET else 128
    if int(bits) > widest:
        raise ValueError(f"address {value!r}: prefix length beyond {widest}")
    return family, ip, int(bits)


def gateway(value: object, family: int) -> str:
    """Return an address of a family."""
    if not isinstance(value, str) or _family(value) != family:
        version = "IPv4" if family == socket.AF_INET else "IPv6"
        raise ValueError(f"gateway {value!r}: not an {version} address")
    return value


def _family(ip: str) -> int:
    """Return the family of an IP address, 0 for any other text."""
    family = socket.AF_INET6 if ":" in ip else socket.AF_INET
    try:
        socket.inet_pton(family, ip)
    except (OSError, ValueError):
        return 0
    return family
