"""The return of a VF to the host, in its original state.

It serves DEL, GC and the undo of an ADD, so it assumes nothing about the VF's place: the VF may be in the
host, in the pod, on its way back from a deleted namespace, or gone.
"""

from __future__ import annotations

import errno
from contextlib import ExitStack

from sriov_fast.common import descriptors
from sriov_fast.common.errors import NetlinkError, TryAgainError
from sriov_fast.common.record import VfSettings
from sriov_fast.kernel.backend import nl
from sriov_fast.vf import attach, candidate, device, driver_socket, find, irq, netns

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Self

    from sriov_fast.common.log import Logger
    from sriov_fast.common.paths import Roots
    from sriov_fast.common.record import Link
    from sriov_fast.vf.driver_socket import DriverSocket, Patience
    from sriov_fast.vf.find import PodNetns, VfLocation
    from sriov_fast.vf.journal import Attachment

ZERO_MAC = "00:00:00:00:00:00"
LINK_OFF = VfSettings(link_state="disable")
MOVE_TRIES = 10  # the pod may add names to its device at the same time


class Release:
    """The return of one VF in two steps: ``quieten``, then ``bring_home``.

    A context manager that owns the sockets. The socket in the pod keeps the pod's namespace alive, so the
    namespace may be deleted between the two steps.
    """

    def __init__(
        self, record: Attachment, pod_netns: PodNetns, roots: Roots, log: Logger, patience: Patience
    ) -> None:
        self._record = record
        self._patience = patience
        self._pod_netns = pod_netns
        self._roots = roots
        self._log = log
        self._opened = ExitStack()
        self._found = False
        self._place: VfLocation | None = None
        self._quiet: Link | None = None
        self._on_pf: str | None = None

    def __enter__(self) -> Self:
        self._host = self._opened.enter_context(driver_socket.connect(self._patience))
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()

    def find(self) -> None:
        """Find the VF. Raises HiddenError if its device exists and cannot be found."""
        location = find.find(self._record, self._pod_netns, self._roots, self._log)
        if location and location.pod:
            location.pod.patience = self._patience
            self._opened.callback(location.pod.close)
        self._place = location
        self._found = True

    def quieten(self) -> None:
        """Make the VF unable to send: its device down with its old MAC, the PF's settings restored.

        The address may be released after that. A refusal of the driver to restore a setting is logged.
        """
        if not self._found:
            self.find()
        if self._place:
            # first: while the device is down, the kernel may accept a mask and not use it
            restore_irqs(self._record, self._roots, self._log)
        if self._place and self._record.rdma:
            from sriov_fast.vf import rdma  # late: few configurations have this key

            rdma.bring_home(self._record, self._pod_netns, self._roots, self._log)
        try:
            self._quieten()
        except NetlinkError as error:
            if error.errno != errno.ENODEV:
                raise
            # the device vanished: it was unplugged, or its namespace ended and it is in the host
            self.find()
            self._quieten()

    def _quieten(self) -> None:
        record, log, location = self._record, self._log, self._place
        if location is None:
            log.warning("the VF has no network device any more", pci=record.pci, pf=record.pf, vf=record.vf)
            restore_held(self._host, record, self._roots, log)
            return
        self._quiet = _quieten(self._host, record, location, log)
        self._on_pf = restore_pf(self._host, record, log)
        if record.before_mac != location.link.mac and not record.asked.mac:
            restore_pf_mac(self._host, record)  # a trusted VF's driver passes the pod's MAC, and now the VF's

    def bring_home(self) -> None:
        """Move the quiet VF to the host, and restore its original state.

        Raises NetlinkError or OSError if the kernel refuses the move.
        """
        try:
            self._bring_home()
        except NetlinkError as error:
            if error.errno != errno.ENODEV:
                raise
            self.find()
            self._quieten()
            self._bring_home()

    def _bring_home(self) -> None:
        record, log = self._record, self._log
        if self._place is None or self._quiet is None:
            return
        name = _move_to_host(self._host, record, self._place, self._pod_netns, log)
        link = _in_host(self._host, record, name, self._roots)
        if link is None:
            return
        device.restore(self._host, record, link, log)
        _settle(self._host, record, link, self._quiet, self._on_pf, log)
        settle_irqs(self._host, record, link, self._roots, log)
        _settle_ipv6(record, link, log)
        if record.before_up:
            bring_up(self._host, link, log)
        restore_queues(record, link, self._pod_netns, log)


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


