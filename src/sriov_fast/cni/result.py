"""The result of an ADD in every version's form (SPEC section 5, "ADD Success")."""

from __future__ import annotations

from sriov_fast.cni import fields
from sriov_fast.common.errors import DecodeError, SriovError
from sriov_fast.common.record import Record, Route

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, TypeVar

    _T = TypeVar("_T")

VERSIONS = ("0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
LEGACY = ("0.1.0", "0.2.0")  # one address a family: ip4, ip6
_TAGGED = ("0.3.0", "0.3.1", "0.4.0")  # each address says its IP version
_DNS = {
    "nameservers": fields.strings,
    "domain": fields.string,
    "search": fields.strings,
    "options": fields.strings,
}


class Interface(Record):
    """One interface of a result; "" and 0 mean "not given". ``pci_id`` and ``mtu`` are of 1.1.0."""

    name: str
    mac: str = ""
    mtu: int = 0
    sandbox: str = ""
    pci_id: str = ""
    socket_path: str = ""


class IpConfig(Record):
    """One address of a result: ``address`` is a CIDR, ``interface`` an index into the interfaces."""

    address: str
    gateway: str = ""
    interface: int | None = None


class Result(Record):
    """What an ADD made, independent of the version that prints it. ``dns`` holds only what was given."""

    interfaces: tuple[Interface, ...] = ()
    ips: tuple[IpConfig, ...] = ()
    routes: tuple[Route, ...] = ()
    dns: dict[str, Any] = {}  # noqa: RUF012 (Value takes it out of the class; nobody writes to it)


# --- in ---------------------------------------------------------------------------------------------------


class _Reader:
    """One JSON object, keys in any case. The error for a wrong value names its place and the value."""

    __slots__ = ("error", "obj", "where")

    def __init__(self, value: object, where: str, error: type[SriovError]) -> None:
        self.where = where
        self.error = error
        given = self.checked(fields.obj, value, where)
        self.obj = {key.casefold(): item for key, item in given.items()}

    def checked(self, check: Callable[[object], _T], value: object, where: str) -> _T:
        try:
            return check(value)
        except fields.FieldError as bad:
            raise self.error(f"{where} = {fields.shown(value)}: {bad.reason}", bad.advice) from None

    def take(self, key: str, check: Callable[[object], _T], default: _T) -> _T:
        """Return the key's value, or ``default`` where it is absent or null."""
        value = self.obj.get(key.casefold())
        return default if value is None else self.checked(check, value, f"{self.where}.{key}")

    def need(self, key: str, check: Callable[[object], _T]) -> _T:
        value = self.obj.get(key.casefold())
        if value is None:
            raise self.error(f"{self.where}.{key} is missing", "a CNI result must have it")
        return self.checked(check, value, f"{self.where}.{key}")

    def each(self, key: str) -> list[_Reader]:
        items: list[Any] = self.take(key, fields.array, [])
        return [_Reader(item, f"{self.where}.{key}[{at}]", self.error) for at, item in enumerate(items)]


def from_json(
    obj: object, version: str, *, error: type[SriovError] = DecodeError, where: str = "prevResult"
) -> Result:
    """Read a result of any version, as a ``prevResult`` or as what a delegated plugin printed.

    ``version`` is the configuration's; what the result itself declares comes before it. ``error`` is raised
    for what is wrong, and names it by ``where``.
    """
    reader = _Reader(obj, where, error)
    declared = reader.take("cniVersion", fields.string, "") or version
    if declared not in VERSIONS:
        raise error(
            f"{where}.cniVersion = {fields.shown(declared)}: not supported",
            f"supported: {', '.join(VERSIONS)}",
        )
    # The form shows itself; the version decides only where both are there.
    legacy = declared in LEGACY if "ips" in reader.obj else True
    if legacy and ("ip4" in reader.obj or "ip6" in reader.obj):
        return _from_legacy(reader)
    interfaces = tuple(_interface(item) for item in reader.each("interfaces"))
    return Result(
        interfaces=interfaces,
        ips=tuple(_ip(item, len(interfaces)) for item in reader.each("ips")),
        routes=tuple(_route(item) for item in reader.each("routes")),
        dns=_dns(reader),
    )


def _from_legacy(reader: _Reader) -> Result:
    """Read {ip4, ip6, dns}; routes stand inside the families there."""
    ips: list[IpConfig] = []
    routes: list[Route] = []
    for key in ("ip4", "ip6"):
        if reader.obj.get(key) is None:
            continue
        family = _Reader(reader.obj[key], f"{reader.where}.{key}", reader.error)
        address = family.need("ip", fields.cidr)
        if (":" in address) != (key == "ip6"):
            raise reader.error(
                f"{family.where}.ip = {fields.shown(address)}: of the other IP version", f"not in {key}"
            )
        ips.append(IpConfig(address=address, gateway=_gateway(family, address)))
        routes += [_route(item) for item in family.each("routes")]
    return Result(ips=tuple(ips), routes=tuple(routes), dns=_dns(reader))


def _interface(reader: _Reader) -> Interface:
    return Interface(
        name=reader.need("name", fields.string),
        mac=reader.take("mac", fields.string, ""),
        mtu=reader.take("mtu", fields.u32, 0),
        sandbox=reader.take("sandbox", fields.string, ""),
        pci_id=reader.take("pciID", fields.string, ""),
        socket_path=reader.take("socketPath", fields.string, ""),
    )


def _gateway(reader: _Reader, address: str) -> str:
    gateway = reader.take("gateway", fields.string, "")
    if not gateway:
        return ""
    gateway = reader.checked(fields.ip, gateway, f"{reader.where}.gateway")
    if (":" in gateway) != (":" in address):
        raise reader.error(
            f"{reader.where}.gateway = {fields.shown(gateway)}: of another IP version than {address}",
            "give a gateway of the same",
        )
    return gateway


def _ip(reader: _Reader, interfaces: int) -> IpConfig:
    address = reader.need("address", fields.cidr)
    tag = reader.take("version", fields.one_of("4", "6"), "")
    if tag and (tag == "6") != (":" in address):
        raise reader.error(
            f"{reader.where}.version = {fields.shown(tag)}: the address is {address}", "let them agree"
        )
    index = reader.take("interface", fields.u32, -1)
    if interfaces and index >= interfaces:
        raise reader.error(
            f"{reader.where}.interface = {index}: there are {interfaces} interfaces",
            "give an index counted from 0",
        )
    # Where no interface is listed (IPAM), an index points at nothing.
    return IpConfig(
        address=address,
        gateway=_gateway(reader, address),
        interface=index if interfaces and index >= 0 else None,
    )


def _route(reader: _Reader) -> Route:
    dst = reader.need("dst", fields.cidr)
    gateway = reader.take("gw", fields.string, "")
    scope = reader.take("scope", fields.whole(0, 255), -1)
    return Route(
        dst=dst,
        gw=reader.checked(fields.ip, gateway, f"{reader.where}.gw") if gateway else "",
        mtu=reader.take("mtu", fields.u32, 0),
        advmss=reader.take("advmss", fields.u32, 0),
        priority=reader.take("priority", fields.u32, 0),
        table=reader.take("table", fields.u32, 0),
        scope=None if scope < 0 else scope,
    )


def _dns(reader: _Reader) -> dict[str, Any]:
    raw: dict[str, Any] = reader.take("dns", fields.obj, {})
    inner = _Reader(raw, f"{reader.where}.dns", reader.error)
    given = {key: inner.take(key, check, None) for key, check in _DNS.items()}
    return {key: value for key, value in given.items() if value}


# --- out --------------------------------------------------------------------------------------------------


def to_json(result: Result, version: str, declared: bool = True) -> dict[str, Any]:
    """Return the result in ``version``'s form, keys in the specification's order.

    What a version does not know is left out. ``declared`` is False where the configuration has no cniVersion:
    neither has the result then.
    """
    head: dict[str, Any] = {"cniVersion": version} if declared else {}
    if version in LEGACY:
        return head | _legacy(result) | {"dns": dict(result.dns)}
    newest = version not in _TAGGED and version != "1.0.0"
    body = {
        "interfaces": [_interface_json(item, newest) for item in result.interfaces],
        "ips": [_ip_json(item, version in _TAGGED) for item in result.ips],
        "routes": [_route_json(item, newest) for item in result.routes],
    }
    return head | {key: value for key, value in body.items() if value} | {"dns": dict(result.dns)}


def _given(pairs: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in pairs.items() if value != "" and value is not None}


def _legacy(result: Result) -> dict[str, Any]:
    """Return ip4 and ip6: the first address of each family, and the routes that go with it."""
    body: dict[str, Any] = {}
    for key, six in (("ip4", False), ("ip6", True)):
        first = next((item for item in result.ips if (":" in item.address) == six), None)
        if first is not None:
            routes = [_route_json(item, False) for item in result.routes if (":" in item.dst) == six]
            body[key] = _given({"ip": first.address, "gateway": first.gateway, "routes": routes or None})
    return body


def _interface_json(item: Interface, newest: bool) -> dict[str, Any]:
    body: dict[str, Any] = {"name": item.name, "mac": item.mac}
    if newest:
        body["mtu"] = item.mtu or None
    body["sandbox"] = item.sandbox
    if newest:
        body |= {"socketPath": item.socket_path, "pciID": item.pci_id}
    return {"name": item.name} | _given(body)


def _ip_json(item: IpConfig, tagged: bool) -> dict[str, Any]:
    tag = {"version": "6" if ":" in item.address else "4"} if tagged else {}
    return tag | _given({"address": item.address, "gateway": item.gateway, "interface": item.interface})


def _route_json(item: Route, newest: bool) -> dict[str, Any]:
    body: dict[str, Any] = {"dst": item.dst, "gw": item.gw}
    if newest:
        for key in ("mtu", "advmss", "priority", "table"):
            body[key] = getattr(item, key) or None
        body["scope"] = item.scope
    return _given(body)


def merge(prev: Result | None, ours: Result) -> Result:
    """Return what a chained plugin must print: the previous result with ours appended, indexes shifted."""
    if prev is None:
        return ours
    shift = len(prev.interfaces)
    shifted = tuple(
        item if item.interface is None else item.replace(interface=item.interface + shift)
        for item in ours.ips
    )
    return Result(
        interfaces=prev.interfaces + ours.interfaces,
        ips=prev.ips + shifted,
        routes=prev.routes + ours.routes,
        dns=prev.dns | ours.dns,
    )
