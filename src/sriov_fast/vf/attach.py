"""The steps of an attach that do not depend on its mode: read the VF's state, set it up, set addresses.

Every change follows the journal's record of the original state. The MAC is set in an order
that README.md in this directory explains: on the network device, then through the PF; if the driver refuses,
through the PF first, then on the device after a reset of the VF.
"""

from __future__ import annotations

from sriov_fast.common.errors import (
    BusyError,
    ConfigError,
    KernelError,
    NetlinkError,
    TryAgainError,
    is_absent,
)
from sriov_fast.common.record import LinkSettings, Record, VfSettings
from sriov_fast.kernel.backend import nl
from sriov_fast.vf import candidate, rtnl
from sriov_fast.vf.journal import Attachment

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from sriov_fast.common.paths import Roots
    from sriov_fast.common.record import Link, Route
    from sriov_fast.vf.driver_socket import DriverSocket
    from sriov_fast.vf.select import ReservedVf

NOTHING = VfSettings()
_LINK_TYPES = {"32": "InfiniBand (32)"}  # ARPHRD_*, linux/if_arp.h
IFF_NOARP = 0x80  # linux/if.h


def observe(host: nl.Socket, reserved: ReservedVf, record: Attachment, roots: Roots) -> Attachment:
    """Return the record with the original state of the VF and of its device; read the PF's VFs once."""
    netdev = reserved.link
    _require_ethernet(netdev, roots)
    return observe_pf(host, reserved, record, roots)[0].replace(
        ifindex=netdev.index,
        host_name=netdev.name,
        before_mac=netdev.mac,
        before_perm=netdev.perm,
        before_mtu=netdev.mtu,
        before_up=netdev.up,
        before_settings=netdev.settings,
        before_disable_ipv6=netdev.disable_ipv6,
    )


def observe_pf(
    host: nl.Socket, reserved: ReservedVf, record: Attachment, roots: Roots
) -> tuple[Attachment, int]:
    """Return the record with the PF's settings of the VF, and the PF's MTU.

    Raises BusyError if another VF has the requested MAC, and ConfigError for settings without a visible PF.
    """
    if not reserved.pf:
        _require_no_settings(record)
        return record.replace(asked=NOTHING), 0
    mac = record.asked.mac or ""
    pf = candidate.read_pf(host, reserved.pf, reserved.vf, roots, mac)
    if pf.holder >= 0:
        raise BusyError(
            f"mac {mac}: VF {pf.holder} of {pf.name} holds it, so VF {reserved.vf.index} cannot have it",
            "give another MAC; `sriov-fast vfs` shows whose that VF is",
            interface=pf.name,
            vf=pf.holder,
        )
    observed = record.replace(pf=pf.name, pf_index=pf.index, vf=reserved.vf.index, before=pf.vf or NOTHING)
    return observed, pf.mtu


def _require_no_settings(record: Attachment) -> None:
    """Raise ConfigError for a setting that only a PF can make. No VLAN and no rate are nothing to set."""
    asked = record.asked if record.asked.vlan else record.asked.replace(qos=None, proto=None)
    keys = [key for key, value in asked.known().items() if value or value is False]
    if keys:
        raise ConfigError(
            f"{', '.join(keys)}: the PF of {record.pci} is not visible here, so nothing can set that",
            "leave it out, and set it in the host of the virtual machine",
        )


def _require_ethernet(link: Link, roots: Roots) -> None:
    """Raise ConfigError unless a device has an address of six octets, as every Ethernet device has."""
    if len(link.mac) == len("00:00:00:00:00:00"):
        return
    try:
        with open(f"{roots.sys}/class/net/{link.name}/type", "rb", buffering=0) as file:
            number = file.read(15).decode().strip()
    except OSError:
        number = "unknown"
    raise ConfigError(
        f"{link.name} is no Ethernet device: its link type is {_LINK_TYPES.get(number, number)}",
        "use a plugin for that kind of network, such as ib-sriov",
        interface=link.name,
    )


def complete(asked: VfSettings, before: VfSettings) -> VfSettings:
    """Return the settings with both rates: they share a struct, and a missing one would be set to 0."""
    if asked.min_tx_rate is None and asked.max_tx_rate is None:
        return asked
    low = asked.min_tx_rate if asked.min_tx_rate is not None else before.min_tx_rate
    high = asked.max_tx_rate if asked.max_tx_rate is not None else before.max_tx_rate
    return asked.replace(min_tx_rate=low or 0, max_tx_rate=high or 0)


def changes(record: Attachment) -> VfSettings:
    """Return the settings to make: those that the PF does not have already, and the MAC.

    A driver without a setting refuses it, even if nothing would change (igb: the link state).
    """
    before = record.before
    asked = complete(record.asked, before)
    same = [key for key in ("spoofchk", "link_state", "trust") if getattr(asked, key) == getattr(before, key)]
    if (asked.min_tx_rate, asked.max_tx_rate) == (before.min_tx_rate, before.max_tx_rate):
        same += ["min_tx_rate", "max_tx_rate"]
    if asked.vlan is not None and _tag(asked) == _tag(before):
        same += ["vlan", "qos", "proto"]
    return asked.replace(**dict.fromkeys(same))