def restore_irqs(record: Attachment, roots: Roots, log: Logger) -> None:
    """Restore the masks that the ADD set, of the interrupts that the VF still has."""
    if record.pinned:
        irq.apply(_original_masks(record, roots), roots, log)


def _original_masks(record: Attachment, roots: Roots) -> dict[int, str]:
    now = irq.masks_of(record.pci, roots)
    return {n: mask for n, mask in record.irqs.items() if n in now and n in record.pinned}


def restore_queues(record: Attachment, link: Link, pod_netns: PodNetns, log: Logger) -> None:
    """Restore the masks of the queues, if the ADD set some."""
    if record.before_queues:
        from sriov_fast.vf import queues  # late: few configurations have these keys

        queues.restore(record, link.name, pod_netns.host_fd, log)


def settle_irqs(host: DriverSocket, record: Attachment, link: Link, roots: Roots, log: Logger) -> None:
    """Restore the masks that the kernel has not used because the VF returned by itself, down.

    The device is up for a moment.
    """
    masks = _original_masks(record, roots) if record.pinned else {}
    if not irq.differing(masks, roots):
        return
    bring_up(host, link, log)
    irq.apply(masks, roots, log)
    _run(host, link.index, up=False)


# --- restoring


def _quieten(host: DriverSocket, record: Attachment, location: VfLocation, log: Logger) -> Link:
    """Restore the device's MAC, bring it down, and restore its MTU; return the device after that.

    In this order a driver that resets the VF when it goes down does not keep the pod's MAC.
    """
    link = location.link
    if location.pod:
        _set_free(location.pod, link, log)
    batch = nl.Batch()
    if location.pod and link.master:
        # first: a bond then restores the MAC and the MTU from before it took the device
        batch.set_link(link.index, master=0)
    if record.before_mac and (record.asked.mac or link.master or record.before_mac != link.mac):
        batch.set_link(link.index, mac=record.before_mac)
    required = [len(batch), -1] if link.up else [-1]  # MAC and MTU are compared afterwards
    release_pf_mac(host, record)
    if link.up:
        batch.set_link(link.index, up=False)
    device.strip(batch, record, link)
    if record.before_mtu and (link.master or record.before_mtu != link.mtu):
        batch.set_link(link.index, mtu=record.before_mtu)
    if not len(batch):
        return link
    batch.get_link(index=link.index)
    answers = (location.pod or host).run(batch, check=False)
    for position in required:
        if isinstance(answers[position], NetlinkError):
            raise answers[position]
    now: Link = answers[-1]
    if record.before_mtu not in (0, now.mtu):
        log.warning("the VF keeps an MTU that it did not have", mtu=now.mtu, before=record.before_mtu)
    return now


def _set_free(pod: nl.Socket, vf: Link, log: Logger) -> None:
    """Delete the pod's devices on top of its VF (VLAN, macvlan, ipvlan, macsec, ...).

    Such a device survives the move, and would use the VF of the next pod. A bond or a bridge on top of the VF
    stays; the kernel removes the VF from it at the move.
    """
    uppers = [link for link in pod.links() if link.lower == vf.index]
    if not uppers:
        return
    batch = nl.Batch()
    for link in uppers:
        batch.del_link(link.index)
    for link, answer in zip(uppers, pod.run(batch, check=False), strict=True):
        if not isinstance(answer, NetlinkError):
            log.info("deleted a device that the pod had on top of its VF", device=link.name)
        elif answer.errno == errno.EOPNOTSUPP:
            log.warning("a device on top of the VF cannot be deleted", device=link.name, why=answer.msg)
        elif answer.errno != errno.ENODEV:
            raise answer


def release_pf_mac(host: DriverSocket, record: Attachment) -> NetlinkError | None:
    """Remove the pod's MAC from the PF; return the error of a refusal.

    A PF that had the VF's own MAC gets 0, which allows the VF to set its MAC again.
    """
    if not record.asked.mac:
        return None
    own = record.before.mac in (None, record.before_mac)
    return _set_vf(host, record, VfSettings(mac=ZERO_MAC if own else record.before.mac))


