"""The requests to the kernel, encoded with pyroute2."""

from __future__ import annotations

import socket
import struct

from pyroute2.netlink import nlmsg
from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
from pyroute2.netlink.rtnl.rtmsg import rtmsg

from sriov_fast.common.record import LinkSettings, Route, VfSettings
from sriov_fast.kernel.netlink import arguments as args
from sriov_fast.kernel.netlink import constants as c
from sriov_fast.kernel.netlink.attributes import packed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Any

_SET = c.NLM_F_REQUEST | c.NLM_F_ACK
_READ_ALL = c.NLM_F_REQUEST | c.NLM_F_DUMP
_MOST_SENT = 65536  # bytes of one send; the kernel takes as many as fit in net.core.wmem_default


class _LinkMessage(nlmsg):  # type: ignore[misc]
    """A message about one device with its attributes as bytes: pyroute2 does not know all of them."""

    fields = ifinfmsg.fields
    nla_map = tuple((kind, str(kind), "cdata") for kind in range(65))

    def put(self, kind: int, payload: bytes) -> None:
        self["attrs"].append((str(kind), payload))

    def put_u32(self, kind: int, value: int) -> None:
        self.put(kind, struct.pack("=I", value))


def _about(message: Any, index: object, what: str = "index", low: int = 1) -> Any:
    """Return the message for a device."""
    message["index"] = args.number(index, what, low, c.INT_MAX)
    message["attrs"] = []
    return message


class Message:
    """One encoded message with sequence number 0, and the expectations of its answer.

    ``vf`` is the VF that is read or set (-1: none), ``index`` the device of a dump, ``wanted`` the IFA_F_*
    that each address of a dump must have. With ``mac`` the answer names another VF that has it.
    ``operation`` describes the request, for errors.
    """

    __slots__ = ("data", "family", "flags", "index", "kind", "mac", "operation", "vf", "wanted")

    def __init__(  # noqa: PLR0913
        self,
        message: Any,
        kind: int,
        flags: int,
        operation: str,
        *,
        vf: int = -1,
        index: int = 0,
        mac: str = "",
        wanted: int = 0,
    ) -> None:
        message["header"].update({"type": kind, "flags": flags, "sequence_number": 0, "pid": 0})
        message.encode()
        self.data = bytes(message.data)
        self.kind = kind
        self.flags = flags
        self.family: int = message["family"]
        self.operation = operation
        self.vf = vf
        self.index = index
        self.mac = mac
        self.wanted = wanted

    @property
    def is_dump(self) -> bool:
        """Whether the answer is a list that ends with NLMSG_DONE."""
        return self.kind in (c.RTM_GETLINK, c.RTM_GETADDR, c.RTM_GETROUTE) and bool(self.flags & c.NLM_F_DUMP)

    def numbered(self, seq: int) -> bytes:
        """Return the bytes with a sequence number."""
        return self.data[:8] + struct.pack("=I", seq & 0xFFFFFFFF) + self.data[12:]


