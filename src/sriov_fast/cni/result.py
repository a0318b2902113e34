"""The result of an ADD in every version's form (SPEC section 5, "ADD Success")."""

from __future__ import annotations

from sriov_fast.cni import fields
from sriov_fast.common.errors import DecodeError, SriovError
from sriov_fast.common.json_object import JsonObject, shown, string, strings, whole
from sriov_fast.common.record import Record, Route

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

VERSIONS = ("0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
LEGACY = ("0.1.0", "0.2.0")  # one address a family: ip4, ip6
_TAGGED = ("0.3.0", "0.3.1", "0.4.0")  # each address says its IP version
_DNS = {
    "nameservers": strings,
    "domain": string,
    "search": strings,
    "options": strings,
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
    """The result of an ADD, independent of a version. ``dns`` has only the given keys."""

    interfaces: tuple[Interface, ...] = ()
    ips: tuple[IpConfig, ...] = ()
    routes: tuple[Route, ...] = ()
    dns: dict[str, Any] = {}  # noqa: RUF012 (Record removes it from the class)


# --- in ---------------------------------------------------------------------------------------------------


_ADVICE = "a CNI result must have it"


def from_json(
    value: object, version: str, *, error: type[SriovError] = DecodeError, where: str = "prevResult"
) -> Result:
    """Read a result of any version: a ``prevResult``, or the output of a delegated plugin.

    ``version`` is the configuration's; a version that the result declares overrides it. A wrong value raises
    ``error``, which names it by ``where``.
    """
    found = JsonObject(value, f"{where}.", error=error)
    declared = found.take("cniVersion", string, "") or version
    if declared not in VERSIONS:
        raise error(
            f"{where}.cniVersion = {shown(declared)}: not supported", f"supported: {', '.join(VERSIONS)}"
        )
    # The keys show the form; the version decides only if the keys of both forms are there.
    legacy = declared in LEGACY if "ips" in found else True
    if legacy and ("ip4" in found or "ip6" in found):
        return _from_legacy(found)
    interfaces = tuple(_interface(item) for item in found.objects("interfaces"))
    return Result(
        interfaces=interfaces,
        ips=tuple(_ip(item, len(interfaces)) for item in found.objects("ips")),
        routes=tuple(_route(item) for item in found.objects("routes")),
        dns=_dns(found),
    )


def _from_legacy(found: JsonObject) -> Result:
    """Read {ip4, ip6, dns}, where each family has its routes."""
    ips: list[IpConfig] = []
    routes: list[Route] = []
    for key in ("ip4", "ip6"):
        if found.get(key) is None:
            continue
        family = found.inner(key)
        address = family.need("ip", fields.cidr, _ADVICE, "")
        if (":" in address) != (key == "ip6"):
            raise found.error(
                f"{family.place('ip')} = {shown(address)}: of the other IP version", f"not in {key}"
            )
        ips.append(IpConfig(address=address, gateway=_gateway(family, address)))
        routes += [_route(item) for item in family.objects("routes")]
    return Result(ips=tuple(ips), routes=tuple(routes), dns=_dns(found))


def _interface(item: JsonObject) -> Interface:
    return Interface(
        name=item.need("name", string, _ADVICE, ""),
        mac=item.take("mac", string, ""),
        mtu=item.take("mtu", fields.u32, 0),
        sandbox=item.take("sandbox", string, ""),
        pci_id=item.take("pciID", string, ""),
        socket_path=item.take("socketPath", string, ""),
    )


def _gateway(item: JsonObject, address: str) -> str:
    gateway = item.take("gateway", fields.ip, "")
    if gateway and (":" in gateway) != (":" in address):
        raise item.error(
            f"{item.place('gateway')} = {shown(gateway)}: of another IP version than {address}",
            "give a gateway of the same",
        )
    return gateway


def _ip(item: JsonObject, interfaces: int) -> IpConfig:
    address = item.need("address", fields.cidr, _ADVICE, "")
    tag = item.take("version", fields.one_of("4", "6"), "")
    if tag and (tag == "6") != (":" in address):
        raise item.error(
            f"{item.place('version')} = {shown(tag)}: the address is {address}", "let them agree"
        )
    index = item.take("interface", fields.u32, -1)
    if interfaces and index >= interfaces:
        raise item.error(
            f"{item.place('interface')} = {index}: there are {interfaces} interfaces",
            "give an index counted from 0",
        )
    # Without a list of interfaces (IPAM) an index refers to nothing.
    return IpConfig(
        address=address,
        gateway=_gateway(item, address),
        interface=index if interfaces and index >= 0 else None,
    )


def _route(item: JsonObject) -> Route:
    return Route(
        dst=item.need("dst", fields.cidr, _ADVICE, ""),
        gw=item.take("gw", fields.ip, ""),
        mtu=item.take("mtu", fields.u32, 0),
        advmss=item.take("advmss", fields.u32, 0),
        priority=item.take("priority", fields.u32, 0),
        table=item.take("table", fields.u32, 0),
        scope=item.take("scope", whole(0, 255), None),
    )


def _dns(found: JsonObject) -> dict[str, Any]:
    dns = found.inner("dns")
    given = {key: dns.take(key, check, None) for key, check in _DNS.items()}
    return {key: value for key, value in given.items() if value}


# --- out --------------------------------------------------------------------------------------------------


def to_json(result: Result, version: str, declared: bool = True) -> dict[str, Any]:
    """Return the result in ``version``'s form, keys in the specification's order.

    Keys of later versions are left out. ``declared`` is False if the configuration has no cniVersion; then
    the result has none.
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
    """Return the result for a chained plugin: the previous one with ours appended, its indexes shifted."""
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
