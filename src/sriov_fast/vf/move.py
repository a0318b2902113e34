"""The attach mode "move": the VF's own device moves into the pod, and back."""

from __future__ import annotations

import errno

from sriov_fast.common import descriptors
from sriov_fast.common.errors import BusyError, NetlinkError
from sriov_fast.common.record import LinkSettings
from sriov_fast.kernel.backend import nl
from sriov_fast.vf import attach, candidate, detach, device, driver_socket, find, netns, programs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from sriov_fast.common.paths import Roots
    from sriov_fast.common.record import Link
    from sriov_fast.vf.driver_socket import DriverSocket
    from sriov_fast.vf.find import VfLocation
    from sriov_fast.vf.journal import Attachment
    from sriov_fast.vf.select import ReservedVf

_MOVE_TRIES = 10  # the pod may add names to its device at the same time
WAITS = True  # the kernel waits for RCU in ``enter``
ENTER = "move"  # the name of the step
silence = detach.silence


# --- ADD


def observe(host: nl.Socket, reserved: ReservedVf, record: Attachment, roots: Roots) -> Attachment:
    """Return the record with the original state of the VF, and all of its device that a pod can change."""
    link = reserved.link
    return attach.observe(host, reserved, record, roots).replace(
        before_altnames=link.altnames,
        before_xdp=link.xdp,
        before_tcx=programs.tcx(link.index),
        before_ethtool=device.ethtool_state(host.fileno(), link.index),
    )


def configure(host: DriverSocket, record: Attachment) -> None:
    """Set the requested values, on a device that is down."""
    attach.configure(host, record, down=record.before_up)


def enter(host: DriverSocket, record: Attachment, netns_fd: int) -> None:
    """Move, rename, set the MTU and bring up in one message, under one hold of the kernel's lock.

    A VF that is kept quiet in the host (``arp off``) must answer ARP in the pod.
    """
    flags = record.before_settings.flags or 0
    answering = LinkSettings(flags=flags & ~attach.IFF_NOARP) if flags & attach.IFF_NOARP else None
    batch = nl.Batch()
    batch.set_link(
        record.ifindex, netns_fd=netns_fd, name=record.ifname, mtu=record.mtu, up=True, settings=answering
    )
    try:
        host.run(batch)
    except NetlinkError as error:
        if error.errno not in driver_socket.BUSY:
            raise _not_moved(error, record, netns_fd) from error
        _finish_in_pod(host, record, netns_fd, answering, error)


def _finish_in_pod(
    host: DriverSocket, record: Attachment, netns_fd: int, settings: LinkSettings | None, error: NetlinkError
) -> None:
    """Rename, set the MTU and bring up in the pod, after a move during which the driver was busy."""
    with driver_socket.connect(host.patience, netns_fd) as pod:
        link = find.link_in(pod, record)
        if link is None:
            raise _not_moved(error, record, netns_fd) from error
        batch = nl.Batch()
        batch.set_link(link.index, name=record.ifname, mtu=record.mtu, up=True, settings=settings)
        try:
            pod.run(batch)
        except NetlinkError as refused:
            raise _not_moved(refused, record, netns_fd) from refused


def _not_moved(error: NetlinkError, record: Attachment, netns_fd: int) -> Exception:
    if error.errno == errno.EEXIST:
        altname = _clashing_altname(record, netns_fd)
        return _altname_taken(error, record, altname) if altname else attach.name_taken(error, record)
    if error.errno in (errno.EINVAL, errno.ERANGE) and record.mtu:
        return attach.mtu_refused(error, record)
    return attach.refused(error, record)


def _altname_taken(error: NetlinkError, record: Attachment, altname: str) -> BusyError:
    return BusyError(
        f"altname {altname!r} of {record.host_name}: the namespace {record.netns} "
        "has an interface of that name",
        f"remove it: ip link property del dev {record.host_name} altname {altname}",
        errno=error.errno,
        interface=record.host_name,
        vf=record.vf,
        extack=error.extack,
    )


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


# --- CHECK


def faults(record: Attachment, roots: Roots) -> list[str]:
    """Return no faults in the host: the device is in the pod."""
    return []


# --- DEL


def is_detached(record: Attachment, roots: Roots) -> bool:
    """Return whether the device is in the host."""
    return find.link_in_host(record, roots) is not None