class Batch:
    """Messages that go to the kernel in one send. Each method appends one, or raises and appends none."""

    def __init__(self) -> None:
        self.messages: list[Message] = []

    def __len__(self) -> int:
        return len(self.messages)

    @property
    def operations(self) -> list[str]:
        """A description of each message."""
        return [message.operation for message in self.messages]

    def pick(self, positions: Iterable[int]) -> Batch:
        """Return another batch, of the messages at some positions."""
        picked = Batch()
        picked.messages = [self.messages[position] for position in positions]
        return picked

    def tobytes(self) -> bytes:
        """Return the encoded messages, with sequence numbers 1, 2, ... and port id 0."""
        return b"".join(message.numbered(at) for at, message in enumerate(self.messages, 1))

    def parts(self) -> Iterator[list[Message]]:
        """Yield the messages of each send: all at once, except in a large batch."""
        part: list[Message] = []
        size = 0
        for message in self.messages:
            if part and size + len(message.data) > _MOST_SENT:
                yield part
                part, size = [], 0
            part.append(message)
            size += len(message.data)
        yield part

    def _add(self, message: Any, kind: int, flags: int, operation: str, **expected: Any) -> None:
        self.messages.append(Message(message, kind, flags, operation, **expected))

    def get_link(self, *, index: int = 0, name: str = "", vf: int = -1, mac: str = "") -> None:
        """Append ``RTM_GETLINK`` of one device: ``ip link show dev $name``. ``mac``: find another holder."""
        wanted = -1 if vf == -1 else args.number(vf, "vf", 0, 65535)
        if bool(name) == (index != 0):
            raise ValueError(f"index {index!r}, name {name!r}: give one of them")
        text = args.interface_name(name, c.ALTIFNAMSIZ) if name else b""
        message = _about(_LinkMessage(), index, low=0 if name else 1)
        if text:
            message.put(c.IFLA_IFNAME if len(text) < c.IFNAMSIZ else c.IFLA_ALT_IFNAME, text + b"\0")
        message.put_u32(
            c.IFLA_EXT_MASK, c.RTEXT_FILTER_SKIP_STATS | (c.RTEXT_FILTER_VF if wanted >= 0 else 0)
        )
        which = name or f"ifindex {index}"
        operation = f"get vf {wanted} of {which}" if wanted >= 0 else f"get link {which}"
        holder = args.mac_bytes(mac).hex(":") if mac else ""
        self._add(message, c.RTM_GETLINK, c.NLM_F_REQUEST, operation, vf=wanted, mac=holder)

    def set_vf(self, pf_index: int, vf: int, settings: VfSettings) -> None:
        """Append one ``RTM_SETLINK`` for one VF, through its PF: ``ip link set $pf vf $n mac $mac ...``."""
        args.number(vf, "vf", 0, 65535)
        message = _about(_LinkMessage(), pf_index, "pf_index")
        message.put(c.IFLA_VFINFO_LIST, packed(c.IFLA_VF_INFO, _vf_attrs(vf, settings)))
        self._add(message, c.RTM_SETLINK, _SET, f"set vf {vf} of ifindex {pf_index}", vf=vf)

    def set_link(  # noqa: PLR0913
        self,
        index: int,
        *,
        netns_fd: int = -1,
        name: str = "",
        mac: str = "",
        mtu: int = 0,
        up: bool | None = None,
        master: int = -1,
        settings: LinkSettings | None = None,
    ) -> None:
        """Append one ``RTM_SETLINK``: ``ip link set $if netns $ns name $name address $mac mtu $mtu up``."""
        message = _about(_LinkMessage(), index, low=0 if name else 1)
        if netns_fd != -1:
            message.put_u32(c.IFLA_NET_NS_FD, args.number(netns_fd, "netns_fd", 0, c.INT_MAX))
        if name:
            message.put(c.IFLA_IFNAME, args.interface_name(name) + b"\0")
        if mac:
            message.put(c.IFLA_ADDRESS, args.mac_bytes(mac))
        if mtu != 0:
            message.put_u32(c.IFLA_MTU, args.number(mtu, "mtu", 1, c.INT_MAX))
        if master != -1:
            message.put_u32(c.IFLA_MASTER, args.number(master, "master", 0, c.INT_MAX))
        _put_flags(message, up, settings)
        if settings is not None:
            _put_settings(message, settings)
        if not message["attrs"] and not message["change"]:
            raise ValueError(f"set_link of index {index}: asks for nothing")
        what = "move link" if netns_fd != -1 else "set mac" if mac else "set link"
        operation = f"{what} of ifindex {index}" if index else f"{what} of {name}"
        self._add(message, c.RTM_SETLINK, _SET, operation)

    def new_macvlan(self, index: int, netns_fd: int, name: str, *, up: bool = True) -> None:
        """Append ``RTM_NEWLINK``: ``ip link add link $if netns $ns name $name up type macvlan ...``."""
        message = _LinkMessage()
        message["attrs"] = []
        _put_flags(message, up or None, None)
        message.put_u32(c.IFLA_NET_NS_FD, args.number(netns_fd, "netns_fd", 0, c.INT_MAX))
        message.put(c.IFLA_IFNAME, args.interface_name(name) + b"\0")
        message.put_u32(c.IFLA_LINK, args.number(index, "index", 1, c.INT_MAX))
        mode = packed(c.IFLA_MACVLAN_MODE, struct.pack("=I", c.MACVLAN_MODE_PASSTHRU))
        data = mode + packed(c.IFLA_MACVLAN_FLAGS, struct.pack("=H", c.MACVLAN_FLAG_NOPROMISC))
        message.put(c.IFLA_LINKINFO, packed(c.IFLA_INFO_KIND, b"macvlan\0") + packed(c.IFLA_INFO_DATA, data))
        flags = _SET | c.NLM_F_CREATE | c.NLM_F_EXCL
        self._add(message, c.RTM_NEWLINK, flags, f"add macvlan {name} to ifindex {index}")

    def del_link(self, index: int) -> None:
        """Append ``RTM_DELLINK``: ``ip link delete dev $if``."""
        self._add(_about(_LinkMessage(), index), c.RTM_DELLINK, _SET, f"delete link of ifindex {index}")

    def add_altname(self, index: int, name: str, *more: str) -> None:
        """Append ``RTM_NEWLINKPROP``: ``ip link property add dev $if altname $name altname ...``."""
        flags = _SET | c.NLM_F_CREATE | c.NLM_F_EXCL
        message = _altnames(index, (name, *more))
        self._add(message, c.RTM_NEWLINKPROP, flags, f"add altname {name} to ifindex {index}")

    def del_altname(self, index: int, name: str, *more: str) -> None:
        """Append ``RTM_DELLINKPROP``: ``ip link property del dev $if altname $name altname ...``."""
        message = _altnames(index, (name, *more))
        self._add(message, c.RTM_DELLINKPROP, _SET, f"delete altname {name} of ifindex {index}")

    def drop_xdp(self, index: int, mode: int) -> None:
        """Append one ``RTM_SETLINK`` that detaches one mode's XDP program: ``ip link set $if xdpdrv off``."""
        flags = c.XDP_FLAGS_SKB_MODE << args.number(mode, "mode", 0, 2)
        message = _about(_LinkMessage(), index)
        fd = packed(c.IFLA_XDP_FD, struct.pack("=i", -1))
        message.put(c.IFLA_XDP, fd + packed(c.IFLA_XDP_FLAGS, struct.pack("=I", flags)))
        self._add(message, c.RTM_SETLINK, _SET, f"drop xdp of ifindex {index}")

    def add_address(self, index: int, cidr: str, *, dad: bool = False) -> None:
        """Append ``RTM_NEWADDR``: ``ip address add $cidr [brd +] dev $if [nodad]``."""
        message = _about(ifaddrmsg(), index)
        family, ip, prefix = args.cidr(cidr)
        message["family"] = family
        message["prefixlen"] = prefix
        message["flags"] = c.IFA_F_NODAD if family == socket.AF_INET6 and not dad else 0
        message["attrs"] = [("IFA_LOCAL", ip), ("IFA_ADDRESS", ip)]
        if family == socket.AF_INET and prefix < 31:
            (bits,) = struct.unpack("!I", socket.inet_pton(family, ip))
            highest = struct.pack("!I", bits | 0xFFFFFFFF >> prefix)
            message["attrs"].append(("IFA_BROADCAST", socket.inet_ntop(family, highest)))
        flags = _SET | c.NLM_F_CREATE | c.NLM_F_EXCL
        self._add(message, c.RTM_NEWADDR, flags, f"add address {cidr} to ifindex {index}")

    def add_route(self, index: int, route: Route) -> None:
        """Append ``RTM_NEWROUTE``: ``ip route prepend $dst via $gw dev $if ...``."""
        message = rtmsg()
        message["attrs"] = _route_attrs(index, route)
        table = route.table
        message["family"], _, message["dst_len"] = args.cidr(route.dst)
        message["table"] = (table or c.RT_TABLE_MAIN) if table < 256 else 0
        message["proto"] = c.RTPROT_BOOT
        message["type"] = c.RTN_UNICAST
        message["scope"] = c.RT_SCOPE_UNIVERSE if route.gw else c.RT_SCOPE_LINK
        if route.scope is not None:
            message["scope"] = args.number(route.scope, "scope", 0, 255)
        if route.gw and route.onlink:
            message["flags"] = c.RTNH_F_ONLINK
        via = f" via {route.gw}" if route.gw else ""
        operation = f"add route {route.dst}{via} to ifindex {index}"
        self._add(message, c.RTM_NEWROUTE, _SET | c.NLM_F_CREATE, operation)

    def _dump_links(self) -> None:
        """Append the request of ``ip link show``."""
        message = _about(_LinkMessage(), 0, low=0)
        message.put_u32(c.IFLA_EXT_MASK, c.RTEXT_FILTER_SKIP_STATS)
        self._add(message, c.RTM_GETLINK, _READ_ALL, "list links")

    def _dump_addresses(self, index: int, flags: int = 0) -> None:
        """Append the request of ``ip address show dev $if``; of all devices with ALL_DEVICES."""
        operation = f"list addresses of ifindex {index or '*'}"
        message = _about(ifaddrmsg(), index, low=c.ALL_DEVICES)
        self._add(message, c.RTM_GETADDR, _READ_ALL, operation, index=index, wanted=flags)

    def _dump_routes(self, family: int, index: int) -> None:
        """Append the request of ``ip route show table all dev $if`` for one family."""
        message = rtmsg()
        message["family"] = family
        message["attrs"] = [("RTA_OIF", args.number(index, "index", 1, c.INT_MAX))]
        self._add(message, c.RTM_GETROUTE, _READ_ALL, f"list routes of ifindex {index}", index=index)


