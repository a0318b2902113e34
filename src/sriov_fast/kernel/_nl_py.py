"""rtnetlink, plain: the twin of ``_nl.pyx``, with pyroute2's message classes and an ordinary socket.

Same surface, same results, same errors; ``_nl.pyi`` is the contract of both and the compiled module's
docstrings hold for both. Nothing else in the package imports pyroute2: that costs more time than a whole ADD.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import struct
import sys
import time
from array import array

from pyroute2.netlink import nla, nlmsg
from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
from pyroute2.netlink.rtnl.rtmsg import rtmsg

from sriov_fast.common.errors import NetlinkError
from sriov_fast.common.record import Link, LinkSettings, Route, VfSettings

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import TracebackType
    from typing import Any, Self, TypeVar

    T = TypeVar("T")

RECEIVE_TIMEOUT = 30  # seconds without an answer
DUMP_TRIES = 10
ANSWER_SPACE = 2048  # bytes that one queued answer may cost of the socket's receive buffer
VF_LIST_SPACE = 262144  # and one with a list of VFs
MOST_SENT = 65536  # bytes of one send; the kernel takes what fits in net.core.wmem_default
USUAL_SPACE = 131072  # what every socket has
INT_MAX = 0x7FFFFFFF

# linux/netlink.h
SOL_NETLINK = 270
NETLINK_CAP_ACK, NETLINK_EXT_ACK, NETLINK_GET_STRICT_CHK = 10, 11, 12
NLM_F_REQUEST, NLM_F_ACK, NLM_F_DUMP_INTR = 0x01, 0x04, 0x10
NLM_F_DUMP, NLM_F_EXCL, NLM_F_CREATE = 0x300, 0x200, 0x400
NLM_F_CAPPED, NLM_F_ACK_TLVS = 0x100, 0x200
NLMSG_NOOP, NLMSG_ERROR, NLMSG_DONE, NLMSG_OVERRUN = 1, 2, 3, 4
NLMSGERR_ATTR_MSG = 1
NLA_TYPE_MASK = 0x3FFF
HEADER = struct.Struct("=IHHII")  # struct nlmsghdr
ATTR = struct.Struct("=HH")  # struct nlattr

# linux/rtnetlink.h, linux/if_addr.h, linux/if.h, linux/if_link.h
RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK, RTM_SETLINK = 16, 17, 18, 19
RTM_NEWADDR, RTM_GETADDR, RTM_NEWROUTE, RTM_GETROUTE = 20, 22, 24, 26
RTM_NEWLINKPROP, RTM_DELLINKPROP = 108, 109
BODY_SIZES = {RTM_NEWLINK: 16, RTM_NEWADDR: 8, RTM_NEWROUTE: 12}
RTN_UNICAST, RTPROT_BOOT, RTM_F_CLONED, RTNH_F_ONLINK = 1, 3, 0x200, 4
RT_SCOPE_UNIVERSE, RT_SCOPE_LINK, RT_TABLE_MAIN, RT_TABLE_LOCAL = 0, 253, 254, 255
RTEXT_FILTER_VF, RTEXT_FILTER_SKIP_STATS = 1, 8
IFA_F_NODAD, IFF_UP, IFF_LOWER_UP = 0x02, 0x1, 0x10000
# What dev_change_flags() (net/core/dev.c) lets a user set, without IFF_UP: DEBUG, NOTRAILERS, NOARP, PROMISC,
# ALLMULTI, MULTICAST, PORTSEL, AUTOMEDIA, DYNAMIC.
SETTABLE_FLAGS = 0xF3A4
IFLA_NUM_VF, IFLA_VFINFO_LIST, IFLA_VF_INFO, IFLA_VF_MAC = 21, 22, 1, 1
LINK_STATES = ("auto", "enable", "disable")
VLAN_PROTOS = {"802.1Q": 0x8100, "802.1ad": 0x88A8}  # linux/if_ether.h
VLAN_PROTO_NAMES = {number: name for name, number in VLAN_PROTOS.items()}
IFLA_ADDRESS = 1
IFNAMSIZ, ALTIFNAMSIZ = 16, 128  # linux/if.h
IFLA_PERM_ADDRESS = 54
IFLA_BROADCAST, IFLA_IFALIAS, IFLA_AF_SPEC, IFLA_XDP = 2, 20, 26, 43
IFLA_INET6_ADDR_GEN_MODE = 8
# The modes' program IDs, in the order of ``Link.xdp``: IFLA_XDP_SKB_PROG_ID, _DRV_, _HW_.
XDP_PROG_IDS = (6, 5, 7)
XDP_FLAGS_SKB_MODE = 2
# Number, format and name in ``LinkSettings``: IFLA_TXQLEN, IFLA_LINKMODE, IFLA_GROUP, IFLA_GSO_MAX_SEGS,
# IFLA_GSO_MAX_SIZE, IFLA_GRO_MAX_SIZE, IFLA_GSO_IPV4_MAX_SIZE, IFLA_GRO_IPV4_MAX_SIZE.
NUMBERS = {
    13: ("=I", "txqlen"),
    17: ("=B", "mode"),
    27: ("=I", "group"),
    40: ("=I", "gso_max_segs"),
    41: ("=I", "gso_max_size"),
    58: ("=I", "gro_max_size"),
    63: ("=I", "gso_ipv4_max_size"),
    64: ("=I", "gro_ipv4_max_size"),
}
SIOCGIFNAME, SIOCETHTOOL = 0x8910, 0x8946  # linux/sockios.h
IFLA_PROP_LIST, IFLA_ALT_IFNAME = 52, 53
IFLA_IFNAME, IFLA_MTU, IFLA_LINK, IFLA_MASTER, IFLA_LINK_NETNSID, IFLA_PARENT_DEV_NAME = 3, 4, 5, 10, 37, 56
IFLA_VF_VLAN, IFLA_VF_SPOOFCHK, IFLA_VF_LINK_STATE, IFLA_VF_RATE, IFLA_VF_TRUST, IFLA_VF_VLAN_LIST = (
    2,
    4,
    5,
    6,
    9,
    12,
)
LINK_ATTRS = HEADER.size + 16  # the attributes of a RTM_NEWLINK begin behind struct ifinfomsg
IFA_ADDRESS, IFA_LOCAL = 1, 2  # linux/if_addr.h
RTA_DST, RTA_OIF, RTA_GATEWAY, RTA_PRIORITY, RTA_METRICS, RTA_MULTIPATH = (
    1,
    4,
    5,
    6,
    8,
    9,
)  # linux/rtnetlink.h
RTA_TABLE, RTA_VIA, RTAX_MTU, RTAX_ADVMSS = 15, 18, 2, 8


_PyVf = ifinfmsg.vflist.vfinfo


class _VfMessage(nlmsg):  # type: ignore[misc]
    """``ifinfmsg`` with one attribute only: the list of VFs, with what pyroute2's own leaves out of it.

    That is the tail padding of ``struct ifla_vf_vlan_info``, without which the kernel refuses the
    attribute. The whole chain is written anew because a subclass of a message that was used before keeps
    its parent's attributes.
    """

    fields = ifinfmsg.fields
    nla_map = ((IFLA_VFINFO_LIST, "IFLA_VFINFO_LIST", "vf_list"),)

    class vf_list(nla):  # type: ignore[misc]  # noqa: N801
        nla_map = ((IFLA_VF_INFO, "IFLA_VF_INFO", "vf_info"),)

        class vf_info(nla):  # type: ignore[misc]  # noqa: N801
            nla_map = (
                (1, "IFLA_VF_MAC", "vf_mac"),
                (2, "IFLA_VF_VLAN", "vf_vlan"),
                (3, "IFLA_VF_TX_RATE", "vf_tx_rate"),
                (4, "IFLA_VF_SPOOFCHK", "vf_spoofchk"),
                (5, "IFLA_VF_LINK_STATE", "vf_link_state"),
                (6, "IFLA_VF_RATE", "vf_rate"),
                (9, "IFLA_VF_TRUST", "vf_trust"),
                (12, "IFLA_VF_VLAN_LIST", "vf_vlist"),
            )
            vf_mac, vf_vlan, vf_tx_rate, vf_rate = (
                _PyVf.vf_mac,
                _PyVf.vf_vlan,
                _PyVf.vf_tx_rate,
                _PyVf.vf_rate,
            )
            vf_spoofchk, vf_link_state, vf_trust = _PyVf.vf_spoofchk, _PyVf.vf_link_state, _PyVf.vf_trust

            class vf_vlist(nla):  # type: ignore[misc]  # noqa: N801
                nla_map = ((1, "IFLA_VF_VLAN_INFO", "ivvi"),)

                class ivvi(nla):  # type: ignore[misc]  # noqa: N801
                    fields = (*_PyVf.vf_vlist.ivvi.fields, ("pad", "H"))


class _Device(nlmsg):  # type: ignore[misc]
    """``ifinfmsg`` with attributes as bytes, for those that pyroute2 does not know or encodes otherwise."""

    fields = ifinfmsg.fields
    nla_map = tuple((kind, str(kind), "cdata") for kind in range(65))

    def put(self, kind: int, payload: bytes) -> None:
        self["attrs"].append((str(kind), payload))


# --- arguments ----------------------------------------------------------------------------------------


def _number(value: object, what: str, low: int, high: int) -> int:
    if not isinstance(value, int) or not low <= value <= high:
        raise ValueError(f"{what} {value!r}: not a number from {low} to {high}")
    return value


def _mac(value: object) -> str:
    parts = value.split(":") if isinstance(value, str) else []
    if len(parts) != 6 or any(len(part) != 2 or set(part) - set("0123456789abcdefABCDEF") for part in parts):
        raise ValueError(f"mac {value!r}: not six bytes in hexadecimal with colons")
    return ":".join(parts).lower()


def _interface_name(value: object, room: int = IFNAMSIZ) -> str:
    # As dev_valid_name() in net/core/dev.c, whose isspace() is Latin-1's; and nothing that cannot be printed.
    text = value.encode("utf-8", "replace") if isinstance(value, str) and value.isprintable() else b""
    if not 0 < len(text) < room or text in (b".", b"..") or set(text) & set(b" /:\xa0"):
        raise ValueError(
            f"interface name {value!r}: not 1 to {room - 1} bytes without white space, '/' and ':'"
        )
    return str(value)


def _alternative_name(value: object) -> bytes:
    # Whatever the kernel shows: a pod may have chosen the name, and it must be possible to remove it.
    text = value.encode("utf-8", "surrogateescape") if isinstance(value, str) else b""
    if not 0 < len(text) < ALTIFNAMSIZ or b"\0" in text:
        raise ValueError(f"alternative name {value!r}: not 1 to {ALTIFNAMSIZ - 1} bytes")
    return text


def _family(ip: str) -> int:
    """Return the family of an IP address, 0 where the text is none."""
    family = socket.AF_INET6 if ":" in ip else socket.AF_INET
    try:
        socket.inet_pton(family, ip)
    except (OSError, ValueError):
        return 0
    return family


def _cidr(value: object) -> tuple[int, str, int]:
    """Return family, address and prefix length."""
    ip, _, bits = value.partition("/") if isinstance(value, str) else ("", "", "")
    family = _family(ip)
    if not family or not (0 < len(bits) <= 3 and bits.isascii() and bits.isdigit()):
        raise ValueError(f"address {value!r}: not an IP address with a prefix length")
    widest = 32 if family == socket.AF_INET else 128
    if int(bits) > widest:
        raise ValueError(f"address {value!r}: prefix length beyond {widest}")
    return family, ip, int(bits)


def _gateway(value: object, family: int) -> str:
    if not isinstance(value, str) or _family(value) != family:
        raise ValueError(
            f"gateway {value!r}: not an {'IPv4' if family == socket.AF_INET else 'IPv6'} address"
        )
    return value


def _vf_vlan(vf: int, settings: VfSettings) -> list[tuple[str, Any]]:
    if settings.vlan is None:
        if settings.qos is not None or settings.proto is not None:
            raise ValueError(f"qos {settings.qos!r}, proto {settings.proto!r}: they go with a vlan")
        return []
    vlan = _number(settings.vlan, "vlan", 0, 4094)
    qos = 0 if settings.qos is None else _number(settings.qos, "qos", 0, 7)
    if settings.proto not in (None, *VLAN_PROTOS):
        raise ValueError(f"proto {settings.proto!r}: not one of 802.1Q, 802.1ad")
    if settings.proto != "802.1ad":
        return [("IFLA_VF_VLAN", {"vf": vf, "vlan": vlan, "qos": qos})]
    info = {"vf": vf, "vlan": vlan, "qos": qos, "proto": VLAN_PROTOS["802.1ad"]}
    return [("IFLA_VF_VLAN_LIST", {"attrs": [("IFLA_VF_VLAN_INFO", info)]})]


def _vf_rates(vf: int, settings: VfSettings) -> list[tuple[str, Any]]:
    least, most = settings.min_tx_rate, settings.max_tx_rate
    if least is not None:
        least = _number(least, "min_tx_rate", 0, INT_MAX)
    if most is not None:
        most = _number(most, "max_tx_rate", 0, INT_MAX)
    if least is not None:
        return [("IFLA_VF_RATE", {"vf": vf, "min_tx_rate": least, "max_tx_rate": most or 0})]
    return [] if most is None else [("IFLA_VF_TX_RATE", {"vf": vf, "tx_rate": most})]


def _vf_switches(vf: int, settings: VfSettings) -> list[tuple[str, Any]]:
    attrs = []
    if settings.spoofchk is not None:
        attrs.append(("IFLA_VF_SPOOFCHK", {"vf": vf, "spoofchk": int(bool(settings.spoofchk))}))
    if settings.link_state is not None:
        if settings.link_state not in LINK_STATES:
            raise ValueError(f"link_state {settings.link_state!r}: not one of auto, enable, disable")
        state = LINK_STATES.index(settings.link_state)
        attrs.append(("IFLA_VF_LINK_STATE", {"vf": vf, "link_state": state}))
    if settings.trust is not None:
        attrs.append(("IFLA_VF_TRUST", {"vf": vf, "trust": int(bool(settings.trust))}))
    return attrs


def _vf_attrs(vf: int, settings: VfSettings) -> list[tuple[str, Any]]:
    attrs: list[tuple[str, Any]] = []
    if settings.mac is not None:
        attrs.append(("IFLA_VF_MAC", {"vf": vf, "mac": _mac(settings.mac)}))
    attrs += _vf_vlan(vf, settings) + _vf_rates(vf, settings) + _vf_switches(vf, settings)
    if not attrs:
        raise ValueError(f"{settings!r}: asks for nothing")
    return attrs


def _attr(kind: int, payload: bytes) -> bytes:
    return ATTR.pack(ATTR.size + len(payload), kind) + payload + bytes(-len(payload) % 4)


def _settings_attrs(settings: LinkSettings) -> Iterator[tuple[int, bytes]]:
    """Yield number and payload of every attribute that is given, in the order of their numbers."""
    given: dict[int, bytes] = {}
    if settings.broadcast is not None:
        given[IFLA_BROADCAST] = bytes.fromhex(_mac(settings.broadcast).replace(":", ""))
    if settings.alias is not None:
        given[IFLA_IFALIAS] = settings.alias.encode("utf-8", "surrogateescape")
    for kind, (form, name) in NUMBERS.items():
        value = getattr(settings, name)
        if value is not None:
            most = 0xFF if form == "=B" else 0xFFFFFFFE
            given[kind] = struct.pack(form, _number(value, name, 0, most))
    yield from sorted(given.items())
    if settings.addrgenmode is not None:
        mode = struct.pack("=B", _number(settings.addrgenmode, "addrgenmode", 0, 255))
        yield IFLA_AF_SPEC, _attr(socket.AF_INET6, _attr(IFLA_INET6_ADDR_GEN_MODE, mode))


# --- encoding -----------------------------------------------------------------------------------------


class _Message:
    """One encoded message, numbered 0; what is wanted of its answer; what it asks for, in words."""

    __slots__ = ("data", "family", "flags", "kind", "mac", "operation", "wanted")

    def __init__(self, message: Any, kind: int, flags: int, operation: str, wanted: int = -1) -> None:
        message["header"]["type"] = kind
        message["header"]["flags"] = flags
        message["header"]["sequence_number"] = 0
        message["header"]["pid"] = 0
        message.encode()
        self.data = bytes(message.data)
        self.kind = kind
        self.flags = flags
        self.family: int = message["family"]
        self.operation = operation
        self.wanted = wanted
        self.mac = ""

    @property
    def is_dump(self) -> bool:
        return self.kind in (RTM_GETLINK, RTM_GETADDR, RTM_GETROUTE) and bool(self.flags & NLM_F_DUMP)

    def numbered(self, seq: int) -> bytes:
        return self.data[:8] + struct.pack("=I", seq & 0xFFFFFFFF) + self.data[12:]


class Batch:
    """Messages that go to the kernel in one send. Each method appends one, or raises and appends none."""

    def __init__(self) -> None:
        self._messages: list[_Message] = []

    def __len__(self) -> int:
        return len(self._messages)

    def tobytes(self) -> bytes:
        """Return the encoded messages, with sequence numbers 1, 2, ... and port id 0."""
        return b"".join(message.numbered(at) for at, message in enumerate(self._messages, 1))

    def get_link(self, *, index: int = 0, name: str = "", vf: int = -1, mac: str = "") -> None:
        """Append ``RTM_GETLINK`` of one device: ``ip link show dev $name``; with ``mac``, who else has it."""
        wanted = -1 if vf == -1 else _number(vf, "vf", 0, 65535)
        if bool(name) == (index != 0):
            raise ValueError(f"index {index!r}, name {name!r}: give one of them")
        message = ifinfmsg()
        message["attrs"] = []
        if name:
            kind = "IFLA_IFNAME" if len(name.encode("utf-8", "replace")) < IFNAMSIZ else "IFLA_ALT_IFNAME"
            message["attrs"].append((kind, _interface_name(name, ALTIFNAMSIZ)))
        else:
            message["index"] = _number(index, "index", 1, INT_MAX)
        mask = RTEXT_FILTER_SKIP_STATS | (RTEXT_FILTER_VF if wanted >= 0 else 0)
        message["attrs"].append(("IFLA_EXT_MASK", mask))
        which = name or f"ifindex {index}"
        operation = f"get vf {wanted} of {which}" if wanted >= 0 else f"get link {which}"
        asked = _Message(message, RTM_GETLINK, NLM_F_REQUEST, operation, wanted)
        asked.mac = _mac(mac) if mac else ""
        self._messages.append(asked)

    def set_vf(self, pf_index: int, vf: int, settings: VfSettings) -> None:
        """Append one ``RTM_SETLINK`` for one VF, through its PF: ``ip link set $pf vf $n mac $mac ...``."""
        _number(vf, "vf", 0, 65535)
        message = _VfMessage()
        message["index"] = _number(pf_index, "pf_index", 1, INT_MAX)
        info = ("IFLA_VF_INFO", {"attrs": _vf_attrs(vf, settings)})
        message["attrs"] = [("IFLA_VFINFO_LIST", {"attrs": [info]})]
        operation = f"set vf {vf} of ifindex {pf_index}"
        self._messages.append(_Message(message, RTM_SETLINK, NLM_F_REQUEST | NLM_F_ACK, operation))

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
        message = _Device()
        message["attrs"] = []
        fd = _number(netns_fd, "netns_fd", 0, INT_MAX) if netns_fd != -1 else -1
        size = _number(mtu, "mtu", 1, INT_MAX) if mtu != 0 else 0
        text = _interface_name(name) if name else ""
        message["index"] = _number(index, "index", 0 if name else 1, INT_MAX)
        if fd >= 0:
            message.put(28, struct.pack("=I", fd))  # IFLA_NET_NS_FD
        if text:
            message.put(3, text.encode() + b"\0")  # IFLA_IFNAME
        if mac:
            message.put(IFLA_ADDRESS, bytes.fromhex(_mac(mac).replace(":", "")))
        if size:
            message.put(4, struct.pack("=I", size))  # IFLA_MTU
        if master != -1:
            message.put(10, struct.pack("=I", _number(master, "master", 0, INT_MAX)))  # IFLA_MASTER
        if up is not None:
            message["change"] = IFF_UP
            message["flags"] = IFF_UP if up else 0
        elif not message["attrs"] and settings in (None, LinkSettings()):
            raise ValueError(f"set_link of index {index}: asks for nothing")
        _put_settings(message, settings or LinkSettings())
        operation = f"set link of ifindex {index}" if index else f"set link of {name}"
        self._messages.append(_Message(message, RTM_SETLINK, NLM_F_REQUEST | NLM_F_ACK, operation))

    def del_link(self, index: int) -> None:
        """Append ``RTM_DELLINK``: ``ip link delete dev $if``."""
        message = ifinfmsg()
        message["index"] = _number(index, "index", 1, INT_MAX)
        operation = f"delete link of ifindex {index}"
        self._messages.append(_Message(message, RTM_DELLINK, NLM_F_REQUEST | NLM_F_ACK, operation))

    def add_altname(self, index: int, name: str, *more: str) -> None:
        """Append ``RTM_NEWLINKPROP``: ``ip link property add dev $if altname $name altname ...``."""
        operation = f"add altname {name} to ifindex {index}"
        self._change_altnames(RTM_NEWLINKPROP, NLM_F_CREATE | NLM_F_EXCL, index, (name, *more), operation)

    def del_altname(self, index: int, name: str, *more: str) -> None:
        """Append ``RTM_DELLINKPROP``: ``ip link property del dev $if altname $name altname ...``."""
        operation = f"delete altname {name} of ifindex {index}"
        self._change_altnames(RTM_DELLINKPROP, 0, index, (name, *more), operation)

    def _change_altnames(
        self, kind: int, flags: int, index: int, names: tuple[str, ...], operation: str
    ) -> None:
        message = ifinfmsg()
        listed = [("IFLA_ALT_IFNAME", _alternative_name(name)) for name in names]
        message["index"] = _number(index, "index", 1, INT_MAX)
        message["attrs"] = [("IFLA_PROP_LIST", {"attrs": listed})]
        self._messages.append(_Message(message, kind, NLM_F_REQUEST | NLM_F_ACK | flags, operation))

    def drop_xdp(self, index: int, mode: int) -> None:
        """Append one ``RTM_SETLINK`` that detaches one mode's XDP program: ``ip link set $if xdpdrv off``."""
        flags = XDP_FLAGS_SKB_MODE << _number(mode, "mode", 0, 2)
        message = _Device()
        message["index"] = _number(index, "index", 1, INT_MAX)
        message["attrs"] = []
        # IFLA_XDP_FD and IFLA_XDP_FLAGS
        message.put(IFLA_XDP, _attr(1, struct.pack("=i", -1)) + _attr(3, struct.pack("=I", flags)))
        operation = f"set link of ifindex {index}"
        self._messages.append(_Message(message, RTM_SETLINK, NLM_F_REQUEST | NLM_F_ACK, operation))

    def add_address(self, index: int, cidr: str) -> None:
        """Append ``RTM_NEWADDR``: ``ip address add $cidr [brd +] dev $if [nodad]``."""
        message = ifaddrmsg()
        message["index"] = _number(index, "index", 1, INT_MAX)
        family, ip, prefix = _cidr(cidr)
        message["family"] = family
        message["prefixlen"] = prefix
        message["flags"] = IFA_F_NODAD if family == socket.AF_INET6 else 0
        message["attrs"] = [("IFA_LOCAL", ip), ("IFA_ADDRESS", ip)]
        if family == socket.AF_INET and prefix < 31:
            (bits,) = struct.unpack("!I", socket.inet_pton(family, ip))
            highest = struct.pack("!I", bits | 0xFFFFFFFF >> prefix)
            message["attrs"].append(("IFA_BROADCAST", socket.inet_ntop(family, highest)))
        flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL
        operation = f"add address {cidr} to ifindex {index}"
        self._messages.append(_Message(message, RTM_NEWADDR, flags, operation))

    def add_route(self, index: int, route: Route) -> None:
        """Append ``RTM_NEWROUTE``: ``ip route prepend $dst via $gw dev $if ...``."""
        oif = _number(index, "index", 1, INT_MAX)
        table = _number(route.table, "table", 0, 0xFFFFFFFF)
        priority = _number(route.priority, "priority", 0, 0xFFFFFFFF)
        metrics = [
            ("RTAX_MTU", _number(route.mtu, "mtu", 0, INT_MAX)),
            ("RTAX_ADVMSS", _number(route.advmss, "advmss", 0, INT_MAX)),
        ]
        family, dst, prefix = _cidr(route.dst)
        gateway = _gateway(route.gw, family) if route.gw else ""
        message = rtmsg()
        message["family"] = family
        message["dst_len"] = prefix
        message["table"] = (table or RT_TABLE_MAIN) if table < 256 else 0
        message["proto"] = RTPROT_BOOT
        message["type"] = RTN_UNICAST
        message["scope"] = RT_SCOPE_UNIVERSE if gateway else RT_SCOPE_LINK
        if route.scope is not None:
            message["scope"] = _number(route.scope, "scope", 0, 255)
        if gateway and route.onlink:
            message["flags"] = RTNH_F_ONLINK
        message["attrs"] = [
            *([("RTA_DST", dst)] if prefix else []),
            *([("RTA_GATEWAY", gateway)] if gateway else []),
            ("RTA_OIF", oif),
            *([("RTA_PRIORITY", priority)] if priority else []),
            *([("RTA_TABLE", table)] if table > 255 else []),
            *_given_metrics(metrics),
        ]
        via = f" via {gateway}" if gateway else ""
        flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE
        operation = f"add route {route.dst}{via} to ifindex {index}"
        self._messages.append(_Message(message, RTM_NEWROUTE, flags, operation))

    def _dump_links(self) -> None:
        message = ifinfmsg()
        message["attrs"] = [("IFLA_EXT_MASK", RTEXT_FILTER_SKIP_STATS)]
        self._messages.append(_Message(message, RTM_GETLINK, NLM_F_REQUEST | NLM_F_DUMP, "list links"))

    def _dump_addresses(self, index: int) -> None:
        message = ifaddrmsg()
        message["index"] = index
        message["family"] = socket.AF_UNSPEC
        operation = f"list addresses of ifindex {index}"
        self._messages.append(_Message(message, RTM_GETADDR, NLM_F_REQUEST | NLM_F_DUMP, operation, index))

    def _dump_routes(self, family: int, index: int) -> None:
        message = rtmsg()
        message["family"] = family
        message["attrs"] = [("RTA_OIF", index)]
        operation = f"list routes of ifindex {index}"
        self._messages.append(_Message(message, RTM_GETROUTE, NLM_F_REQUEST | NLM_F_DUMP, operation, index))


