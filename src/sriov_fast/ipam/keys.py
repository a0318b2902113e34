"""Readers for the configuration of built-in IPAM plugins, and IP addresses as whole numbers.

An address here is ``(bits, value)``: (32, 167772161) is 10.0.0.1. Its text is that of Go's library, because
host-local of containernetworking looks for files with these names.
"""

from __future__ import annotations

from sriov_fast.common import json
from sriov_fast.common.errors import ConfigError
from sriov_fast.common.ip import pack, unpack

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any, TypeVar

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


def shown(value: object) -> str:
    """Return a value as an error message shows it: JSON, cut to 120 characters."""
    text = json.text(value)
    return text if len(text) <= 120 else f"{text[:117]}..."


def wrong(where: str, value: object, reason: str, advice: str) -> ConfigError:
    """Return the error for a wrong value: its place, the value, the reason and an advice."""
    return ConfigError(f"{where} = {shown(value)}: {reason}", advice)


class Keys:
    """One JSON object of the configuration, keys in any case.

    Its errors name the place and the value of the wrong key. Of keys that differ in case only, the last one
    counts, as with Go's encoding/json.
    """

    __slots__ = ("_values", "obj", "where")

    def __init__(self, value: object, where: str) -> None:
        if not isinstance(value, dict):
            raise wrong(where or "the network configuration", value, "not an object", "give { ... }")
        self.obj: dict[str, Any] = value
        self._values = {key.casefold(): item for key, item in value.items()}
        self.where = where

    def __contains__(self, key: str) -> bool:
        return key.casefold() in self._values

    def get(self, key: str) -> Any:
        """Return the unchecked value of a key; None if it is absent or null."""
        return self._values.get(key.casefold())

    def place(self, key: str) -> str:
        """Return the key with the path of its object."""
        return f"{self.where}.{key}" if self.where else key

    def inner(self, key: str) -> Keys:
        """Return the object under a key; an empty one if it is absent or null."""
        value = self.get(key)
        return Keys({} if value is None else value, self.place(key))

    def text(self, key: str) -> str:
        """Return a string; "" if it is absent or null."""
        value = self.get(key)
        if value is None:
            return ""
        if not isinstance(value, str) or "\0" in value:
            raise wrong(self.place(key), value, "not a string", "put the value in double quotes")
        return value

    def number(self, key: str, high: int = _U32) -> int | None:
        """Return a whole number; None if it is absent or null."""
        value = self.get(key)
        if value is None or (type(value) is int and 0 <= value <= high):
            return value
        raise wrong(self.place(key), value, "not a whole number in range", f"give one from 0 to {high}")

    def array(self, key: str) -> Iterator[tuple[str, object]]:
        """Go through a list: the place and the value of each item. It is empty if absent or null."""
        value = self.get(key)
        if value is None:
            return
        if not isinstance(value, list):
            raise wrong(self.place(key), value, "not a list", "give a JSON list: [ ... ]")
        for at, item in enumerate(value):
            yield f"{self.place(key)}[{at}]", item

    def objects(self, key: str) -> Iterator[Keys]:
        """Go through a list of objects."""
        for where, item in self.array(key):
            yield Keys(item, where)

    def texts(self, key: str) -> list[str]:
        """Return a list of strings."""
        found = []
        for where, item in self.array(key):
            if not isinstance(item, str):
                raise wrong(where, item, "not a string", "put the value in double quotes")
            found.append(item)
        return found

    def ip(self, key: str) -> Ip | None:
        """Return an address; None if it is absent or ""."""
        text = self.text(key)
        return as_ip(text, self.place(key)) if text else None

    def cidr(self, key: str) -> tuple[Ip, int]:
        """Return an address and its prefix length; both are required."""
        if self.get(key) is None:
            raise ConfigError(f"{self.place(key)} is missing", "give one such as 10.0.0.0/24 or fd00::/64")
        return as_cidr(self.text(key), self.place(key))


def _as(parse: Callable[[str], _T], value: object, where: str, what: str) -> _T:
    try:
        if isinstance(value, str):
            return parse(value)
    except ValueError:
        pass
    raise wrong(where, value, f"not an {what.partition(',')[0]}", f"give an {what}")


def as_ip(value: object, where: str) -> Ip:
    """Return the address that a value of the configuration has; ConfigError for anything else."""
    return _as(parse_ip, value, where, "IP address, such as 10.0.0.1 or fd00::1")


def as_cidr(value: object, where: str) -> tuple[Ip, int]:
    """Return the address and the prefix length of a value; ConfigError for anything else."""
    return _as(parse_cidr, value, where, "address with a prefix length, such as 10.0.0.2/24 or fd00::2/64")


def as_ip_or_cidr(value: object, where: str) -> Ip:
    """Return the address of a value with or without prefix length: the capability "ips" allows both."""
    if isinstance(value, str) and "/" in value:
        return as_cidr(value, where)[0]
    return as_ip(value, where)


def same_family(gateway: Ip | None, ip: Ip, where: str) -> None:
    """Raise ConfigError if a gateway and the address that it serves are of different IP versions."""
    if gateway and gateway[0] != ip[0]:
        reason = f"of another IP version than {show_ip(ip)}"
        raise wrong(where, show_ip(gateway), reason, "give a gateway of the same")
