"""The return of a VF to the host in its original state: what all attach modes have in common.

It serves DEL, GC and the undo of an ADD, so it assumes nothing about the VF's place: the VF may be in the
host, in the pod, on its way back from a deleted namespace, or gone.
"""

from __future__ import annotations

import errno
from contextlib import ExitStack

from sriov_fast.common.errors import NetlinkError
from sriov_fast.common.record import VfSettings
from sriov_fast.kernel.backend import nl
from sriov_fast.vf import attach, driver_socket, find, irq, rtnl

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Self

    from sriov_fast.common.log import Logger
    from sriov_fast.common.paths import Roots
    from sriov_fast.common.record import Link
    from sriov_fast.vf.driver_socket import DriverSocket, Patience
    from sriov_fast.vf.find import PodNetns
    from sriov_fast.vf.journal import Attachment

ZERO_MAC = "00:00:00:00:00:00"
LINK_OFF = VfSettings(link_state="disable")


class Release:
    """The return of one VF in three steps: ``find``, ``quieten`` and ``bring_home``.

    Each attach mode has a subclass.

    A context manager that owns the sockets. The socket in the pod keeps the pod's namespace alive, so the
    namespace may be deleted between the steps. ``WAITS``: the kernel waits in ``bring_home``, so other
    work should be done meanwhile. ``last_step`` is the name of ``bring_home`` in a trace.
    """

    WAITS = False
    last_step = "restore the VF"

    def __init__(
        self, record: Attachment, pod_netns: PodNetns, roots: Roots, log: Logger, patience: Patience
    ) -> None:
        self._record = record
        self._pod_netns = pod_netns
        self._roots = roots
        self._log = log
        self._patience = patience
        self._opened = ExitStack()

    def __enter__(self) -> Self:
        self._host = self._opened.enter_context(driver_socket.connect(self._patience))
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()

    def find(self) -> None:
        """Find the VF and the pod's device. Raises HiddenError if a device exists and cannot be found."""

    def quieten(self) -> None:
        """Restore the PF's settings and make sure that the pod can send nothing through the VF.

        The address may be released after that. A refusal of the driver to restore a setting is logged.
        """

    def bring_home(self) -> None:
        """Restore the VF's device in the host. Raises NetlinkError or OSError if the kernel refuses that."""

    def _quieten_without_device(self) -> None:
        record, log = self._record, self._log
        log.warning("the VF has no network device any more", pci=record.pci, pf=record.pf, vf=record.vf)
        restore_held(self._host, record, self._roots, log)

    def _restore_irqs(self) -> None:
        """Restore the masks that the ADD set, of the interrupts that the VF still has."""
        if self._record.pinned:
            irq.apply(self._original_masks(), self._roots, self._log)

    def _original_masks(self) -> dict[int, str]:
        record, now = self._record, irq.masks_of(self._record.pci, self._roots)
        return {n: mask for n, mask in record.irqs.items() if n in now and n in record.pinned}

    def _may_have_another_mac(self, link: Link) -> bool:
        own = self._record.before_mac
        return bool(own and (self._record.asked.mac or link.mac != own))

    def _restore_macs(self, link: Link, *, changed: bool = False) -> None:
        """Restore the VF's MAC on the PF and on its device in the host, if necessary with resets of the VF.

        ``changed``: the pod's device had another MAC than the VF before.
        """
        host, record, own = self._host, self._record, self._record.before_mac
        if changed or link.mac != own or _may_hold_another_mac(record):
            restore_pf_mac(host, record, self._log)
        if not self._may_have_another_mac(link) or (link.mac, link.perm) == (own, record.before_perm):
            return
        now = attach.adopt_mac(host, link.index, own)
        if now.mac != own and record.before.mac not in (None, own):
            now = _adopt_without_pf(host, record, link.index)
        now, refusal = attach.await_mac(host, now, own)
        if now.mac != own:
            self._log.warning("the VF keeps a MAC that it did not have", mac=now.mac, before=own, why=refusal)
        restore_pf_mac(host, record, self._log)  # the driver of a trusted VF has told the PF the device's MAC

    def _warn_of_mtu(self, link: Link) -> None:
        before = self._record.before_mtu
        if before not in (0, link.mtu):
            self._log.warning("the VF keeps an MTU that it did not have", mtu=link.mtu, before=before)

    def _bring_into_use(self, link: Link) -> None:
        """Bring a device in the host up, if it was; restore IPv6, and the masks of interrupts and queues."""
        record = self._record
        self._restore_ipv6(link)
        self._settle_irqs(link)
        if record.before_up:
            self._bring_up(link)
        if record.before_queues:
            from sriov_fast.vf import queues  # late: few configurations have these keys

            queues.restore(record, link.name, self._pod_netns.host_fd, self._log)

    def _restore_ipv6(self, link: Link) -> None:
        """Enable or disable IPv6 as before: the kernel resets that on every move, a macvlan needs it off."""
        before = self._record.before_disable_ipv6
        if before is None or link.disable_ipv6 in (None, before):
            return
        try:
            rtnl.change_disable_ipv6(-1, link.name, str(int(before)))
        except OSError as error:
            self._log.warning("the VF keeps another disable_ipv6", interface=link.name, why=error)

    def _settle_irqs(self, link: Link) -> None:
        """Restore the masks that the kernel has not used because the VF returned by itself, down.

        The device is up for a moment.
        """
        masks = self._original_masks() if self._record.pinned else {}
        if not irq.differing(masks, self._roots):
            return
        self._bring_up(link)
        irq.apply(masks, self._roots, self._log)
        set_link(self._host, link.index, up=False)

    def _bring_up(self, link: Link) -> None:
        """Bring the device up. A refusal, as with the PF down, is logged and does not fail the DEL."""
        try:
            set_link(self._host, link.index, up=True)
        except NetlinkError as error:
            self._log.warning("the VF cannot be brought up", interface=link.name, why=error.msg)


