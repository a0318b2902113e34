"""Decoding of RTM_NEWLINK."""

from __future__ import annotations

import socket
import struct

from sriov_fast.common.record import Link, LinkSettings, VfSettings
from sriov_fast.kernel.netlink import constants as c
from sriov_fast.kernel.netlink.attributes import (
    aligned,
    attributes,
    hardware_address,
    inner,
    inner_u32,
    payloads,
    text,
    u32,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

_BODY = c.BODY_SIZES[c.RTM_NEWLINK]  # struct ifinfomsg
_ATTR = c.ATTR.size
_VLAN_PROTO_NAMES = {number: name for name, number in c.VLAN_PROTOS.items()}


def decode_link(data: bytes, vf: int, mac: str = "") -> Link:
    """Return a device; of the list of VFs the entry of ``vf``, and another VF that has ``mac``."""
    index, flags = struct.unpack_from("=iI", data, c.HEADER.size + 4)
    attrs: dict[int, bytes] = {}
    settings: dict[str, Any] = {"flags": flags & c.SETTABLE_FLAGS, "alias": ""}
    info, holder = None, -1
    for kind, payload, vfs in _link_attributes(data):
        attrs[kind] = payload
        settings |= _link_setting(kind, payload)
        if kind == c.IFLA_VFINFO_LIST:
            info = dict(vfs).get(vf)
            others = (index for index, other in vfs if index != vf and _mac_of(other) == mac)
            holder = next(others, -1) if mac and holder < 0 else holder
    altnames = payloads(attrs.get(c.IFLA_PROP_LIST, b""))
    xdp = attrs.get(c.IFLA_XDP, b"")
    return Link(
        index=index,
        name=text(attrs.get(c.IFLA_IFNAME, b"")),
        mac=hardware_address(attrs.get(c.IFLA_ADDRESS, b"")),
        mtu=u32(attrs.get(c.IFLA_MTU, b"")),
        up=bool(flags & c.IFF_UP),
        carrier=bool(flags & c.IFF_LOWER_UP),
        parent=text(attrs.get(c.IFLA_PARENT_DEV_NAME, b"")),
        perm=hardware_address(attrs.get(c.IFLA_PERM_ADDRESS, b"")),
        lower=0 if c.IFLA_LINK_NETNSID in attrs else u32(attrs.get(c.IFLA_LINK, b"")),
        outer_lower=u32(attrs.get(c.IFLA_LINK, b"")) if c.IFLA_LINK_NETNSID in attrs else 0,
        master=u32(attrs.get(c.IFLA_MASTER, b"")),
        altnames=tuple(text(payload) for kind, payload in altnames if kind == c.IFLA_ALT_IFNAME),
        num_vf=u32(attrs.get(c.IFLA_NUM_VF, b"")),
        vf=None if info is None else _vf_settings(info),
        settings=LinkSettings(**settings),
        xdp=tuple(inner_u32(xdp, wanted) for wanted in c.XDP_PROG_IDS),
        holder=holder,
        kind=text(inner(attrs.get(c.IFLA_LINKINFO, b""), c.IFLA_INFO_KIND) or b""),
        disable_ipv6=_is_ipv6_disabled(attrs.get(c.IFLA_AF_SPEC, b"")),
    )


def _link_attributes(data: bytes) -> Iterator[tuple[int, bytes, list[tuple[int, bytes]]]]:
    """Yield type and payload of each attribute, and of a list of VFs the index and payload of each entry."""
    at, num_vf = c.HEADER.size + _BODY, 0
    while attr := next(attributes(data, at, len(data)), None):
        kind, start, end = attr
        payload = data[start + _ATTR : end]
        at = start + aligned(end - start)
        vfs: list[tuple[int, bytes]] = []
        if kind == c.IFLA_NUM_VF:
            num_vf = u32(payload)
        elif kind == c.IFLA_VFINFO_LIST and num_vf:
            vfs, at = _vf_list(data, start + _ATTR, num_vf)
        yield kind, payload, vfs


def _vf_list(data: bytes, at: int, num_vf: int) -> tuple[list[tuple[int, bytes]], int]:
    """Return index and payload of each IFLA_VF_INFO from ``at`` on, and where they end.

    The 16 bits of the list's length overflow with some 300 VFs while its entries are all there, so they are
    counted.
    """
    found: list[tuple[int, bytes]] = []
    for kind, start, end in attributes(data, at, len(data)):
        info = data[start + _ATTR : end]
        index = _vf_number(info) if kind == c.IFLA_VF_INFO else -1
        if len(found) == num_vf or index < 0:
            break
        found.append((index, info))
        at = start + aligned(end - start)
    return found, at


def vf_infos(data: bytes) -> list[tuple[int, bytes]]:
    """Return index and payload of each IFLA_VF_INFO of a PF; the kernel writes them behind IFLA_NUM_VF."""
    for kind, start, end in attributes(data, c.HEADER.size + _BODY, len(data)):
        if kind == c.IFLA_NUM_VF:
            return _vf_list(data, end + _ATTR, u32(data[start + _ATTR : end]))[0]
    return []


def _link_setting(kind: int, payload: bytes) -> dict[str, Any]:
    """Return the field of ``LinkSettings`` that one attribute has."""
    if kind in c.NUMBERS:
        form, name = c.NUMBERS[kind]
        size = struct.calcsize(form)
        return {name: struct.unpack_from(form, payload)[0] if len(payload) >= size else 0}
    if kind == c.IFLA_BROADCAST and len(payload) == 6:
        return {"broadcast": payload.hex(":")}
    if kind == c.IFLA_IFALIAS:
        return {"alias": text(payload)}
    if kind == c.IFLA_AF_SPEC:
        mode = inner(inner(payload, socket.AF_INET6) or b"", c.IFLA_INET6_ADDR_GEN_MODE)
        return {} if mode is None else {"addrgenmode": mode[0] if mode else 0}
    return {}


def _is_ipv6_disabled(families: bytes) -> bool | None:
    """Return the device's sysctl disable_ipv6, None if the kernel does not report it."""
    conf = inner(inner(families, socket.AF_INET6) or b"", c.IFLA_INET6_CONF) or b""
    at = 4 * c.DEVCONF_DISABLE_IPV6
    return u32(conf[at:]) != 0 if len(conf) >= at + 4 else None


# --- a VF


def _vf_number(info: bytes) -> int:
    """Return the VF of an IFLA_VF_INFO, which begins with a MAC that has its number; -1 for anything else."""
    kind, mac = next(iter(payloads(info)), (0, b""))
    return u32(mac) if kind == c.IFLA_VF_MAC else -1


def _mac_of(info: bytes) -> str:
    """Return the MAC at the beginning of an IFLA_VF_INFO, "" without one."""
    mac: str = _vf_setting(*payloads(info)[0]).get("mac", "")
    return mac


def _vf_settings(info: bytes) -> VfSettings:
    found: dict[str, Any] = {}
    for kind, payload in payloads(info):
        found |= _vf_setting(kind, payload)
    return VfSettings(**found)


def _vf_setting(kind: int, payload: bytes) -> dict[str, Any]:
    """Return the fields of ``VfSettings`` that one attribute of an IFLA_VF_INFO has."""
    if kind == c.IFLA_VF_MAC and len(payload) >= 36:
        return {"mac": payload[4:10].hex(":")}
    if kind == c.IFLA_VF_VLAN and len(payload) >= 12:
        return dict(zip(("vlan", "qos"), struct.unpack_from("=II", payload, 4), strict=True))
    if kind == c.IFLA_VF_VLAN_LIST:
        return _vf_vlan_list(payload)
    if kind == c.IFLA_VF_RATE and len(payload) >= 12:
        rates = struct.unpack_from("=II", payload, 4)
        return dict(zip(("min_tx_rate", "max_tx_rate"), rates, strict=True))
    if kind == c.IFLA_VF_LINK_STATE:
        state = u32(payload[4:8]) if len(payload) >= 8 else -1
        return {"link_state": c.LINK_STATES[state] if 0 <= state < len(c.LINK_STATES) else None}
    name = {c.IFLA_VF_SPOOFCHK: "spoofchk", c.IFLA_VF_TRUST: "trust"}.get(kind)
    return {name: _yes_no(payload)} if name else {}


def _vf_vlan_list(payload: bytes) -> dict[str, Any]:
    """Return the settings of the list's one entry (struct ifla_vf_vlan_info, linux/if_link.h)."""
    _, info = next(iter(payloads(payload)), (0, b""))
    if len(info) < 14:
        return {}
    vlan, qos = struct.unpack_from("=II", info, 4)
    (proto,) = struct.unpack_from("!H", info, 12)
    found = {"vlan": vlan, "qos": qos}
    return found | ({"proto": _VLAN_PROTO_NAMES[proto]} if proto in _VLAN_PROTO_NAMES else {})


def _yes_no(payload: bytes) -> bool | None:
    """Return the value of a switch; the kernel presets -1 for drivers that do not know the switch."""
    value = u32(payload[4:8]) if len(payload) >= 8 else 0xFFFFFFFF
    return None if value == 0xFFFFFFFF else value != 0