def _put_settings(message: _Device, settings: LinkSettings) -> None:
    if settings.flags is not None:
        message["change"] |= SETTABLE_FLAGS
        message["flags"] |= _number(settings.flags, "flags", 0, INT_MAX) & SETTABLE_FLAGS
    for kind, payload in _settings_attrs(settings):
        message.put(kind, payload)


def _parts(batch: Batch) -> Iterator[list[_Message]]:
    """Yield the messages by what one send takes: all at once, but for a large batch."""
    part: list[_Message] = []
    size = 0
    for message in batch._messages:
        if part and size + len(message.data) > MOST_SENT:
            yield part
            part, size = [], 0
        part.append(message)
        size += len(message.data)
    yield part


def _given_metrics(metrics: list[tuple[str, int]]) -> list[tuple[str, Any]]:
    given = [(name, value) for name, value in metrics if value]
    return [("RTA_METRICS", {"attrs": given})] if given else []


# --- decoding -----------------------------------------------------------------------------------------
#
# By hand, not with pyroute2's message classes: those raise TypeError and the like on malformed input, where
# the compiled decoder passes over what does not fit.


def _attrs(data: bytes, at: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Yield type, start and end of each attribute (header included) that fits."""
    while end - at >= ATTR.size:
        size, kind = ATTR.unpack_from(data, at)
        if size < ATTR.size or size > end - at:
            return
        yield kind & NLA_TYPE_MASK, at, at + size
        at += (size + 3) & ~3


def _payloads(data: bytes, at: int = 0) -> list[tuple[int, bytes]]:
    """Return type and payload of each attribute from ``at`` on."""
    return [(kind, data[start + ATTR.size : end]) for kind, start, end in _attrs(data, at, len(data))]


def _u32(payload: bytes) -> int:
    return int.from_bytes(payload[:4], sys.byteorder) if len(payload) >= 4 else 0


def _c_text(payload: bytes) -> str:
    return payload.partition(b"\0")[0].decode("utf-8", "surrogateescape")


def _hardware_address(payload: bytes) -> str:
    """Return an address of 1 to 32 bytes (MAX_ADDR_LEN, linux/netdevice.h), "" for any other length."""
    return payload.hex(":") if 1 <= len(payload) <= 32 else ""


def _ip_text(family: int, payload: bytes) -> str:
    """Return an address of a family, "" where there are too few bytes."""
    size = 4 if family == socket.AF_INET else 16
    if len(payload) < size or family not in (socket.AF_INET, socket.AF_INET6):
        return ""
    return socket.inet_ntop(family, payload[:size])


def _vf_number(data: bytes, start: int, end: int) -> int:
    """Return whose IFLA_VF_INFO this is, -1 where it is none: each begins with a MAC that names the VF."""
    kind, at, stop = next(_attrs(data, start + ATTR.size, end), (0, 0, 0))
    return _u32(data[at + ATTR.size : stop]) if kind == IFLA_VF_MAC else -1


def _vf_infos(data: bytes, at: int, num_vf: int) -> Iterator[tuple[int, int, int]]:
    """Yield index, start and end of each IFLA_VF_INFO of the list at ``at``.

    The 16 bits of its length overflow with some 300 VFs while its entries are all there, so they are counted.
    """
    for kind, start, stop in _attrs(data, at + ATTR.size, len(data)):
        vf = _vf_number(data, start, stop) if kind == IFLA_VF_INFO else -1
        if not num_vf or vf < 0:
            return
        num_vf -= 1
        yield vf, start, stop


def _find_vf(data: bytes, at: int, num_vf: int, vf: int) -> tuple[bytes | None, int]:
    """Return the payload of one VF's IFLA_VF_INFO, None where it is missing, and the list's end."""
    found, end = None, at + ATTR.size
    for index, start, stop in _vf_infos(data, at, num_vf):
        end = start + (stop - start + 3 & ~3)
        if index == vf:
            found = data[start + ATTR.size : stop]
    return found, end


def _holder(data: bytes, at: int, num_vf: int, vf: int, mac: str) -> int:
    """Return the index of another VF than ``vf`` that has a MAC, -1 where none has it."""
    for index, start, stop in _vf_infos(data, at, num_vf):
        _, held = _payloads(data[start + ATTR.size : stop])[0]
        if index != vf and _vf_setting(IFLA_VF_MAC, held).get("mac") == mac:
            return index
    return -1


def _link_attrs(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield the attributes of a RTM_NEWLINK message as ``_attrs`` does; none from inside the list of VFs."""
    at, num_vf = LINK_ATTRS, 0
    while attr := next(_attrs(data, at, len(data)), None):
        kind, start, end = attr
        at = start + (end - start + 3 & ~3)
        if kind == IFLA_NUM_VF:
            num_vf = _u32(data[start + ATTR.size : end])
        elif kind == IFLA_VFINFO_LIST and num_vf:
            _, at = _find_vf(data, start, num_vf, -1)
        yield attr


def _yes_no(payload: bytes) -> bool | None:
    """Return the value of a switch; the kernel presets -1 for drivers that do not know the switch."""
    value = _u32(payload[4:8]) if len(payload) >= 8 else 0xFFFFFFFF
    return None if value == 0xFFFFFFFF else value != 0


def _vf_vlan_list(payload: bytes) -> dict[str, Any]:
    """Return the settings of the list's one entry (struct ifla_vf_vlan_info, linux/if_link.h)."""
    _, info = next(iter(_payloads(payload)), (0, b""))
    if len(info) < 14:
        return {}
    vlan, qos = struct.unpack_from("=II", info, 4)
    (proto,) = struct.unpack_from("!H", info, 12)
    found = {"vlan": vlan, "qos": qos}
    return found | ({"proto": VLAN_PROTO_NAMES[proto]} if proto in VLAN_PROTO_NAMES else {})


def _vf_setting(kind: int, payload: bytes) -> dict[str, Any]:
    """Return the fields of ``VfSettings`` that one attribute of an IFLA_VF_INFO has."""
    if kind == IFLA_VF_MAC and len(payload) >= 36:
        return {"mac": payload[4:10].hex(":")}
    if kind == IFLA_VF_VLAN and len(payload) >= 12:
        return dict(zip(("vlan", "qos"), struct.unpack_from("=II", payload, 4), strict=True))
    if kind == IFLA_VF_VLAN_LIST:
        return _vf_vlan_list(payload)
    if kind == IFLA_VF_RATE and len(payload) >= 12:
        rates = struct.unpack_from("=II", payload, 4)
        return dict(zip(("min_tx_rate", "max_tx_rate"), rates, strict=True))
    if kind == IFLA_VF_LINK_STATE:
        state = _u32(payload[4:8]) if len(payload) >= 8 else -1
        return {"link_state": LINK_STATES[state] if 0 <= state < len(LINK_STATES) else None}
    name = {IFLA_VF_SPOOFCHK: "spoofchk", IFLA_VF_TRUST: "trust"}.get(kind)
    return {name: _yes_no(payload)} if name else {}


def _vf_settings(info: bytes) -> VfSettings:
    found: dict[str, Any] = {}
    for kind, payload in _payloads(info):
        found |= _vf_setting(kind, payload)
    return VfSettings(**found)


def _inner(data: bytes, wanted: int) -> bytes | None:
    """Return the payload of one kind in a nest, None where there is none."""
    return next((payload for kind, payload in _payloads(data) if kind == wanted), None)


def _link_setting(kind: int, payload: bytes) -> dict[str, Any]:
    """Return the field of ``LinkSettings`` that one attribute has."""
    if kind in NUMBERS:
        form, name = NUMBERS[kind]
        size = struct.calcsize(form)
        return {name: struct.unpack_from(form, payload)[0] if len(payload) >= size else 0}
    if kind == IFLA_BROADCAST and len(payload) == 6:
        return {"broadcast": payload.hex(":")}
    if kind == IFLA_IFALIAS:
        return {"alias": _c_text(payload)}
    if kind == IFLA_AF_SPEC:
        mode = _inner(_inner(payload, socket.AF_INET6) or b"", IFLA_INET6_ADDR_GEN_MODE)
        return {} if mode is None else {"addrgenmode": mode[0] if mode else 0}
    return {}


def _alternative_names(properties: bytes) -> tuple[str, ...]:
    return tuple(_c_text(payload) for kind, payload in _payloads(properties) if kind == IFLA_ALT_IFNAME)


def _decode_link(data: bytes, vf: int, mac: str = "") -> Link:
    index, flags = struct.unpack_from("=iI", data, HEADER.size + 4)
    attrs: dict[int, bytes] = {}
    settings: dict[str, Any] = {"flags": flags & SETTABLE_FLAGS, "alias": ""}
    info, holder = None, -1
    for kind, start, end in _link_attrs(data):
        attrs[kind] = data[start + ATTR.size : end]
        settings |= _link_setting(kind, attrs[kind])
        if kind == IFLA_VFINFO_LIST:
            num_vf = _u32(attrs.get(IFLA_NUM_VF, b""))
            info, _ = _find_vf(data, start, num_vf, vf)
            if mac and holder < 0:
                holder = _holder(data, start, num_vf, vf, mac)
    xdp = attrs.get(IFLA_XDP, b"")
    return Link(
        index=index,
        name=_c_text(attrs.get(IFLA_IFNAME, b"")),
        mac=_hardware_address(attrs.get(IFLA_ADDRESS, b"")),
        mtu=_u32(attrs.get(IFLA_MTU, b"")),
        up=bool(flags & IFF_UP),
        carrier=bool(flags & IFF_LOWER_UP),
        parent=_c_text(attrs.get(IFLA_PARENT_DEV_NAME, b"")),
        perm=_hardware_address(attrs.get(IFLA_PERM_ADDRESS, b"")),
        lower=0 if IFLA_LINK_NETNSID in attrs else _u32(attrs.get(IFLA_LINK, b"")),
        master=_u32(attrs.get(IFLA_MASTER, b"")),
        altnames=_alternative_names(attrs.get(IFLA_PROP_LIST, b"")),
        num_vf=_u32(attrs.get(IFLA_NUM_VF, b"")),
        vf=None if info is None else _vf_settings(info),
        settings=LinkSettings(**settings),
        xdp=tuple(_u32(_inner(xdp, wanted) or b"") for wanted in XDP_PROG_IDS),
        holder=holder,
    )


def _decode_address(data: bytes, index: int) -> list[str]:
    family, prefix, number = struct.unpack_from("=BB2xI", data, HEADER.size)
    if number != index or family not in (socket.AF_INET, socket.AF_INET6):
        return []
    attrs = _payloads(data, HEADER.size + 8)
    chosen = b""
    for kind, payload in attrs:
        if kind == IFA_LOCAL or (kind == IFA_ADDRESS and not chosen):
            chosen = payload
    return [f"{_ip_text(family, chosen)}/{prefix}"]


class _Path:
    """The attributes of a route, those of one next hop of it among them."""

    def __init__(self, attrs: dict[int, bytes], flags: int) -> None:
        self.attrs = attrs
        self.onlink = bool(flags & RTNH_F_ONLINK)

    def gateway(self, family: int) -> str:
        """Return the next hop, of either family (struct rtvia, linux/rtnetlink.h)."""
        via = self.attrs.get(RTA_VIA)
        if via is None:
            return _ip_text(family, self.attrs.get(RTA_GATEWAY, b""))
        return _ip_text(int.from_bytes(via[:2], sys.byteorder), via[2:]) if len(via) >= 2 else ""


def _hops(attrs: dict[int, bytes], index: int) -> Iterator[_Path]:
    """Yield the next hops of a multipath route out of one interface (struct rtnexthop)."""
    hops = attrs[RTA_MULTIPATH]
    while len(hops) >= 8:
        size, flags, _, oif = struct.unpack_from("=HBBi", hops)
        if size < 8 or size > len(hops):
            return
        if oif == index:
            yield _Path(attrs | dict(_payloads(hops[8:size])), flags)
        hops = hops[(size + 3) & ~3 :]


def _paths(attrs: dict[int, bytes], index: int, flags: int) -> list[_Path]:
    if RTA_MULTIPATH in attrs:
        return list(_hops(attrs, index))
    return [_Path(attrs, flags)] if _u32(attrs.get(RTA_OIF, b"")) == index else []


def _decode_routes(data: bytes, family: int, index: int) -> list[Route]:
    """Return the unicast routes out of one interface; a multipath route counts once for each hop there."""
    its_family, prefix, table, scope, kind, flags = struct.unpack_from("=BB2xBxBBI", data, HEADER.size)
    if kind != RTN_UNICAST or flags & RTM_F_CLONED or its_family != family:
        return []
    attrs = dict(_payloads(data, HEADER.size + 12))
    if RTA_TABLE in attrs:
        table = _u32(attrs[RTA_TABLE])
    if table == RT_TABLE_LOCAL:
        return []
    return [_route(path, family, prefix, table, scope) for path in _paths(attrs, index, flags)]


def _route(path: _Path, family: int, prefix: int, table: int, scope: int) -> Route:
    attrs = path.attrs
    if RTA_TABLE in attrs:
        table = _u32(attrs[RTA_TABLE])
    dst, metrics = _ip_text(family, attrs.get(RTA_DST, b"")), attrs.get(RTA_METRICS, b"")
    return Route(
        dst=f"{dst or ('0.0.0.0' if family == socket.AF_INET else '::')}/{prefix}",  # noqa: S104
        gw=path.gateway(family),
        mtu=_u32(_inner(metrics, RTAX_MTU) or b""),
        advmss=_u32(_inner(metrics, RTAX_ADVMSS) or b""),
        priority=_u32(attrs.get(RTA_PRIORITY, b"")),
        table=table,
        scope=scope,
        onlink=path.onlink,
    )


# --- answers ------------------------------------------------------------------------------------------

_UNANSWERED = object()


class Replies:
    """What a batch that was sent with sequence numbers from ``first`` on is answered with.

    ``port`` is the port id of the socket that sent it. ``feed`` takes one datagram; every message in it is
    checked in one place. ``pending`` counts the messages without an answer, ``results`` holds one entry for
    each message.
    """

    def __init__(self, batch: Batch, first: int, port: int) -> None:
        self._messages = batch._messages
        self._first = first
        self._port = port
        self._found: list[Any] = [_UNANSWERED] * len(batch)
        self.pending = len(batch)
        self.interrupted = False

    @property
    def results(self) -> list[object]:
        """A list: ``Link``, ``NetlinkError`` or, for an ACK and for what has no answer yet, None."""
        return [None if item is _UNANSWERED else item for item in self._found]

    def feed(self, datagram: bytes, *, sender: int = 0, truncated: bool = False) -> None:
        """Take one datagram from port id ``sender``.

        Raises NetlinkError (EPROTO, EMSGSIZE, ENOBUFS) where it cannot be what the kernel answers.
        """
        if sender != 0:
            return  # some process's doing; only the kernel answers
        if truncated:
            raise NetlinkError(errno.EMSGSIZE, "", 0, "rtnetlink answer is truncated")
        while datagram:
            left = len(datagram)
            size = HEADER.unpack_from(datagram)[0] if left >= HEADER.size else 0
            if size < HEADER.size or size > left:
                raise NetlinkError(
                    errno.EPROTO, "", 0, f"rtnetlink answer with a broken header, {left} bytes left"
                )
            message = datagram[:size]
            if self._is_mine(message):
                self._take(message)
            datagram = datagram[(size + 3) & ~3 :]

    def _is_mine(self, data: bytes) -> bool:
        # A lower sequence number belongs to a request that was given up; a higher one was never sent.
        _, _, _, seq, port = HEADER.unpack_from(data)
        if port != self._port:
            raise NetlinkError(errno.EPROTO, "", 0, f"rtnetlink answer to port {port}, not {self._port}")
        ahead = (seq - self._first) & 0xFFFFFFFF
        if ahead < len(self._found):
            return True
        if ahead > INT_MAX:
            return False
        raise NetlinkError(errno.EPROTO, "", 0, f"rtnetlink answer to request {seq}, never sent")

    def _take(self, data: bytes) -> None:
        _, kind, flags, seq, _ = HEADER.unpack_from(data)
        position = (seq - self._first) & 0xFFFFFFFF
        asked = self._messages[position]
        if asked.is_dump and flags & NLM_F_DUMP_INTR:
            self.interrupted = True
        if kind == NLMSG_NOOP:
            return
        if kind == NLMSG_OVERRUN:
            raise NetlinkError(errno.ENOBUFS, "", position, "rtnetlink answers were lost")
        if kind == NLMSG_ERROR or (asked.is_dump and kind == NLMSG_DONE):
            self._take_verdict(data, kind, position)
        elif kind != asked.kind - 2 or asked.flags & NLM_F_ACK:
            raise NetlinkError(errno.EPROTO, "", position, f"rtnetlink answer of unexpected type {kind}")
        else:
            self._take_data(data, kind, position)

    def _take_verdict(self, data: bytes, kind: int, position: int) -> None:
        # NLMSG_ERROR, an ACK too, and NLMSG_DONE: both begin with an int that is 0 or a negative errno.
        if len(data) < HEADER.size + (4 + HEADER.size if kind == NLMSG_ERROR else 4):
            raise NetlinkError(errno.EPROTO, "", position, "rtnetlink verdict is too short")
        (error,) = struct.unpack_from("=i", data, HEADER.size)
        if error:
            operation = self._messages[position].operation
            refused = NetlinkError(-error, _extack(data), position, operation)
            if operation.startswith(("set vf ", "get vf ")):
                refused.vf = int(operation.split(" ", 3)[2])
            self._found[position] = refused
        elif self._found[position] is _UNANSWERED:
            self._found[position] = None if kind == NLMSG_ERROR else []
        self.pending -= 1

    def _take_data(self, data: bytes, kind: int, position: int) -> None:
        asked = self._messages[position]
        size = len(data) - HEADER.size
        if size < BODY_SIZES[kind]:
            raise NetlinkError(errno.EPROTO, "", position, f"rtnetlink answer with a body of {size} bytes")
        if not asked.is_dump:
            self._found[position] = _decode_link(data, asked.wanted, asked.mac)
            self.pending -= 1
            return
        if self._found[position] is _UNANSWERED:
            self._found[position] = []
        if kind == RTM_NEWLINK:
            self._found[position].append(_decode_link(data, -1))
        elif kind == RTM_NEWADDR:
            self._found[position] += _decode_address(data, asked.wanted)
        else:
            self._found[position] += _decode_routes(data, asked.family, asked.wanted)

    def _first_unanswered(self) -> int:
        return next((i for i, item in enumerate(self._found) if item is _UNANSWERED), len(self._found) - 1)


def _extack(data: bytes) -> str:
    """Return the kernel's own words, NLMSGERR_ATTR_MSG, from behind what it repeats of the request."""
    _, kind, flags, _, _ = HEADER.unpack_from(data)
    if not flags & NLM_F_ACK_TLVS:
        return ""
    at = HEADER.size + 4
    if kind == NLMSG_ERROR:
        (request,) = struct.unpack_from("=I", data, at)
        at += HEADER.size if flags & NLM_F_CAPPED else (request + 3) & ~3
    for attr, start, end in _attrs(data, at, len(data)):
        if attr == NLMSGERR_ATTR_MSG:
            return data[start + ATTR.size : end].partition(b"\0")[0].decode("utf-8", "surrogateescape")
    return ""


# --- namespaces ---------------------------------------------------------------------------------------

if sys.version_info >= (3, 12):

    def _setns(fd: int) -> None:
        os.setns(fd, os.CLONE_NEWNET)

else:

    def _setns(fd: int) -> None:
        import ctypes

        libc = ctypes.CDLL(None, use_errno=True)
        if libc.setns(fd, 0x40000000) != 0:  # CLONE_NEWNET, linux/sched.h
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))


