"""Preparation of an ADD's journal record, netlink messages and reply, while the kernel moves the VF.

Work that is done after the move adds to the latency.
"""

from __future__ import annotations

from sriov_fast.cni import response, result
from sriov_fast.common.paths import is_auxiliary
from sriov_fast.common.record import Link, Record
from sriov_fast.vf import attach, tuning
from sriov_fast.vf.journal import ATTACHED

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from sriov_fast.cni.result import Result
    from sriov_fast.common.record import Route
    from sriov_fast.plugin.context import Call
    from sriov_fast.vf.attach import Addressing
    from sriov_fast.vf.journal import Attachment


class Prepared(Record):
    """The end of an ADD, prepared for an expected device.

    ``given`` is IPAM's result, ``observed`` the record before the move, ``expected`` the device in the pod.
    ``record`` is in the journal as a draft, ``output`` is for stdout, ``tell`` writes the log.
    """

    given: Result
    observed: Attachment
    expected: Link
    record: Attachment
    addressing: Addressing
    output: bytes
    tell: Callable[[], None]

    def holds(self, observed: Attachment, link: Link) -> bool:
        """Return whether the preparation is right for this record and this device."""
        return observed == self.observed and _told(link) == _told(self.expected)


def prepare(call: Call, observed: Attachment, given: Result, link: Link | None = None) -> Prepared:
    """Prepare the end of an ADD for the device ``link`` in the pod; the default is the expected device."""
    link = link or _expected(observed)
    routes = _routes(given)
    record = observed.replace(
        state=ATTACHED,
        ifindex=link.index,
        mac=link.mac,
        addresses=_addresses(given),
        routes=tuple(route.as_dict() for route in routes),
    )
    call.journal.draft(record)
    return Prepared(
        given=given,
        observed=observed,
        expected=link,
        record=record,
        addressing=attach.addressing(
            link.index, record.addresses, routes, tuning.flags(record), dad=call.conf.enable_dad
        ),
        output=response.success(_outcome(call, record, link, given), call.conf),
        tell=call.log.informing("attached", pf=record.pf, vf=record.vf, pci=record.pci, mac=record.mac),
    )


def _expected(record: Attachment) -> Link:
    """Return the expected device in the pod."""
    return Link(
        index=record.ifindex,
        name=record.ifname,
        mac=record.asked.mac or record.before_mac,
        mtu=record.mtu or record.before_mtu,
        up=True,
    )


def _told(link: Link) -> tuple[object, ...]:
    """Return the fields of a device that are in journal, result and log."""
    return link.index, link.mac, link.mtu


def _addresses(given: Result) -> tuple[str, ...]:
    """Return the addresses without repetitions."""
    return tuple(dict.fromkeys(item.address for item in given.ips))


def _routes(given: Result) -> list[Route]:
    """Return the routes with their gateways: an IPAM route without one uses its family's first gateway."""
    gateways = {":" in item.gateway: item.gateway for item in reversed(given.ips) if item.gateway}
    found = [
        route if route.gw or route.scope is not None else route.replace(gw=gateways.get(":" in route.dst, ""))
        for route in given.routes
    ]
    hosts = _families_of_hosts(given)
    if hosts:
        found = [route.replace(onlink=True) if _is_off_link(route.gw, hosts) else route for route in found]
    return _once(found) if len(found) > 1 else found


def _once(routes: list[Route]) -> list[Route]:
    """Return the routes in order, without repetitions."""
    kept: dict[Route, Route] = {}
    for route in routes:
        kept.setdefault(_identity(route), route)
    return list(kept.values())


def _families_of_hosts(given: Result) -> set[bool]:
    """Return the families (True: IPv6) of which every address is a host's, /32 or /128."""
    cidrs = [(":" in item.address, item.address) for item in given.ips]
    networks = {six for six, cidr in cidrs if not cidr.endswith("/128" if six else "/32")}
    return {six for six, _ in cidrs} - networks


def _is_off_link(gateway: str, hosts: set[bool]) -> bool:
    """Return whether no address reaches a gateway: the route then needs the flag onlink.

    A link-local gateway (fe80::/10) is reached with the device's own link-local address.
    """
    link_local = gateway.startswith(("fe8", "fe9", "fea", "feb")) and gateway[4:5] == ":"
    return bool(gateway) and (":" in gateway) in hosts and not link_local


def _identity(route: Route) -> Route:
    """Return the route with the kernel's defaults, which is equal for equivalent routes."""
    return route.replace(
        table=route.table or 254,  # RT_TABLE_MAIN, linux/rtnetlink.h
        priority=route.priority or (1024 if ":" in route.dst else 0),  # IP6_RT_PRIO_USER, linux/ipv6_route.h
        scope=(0 if route.gw else 253) if route.scope is None else route.scope,  # RT_SCOPE_LINK
    )


def _outcome(call: Call, record: Attachment, link: Link, given: Result) -> Result:
    interface = result.Interface(
        name=record.ifname,
        mac=link.mac,
        mtu=link.mtu,
        sandbox=record.netns,
        pci_id="" if is_auxiliary(record.pci) else record.pci,
    )
    ours = result.Result(
        interfaces=(interface,),
        ips=tuple(item.replace(interface=0) for item in dict.fromkeys(given.ips)),
        routes=tuple(dict.fromkeys(given.routes)),
        dns=call.conf.dns or given.dns,
    )
    return result.merge(call.conf.prev_result, ours)