# --- a VF


def _vf_attrs(vf: int, settings: VfSettings) -> bytes:
    attrs = b""
    if settings.mac is not None:
        attrs += packed(c.IFLA_VF_MAC, struct.pack("=I32s", vf, args.mac_bytes(settings.mac)))
    attrs += _vf_vlan(vf, settings) + _vf_rates(vf, settings.min_tx_rate, settings.max_tx_rate)
    attrs += _vf_switches(vf, settings)
    if not attrs:
        raise ValueError(f"{settings!r}: asks for nothing")
    return attrs


def _vf_vlan(vf: int, settings: VfSettings) -> bytes:
    if settings.vlan is None:
        if settings.qos is not None or settings.proto is not None:
            raise ValueError(f"qos {settings.qos!r}, proto {settings.proto!r}: they go with a vlan")
        return b""
    vlan = args.number(settings.vlan, "vlan", 0, 4094)
    qos = 0 if settings.qos is None else args.number(settings.qos, "qos", 0, 7)
    if settings.proto not in (None, *c.VLAN_PROTOS):
        raise ValueError(f"proto {settings.proto!r}: not one of 802.1Q, 802.1ad")
    info = struct.pack("=III", vf, vlan, qos)
    if settings.proto != "802.1ad":
        return packed(c.IFLA_VF_VLAN, info)
    info += struct.pack("!H2x", c.VLAN_PROTOS["802.1ad"])  # with the padding of struct ifla_vf_vlan_info
    return packed(c.IFLA_VF_VLAN_LIST, packed(c.IFLA_VF_VLAN_INFO, info))


