"""IPAM without a second process: ``host-local`` and ``static`` in this one.

A built-in kind is used as ``delegate.Ipam`` is: ``start`` a verb, ``finish`` or ``cancel`` it. Its work takes
a tenth of a millisecond, so ``start`` has done it when it returns, or raises.
"""

from __future__ import annotations

from sriov_fast.errors import ConfigError, EnvError, FileError, IpamError
from sriov_fast.ipam.keys import Keys, same_family, show_cidr, show_ip, wrong
from sriov_fast.values import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from sriov_fast.ipam.keys import Ip

KINDS = ("host-local", "static", "txipam")
_LEGACY = ("0.1.0", "0.2.0")  # one address a family: ip4, ip6
_TAGGED = ("0.3.0", "0.3.1", "0.4.0")  # each address says its IP version


def builtin(kind: str, ipam: dict[str, Any] | None) -> type[Builtin] | None:
    """Return what serves this ``ipam`` object in-process; None where a plugin must be executed."""
    if kind not in KINDS:
        return None
    delegated = (ipam or {}).get("delegate")
    if delegated is not None and not isinstance(delegated, bool):
        raise wrong("ipam.delegate", delegated, "not a truth value", "give true or false, without quotes")
    if delegated:
        return None
    if kind == "static":
        from sriov_fast.ipam.static import Static

        return Static
    if kind == "txipam":
        from sriov_fast.ipam.txipam.plugin import TxIpam

        return TxIpam
    from sriov_fast.ipam.host_local import HostLocal

    return HostLocal


class Done:
    """A verb that was carried out; what ``exec.Running`` is for a process."""

    __slots__ = ("_answer",)
    ended = True

    def __init__(self, answer: dict[str, Any] | None) -> None:
        self._answer = answer

    def finish(self, timeout: float = 0.0) -> dict[str, Any] | None:
        """Return the result; None where the verb has none."""
        return self._answer

    def settle(self, grace: float) -> None:
        """There is nothing to wait for."""

    def cancel(self) -> None:
        """Nothing runs any more. As with a delegate, what was done is undone by DEL."""


class Builtin(Value):
    """The IPAM of one request.

    ``config`` is the whole network configuration, ``args`` CNI_ARGS as it came. ``networks`` is where stores
    are that have no ``dataDir``; ``runtime_dir`` is our own directory, on tmpfs, and ``state_dir`` the one
    that outlives a reboot. ``stderr`` (descriptors) is for warnings.
    """

    config: dict[str, Any]
    container_id: str = ""
    ifname: str = ""
    args: str = ""
    networks: str = "/var/lib/cni/networks"
    runtime_dir: str = "/run/sriov-fast"
    state_dir: str = "/var/lib/sriov-fast"
    stderr: Sequence[int] = (2,)

    kind = ""

    def start(self, command: str) -> Done:
        """Carry out ``command``. Its errors are raised here, and nothing is left of it then."""
        verbs: dict[str, Callable[[], dict[str, Any] | None]] = {
            "ADD": self.add,
            "DEL": self.delete,
            "CHECK": self.check,
            "STATUS": self.status,
            "GC": self.collect,
        }
        verb = verbs.get(command)
        if verb is None:
            raise EnvError(f"CNI_COMMAND = {command!r}: unknown", f"known: {', '.join(verbs)}")
        try:
            return Done(verb())
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
        """Carry out ``command`` and return its result. No verb is unknown here: ``on_skip`` is not told."""
        return self.start(command).finish(timeout)

    # --- the verbs of a kind

    def add(self) -> dict[str, Any] | None:
        """Give addresses."""
        raise NotImplementedError

    def delete(self) -> dict[str, Any] | None:
        """Take them back; what is gone already is no fault."""

    def check(self) -> dict[str, Any] | None:
        """Raise unless the container still has them."""

    def status(self) -> dict[str, Any] | None:
        """Raise unless an ADD can be served."""

    def collect(self) -> dict[str, Any] | None:
        """Take back what no valid attachment has."""

    # --- what the kinds share

    @property
    def keys(self) -> Keys:
        """The network configuration."""
        return Keys(self.config, "")

    @property
    def version(self) -> str:
        """The version that the configuration speaks; without one, as before there were any."""
        return self.keys.text("cniVersion") or "0.1.0"

    def requested(self) -> list[tuple[str, object]]:
        """Return the addresses that ``args`` and, after it, ``runtimeConfig`` ask for: place and value."""
        in_args = self.keys.inner("args").inner("cni").array("ips")
        return [*in_args, *self.keys.inner("runtimeConfig").array("ips")]

    def one_each(self, bits: list[int]) -> None:
        """Raise where a version with one address a family is asked for more."""
        if self.version in _LEGACY and len(set(bits)) != len(bits):
            raise ConfigError(
                f"cniVersion = {self.version!r}: it has no more than one address of each IP version",
                "raise cniVersion to 0.3.0 or later, or ask for fewer addresses",
            )

    def result(
        self, ips: list[tuple[Ip, int, Ip | None]], routes: list[dict[str, Any]], dns: dict[str, Any]
    ) -> dict[str, Any]:
        """Return the CNI result in the configuration's version: addresses as (address, length, gateway)."""
        head: dict[str, Any] = {"cniVersion": self.version}
        if self.version in _LEGACY:
            return head | _families(ips, routes) | {"dns": dns}
        tagged = self.version in _TAGGED
        body = {"ips": [_address(*item, tagged) for item in ips], "routes": routes}
        return head | {key: value for key, value in body.items() if value} | {"dns": dns}


def _address(ip: Ip, length: int, gateway: Ip | None, tagged: bool) -> dict[str, Any]:
    found = {"version": "4" if ip[0] == 32 else "6"} if tagged else {}
    found["address"] = show_cidr(ip, length)
    return found | _with_gateway(gateway)


def _with_gateway(gateway: Ip | None) -> dict[str, str]:
    return {"gateway": show_ip(gateway)} if gateway else {}


def _families(ips: list[tuple[Ip, int, Ip | None]], routes: list[dict[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for ip, length, gateway in ips:
        six = ip[0] == 128
        theirs = [route for route in routes if (":" in route["dst"]) == six]
        family = {"ip": show_cidr(ip, length)} | _with_gateway(gateway)
        found["ip6" if six else "ip4"] = family | ({"routes": theirs} if theirs else {})
    return found


def read_routes(ipam: Keys) -> list[dict[str, Any]]:
    """Return ``routes``, checked, in the result's form."""
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


def valid_attachments(keys: Keys) -> set[tuple[str, str]]:
    """Return what a GC must spare; without a list nothing may be taken for stale."""
    names = ("cni.dev/valid-attachments", "cni.dev/attachments")
    if not any(name in keys.obj for name in names):
        raise ConfigError(f"{names[0]} is missing", "GC needs the list of attachments that are still valid")
    found = set()
    for item in (item for name in names for item in keys.objects(name)):
        pair = item.text("containerID"), item.text("ifname")
        if not all(pair):
            advice = 'list {"containerID": "...", "ifname": "..."}'
            raise wrong(item.where, item.obj, "an attachment lacks containerID or ifname", advice)
        found.add(pair)
    return found
