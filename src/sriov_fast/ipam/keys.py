"""Readers for the configuration of built-in IPAM plugins, and IP addresses as whole numbers.

An address here is ``(bits, value)``: (32, 167772161) is 10.0.0.1. Its text is that of Go's library, because
host-local of containernetworking looks for files with these names.
"""

from __future__ import annotations

from sriov_fast.common.errors import ConfigError
from sriov_fast.common.ip import pack, unpack
from sriov_fast.common.json_object import FieldError, JsonObject, shown, string, whole

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeVar

    _T = TypeVar("_T")
    Ip = tuple[int, int]

_MAPPED = b"\0" * 10 + b"\xff\xff"  # ::ffff:0:0/96, IPv4 written as IPv6 (RFC 4291, 2.5.5.2)
_U32 = (1 << 32) - 1


# --- addresses


def parse_ip(text: str) -> Ip:
    """Return an address, or raise ValueError. An IPv4-mapped IPv6 address is the IPv4 address."""
    packed = pack(text)
    if packed.startswith(_MAPPED) and len(packed) == 16:
        packed = packed[12:]
    return len(packed) * 8, int.from_bytes(packed, "big")


def show_ip(ip: Ip) -> str:
    """Return an address's canonical text (RFC 5952)."""
    bits, value = ip
    if bits == 32:  # much faster than ``unpack``, and host-local tries thousands of addresses
        return f"{value >> 24}.{value >> 16 & 255}.{value >> 8 & 255}.{value & 255}"
    text = unpack(value.to_bytes(16, "big"))
    if "." in text:  # the C library writes ::102:304 as ::1.2.3.4, Go does not
        return f"{text[: text.rindex(':') + 1]}{value >> 16 & 0xFFFF:x}:{value & 0xFFFF:x}"
    return text


def parse_cidr(text: str) -> tuple[Ip, int]:
    """Return an address with its host bits, and the length of its prefix; or raise ValueError."""
    address, _, length = text.partition("/")
    ip = parse_ip(address)
    mapped = ip[0] == 32 and ":" in address
    if mapped or not length.isascii() or not length.isdigit() or len(length) > 3 or int(length) > ip[0]:
        raise ValueError(text)
    return ip, int(length)


def show_cidr(ip: Ip, length: int) -> str:
    """Return ``address/length``."""
    return f"{show_ip(ip)}/{length}"


# --- keys


def wrong(where: str, value: object, reason: str, advice: str) -> ConfigError:
    """Return the error for a wrong value: its place, the value, the reason and an advice."""
    return ConfigError(f"{where} = {shown(value)}: {reason}", advice)


class Keys(JsonObject):
    """One JSON object of the configuration; its addresses are whole numbers."""

    __slots__ = ()

    def text(self, key: str) -> str:
        """Return a string; "" if it is not given."""
        return self.take(key, string, "")

    def number(self, key: str, high: int = _U32) -> int | None:
        """Return a whole number; None if it is not given."""
        return self.take(key, whole(0, high), None)

    def texts(self, key: str) -> list[str]:
        """Return a list of strings."""
        return [as_value(string, item, place) for place, item in self.items(key)]

    def ip(self, key: str) -> Ip | None:
        """Return an address; None if it is not given."""
        return self.take(key, check_ip, None)

    def cidr(self, key: str) -> tuple[Ip, int]:
        """Return an address and its prefix length; both are required."""
        return self.need(key, check_cidr, "give one such as 10.0.0.0/24 or fd00::/64", ((0, 0), 0))


def check_ip(value: object) -> Ip:
    """Accept an IP address."""
    try:
        return parse_ip(string(value))
    except ValueError:
        raise FieldError("not an IP address", "give an IP address, such as 10.0.0.1 or fd00::1") from None


def check_cidr(value: object) -> tuple[Ip, int]:
    """Accept an address with a prefix length."""
    try:
        return parse_cidr(string(value))
    except ValueError:
        advice = "give an address with a prefix length, such as 10.0.0.2/24 or fd00::2/64"
        raise FieldError("not an address with a prefix length", advice) from None


def check_ip_or_cidr(value: object) -> Ip:
    """Accept an address with or without prefix length: the capability "ips" allows both."""
    return check_cidr(value)[0] if "/" in string(value) else check_ip(value)


def as_value(check: Callable[[object], _T], value: object, where: str) -> _T:
    """Return a checked value, or raise ConfigError."""
    try:
        return check(value)
    except FieldError as bad:
        raise wrong(where, value, bad.reason, bad.advice) from None


def same_family(gateway: Ip | None, ip: Ip, where: str) -> None:
    """Raise ConfigError if a gateway and the address that it serves are of different IP versions."""
    if gateway and gateway[0] != ip[0]:
        reason = f"of another IP version than {show_ip(ip)}"
        raise wrong(where, show_ip(gateway), reason, "give a gateway of the same")