class Release(detach.Release):
    """The return of a VF's device from the pod."""

    WAITS = True
    last_step = "move home"
    _place: VfLocation | None = None
    _quiet: Link | None = None

    def find(self) -> None:
        """Find the VF. Raises HiddenError if its device exists and cannot be found."""
        location = find.find(self._record, self._pod_netns, self._roots, self._log)
        if location and location.pod:
            location.pod.patience = self._patience
            self._opened.callback(location.pod.close)
        self._place = location

    def quieten(self) -> None:
        """Make the VF unable to send: its device down with its old MAC, the PF's settings restored."""
        if self._place:
            # first: while the device is down, the kernel may accept a mask and not use it
            self._restore_irqs()
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
        if self._place is None:
            self._quieten_without_device()
            return
        self._quiet = self._quieten_device(self._place)
        detach.restore_pf(self._host, self._record, self._log)

    def _quieten_device(self, location: VfLocation) -> Link:
        """Restore the device's MAC, bring it down, and restore its MTU; return the device after that.

        In this order a driver that resets the VF when it goes down does not keep the pod's MAC.
        """
        record, link = self._record, location.link
        if location.pod:
            self._set_free(location.pod, link)
        batch = nl.Batch()
        if location.pod and link.master:
            # first: a bond then restores the MAC and the MTU from before it took the device
            batch.set_link(link.index, master=0)
        if self._may_have_another_mac(link) or (record.before_mac and link.master):
            batch.set_link(link.index, mac=record.before_mac)
        required = [len(batch), -1] if link.up else [-1]  # MAC and MTU are compared afterwards
        detach.release_pf_mac(self._host, record)
        if link.up:
            batch.set_link(link.index, up=False)
        device.strip(batch, record, link)
        if record.before_mtu and (link.master or record.before_mtu != link.mtu):
            batch.set_link(link.index, mtu=record.before_mtu)
        if not len(batch):
            return link
        batch.get_link(index=link.index)
        answers = (location.pod or self._host).run(batch, check=False)
        for position in required:
            if isinstance(answers[position], NetlinkError):
                raise answers[position]
        now: Link = answers[-1]
        self._warn_of_mtu(now)
        return now

    def _set_free(self, pod: nl.Socket, vf: Link) -> None:
        """Delete the pod's devices on top of its VF (VLAN, macvlan, ipvlan, macsec, ...).

        Such a device survives the move, and would use the VF of the next pod. A bond or a bridge on top of
        the VF stays; the kernel removes the VF from it at the move.
        """
        uppers = [link for link in pod.links() if link.lower == vf.index]
        if not uppers:
            return
        batch = nl.Batch()
        for link in uppers:
            batch.del_link(link.index)
        for link, answer in zip(uppers, pod.run(batch, check=False), strict=True):
            if not isinstance(answer, NetlinkError):
                self._log.info("deleted a device that the pod had on top of its VF", device=link.name)
            elif answer.errno == errno.EOPNOTSUPP:
                self._log.warning(
                    "a device on top of the VF cannot be deleted", device=link.name, why=answer.msg
                )
            elif answer.errno != errno.ENODEV:
                raise answer

    def bring_home(self) -> None:
        """Move the quiet VF to the host, and restore its original state."""
        try:
            self._bring_home()
        except NetlinkError as error:
            if error.errno != errno.ENODEV:
                raise
            self.find()
            self._quieten()
            self._bring_home()

    def _bring_home(self) -> None:
        record, place, quiet = self._record, self._place, self._quiet
        if place is None or quiet is None:
            return
        link = self._in_host(self._move_to_host(place))
        if link is None:
            return
        device.restore(self._host, record, link, self._log)
        if record.before_mtu not in (0, link.mtu) and link.mtu != quiet.mtu:  # the move has changed it
            detach.set_link(self._host, link.index, mtu=record.before_mtu)
        self._restore_macs(link, changed=place.link.mac != record.before_mac)
        self._bring_into_use(link)

    def _move_to_host(self, location: VfLocation) -> str:
        """Move the device to the host under its old name; return the name, "" if it has another one."""
        record, pod, index = self._record, location.pod, location.link.index
        name = record.host_name
        for _ in range(_MOVE_TRIES):
            try:
                if pod:
                    self._move(pod, index, name)
                elif name not in ("", location.link.name):
                    detach.set_link(self._host, index, name=name)
            except NetlinkError as error:
                if error.errno != errno.EEXIST:
                    raise
                refused = error
            else:
                return name if name == record.host_name else ""
            self._log.error("another device has the VF's name", name=name, pci=record.pci, why=refused.msg)
            # the kernel may have moved the VF before it refused the name
            left = find.link_in(pod, record) if pod else None
            if pod is None or left is None:
                return ""
            index = left.index
            if left.altnames:
                _drop_altnames(pod, left)
            else:
                name = "dev%d"
        raise refused

    def _move(self, pod: nl.Socket, index: int, name: str) -> None:
        target = netns.own(self._pod_netns.host_fd)
        try:
            detach.set_link(pod, index, netns_fd=target, name=name)
        finally:
            descriptors.close(target)

    def _in_host(self, name: str) -> Link | None:
        """Return the device in the host, None if it is not there.

        ``name`` is its name after the move, if known. udev may have renamed the device since, and given the
        name to another one.
        """
        record, roots = self._record, self._roots
        link = candidate.named(self._host, name) if name else None
        if link and candidate.belongs(link, record.pci, roots.device(record.pci)):
            return link
        stand_in = link if link and not link.parent else None  # a veth that returned with another index
        return find.link_in_host(record, roots) or stand_in


def _drop_altnames(pod: nl.Socket, link: Link) -> None:
    """Remove all alternative names, since one exists in the host; the end of a namespace does the same."""
    batch = nl.Batch()
    batch.del_altname(link.index, *link.altnames)
    pod.run(batch, check=False)
