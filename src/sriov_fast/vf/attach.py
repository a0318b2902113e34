"""The way of a VF into the pod. Every step that changes something comes after the journal's record of it.

The order of the MAC matters (README.md beside this file tells why): the network device's first, the PF's
second, and where a driver refuses that, the PF's first and a reset of the VF between the two.
"""

from __future__ import annotations

import errno

from sriov_fast.common.errors import BusyError, ConfigError, KernelError, NetlinkError
from sriov_fast.common.record import LinkSettings, Record, VfSettings
from sriov_fast.kernel.backend import nl
from sriov_fast.vf import candidate, device, programs
from sriov_fast.vf.journal import Attachment

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from sriov_fast.common.paths import Roots
    from sriov_fast.common.record import Link, Route
    from sriov_fast.vf.select import ReservedVf

NOTHING = VfSettings()
IFF_NOARP = 0x80  # linux/if.h


def observe(host: nl.Socket, reserved: ReservedVf, record: Attachment, roots: Roots) -> Attachment:
    """Return the record with the VF's original state; the PF's list of VFs is read once."""
    mac = record.asked.mac or ""
    pf, netdev = candidate.read_pf(host, reserved.pf, reserved.vf, roots, mac), reserved.link
    if pf.holder >= 0:
        raise BusyError(
            f"mac {mac}: VF {pf.holder} of {pf.name} holds it, so VF {reserved.vf.index} cannot have it",
            "give another MAC; `sriov-fast vfs` shows whose that VF is",
            interface=pf.name,
            vf=pf.holder,
        )
    return record.replace(
        pf=pf.name,
        pf_index=pf.index,
        vf=reserved.vf.index,
        ifindex=netdev.index,
        host_name=netdev.name,
        before=pf.vf or NOTHING,
        before_mac=netdev.mac,
        before_perm=netdev.perm,
        before_mtu=netdev.mtu,
        before_up=netdev.up,
        before_settings=netdev.settings,
        before_altnames=netdev.altnames,
        before_xdp=netdev.xdp,
        before_tcx=programs.tcx(netdev.index),
        before_ethtool=device.ethtool_state(host.fileno(), netdev.index),
    )


def complete(asked: VfSettings, before: VfSettings) -> VfSettings:
    """Fill what the kernel's structs carry together: a rate without its twin would set that to 0."""
    if asked.min_tx_rate is None and asked.max_tx_rate is None:
        return asked
    low = asked.min_tx_rate if asked.min_tx_rate is not None else before.min_tx_rate
    high = asked.max_tx_rate if asked.max_tx_rate is not None else before.max_tx_rate
    return asked.replace(min_tx_rate=low or 0, max_tx_rate=high or 0)


def configure(host: nl.Socket, record: Attachment) -> None:
    """Set what was asked for through the PF, and the MAC on both sides, in one send."""
    asked = complete(record.asked, record.before)
    if asked == NOTHING and not record.before_up:
        return
    batch = nl.Batch()
    kinds = []
    if record.before_up:
        batch.set_link(record.ifindex, up=False)
        kinds.append("down")
    if asked.mac and asked.mac != record.before_mac:
        batch.set_link(record.ifindex, mac=asked.mac)
        kinds.append("mac")
    if asked != NOTHING:
        batch.set_vf(record.pf_index, record.vf, asked)
        kinds.append("vf")
    answers = dict(zip(kinds, host.run(batch, check=False), strict=True))
    for kind in ("down", "vf"):
        if isinstance(answers.get(kind), NetlinkError):
            raise _refused(answers[kind], record)
    if isinstance(answers.get("mac"), NetlinkError):
        adopt_mac(host, record.ifindex, asked.mac or "")


def adopt_mac(host: nl.Socket, ifindex: int, mac: str) -> None:
    """Make the device take a MAC that the PF has set already: reset the VF by up and down, then set it.

    A refusal is not final here: the device may have the MAC by now, and ``verify`` looks.
    """
    batch = nl.Batch()
    batch.set_link(ifindex, up=True)
    batch.set_link(ifindex, up=False)
    batch.set_link(ifindex, mac=mac)
    host.run(batch, check=False)


def move(host: nl.Socket, record: Attachment, netns_fd: int) -> None:
    """Move, rename, set the MTU and bring up in one message, under one hold of the kernel's lock.

    A VF that is kept quiet in the host (``arp off``) must answer ARP in the pod.
    """
    flags = record.before_settings.flags or 0
    answering = LinkSettings(flags=flags & ~IFF_NOARP) if flags & IFF_NOARP else None
    batch = nl.Batch()
    batch.set_link(
        record.ifindex, netns_fd=netns_fd, name=record.ifname, mtu=record.mtu, up=True, settings=answering
    )
    try:
        host.run(batch)
    except NetlinkError as error:
        raise _not_moved(error, record, netns_fd) from error