_RETURN_TRIES, _RETURN_PAUSE = 1000, 0.001  # seconds


def _go_home(home: int) -> None:
    """Take the calling thread back, or end the process: going on would configure the wrong namespace.

    setns(2) fails while the kernel has no memory, so it is repeated for a second.
    """
    for _ in range(_RETURN_TRIES):
        try:
            return _setns(home)
        except OSError:
            time.sleep(_RETURN_PAUSE)
    os.write(2, b"sriov-fast: cannot return from a network namespace, giving up\n")
    os.abort()


def _in_netns(netns_fd: int, work: Callable[[], T]) -> T:
    """Do ``work`` with the calling thread in a namespace (-1: where it is)."""
    if netns_fd == -1:
        return work()
    _number(netns_fd, "netns_fd", 0, INT_MAX)
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        _setns(netns_fd)
        try:
            return work()
        finally:
            _go_home(home)
    finally:
        os.close(home)


def raw_socket(netns_fd: int, family: int, kind: int, protocol: int) -> int:
    """Open ``socket(family, kind | SOCK_CLOEXEC, protocol)`` in a namespace (-1: this one)."""
    return _in_netns(netns_fd, lambda: socket.socket(family, kind, protocol)).detach()


def netns_write(netns_fd: int, path: str, text: str) -> None:
    """Write a file below /proc/sys/net of a namespace (-1: this one): ``sysctl -w $path=$text`` in there."""
    if not path.startswith("/proc/sys/net/") or "/../" in path or "\0" in path:
        raise ValueError(f"path {path!r}: not below /proc/sys/net")
    fd = _in_netns(netns_fd, lambda: os.open(path, os.O_WRONLY | os.O_CLOEXEC))
    try:
        if os.write(fd, text.encode()) != len(text.encode()):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
    except OSError as error:
        error.filename = path
        raise
    finally:
        os.close(fd)


