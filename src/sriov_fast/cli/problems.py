"""The settings of VFs as their PFs report them, and the problems of VFs: for ``vfs`` and ``doctor``."""

from __future__ import annotations

import errno
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sriov_fast.cli import machine
from sriov_fast.common.errors import is_absent
from sriov_fast.common.paths import Roots

NONE = "00:00:00:00:00:00"  # the MAC of a VF that the PF has given none
_FILTER = 1 | 8  # RTEXT_FILTER_VF | RTEXT_FILTER_SKIP_STATS, linux/rtnetlink.h
# The names that a device has for a moment while this plugin or the SR-IOV CNI moves it.
_TEMPORARY = re.compile(r"(sriov|temp_|dev)\d+")


class VfMacVlan(NamedTuple):
    """The MAC of a VF, "" if it is unknown, and the VLAN that the PF has set."""

    mac: str
    vlan: int


def settings(pfs: Sequence[machine.Pf], roots: Roots) -> dict[str, VfMacVlan]:
    """Return the settings of VFs by PCI address: a PF's list, and the device's MAC where that has none."""
    found = {}
    for pf in pfs:
        told = _told(pf.name)
        for vf in pf.vfs:
            mac, vlan = told.get(vf.index, ("", 0))
            if mac in ("", NONE):
                mac = own_mac(vf.netdev, roots)
            found[vf.pci] = VfMacVlan(mac, vlan)
    return found


def own_mac(netdev: str, roots: Roots) -> str:
    """Return the MAC of a network device, "" if it is not here."""
    try:
        return Path(roots.sys, "class/net", netdev, "address").read_text().strip() if netdev else ""
    except OSError as error:
        if is_absent(error):
            return ""
        raise


def _told(pf: str) -> dict[int, tuple[str, int]]:
    """Return (MAC, VLAN) of each VF as the PF tells (IFLA_VFINFO_LIST); nothing if it tells nothing."""
    from pyroute2 import IPRoute
    from pyroute2.netlink.exceptions import NetlinkError

    try:
        with IPRoute() as host:
            (link,) = host.link("get", ifname=pf, ext_mask=_FILTER)
    except NetlinkError as error:
        if error.code in (errno.ENODEV, errno.EOPNOTSUPP):
            return {}
        raise
    listed = link.get_attr("IFLA_VFINFO_LIST")
    return dict(map(_entry, listed.get_attrs("IFLA_VF_INFO"))) if listed else {}


def _entry(info: Any) -> tuple[int, tuple[str, int]]:
    mac, vlan = info.get_attr("IFLA_VF_MAC"), info.get_attr("IFLA_VF_VLAN")
    return mac["vf"], (mac["mac"][:17], vlan["vlan"] if vlan else 0)


def of(
    pfs: Sequence[machine.Pf], owned: machine.Owners, known: Mapping[str, VfMacVlan], roots: Roots
) -> dict[str, list[str]]:
    """Return the problems of each VF by PCI address; ``known`` is that of ``settings``."""
    same = Counter(setting.mac for setting in known.values() if setting.mac)
    found: dict[str, list[str]] = {}
    for pf in pfs:
        for vf in pf.vfs:
            texts = list(_name(vf.netdev))
            if vf.pci in known:
                texts += _of_setting(known[vf.pci], same, free=vf.pci not in owned and bool(vf.driver))
                texts += _leftover_mac(known[vf.pci], own_mac(vf.netdev, roots), free=vf.pci not in owned)
            if texts:
                found[vf.pci] = texts
    return found


def _name(netdev: str) -> Iterator[str]:
    if _TEMPORARY.fullmatch(netdev):
        yield f"is named {netdev}, as during a move: rename it"


def _of_setting(setting: VfMacVlan, same: Counter[str], *, free: bool) -> Iterator[str]:
    if same[setting.mac] > 1:
        yield f"has the MAC {setting.mac} of another VF"
    if free and setting.vlan:
        yield f"has VLAN {setting.vlan} and no pod: an ADD without vlan leaves it"


def _leftover_mac(setting: VfMacVlan, own: str, *, free: bool) -> Iterator[str]:
    if free and own and setting.mac != own:
        yield f"has the MAC {setting.mac} on the PF and {own} itself"