def _not_moved(error: NetlinkError, record: Attachment, netns_fd: int) -> Exception:
    if error.errno == errno.EEXIST:
        altname = _clashing_altname(record, netns_fd)
        if altname:
            return BusyError(
                f"altname {altname!r} of {record.host_name}: the namespace {record.netns} "
                "has an interface of that name",
                f"remove it: ip link property del dev {record.host_name} altname {altname}",
                errno=error.errno,
                interface=record.host_name,
                vf=record.vf,
                extack=error.extack,
            )
        return BusyError(
            f"CNI_IFNAME {record.ifname!r}: the namespace {record.netns} has such an interface already",
            "name another one, or delete that one first",
            errno=error.errno,
            interface=record.ifname,
            extack=error.extack,
        )
    if error.errno in (errno.EINVAL, errno.ERANGE) and record.mtu:
        return ConfigError(
            f"mtu {record.mtu}: {record.pf} refuses it for VF {record.vf}: {error.msg}",
            "ask for no more than the PF's own MTU",
            errno=error.errno,
            interface=record.host_name,
            vf=record.vf,
            extack=error.extack,
        )
    return _refused(error, record)


def _clashing_altname(record: Attachment, netns_fd: int) -> str:
    """Return the alternative name of the VF that is a name in the namespace, "" if none is."""
    if not record.before_altnames:
        return ""
    with nl.Socket(netns_fd) as pod:
        links = pod.links()
    taken = {name for link in links for name in (link.name, *link.altnames) if link.parent != record.pci}
    if record.ifname in taken:
        return ""
    return next((name for name in record.before_altnames if name in taken), "")


class Addressing(Record):
    """The messages that give a device, by its index, addresses and routes, and read it back."""

    ifindex: int
    addresses: Sequence[str]
    routes: Sequence[Route]
    batch: nl.Batch

    def at(self, position: int) -> str:
        """Say what a message is about, "" for the last."""
        texts = [f"address {cidr}" for cidr in self.addresses]
        texts += [f"route {route.dst}" + (f" via {route.gw}" if route.gw else "") for route in self.routes]
        return texts[position] if position < len(texts) else ""


def addressing(ifindex: int, addresses: Sequence[str], routes: Sequence[Route]) -> Addressing:
    """Put the messages together, for one ``address``; ValueError where something cannot be meant."""
    batch = nl.Batch()
    for cidr in addresses:
        batch.add_address(ifindex, cidr)
    for route in routes:
        batch.add_route(ifindex, route)
    batch.get_link(index=ifindex)
    return Addressing(ifindex=ifindex, addresses=addresses, routes=routes, batch=batch)


def address(pod: nl.Socket, record: Attachment, given: Addressing) -> Link:
    """Set addresses and routes and read the device back, in one send; return the device."""
    try:
        link: Link = pod.run(given.batch)[-1]
    except NetlinkError as error:
        what = given.at(error.position)
        if not what:
            raise _refused(error, record) from error
        raise KernelError(
            f"{record.ifname}: cannot set {what}: {error.msg}",
            "see whether the IPAM result fits: a gateway must be reachable through the address",
            errno=error.errno,
            interface=record.ifname,
            vf=record.vf,
            extack=error.extack,
        ) from error
    return link


def verify(host: nl.Socket, record: Attachment, link: Link) -> None:
    """Raise KernelError unless the MAC that was asked for is there on both sides."""
    wanted = record.asked.mac
    if not wanted:
        return
    batch = nl.Batch()
    batch.get_link(index=record.pf_index, vf=record.vf)
    pf: Link = host.run(batch)[0]
    on_pf = pf.vf.mac if pf.vf else None
    if link.mac != wanted or on_pf not in (wanted, None):
        raise KernelError(
            f"mac {wanted}: {record.ifname} has {link.mac} and {record.pf} holds {on_pf} for VF {record.vf}",
            "the driver did not take the MAC; see the kernel's log",
            interface=record.ifname,
            vf=record.vf,
        )


def _refused(error: NetlinkError, record: Attachment) -> NetlinkError:
    error.interface = record.pf
    error.vf = record.vf
    error.msg = f"{record.pf}, VF {record.vf} ({record.pci}): {error.msg}"
    error.details = error.details or f"asked for: {_shown(record)}"
    return error


def _shown(record: Attachment) -> str:
    asked = {key: value for key, value in record.asked.as_dict().items() if value is not None}
    if record.mtu:
        asked["mtu"] = record.mtu
    return ", ".join(f"{key} {value}" for key, value in asked.items()) or "the move into the namespace"