# --- ethtool ------------------------------------------------------------------------------------------


def ethtool(socket_fd: int, index: int, request: bytes) -> bytes:
    """Do one ``ioctl(SIOCETHTOOL)`` for a device in a socket's namespace; return the struct it leaves."""
    if len(request) < 4:
        raise ValueError(f"ethtool request of {len(request)} bytes: has no command")
    _number(index, "index", 1, INT_MAX)
    answer = array("B", request)
    try:
        _ethtool_once(socket_fd, index, answer)
    except OSError as error:
        if error.errno != errno.ENODEV:
            raise
        _ethtool_once(socket_fd, index, answer)  # it may have been renamed in between
    return answer.tobytes()


def _ethtool_once(socket_fd: int, index: int, data: array[int]) -> None:
    # SIOCETHTOOL takes a name, so the name that the device has now is asked for just before.
    named: bytes = fcntl.ioctl(socket_fd, SIOCGIFNAME, struct.pack("@16xi20x", index))
    fcntl.ioctl(socket_fd, SIOCETHTOOL, struct.pack("@16sP16x", named[:16], data.buffer_info()[0]))


# --- bpf ----------------------------------------------------------------------------------------------

# asm/unistd.h
SYS_BPF = {"x86_64": 321, "aarch64": 280, "riscv64": 280, "ppc64le": 361, "s390x": 351}


