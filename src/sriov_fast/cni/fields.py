"""Checks of single values: one function for each kind, which returns the normalised value.

A function raises ``FieldError`` with the reason and the remedy; the caller knows the key and words the error.
"""

from __future__ import annotations

from sriov_fast.common.ip import pack, unpack
from sriov_fast.common.json_object import FieldError, obj, string, whole, within

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_DIGITS = frozenset("0123456789")
_HEX = frozenset("0123456789abcdef")
_ALNUM = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789")
_NAME = _ALNUM | frozenset("_.-")
_WORD = _ALNUM | {"_"}
_U32 = (1 << 32) - 1
# As many processors as a Linux kernel can be built for (CONFIG_NR_CPUS), and more IRQs than a VF has.
MAX_CPUS = 8192
MAX_SECONDS = 3600
_MAX_NAME = 253  # as for the name of an object of Kubernetes, which names the network
POD_CORES = (-1,)  # the value of cores "pod", which only the node can resolve


def digits(low: int, high: int) -> Callable[[object], int]:
    """Return a check for a decimal number in a string, as CNI_ARGS carries it."""

    def check(value: object) -> int:
        text = string(value)
        if not text or len(text) > 10 or not _DIGITS.issuperset(text):
            raise FieldError("not a whole number", f"give a whole number from {low} to {high}")
        return within(int(text), low, high)

    return check


def number_or_digits(low: int, high: int) -> Callable[[object], int]:
    """Return a check for a whole number, a JSON number or a string: annotations are written by hand."""
    from_string, from_number = digits(low, high), whole(low, high)
    return lambda value: from_string(value) if isinstance(value, str) else from_number(value)


u32 = whole(0, _U32)


def seconds(value: object) -> float:
    """Accept a time in seconds, with or without a fraction; 0 is no limit."""
    if type(value) not in (int, float) or not 0 <= float(str(value)) <= MAX_SECONDS:
        raise FieldError(f"not from 0 to {MAX_SECONDS}", f"give seconds from 0 to {MAX_SECONDS}, such as 1.5")
    return float(str(value))


def one_of(*choices: str) -> Callable[[object], str]:
    """Return a check for one of some words."""

    def check(value: object) -> str:
        if value not in choices:
            raise FieldError(
                f"not one of {', '.join(choices)}", f"give one of {', '.join(choices)}, in quotes"
            )
        return str(value)

    return check


def switch(value: object) -> bool:
    """Accept "on" or "off", the words of ip-link(8)."""
    return one_of("on", "off")(value) == "on"


def boolean(value: object) -> bool:
    """Accept true or false, as the plugin ``tuning`` does, or "on" or "off"."""
    return value if isinstance(value, bool) else switch(value)


def sysctls(value: object) -> dict[str, str]:
    """Accept sysctls of the interface, with ``IFNAME`` for its name; return them by path below /proc/sys."""
    return {_sysctl(key): _sysctl_value(text) for key, text in obj(value).items()}


def _sysctl(key: str) -> str:
    """Accept ``net.ipv4.conf.IFNAME.rp_filter``, or with '/' in place of '.', as sysctl(8) does."""
    path = key.replace(".", "/")
    parts = path.split("/")
    known = len(parts) == 5 and parts[0] == "net" and parts[1] in ("ipv4", "ipv6")
    if not known or parts[2] not in ("conf", "neigh") or parts[3] != "IFNAME" or not _is_word(parts[4]):
        advice = "give names such as net.ipv4.conf.IFNAME.rp_filter; others are for the plugin tuning"
        raise FieldError(f"{key:.80} is no sysctl of the interface", advice)
    return path


def _is_word(text: str) -> bool:
    return bool(text) and _WORD.issuperset(text)


def _sysctl_value(value: object) -> str:
    text = string(value).strip()
    if not text or len(text) > 64 or not text.isprintable():
        raise FieldError("has a value that is no sysctl's", 'give values as strings, such as "1"')
    return text


def vlan_proto(value: object) -> str:
    """Accept a VLAN protocol in any case and return it as IEEE and ip-link(8) spell it."""
    known = {"802.1q": "802.1Q", "802.1ad": "802.1ad"}
    found = known.get(string(value).lower())
    if found is None:
        raise FieldError("not a VLAN protocol", 'give "802.1q" or "802.1ad"')
    return found


def name_fault(text: str) -> str:
    """Return why ``text`` is no name of a network or container, "" if it is one (SPEC sections 1 and 2)."""
    if not text:
        return "empty"
    if text[0] not in _ALNUM:
        return "does not start with a letter or a digit"
    if not _NAME.issuperset(text):
        return "holds more than letters, digits, '_', '.' and '-'"
    return ""


def name(value: object) -> str:
    """Accept a network's name (SPEC section 1)."""
    text = string(value)
    fault = name_fault(text)
    if fault:
        raise FieldError(fault, "use a letter or digit first, then letters, digits, '_', '.' and '-'")
    if len(text) > _MAX_NAME:
        raise FieldError(f"longer than {_MAX_NAME} characters", "use a shorter name")
    return text


def ifname_fault(text: str, most: int = 15) -> str:
    """Return why the kernel would refuse ``text`` as a device name (dev_valid_name in net/core/dev.c)."""
    if not text:
        return "empty"
    if len(text.encode("utf-8", "surrogateescape")) > most:
        return f"longer than {most} bytes"
    if text in (".", ".."):
        return "a directory's name"
    if any(char in "/:\0" or char.isspace() for char in text):
        return "holds '/', ':', a NUL or white space"
    if "%" in text:
        return "holds '%', which makes it a pattern"
    return "" if is_text(text) else "holds bytes that are no UTF-8"


