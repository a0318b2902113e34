"""Packets and bytes of VFs as their PF counts them (IFLA_VF_STATS), for ``serve --vf-counters``.

Equivalent to: ``ip -s link show dev $pf``. Some drivers ask the card's firmware for each VF, and the
kernel holds the RTNL lock meanwhile, so no request of a pod uses this.
"""

from __future__ import annotations

import socket
import struct
from typing import NamedTuple

from sriov_fast.common.errors import NetlinkError
from sriov_fast.kernel.netlink import constants as c
from sriov_fast.kernel.netlink import links
from sriov_fast.kernel.netlink.attributes import inner, payloads

_LINK = struct.Struct("=BxHiII")  # struct ifinfomsg
_ERROR = struct.Struct("=i")  # the first field of struct nlmsgerr
_NUMBER = struct.Struct("=I")
_COUNTER = struct.Struct("=Q")
_MOST = 1 << 20  # bytes of one reply
_STATS = 8  # IFLA_VF_STATS, linux/if_link.h
# Attributes of IFLA_VF_STATS, in the order of ``Counters``.
_KINDS = (0, 1, 2, 3, 7, 8)  # IFLA_VF_STATS_{RX,TX}_PACKETS, _{RX,TX}_BYTES, _{RX,TX}_DROPPED


class Counters(NamedTuple):
    """The counters of a VF; ``rx`` is received by the VF, ``tx`` sent by it."""

    rx_packets: int = 0
    tx_packets: int = 0
    rx_bytes: int = 0
    tx_bytes: int = 0
    rx_dropped: int = 0
    tx_dropped: int = 0


def read(pf: str) -> dict[int, Counters]:
    """Return the counters of a PF's VFs by index; nothing if the driver has none.

    The kernel reports zeros for a driver without counters, so a PF with zeros alone counts as such a one.
    Raises OSError or NetlinkError.
    """
    request = _LINK.pack(socket.AF_UNSPEC, 0, socket.if_nametoindex(pf), 0, 0)
    request += c.ATTR.pack(8, c.IFLA_EXT_MASK) + _NUMBER.pack(c.RTEXT_FILTER_VF)
    header = c.HEADER.pack(c.HEADER.size + len(request), c.RTM_GETLINK, c.NLM_F_REQUEST, 1, 0)
    with socket.socket(
        socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE
    ) as asking:
        asking.send(header + request)
        reply = asking.recv(_MOST)
    found = parse(reply)
    return found if any(map(any, found.values())) else {}


def parse(reply: bytes) -> dict[int, Counters]:
    """Return the counters in a reply of the kernel. Raises NetlinkError for an error message."""
    length, kind, *_ = c.HEADER.unpack_from(reply)
    if kind == c.NLMSG_ERROR:
        (number,) = _ERROR.unpack_from(reply, c.HEADER.size)
        raise NetlinkError(-number, operation="read the VFs' counters")
    found = ((vf, inner(info, _STATS)) for vf, info in links.vf_infos(reply[:length]))
    return {vf: _counters(stats) for vf, stats in found if stats is not None}


def _counters(stats: bytes) -> Counters:
    """Return the counters of one VF; older kernels have no drops."""
    values = {kind: _COUNTER.unpack_from(value)[0] for kind, value in payloads(stats) if len(value) >= 8}
    return Counters(*(values.get(kind, 0) for kind in _KINDS))