def silence(record: Attachment, log: Logger) -> bool:
    """Disable the link of a VF that cannot be found; return whether its PF does that.

    MAC, VLAN and all other settings stay, so that the VF joins no other network.
    """
    if not record.pf_index or record.before.link_state is None:
        return False
    with driver_socket.connect(driver_socket.Patience()) as host:
        refused = _set_vf(host, record, LINK_OFF)
    if refused:
        log.warning("the PF cannot switch the VF's link off", pf=record.pf, vf=record.vf, why=refused.msg)
    return refused is None


def set_link(socket: nl.Socket, index: int, **change: object) -> None:
    """Change one device. Raises NetlinkError."""
    batch = nl.Batch()
    batch.set_link(index, **change)  # type: ignore[arg-type]
    socket.run(batch)


# --- the PF's settings


def release_pf_mac(host: DriverSocket, record: Attachment) -> None:
    """Remove the MAC of the ADD from the PF.

    A PF that had the VF's own MAC gets 0, which allows the VF to set its MAC again.
    """
    if record.asked.mac:
        own = record.before.mac in (None, record.before_mac)
        _set_vf(host, record, VfSettings(mac=ZERO_MAC if own else record.before.mac))


def restore_pf_mac(host: DriverSocket, record: Attachment, log: Logger) -> None:
    """Restore the PF's MAC of the VF if it differs from the one before the ADD; a refusal is logged."""
    before = record.before.mac
    if before is None:
        return
    now = attach.on_pf(host, record)
    if now is None or now.mac == before:
        return
    refused = _set_vf(host, record, VfSettings(mac=before))
    if refused:
        log.warning("the PF keeps another MAC", pf=record.pf, vf=record.vf, mac=now.mac, why=refused.msg)


def _may_hold_another_mac(record: Attachment) -> bool:
    """Return whether the PF's MAC of the VF may differ from before although the device's MAC does not.

    The ADD set one, or the VF did not use the PF's: a trusted VF's driver tells the PF every MAC of the
    device. Some drivers need long to report their VFs, so no other DEL asks the PF.
    """
    asked, before = record.asked, record.before
    is_trusted = before.trust if asked.trust is None else asked.trust
    return bool(asked.mac) or (before.mac != record.before_mac and is_trusted is not False)


def restore_pf(host: DriverSocket, record: Attachment, log: Logger) -> None:
    """Restore the PF's settings of the VF, except the MAC.

    If the driver refuses them together, they are restored one by one.
    """
    whole = _original(record)
    if whole == attach.NOTHING or _set_vf(host, record, whole) is None:
        return
    for part in _parts(whole):
        refused = _set_vf(host, record, part)
        if refused:
            log.warning("the PF refuses to restore", pf=record.pf, vf=record.vf, what=part, why=refused.msg)


def _original(record: Attachment) -> VfSettings:
    """Return the original values of the settings that the ADD changed on the PF, except the MAC."""
    asked, before = attach.changes(record), record.before
    back = {
        key: getattr(before, key)
        for key in ("spoofchk", "link_state", "trust", "min_tx_rate", "max_tx_rate")
        if getattr(asked, key) is not None
    }
    if asked.vlan is not None:
        back |= {"vlan": before.vlan or 0, "qos": before.qos or 0, "proto": before.proto}
    return attach.complete(VfSettings(**back), before)


def _parts(whole: VfSettings) -> list[VfSettings]:
    values = whole.known()
    together = [("vlan", "qos", "proto"), ("min_tx_rate", "max_tx_rate")]
    together += [(key,) for key in ("spoofchk", "link_state", "trust")]
    parts = ({key: values[key] for key in keys if key in values} for keys in together)
    return [VfSettings(**part) for part in parts if part]


def restore_held(host: DriverSocket, record: Attachment, roots: Roots, log: Logger) -> None:
    """Restore the PF's settings that still have the ADD's values, for a VF without a device.

    A new VF (``sriov_numvfs``) has none of them; its settings are the operator's.
    """
    if record.asked == attach.NOTHING or not find.is_same_function(record, roots):
        return
    held = _held(host, record)
    release_pf_mac(host, held)
    restore_pf(host, held, log)


def _held(host: DriverSocket, record: Attachment) -> Attachment:
    """Return the record with only the requested settings that the PF still has."""
    now, asked = attach.on_pf(host, record) or attach.NOTHING, record.asked
    changed = [key for key, value in asked.known().items() if getattr(now, key) != value]
    if {"vlan", "qos", "proto"} & set(changed):
        changed += ["vlan", "qos", "proto"]
    return record.replace(asked=asked.replace(**dict.fromkeys(changed)))


def _set_vf(host: DriverSocket, record: Attachment, settings: VfSettings) -> NetlinkError | None:
    """Make settings through the PF; return the error of a refusal."""
    if not record.pf_index:
        return NetlinkError(errno.ENODEV, operation=f"set vf {record.vf} of {record.pf}")
    batch = nl.Batch()
    batch.set_vf(record.pf_index, record.vf, settings)
    (answer,) = host.run(batch, check=False)
    return answer if isinstance(answer, NetlinkError) else None


def _adopt_without_pf(host: DriverSocket, record: Attachment, index: int) -> Link:
    """Restore a device's MAC that differs from the PF's MAC of the VF; return the device.

    The PF's MAC is removed for that. The second reset makes the driver forget the first MAC.
    """
    _set_vf(host, record, VfSettings(mac=ZERO_MAC))
    attach.adopt_mac(host, index, record.before_mac)
    return attach.adopt_mac(host, index, record.before_mac)