def is_text(text: str) -> bool:
    """Return whether text from the environment is valid Unicode, as JSON requires."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def altname(value: object) -> str:
    """Accept a network interface's name or alternative name (ALTIFNAMSIZ, linux/if.h)."""
    text = string(value)
    fault = ifname_fault(text, 127)
    if fault:
        raise FieldError(fault, "name an interface: 1 to 127 bytes without '/', ':' and white space")
    return text


def altnames(value: object) -> tuple[str, ...]:
    """Accept one interface's name or a list of different ones, in order of preference."""
    if isinstance(value, str):
        return (altname(value),)
    if not isinstance(value, list) or not value:
        raise FieldError(
            "neither a name nor a list of names", 'name the PF: "eth1", or several: ["eth1", "eth2"]'
        )
    found = tuple(altname(item) for item in value)
    if len(set(found)) != len(found):
        raise FieldError("names one interface twice", "name each PF once")
    return found


def plugin(value: object) -> str:
    """Accept a plugin's file name (SPEC section 1, ``type``), which cannot lead out of CNI_PATH."""
    text = string(value)
    if not text or "/" in text or "\\" in text or ".." in text or text == ".":
        raise FieldError("not a plugin's file name", "give the name of the executable, without a path")
    return text


def mac(value: object) -> str:
    """Accept six octets in hex with ':' or '-' between, and return them in lower case with ':'."""
    text = string(value).lower()
    octets = text.split("-" if "-" in text else ":")
    if len(octets) != 6 or not all(len(octet) == 2 and _HEX.issuperset(octet) for octet in octets):
        raise FieldError("not a MAC address", "give six octets, such as 02:00:00:00:00:01")
    if int(octets[0], 16) & 1:
        raise FieldError(
            "a multicast MAC address", "give one whose first octet is even, such as 02:00:00:00:00:01"
        )
    if not any(int(octet, 16) for octet in octets):
        raise FieldError("the zero MAC address", "give an address, or leave the key out for a random one")
    return ":".join(octets)


def device(value: object) -> str:
    """Accept a PCI address, DDDD:BB:DD.F, and return it in lower case, or the name of an auxiliary device."""
    text = string(value)
    if _is_auxiliary(text):
        return text
    text = text.lower()
    shape = "".join("h" if char in _HEX else char for char in text)
    if shape != "hhhh:hh:hh.h" or text[11] > "7" or int(text[8:10], 16) > 31:
        raise FieldError("not a PCI address", "give the VF's address as DDDD:BB:DD.F, such as 0000:03:10.1")
    return text


def _is_auxiliary(text: str) -> bool:
    """Return whether text is MODULE.NAME.NUMBER, such as mlx5_core.sf.4 (drivers/base/auxiliary.c)."""
    *names, number = text.split(".")
    return len(names) == 2 and all(map(_is_word, names)) and number.isascii() and number.isdigit()


def _canonical(text: str) -> tuple[str, int]:
    """Return an address as inet_ntop writes it, and how many bits it has; ValueError if it is none."""
    packed = pack(text)
    return unpack(packed), len(packed) * 8


def ip(value: object) -> str:
    """Accept an IPv4 or IPv6 address and return its canonical text."""
    try:
        return _canonical(string(value))[0]
    except ValueError:
        raise FieldError("not an IP address", "give an address such as 10.0.0.1 or fd00::1") from None


def cidr(value: object) -> str:
    """Accept an address with a prefix length, and return its canonical text; host bits stay."""
    text, slash, length = string(value).partition("/")
    try:
        text, bits = _canonical(text)
    except ValueError:
        slash = ""
        bits = 0
    if not slash or len(length) > 3 or not length or not _DIGITS.issuperset(length) or int(length) > bits:
        raise FieldError("not an address with a prefix length", "give one such as 10.0.0.2/24 or fd00::2/64")
    return f"{text}/{int(length)}"


def ip_or_cidr(value: object) -> str:
    """Accept either, as the capability "ips" allows (CONVENTIONS.md)."""
    return cidr(value) if "/" in string(value) else ip(value)


def _cpu(text: str) -> int:
    if not text or len(text) > 5 or not _DIGITS.issuperset(text) or int(text) >= MAX_CPUS:
        raise FieldError(
            f"{text!r} is not a core's number", f"give cores from 0 to {MAX_CPUS - 1}, such as 1-4,8"
        )
    return int(text)


def cpu_list(value: object) -> tuple[int, ...]:
    """Accept a list such as "1-4,8" (cpuset(7)) and keep its order, which IRQs follow; "" names none."""
    found: list[int] = []
    for part in string(value).split(",") if value else ():
        low, dash, high = part.strip().partition("-")
        first = _cpu(low)
        last = _cpu(high) if dash else first
        if last < first:
            raise FieldError(
                f"{part.strip()!r} runs backwards", "write a range from its lower to its higher core"
            )
        found.extend(range(first, last + 1))
        if len(found) > MAX_CPUS:
            raise FieldError(f"names more than {MAX_CPUS} cores", "name each core once")
    return tuple(found)


def cores(value: object) -> tuple[int, ...]:
    """Accept cores as a string ("1-4,8"), as a list of numbers ([1, 2, 3]), or "pod" (``POD_CORES``)."""
    if value == "pod":
        return POD_CORES
    if isinstance(value, str):
        return cpu_list(value)
    if not isinstance(value, list) or len(value) > MAX_CPUS:
        raise FieldError("not a list of cores", 'give cores as "1-4,8" or [1, 2, 3, 4, 8]')
    number = whole(0, MAX_CPUS - 1)
    return tuple(number(item) for item in value)


def pod_cores(value: object) -> tuple[int, ...]:
    """Accept cores as ``cores`` does, and a single one as a number."""
    return cores([value] if type(value) is int else value)