def restore_pf_mac(host: DriverSocket, record: Attachment) -> NetlinkError | None:
    """Restore the PF's MAC of a VF; return the error of a refusal. The pod of a trusted VF can change it."""
    if record.before.mac is None or mac_on_pf(host, record) in (None, record.before.mac):
        return None
    return _set_vf(host, record, VfSettings(mac=record.before.mac))


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


def restore_pf(host: DriverSocket, record: Attachment, log: Logger) -> str | None:
    """Restore the PF's settings; return the PF's MAC of the VF, None if the ADD set none.

    If the driver refuses them together, they are restored one by one.
    """
    whole = _original(record)
    batch = nl.Batch()
    if whole != attach.NOTHING:
        batch.set_vf(record.pf_index, record.vf, whole)
    if record.asked.mac:
        batch.get_link(index=record.pf_index, vf=record.vf)
    if not len(batch):
        return None
    answers = host.run(batch, check=False)
    if whole != attach.NOTHING and isinstance(answers[0], NetlinkError):
        _restore_one_by_one(host, record, whole, log)
    pf = answers[-1] if record.asked.mac else None
    return None if pf is None or isinstance(pf, NetlinkError) or pf.vf is None else pf.vf.mac


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
    batch = nl.Batch()
    batch.get_link(index=record.pf_index, vf=record.vf)
    (pf,) = host.run(batch, check=False)
    if isinstance(pf, NetlinkError) and pf.errno != errno.ENODEV:
        raise pf
    now = None if isinstance(pf, NetlinkError) else pf.vf
    asked = record.asked
    keys = [key for key, value in asked.as_dict().items() if value is not None]
    changed = keys if now is None else [key for key in keys if getattr(now, key) != getattr(asked, key)]
    if {"vlan", "qos", "proto"} & set(changed):
        changed += ["vlan", "qos", "proto"]
    return record.replace(asked=asked.replace(**dict.fromkeys(changed)))


def _restore_one_by_one(host: DriverSocket, record: Attachment, whole: VfSettings, log: Logger) -> None:
    for part in _parts(whole):
        failed = _set_vf(host, record, part)
        if failed:
            log.warning("the PF refuses to restore", pf=record.pf, vf=record.vf, what=part, why=failed.msg)


def _parts(whole: VfSettings) -> list[VfSettings]:
    values = {key: value for key, value in whole.as_dict().items() if value is not None}
    together = [("vlan", "qos", "proto"), ("min_tx_rate", "max_tx_rate")]
    together += [(key,) for key in ("spoofchk", "link_state", "trust")]
    parts = ({key: values[key] for key in keys if key in values} for keys in together)
    return [VfSettings(**part) for part in parts if part]


def _set_vf(host: DriverSocket, record: Attachment, settings: VfSettings) -> NetlinkError | None:
    batch = nl.Batch()
    batch.set_vf(record.pf_index, record.vf, settings)
    answer = host.run(batch, check=False)[0]
    return answer if isinstance(answer, NetlinkError) else None


def _run(socket: nl.Socket, index: int, **change: object) -> None:
    batch = nl.Batch()
    batch.set_link(index, **change)  # type: ignore[arg-type]
    socket.run(batch)


def bring_up(host: DriverSocket, link: Link, log: Logger) -> None:
    """Bring the device up. A refusal, as with the PF down, is logged and does not fail the DEL."""
    try:
        _run(host, link.index, up=True)
    except NetlinkError as error:
        log.warning("the VF cannot be brought up", interface=link.name, why=error.msg)


def _move_to_host(
    host: DriverSocket, record: Attachment, location: VfLocation, pod_netns: PodNetns, log: Logger
) -> str:
    """Move the device to the host under its old name; return the name, "" if it has another one."""
    name, index = record.host_name, location.link.index
    for _ in range(MOVE_TRIES):
        try:
            if location.pod:
                _move(location.pod, index, name, pod_netns.host_fd)
            elif name not in ("", location.link.name):
                _run(host, index, name=name)
        except NetlinkError as error:
            if error.errno != errno.EEXIST:
                raise
            refused = error
        else:
            return name if name == record.host_name else ""
        log.error("another device has the VF's name", name=name, pci=record.pci, why=refused.msg)
        # the kernel may have moved the VF before it refused the name
        left = find.link_in(location.pod, record) if location.pod else None
        if location.pod is None or left is None:
            return ""
        index = left.index
        if left.altnames:
            _drop_altnames(location.pod, left)
        else:
            name = "dev%d"
    raise refused