def _vf_rates(vf: int, least: int | None, most: int | None) -> bytes:
    if least is not None:
        least = args.number(least, "min_tx_rate", 0, c.INT_MAX)
    if most is not None:
        most = args.number(most, "max_tx_rate", 0, c.INT_MAX)
    if least is not None:
        return packed(c.IFLA_VF_RATE, struct.pack("=III", vf, least, most or 0))
    return b"" if most is None else packed(c.IFLA_VF_TX_RATE, struct.pack("=II", vf, most))


def _vf_switches(vf: int, settings: VfSettings) -> bytes:
    given: dict[int, int] = {}
    if settings.spoofchk is not None:
        given[c.IFLA_VF_SPOOFCHK] = bool(settings.spoofchk)
    if settings.link_state is not None:
        if settings.link_state not in c.LINK_STATES:
            raise ValueError(f"link_state {settings.link_state!r}: not one of auto, enable, disable")
        given[c.IFLA_VF_LINK_STATE] = c.LINK_STATES.index(settings.link_state)
    if settings.trust is not None:
        given[c.IFLA_VF_TRUST] = bool(settings.trust)
    return b"".join(packed(kind, struct.pack("=II", vf, value)) for kind, value in given.items())


# --- a device


def _altnames(index: int, names: tuple[str, ...]) -> Any:
    listed = [("IFLA_ALT_IFNAME", args.alternative_name(name)) for name in names]
    message = _about(ifinfmsg(), index)
    message["attrs"] = [("IFLA_PROP_LIST", {"attrs": listed})]
    return message


