"""The base of the built-in IPAM plugins, which run in this process: ``host-local``, ``static``, ``txipam``.

A built-in plugin is used as ``exec.Ipam`` is: ``start`` a verb, ``finish`` it. ``start``
carries out the whole verb: it returns when that is done, or raises.
"""

from __future__ import annotations

import time

from sriov_fast.common.errors import ConfigError, FileError, IpamError
from sriov_fast.common.record import Record
from sriov_fast.ipam.keys import Keys, same_family, show_cidr, show_ip, wrong

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from sriov_fast.ipam.keys import Ip

    Given = tuple[Ip, int, Ip | None]  # address, prefix length, gateway

_LEGACY = ("0.1.0", "0.2.0")  # one address a family: ip4, ip6
_NAME = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-")


class Done:
    """A verb that was carried out; it has the methods of ``exec.Running``, which is a process."""

    __slots__ = ("_answer",)

    def __init__(self, answer: dict[str, Any] | None) -> None:
        self._answer = answer

    def finish(self, timeout: float = 0.0) -> dict[str, Any] | None:
        """Return the result; None if the verb has none."""
        return self._answer

    def hurry(self, seconds: float) -> None:
        """Do nothing: the verb has ended."""


class Builtin(Record):
    """The IPAM of one request.

    ``keys`` reads the whole network configuration, ``args`` is the unchanged CNI_ARGS. ``recorded`` are the
    addresses in the attachment's record, with prefix lengths; it is empty if there is no record. ``networks``
    is the directory of the stores without ``dataDir``. ``runtime_dir`` is our own directory on tmpfs,
    ``state_dir`` the one that outlives a reboot. ``stderr`` has descriptors for warnings.
    ``ends`` is the deadline of the request (time.monotonic).
    """

    keys: Keys
    container_id: str = ""
    ifname: str = ""
    args: str = ""
    recorded: tuple[str, ...] = ()
    networks: str = "/var/lib/cni/networks"
    runtime_dir: str = "/run/sriov-fast"
    state_dir: str = "/var/lib/sriov-fast"
    stderr: Sequence[int] = (2,)
    ends: float = float("inf")

    kind = ""
    waits = False  # for another process or for the network

    def start(self, command: str) -> Done:
        """Carry out ``command``. If it raises an error, the verb has changed nothing."""
        verbs: dict[str, Callable[[], dict[str, Any] | None]] = {
            "ADD": self.add,
            "DEL": self.delete,
            "CHECK": self.check,
            "STATUS": self.status,
            "GC": self.collect,
        }
        try:
            return Done(verbs[command]())
        except OSError as error:
            raise IpamError(
                f"IPAM {self.kind}, {command}: {error.filename or 'the store'}: {error.strerror or error}",
                "see that it can be read and written, and that its file system has room",
                code=FileError.code,
                errno=error.errno or 0,
            ) from error

    def run(
        self, command: str, timeout: float = 0.0, on_skip: Callable[[str], None] | None = None
    ) -> dict[str, Any] | None:
        """Carry out ``command`` and return its result. ``on_skip`` is for plugins without some verbs."""
        return self.start(command).finish(timeout)

    def add(self) -> dict[str, Any] | None:
        """Return a result with addresses."""
        raise NotImplementedError

    def delete(self) -> dict[str, Any] | None:
        """Free the addresses; it is no error if there are none."""

    def check(self) -> dict[str, Any] | None:
        """Raise CheckError if the container does not have its addresses."""

    def status(self) -> dict[str, Any] | None:
        """Raise an error if an ADD cannot be served."""

    def collect(self) -> dict[str, Any] | None:
        """Free the addresses that no valid attachment has."""

    def wait(self, longest: float) -> float:
        """Return the seconds to wait: ``longest``, or the rest of the request's time if that is less."""
        return max(0.0, min(longest, self.ends - time.monotonic()))

    def requested(self) -> list[tuple[str, object]]:
        """Return the place and the value of each address that ``args`` and ``runtimeConfig`` ask for."""
        in_args = self.keys.inner("args").inner("cni").items("ips")
        return [*in_args, *self.keys.inner("runtimeConfig").items("ips")]

    def one_each(self, bits: list[int]) -> None:
        """Raise ConfigError for two addresses of one family, which the oldest CNI versions cannot express."""
        version = self.keys.text("cniVersion") or "0.1.0"
        if version in _LEGACY and len(set(bits)) != len(bits):
            raise ConfigError(
                f"cniVersion = {version!r}: it has no more than one address of each IP version",
                "raise cniVersion to 0.3.0 or later, or ask for fewer addresses",
            )

    def result(
        self, ips: Sequence[Given], routes: list[dict[str, Any]], dns: dict[str, Any]
    ) -> dict[str, Any]:
        """Return a result without a version; ``cni.result`` gives it the form of the configured one."""
        body = {"ips": [_address(*item) for item in ips], "routes": routes}
        return {key: value for key, value in body.items() if value} | {"dns": dns}

    def network(self) -> str:
        """Return the network's name, which is a part of paths."""
        name = self.keys.text("name")
        if not name[:1].isalnum() or not _NAME.issuperset(name):
            advice = "use a letter or digit first, then letters, digits, '_', '.' and '-'"
            raise wrong("name", name, "no network's name", advice)
        return name

    def given_before(self) -> list[Keys]:
        """Return the addresses in ``prevResult``, with which CHECK compares."""
        if self.keys.get("prevResult") is None:
            raise ConfigError("prevResult is missing", "CHECK compares with it")
        return self.keys.inner("prevResult").objects("ips")


def _address(ip: Ip, length: int, gateway: Ip | None) -> dict[str, str]:
    found = {"address": show_cidr(ip, length)}
    return found | {"gateway": show_ip(gateway)} if gateway else found


def read_address(item: Keys) -> Given:
    """Return an address, its prefix length and its gateway."""
    ip, length = item.cidr("address")
    gateway = item.ip("gateway")
    same_family(gateway, ip, item.place("gateway"))
    return ip, length, gateway


def read_dns(dns: Keys) -> dict[str, Any]:
    """Return the given keys of ``dns``."""
    found: dict[str, Any] = {key: dns.texts(key) for key in ("nameservers", "search", "options")}
    found["domain"] = dns.text("domain")
    return {key: value for key, value in found.items() if value}


def read_routes(ipam: Keys) -> list[dict[str, Any]]:
    """Return the configured ``routes`` as the result has them."""
    return [_route(item) for item in ipam.objects("routes")]


def _route(item: Keys) -> dict[str, Any]:
    dst, length = item.cidr("dst")
    gateway = item.ip("gw")
    same_family(gateway, dst, item.place("gw"))
    found: dict[str, Any] = {"dst": show_cidr(dst, length)}
    if gateway:
        found["gw"] = show_ip(gateway)
    numbers = {key: item.number(key) or None for key in ("mtu", "advmss", "priority")}
    numbers |= {"table": item.number("table"), "scope": item.number("scope", 255)}
    return found | {key: value for key, value in numbers.items() if value is not None}
