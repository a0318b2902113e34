"""Decoding of RTM_NEWADDR and RTM_NEWROUTE."""

from __future__ import annotations

import socket
import struct
import sys

from sriov_fast.common.record import Route
from sriov_fast.kernel.netlink import constants as c
from sriov_fast.kernel.netlink.attributes import aligned, inner_u32, ip_text, payloads, u32

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    Attributes = dict[int, bytes]


def decode_address(data: bytes, index: int, wanted: int = 0) -> list[str] | list[tuple[int, str]]:
    """Return "ip/prefix" of an address of one device; of a point-to-point address the local end.

    With ALL_DEVICES for ``index``, return the pair of ifindex and address. ``wanted`` are the IFA_F_* that
    the address must have.
    """
    family, prefix, flags, number = struct.unpack_from("=BBBxI", data, c.HEADER.size)
    if index not in (number, c.ALL_DEVICES) or family not in (socket.AF_INET, socket.AF_INET6):
        return []
    if flags & wanted != wanted:
        return []
    chosen = b""
    for kind, payload in payloads(data, c.HEADER.size + c.BODY_SIZES[c.RTM_NEWADDR]):
        if kind == c.IFA_LOCAL or (kind == c.IFA_ADDRESS and not chosen):
            chosen = payload
    cidr = f"{ip_text(family, chosen)}/{prefix}"
    return [cidr] if index else [(number, cidr)]


def decode_routes(data: bytes, family: int, index: int) -> list[Route]:
    """Return the unicast routes out of one device; a multipath route counts once for each hop there."""
    its_family, prefix, table, scope, kind, flags = struct.unpack_from("=BB2xBxBBI", data, c.HEADER.size)
    if kind != c.RTN_UNICAST or flags & c.RTM_F_CLONED or its_family != family:
        return []
    attrs = dict(payloads(data, c.HEADER.size + c.BODY_SIZES[c.RTM_NEWROUTE]))
    attrs.setdefault(c.RTA_TABLE, struct.pack("=I", table))
    if u32(attrs[c.RTA_TABLE]) == c.RT_TABLE_LOCAL:
        return []
    return [
        _route(hop, family, prefix).replace(scope=scope, onlink=onlink)
        for hop, onlink in _next_hops(attrs, index, flags)
    ]


def _next_hops(attrs: Attributes, index: int, flags: int) -> Iterator[tuple[Attributes, bool]]:
    """Yield the attributes of each next hop out of one device, and whether its gateway is on the link."""
    hops = attrs.get(c.RTA_MULTIPATH)
    if hops is None:
        if u32(attrs.get(c.RTA_OIF, b"")) == index:
            yield attrs, bool(flags & c.RTNH_F_ONLINK)
        return
    while len(hops) >= 8:  # struct rtnexthop
        size, hop_flags, _, oif = struct.unpack_from("=HBBi", hops)
        if size < 8 or size > len(hops):
            return
        if oif == index:
            yield attrs | dict(payloads(hops[8:size])), bool(hop_flags & c.RTNH_F_ONLINK)
        hops = hops[aligned(size) :]


def _route(attrs: Attributes, family: int, prefix: int) -> Route:
    everything = "0.0.0.0" if family == socket.AF_INET else "::"  # noqa: S104
    metrics = attrs.get(c.RTA_METRICS, b"")
    return Route(
        dst=f"{ip_text(family, attrs.get(c.RTA_DST, b'')) or everything}/{prefix}",
        gw=_gateway(attrs, family),
        mtu=inner_u32(metrics, c.RTAX_MTU),
        advmss=inner_u32(metrics, c.RTAX_ADVMSS),
        priority=u32(attrs.get(c.RTA_PRIORITY, b"")),
        table=u32(attrs[c.RTA_TABLE]),
    )


def _gateway(attrs: Attributes, family: int) -> str:
    """Return the next hop's address, of either family (struct rtvia, linux/rtnetlink.h)."""
    via = attrs.get(c.RTA_VIA)
    if via is None:
        return ip_text(family, attrs.get(c.RTA_GATEWAY, b""))
    return ip_text(int.from_bytes(via[:2], sys.byteorder), via[2:]) if len(via) >= 2 else ""