def _tag(settings: VfSettings) -> tuple[int | None, int, str]:
    """Return VLAN, priority and protocol; without a VLAN the others mean nothing."""
    if not settings.vlan:
        return settings.vlan, 0, ""
    return settings.vlan, settings.qos or 0, settings.proto or "802.1Q"


def configure(host: DriverSocket, record: Attachment, *, down: bool = False) -> None:
    """Set the requested values through the PF, and the MAC on both sides, in one send.

    ``down``: bring the device down first. A device that is up stays up otherwise, unless its driver refuses
    the MAC. A VF with a userspace driver has no device.
    """
    asked = changes(record)
    if asked == NOTHING and not down:
        return
    batch = nl.Batch()
    kinds = []
    if down:
        batch.set_link(record.ifindex, up=False)
        kinds.append("down")
    if record.ifindex and asked.mac and asked.mac != record.before_mac:
        batch.set_link(record.ifindex, mac=asked.mac)
        kinds.append("mac")
    if asked != NOTHING:
        batch.set_vf(record.pf_index, record.vf, asked)
        kinds.append("vf")
    answers = dict(zip(kinds, host.run(batch, check=False), strict=True))
    for kind in ("down", "vf"):
        if isinstance(answers.get(kind), NetlinkError):
            raise refused(answers[kind], record)
    if isinstance(answers.get("mac"), NetlinkError):
        link, refusal = await_mac(host, adopt_mac(host, record.ifindex, asked.mac or ""), asked.mac or "")
        if refusal and link.mac != asked.mac:
            raise refused(refusal, record)


def adopt_mac(host: DriverSocket, ifindex: int, mac: str) -> Link:
    """Make the device take a MAC that the PF has set already: reset the VF by up and down, then set it.

    Returns the device. A refusal is not final: the device may have the MAC nevertheless, or later.
    """
    batch = nl.Batch()
    batch.set_link(ifindex, up=True)
    batch.set_link(ifindex, up=False)
    batch.set_link(ifindex, mac=mac)
    batch.get_link(index=ifindex)
    return _device(host.run(batch, check=False)[-1])


def await_mac(socket: DriverSocket, link: Link, mac: str) -> tuple[Link, NetlinkError | None]:
    """Set a device's MAC until the device shows it or the patience ends.

    Returns the device and the last refusal. Some drivers (iavf) apply a MAC after their answer, or refuse it
    while the PF resets the VF. Nothing is sent if ``link`` has the MAC.
    """
    refusal = None
    batch = nl.Batch()
    batch.set_link(link.index, mac=mac)
    batch.get_link(index=link.index)
    for _ in socket.patience.pauses() if link.mac != mac else ():
        answer, now = socket.run(batch, check=False)
        link, refusal = _device(now), answer or refusal
        if link.mac == mac:
            break
    return link, refusal


def _device(answer: Link | NetlinkError) -> Link:
    """Return the device that was read. Raises NetlinkError if it is gone."""
    if isinstance(answer, NetlinkError):
        raise answer
    return answer


def change_disable_ipv6(name: str, value: str) -> None:
    """Set the sysctl disable_ipv6 of a device in the host, which has another value now."""
    try:
        rtnl.change_disable_ipv6(-1, name, value)
    except OSError as error:
        raise TryAgainError(
            f"disable_ipv6 of {name} cannot be set to {value}: {error.strerror}",
            "see whether the device was renamed, and whether /proc/sys can be written to",
            errno=error.errno or 0,
            interface=name,
        ) from error


class Addressing(Record):
    """The messages that give a device, by its index, addresses, routes and flags, and read it back."""

    ifindex: int
    addresses: Sequence[str]
    routes: Sequence[Route]
    flags: int | None
    dad: bool
    batch: nl.Batch

    def at(self, position: int) -> str:
        """Return the subject of a message, "" for the last."""
        texts = [f"address {cidr}" for cidr in self.addresses]
        texts += [f"route {route.dst}" + (f" via {route.gw}" if route.gw else "") for route in self.routes]
        texts += ["promisc and allmulti"] if self.flags is not None else []
        return texts[position] if position < len(texts) else ""