def _drop_altnames(pod: nl.Socket, link: Link) -> None:
    """Remove all alternative names, since one exists in the host; the end of a namespace does the same."""
    batch = nl.Batch()
    batch.del_altname(link.index, *link.altnames)
    pod.run(batch, check=False)


def _move(pod: nl.Socket, index: int, name: str, host_fd: int) -> None:
    target = netns.own(host_fd)
    try:
        _run(pod, index, netns_fd=target, name=name)
    finally:
        descriptors.close(target)


def _in_host(host: DriverSocket, record: Attachment, name: str, roots: Roots) -> Link | None:
    """Return the device in the host, None if it is not there; ``name`` is its name after the move, if known.

    udev may have renamed the device since, and given the name to another one.
    """
    link = candidate.named(host, name) if name else None
    if link and candidate.belongs(link, record.pci, roots.device(record.pci)):
        return link
    stand_in = link if link and not link.parent else None  # a veth that returned with another index
    return find.link_in_host(record, roots) or stand_in


def _settle(  # noqa: PLR0913, PLR0917
    host: DriverSocket, record: Attachment, now: Link, quiet: Link, on_pf: str | None, log: Logger
) -> None:
    """Correct the MTU and the MACs if the move has changed them."""
    if record.before_mtu not in (0, now.mtu) and now.mtu != quiet.mtu:
        _run(host, now.index, mtu=record.before_mtu)
    if now.mac != quiet.mac and record.asked.mac:
        on_pf = mac_on_pf(host, record)
    if record.before_mac and (record.asked.mac or record.before_mac != now.mac):
        settle_mac(host, record, now, on_pf, log)


def _settle_ipv6(record: Attachment, link: Link, log: Logger) -> None:
    """Disable IPv6 on a device that had it disabled: the kernel enables it on every move."""
    if record.before_disable_ipv6 and link.disable_ipv6 is False:
        try:
            attach.set_disable_ipv6(link.name, "1")
        except TryAgainError as error:
            log.warning("the VF has IPv6, which was disabled", interface=link.name, why=error.msg)


def mac_on_pf(host: DriverSocket, record: Attachment) -> str | None:
    """Return the PF's MAC of the VF, None if the PF reports none."""
    batch = nl.Batch()
    batch.get_link(index=record.pf_index, vf=record.vf)
    (pf,) = host.run(batch, check=False)
    return None if isinstance(pf, NetlinkError) or pf.vf is None else pf.vf.mac


def settle_mac(host: DriverSocket, record: Attachment, link: Link, on_pf: str | None, log: Logger) -> None:
    """Correct the remaining differences of the PF's MAC and of the device's, with resets of the VF."""
    if record.asked.mac and record.before.mac and on_pf != record.before.mac:
        _set_vf(host, record, VfSettings(mac=record.before.mac))
    if (link.mac, link.perm) == (record.before_mac, record.before_perm):
        return
    now = attach.adopt_mac(host, link.index, record.before_mac)
    if now.mac != record.before_mac and record.before.mac not in (None, record.before_mac):
        now = _adopt_against_pf(host, record, link.index)
    now, refusal = attach.await_mac(host, now, record.before_mac)
    if now.mac != record.before_mac:
        log.warning(
            "the VF keeps a MAC that it did not have", mac=now.mac, before=record.before_mac, why=refusal
        )


def _adopt_against_pf(host: DriverSocket, record: Attachment, index: int) -> Link:
    """Restore a device's MAC that differs from the PF's MAC of the VF; return the device.

    The PF's MAC is removed first and restored last. The second reset makes the driver forget the first MAC.
    """
    _set_vf(host, record, VfSettings(mac=ZERO_MAC))
    for _ in range(2):
        link = attach.adopt_mac(host, index, record.before_mac)
    _set_vf(host, record, VfSettings(mac=record.before.mac))
    return link