def bpf(command: int, attributes: bytearray, buffers: dict[int, bytearray] | None = None) -> int:
    """Do one ``bpf(command)`` (bpf(2)), in the namespace that the thread is in; return what it returns."""
    import ctypes

    held = []
    for at, buffer in (buffers or {}).items():
        if not 0 <= at <= len(attributes) - 8:
            raise ValueError(f"offset {at!r}: outside of {len(attributes)} bytes")
        held.append((ctypes.c_char * len(buffer)).from_buffer(buffer))
        attributes[at : at + 8] = ctypes.addressof(held[-1]).to_bytes(8, sys.byteorder)
    number = SYS_BPF.get(os.uname().machine)
    if number is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    libc = ctypes.CDLL(None, use_errno=True)
    whole = (ctypes.c_char * len(attributes)).from_buffer(attributes)
    done: int = libc.syscall(ctypes.c_long(number), command, whole, ctypes.c_size_t(len(attributes)))
    if done < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return done


# --- the socket ---------------------------------------------------------------------------------------


class Socket:
    """A rtnetlink socket, opened in the namespace that ``netns_fd`` refers to (-1: the thread's own)."""

    def __init__(self, netns_fd: int = -1) -> None:
        self._socket = _in_netns(
            netns_fd, lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
        )
        for option in (NETLINK_EXT_ACK, NETLINK_CAP_ACK):
            self._try_option(SOL_NETLINK, option, 1)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("@ll", RECEIVE_TIMEOUT, 0))
        self._socket.bind((0, 0))
        self._port: int = self._socket.getsockname()[0]
        self._next_seq = 1
        self._space = USUAL_SPACE
        self._buffer = bytearray(32768)

    def _try_option(self, level: int, option: int, value: int) -> bool:
        """Set an option that an older kernel may lack, or that needs a right; return whether it is set."""
        try:
            self._socket.setsockopt(level, option, value)
        except OSError:
            return False
        return True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def fileno(self) -> int:
        """Return the descriptor, -1 once closed."""
        return self._socket.fileno()

    def close(self) -> None:
        """Close the socket; a second time does nothing."""
        self._socket.close()

    def run(self, batch: Batch, *, check: bool = True) -> list[object]:
        """Send the batch, wait for every answer, return one result for each message."""
        results = self._exchange(batch).results
        if not check:
            return results
        for item in results:
            if isinstance(item, NetlinkError):
                item.results = results
                raise item
        return results

    def links(self) -> list[Link]:
        """Return every device of the namespace as a ``Link``: ``ip link show``."""
        batch = Batch()
        batch._dump_links()
        return self._dump(batch)

    def addresses(self, index: int) -> list[str]:
        """Return the addresses of one device as "ip/prefix", both families: ``ip address show dev $if``."""
        batch = Batch()
        batch._dump_addresses(_number(index, "index", 1, INT_MAX))
        return self._dump(batch)

    def routes(self, index: int) -> list[Route]:
        """Return the unicast routes out of one device, both families: ``ip route show table all dev $if``."""
        _number(index, "index", 1, INT_MAX)
        found: list[Route] = []
        for family in (socket.AF_INET, socket.AF_INET6):
            batch = Batch()
            batch._dump_routes(family, index)
            found += self._dump(batch)
        return found

    def _dump(self, batch: Batch) -> list[Any]:
        self._try_option(SOL_NETLINK, NETLINK_GET_STRICT_CHK, 1)
        for _ in range(DUMP_TRIES):
            replies = self._exchange(batch)
            if not replies.interrupted:
                (found,) = replies.results
                if isinstance(found, NetlinkError):
                    raise found
                assert isinstance(found, list)  # noqa: S101
                return found
        operation = batch._messages[0].operation
        raise NetlinkError(errno.EAGAIN, "", 0, f"{operation}: changed while read, {DUMP_TRIES} times")

    def _exchange(self, batch: Batch) -> Replies:
        replies = Replies(batch, self._next_seq, self._port)
        if not len(batch):
            return replies
        first = self._next_seq
        self._next_seq += len(batch)
        sent = 0
        for part in _parts(batch):
            self._make_space(part)
            data = (message.numbered(first + at) for at, message in enumerate(part, sent))
            self._socket.sendto(b"".join(data), (0, 0))
            sent += len(part)
            while replies.pending > len(batch) - sent:
                self._receive(replies)
        return replies

    def _make_space(self, part: list[_Message]) -> None:
        # The kernel queues all answers before the send returns, and drops what has no room.
        wanted = sum(
            VF_LIST_SPACE if message.kind == RTM_GETLINK and message.wanted >= 0 else ANSWER_SPACE
            for message in part
        )
        if wanted <= self._space or len(part) == 1:
            return
        size = min(wanted, INT_MAX // 2)
        # SO_RCVBUFFORCE is 33 (asm-generic/socket.h); Python does not name it.
        if not self._try_option(socket.SOL_SOCKET, 33, size):
            self._try_option(socket.SOL_SOCKET, socket.SO_RCVBUF, size)
        self._space = wanted

    def _receive(self, replies: Replies) -> None:
        """Take one datagram, however large: its size is asked for first."""
        try:
            size = self._socket.recv_into(self._buffer, 1, socket.MSG_PEEK | socket.MSG_TRUNC)
            if size > len(self._buffer):
                self._buffer = bytearray(size)
            size, (sender, _) = self._socket.recvfrom_into(self._buffer, 0, socket.MSG_TRUNC)
        except BlockingIOError:
            position = replies._first_unanswered()
            operation = replies._messages[position].operation
            raise NetlinkError(
                errno.ETIMEDOUT, "", position, f"{operation}: no answer in {RECEIVE_TIMEOUT} seconds"
            ) from None
        replies.feed(bytes(self._buffer[:size]), sender=sender, truncated=size > len(self._buffer))