def addressing(
    ifindex: int,
    addresses: Sequence[str],
    routes: Sequence[Route],
    flags: int | None = None,
    *,
    dad: bool = False,
) -> Addressing:
    """Put the messages together, for one ``address``; ValueError where something cannot be meant.

    There are none with ``ifindex`` 0, for a VF without a network device. ``dad``: let the kernel check the
    IPv6 addresses for duplicates.
    """
    batch = nl.Batch()
    if not ifindex:
        return Addressing(ifindex=0, addresses=(), routes=(), flags=None, dad=dad, batch=batch)
    for cidr in addresses:
        batch.add_address(ifindex, cidr, dad=dad)
    for route in routes:
        batch.add_route(ifindex, route)
    if flags is not None:
        batch.set_link(ifindex, settings=LinkSettings(flags=flags))
    batch.get_link(index=ifindex)
    return Addressing(ifindex=ifindex, addresses=addresses, routes=routes, flags=flags, dad=dad, batch=batch)


def address(pod: nl.Socket, record: Attachment, given: Addressing) -> Link:
    """Set addresses and routes and read the device back, in one send; return the device."""
    try:
        link: Link = pod.run(given.batch)[-1]
    except NetlinkError as error:
        what = given.at(error.position)
        if not what:
            raise refused(error, record) from error
        raise KernelError(
            f"{record.ifname}: cannot set {what}: {error.msg}",
            "see whether the IPAM result fits (a gateway must be reachable through the address), "
            "and whether the VF is trusted if promisc or allmulti was asked for",
            errno=error.errno,
            interface=record.ifname,
            vf=record.vf,
            extack=error.extack,
        ) from error
    return link


def verify(host: DriverSocket, pod: DriverSocket, record: Attachment, link: Link) -> Link:
    """Return the pod's device with the requested MAC; wait until device and PF have what was asked for.

    Raises KernelError.
    """
    wanted = record.asked.mac
    if wanted:
        link, refusal = await_mac(pod, link, wanted)
        if link.mac != wanted:
            why, errno = (f": {refusal.msg}", refusal.errno) if refusal else ("", 0)
            raise _not_taken(record, f"mac {wanted}", f"{record.ifname} has {link.mac}{why}", errno)
    verify_on_pf(host, record)
    return link


def verify_on_pf(host: DriverSocket, record: Attachment) -> None:
    """Wait until the PF reports the VF's new MAC and VLAN. Raises KernelError if it does not."""
    if not record.asked.mac and record.asked.vlan is None:
        return
    new = changes(record)
    late = _late(host, record, new)
    for _ in host.patience.pauses() if late else ():
        late = _late(host, record, new)
        if not late:
            return
    if late:
        raise _not_taken(record, *late)


def _late(host: DriverSocket, record: Attachment, new: VfSettings) -> tuple[str, str] | None:
    """Return a new MAC or VLAN, and the other value that the PF reports; None without such a difference."""
    now = on_pf(host, record) if new.mac or new.vlan is not None else None
    for key, wanted, held in (("mac", new.mac, now.mac), ("vlan", new.vlan, now.vlan)) if now else ():
        if None not in (wanted, held) and wanted != held:
            return f"{key} {wanted}", f"{record.pf} holds {held}"
    return None


def on_pf(host: nl.Socket, record: Attachment) -> VfSettings | None:
    """Return what the PF reports of the VF, None if there is no such PF or VF. Raises NetlinkError."""
    if not record.pf_index:
        return None
    batch = nl.Batch()
    batch.get_link(index=record.pf_index, vf=record.vf)
    (pf,) = host.run(batch, check=False)
    if not isinstance(pf, NetlinkError):
        settings: VfSettings | None = pf.vf
        return settings
    if not is_absent(pf):
        raise pf
    return None


def _not_taken(record: Attachment, wanted: str, held: str, errno: int = 0) -> KernelError:
    return KernelError(
        f"{wanted}: {held} for VF {record.vf}",
        "the driver did not take it; see the kernel's log",
        errno=errno,
        interface=record.ifname,
        vf=record.vf,
    )


def refused(error: NetlinkError, record: Attachment) -> NetlinkError:
    """Return an error of the kernel with the VF and the requested settings."""
    error.interface = record.pf
    error.vf = record.vf
    error.msg = f"{record.label}: {error.msg}"
    error.details = error.details or f"asked for: {_shown(record)}"
    return error


def name_taken(error: NetlinkError, record: Attachment) -> BusyError:
    """Return the error for a name that the namespace has already."""
    return BusyError(
        f"CNI_IFNAME {record.ifname!r}: the namespace {record.netns} has such an interface already",
        "name another one, or delete that one first",
        errno=error.errno,
        interface=record.ifname,
        extack=error.extack,
    )


def mtu_refused(error: NetlinkError, record: Attachment) -> ConfigError:
    """Return the error for an MTU that the driver does not take."""
    return ConfigError(
        f"mtu {record.mtu}: {record.label} refuses it: {error.msg}",
        "ask for no more than the PF's own MTU",
        errno=error.errno,
        interface=record.host_name,
        vf=record.vf,
        extack=error.extack,
    )


def _shown(record: Attachment) -> str:
    asked = record.asked.known()
    if record.mtu:
        asked["mtu"] = record.mtu
    return ", ".join(f"{key} {value}" for key, value in asked.items()) or f"attach {record.attach}"