def _put_flags(message: _LinkMessage, up: bool | None, settings: LinkSettings | None) -> None:
    if up is not None:
        message["change"] = c.IFF_UP
        message["flags"] = c.IFF_UP if up else 0
    if settings is not None and settings.flags is not None:
        message["change"] |= c.SETTABLE_FLAGS
        message["flags"] |= args.number(settings.flags, "flags", 0, c.INT_MAX) & c.SETTABLE_FLAGS


def _put_settings(message: _LinkMessage, settings: LinkSettings) -> None:
    """Append the settings that are not None, in the order of their numbers."""
    given: dict[int, bytes] = {}
    if settings.broadcast is not None:
        given[c.IFLA_BROADCAST] = args.mac_bytes(settings.broadcast)
    if settings.alias is not None:
        given[c.IFLA_IFALIAS] = settings.alias.encode("utf-8", "surrogateescape")
    for kind, (form, name) in c.NUMBERS.items():
        value = getattr(settings, name)
        if value is not None:
            most = 0xFF if form == "=B" else 0xFFFFFFFE
            given[kind] = struct.pack(form, args.number(value, name, 0, most))
    for kind, payload in sorted(given.items()):
        message.put(kind, payload)
    if settings.addrgenmode is not None:
        mode = struct.pack("=B", args.number(settings.addrgenmode, "addrgenmode", 0, 255))
        message.put(c.IFLA_AF_SPEC, packed(socket.AF_INET6, packed(c.IFLA_INET6_ADDR_GEN_MODE, mode)))


# --- a route


def _route_attrs(index: int, route: Route) -> list[tuple[str, Any]]:
    oif = args.number(index, "index", 1, c.INT_MAX)
    table = args.number(route.table, "table", 0, 0xFFFFFFFF)
    priority = args.number(route.priority, "priority", 0, 0xFFFFFFFF)
    mtu = args.number(route.mtu, "mtu", 0, c.INT_MAX)
    advmss = args.number(route.advmss, "advmss", 0, c.INT_MAX)
    family, dst, prefix = args.cidr(route.dst)
    gateway = args.gateway(route.gw, family) if route.gw else ""
    metrics = [(name, value) for name, value in (("RTAX_MTU", mtu), ("RTAX_ADVMSS", advmss)) if value]
    given = {
        "RTA_DST": dst if prefix else None,
        "RTA_GATEWAY": gateway,
        "RTA_OIF": oif,
        "RTA_PRIORITY": priority,
        "RTA_TABLE": table if table > 255 else None,
        "RTA_METRICS": {"attrs": metrics} if metrics else None,
    }
    return [(name, value) for name, value in given.items() if value]
