"""The attach mode "macvlan": the VF stays in the host, and the pod has a macvlan on top of it.

The macvlan is in mode passthru: it has the VF's MAC, it gets all of the VF's frames, and the kernel allows no
second one. The VF is up and quiet: without addresses, ARP and IPv6.
"""

from __future__ import annotations

import errno
import os
import time

from sriov_fast.common import descriptors, executor
from sriov_fast.common.errors import (
    ConfigError,
    NetlinkError,
    OccupiedError,
    SriovError,
    is_absent,
)
from sriov_fast.common.interpreter import INTERPRETER
from sriov_fast.common.record import LinkSettings
from sriov_fast.kernel.backend import nl
from sriov_fast.vf import attach, candidate, detach, find, netns, rtnl
from sriov_fast.vf.journal import ATTACHING

TYPE_CHECKING = False
if TYPE_CHECKING:
    from sriov_fast.common.log import Logger
    from sriov_fast.common.paths import Roots
    from sriov_fast.common.record import Link
    from sriov_fast.vf.driver_socket import DriverSocket
    from sriov_fast.vf.find import VfLocation
    from sriov_fast.vf.journal import Attachment

WAITS = False
observe = attach.observe  # of all that this changes of the VF, a pod can change the MAC only
configure = attach.configure
ENTER = "macvlan"  # the name of the step

_GEN_MODE_NONE = 1  # IN6_ADDR_GEN_MODE_NONE, linux/if_link.h
_GONE_PAUSE = 0.0002  # seconds between the first two looks at a device that is being deleted
_LONGEST_GONE_PAUSE = 0.001
# The errors of a new macvlan that say that there is none: a device of another kind is on top of the VF, the
# kernel has no macvlan, the VF is gone.
_FREE = (errno.EBUSY, errno.EOPNOTSUPP, errno.ENODEV)
# The errors of a new macvlan for a VF with a device on top: a macvlan in mode passthru, or another device.
_OCCUPIED = (errno.EINVAL, errno.EBUSY)
_TRIES = 4  # after pauses of 75 ms in all; the kernel removes a macvlan within some 20 ms


# --- ADD


def enter(host: DriverSocket, record: Attachment, netns_fd: int) -> None:
    """Make the VF quiet and bring it up, and make the macvlan in the pod, up and with the pod's name."""
    if record.before_disable_ipv6 is False:
        attach.change_disable_ipv6(record.host_name, "1")
    batch = nl.Batch()
    batch.set_link(record.ifindex, settings=_quiet(record))
    batch.set_link(record.ifindex, mtu=record.mtu, up=True)
    batch.new_macvlan(record.ifindex, netns_fd, record.ifname)
    try:
        host.run(batch)
    except NetlinkError as error:
        if error.position < 2:
            raise _not_made(error, record) from error
        _enter_again(host, record, netns_fd, error)


def _enter_again(host: DriverSocket, record: Attachment, netns_fd: int, error: NetlinkError) -> None:
    """Make the macvlan when the kernel has removed another pod's, or under a name that is free."""
    making = nl.Batch()
    making.new_macvlan(record.ifindex, netns_fd, record.ifname)
    for _ in zip(range(_TRIES), host.patience.pauses(), strict=False):
        if error.errno not in _OCCUPIED:
            break
        (answer,) = host.run(making, check=False)
        if answer is None:
            return
        error = answer
    if error.errno != errno.EEXIST:
        raise _not_made(error, record) from error
    _enter_renamed(host, record, netns_fd, error)


def _quiet(record: Attachment) -> LinkSettings:
    """Return the settings of a VF that answers nothing by itself."""
    before = record.before_settings
    return LinkSettings(
        flags=(before.flags or 0) | attach.IFF_NOARP,
        addrgenmode=None if before.addrgenmode is None else _GEN_MODE_NONE,
    )


def _enter_renamed(host: nl.Socket, record: Attachment, netns_fd: int, error: NetlinkError) -> None:
    """Make the macvlan under a temporary name and rename it in the pod, unless the pod has such a name.

    Kernels before 6.15 refuse a name that a device in the host has.
    """
    with nl.Socket(netns_fd) as pod:
        if candidate.named(pod, record.ifname) is not None:
            raise attach.name_taken(error, record) from error
        name = f"sriov{record.ifindex}"
        making, renaming = nl.Batch(), nl.Batch()
        making.new_macvlan(record.ifindex, netns_fd, name, up=False)
        try:
            host.run(making)
            renaming.set_link(netns.index_of(pod.fileno(), name), name=record.ifname, up=True)
            pod.run(renaming)
        except NetlinkError as refused:
            raise _not_made(refused, record) from refused


def _not_made(error: NetlinkError, record: Attachment) -> SriovError:
    """Return the error that says why the VF could not be set up, or why there is no macvlan."""
    if error.operation.startswith("set link"):
        is_mtu = error.errno in (errno.EINVAL, errno.ERANGE) and record.mtu and error.position == 1
        return attach.mtu_refused(error, record) if is_mtu else attach.refused(error, record)
    if error.errno == errno.EOPNOTSUPP:
        return ConfigError(
            "attach macvlan: the kernel has no macvlan",
            'load the module macvlan, or give "attach": "move"',
            errno=error.errno,
            extack=error.extack,
        )
    if error.errno in _OCCUPIED:
        return OccupiedError(
            f"attach macvlan: {record.label} has a device on top of it: {error.msg}",
            "delete that device, such as a macvlan in another namespace, or name another VF",
            pci=record.pci,
            errno=error.errno,
            interface=record.host_name,
            vf=record.vf,
            extack=error.extack,
        )
    return attach.refused(error, record)


# --- CHECK


def faults(record: Attachment, roots: Roots) -> list[str]:
    """Return the faults of the VF in the host."""
    link = find.link_in_host(record, roots)
    if link is None:
        return [f"VF {record.pci} has no device in the host"]
    name = f"{link.name} in the host"
    found = [] if link.up else [f"{name} is down"]
    if link.mac != record.mac:
        found.append(f"{name} has mac {link.mac}, not {record.mac}")
    if link.mtu < record.mtu:  # of the macvlan, which a later plugin may have given a smaller one
        found.append(f"{name} has mtu {link.mtu}, less than {record.mtu}")
    if not (link.settings.flags or 0) & attach.IFF_NOARP:
        found.append(f"{name} answers ARP")
    with nl.Socket() as host:
        addresses = host.addresses(link.index)
    return [*found, *(f"{name} has address {cidr}" for cidr in addresses)]


# --- DEL


def is_detached(record: Attachment, roots: Roots) -> bool:
    """Return whether the VF has no macvlan any more."""
    link = find.link_in_host(record, roots)
    if link is None:
        return False
    with nl.Socket() as host:
        return not is_occupied(host, link.index)


class Release(detach.Release):
    """The deletion of a VF's macvlan."""

    _has_device = False
    _macvlan: VfLocation | None = None
    _link: Link | None = None  # the VF's device after the deletion

    def __exit__(self, *_: object) -> None:
        self._leave_pod()
        super().__exit__()

    def _leave_pod(self) -> None:
        if self._macvlan and self._macvlan.pod:
            self._macvlan.pod.close()
        self._macvlan = None

    def find(self) -> None:
        """Find the macvlan; HiddenError if it exists and cannot be found."""
        self._leave_pod()
        self._has_device = find.has_device(self._record, self._roots)
        if self._has_device:
            self._macvlan = self._locate()

    def _locate(self) -> VfLocation | None:
        """Return where the macvlan is, None if there is none."""
        has_looked = False
        for pod in find.pod_sockets(self._record, self._pod_netns, self._log):
            location = find.in_namespace(pod, self._record)
            if location:
                return location
            has_looked = True
        if has_looked and self._record.state == ATTACHING:
            return None  # it was not made; a macvlan on top of the VF is another one
        return self._elsewhere()

    def _elsewhere(self) -> VfLocation | None:
        """Wait until the VF has no macvlan; search for it once, if it does not go at once."""
        record = self._record
        for is_search_due in find.looks(record):
            if not is_occupied(self._host, record.ifindex, self._pod_netns.host_fd):
                return None
            if is_search_due:
                mac = candidate.at(self._host, record.ifindex).mac
                location = find.searched(record, self._pod_netns, self._roots, mac)
                if location:
                    return location
        raise find.hidden(record)

    def quieten(self) -> None:
        """Delete the macvlan, and restore the interrupts' masks and the PF's settings."""
        if not self._has_device:
            self._quieten_without_device()
            return
        self._restore_irqs()
        macvlan, self._macvlan = self._macvlan, None
        if macvlan and macvlan.pod:
            with rtnl.TURNS:
                _delete(macvlan.pod, macvlan.link.index)
                self._link = self._read_after_rtnl()
        detach.release_pf_mac(self._host, self._record)
        detach.restore_pf(self._host, self._record, self._log)

    def _read_after_rtnl(self) -> Link | None:
        """Return the VF's device when the deletion has left RTNL; None if the VF is gone."""
        try:
            return candidate.at(self._host, self._record.ifindex)
        except NetlinkError:
            return None

    def bring_home(self) -> None:
        """Restore the VF's MAC, MTU and settings, and bring it down if it was down."""
        if not self._has_device:
            return
        try:
            link = self._restore()
            # The macvlan is gone, so the kernel has restored the MAC of the VF's device.
            self._restore_macs(link)
            self._bring_into_use(link)
        except NetlinkError as error:
            if not is_absent(error):
                raise
            if find.has_device(self._record, self._roots):
                raise find.hidden(self._record) from error

    def _restore(self) -> Link:
        """Restore the VF's device, as far as the driver does it at once; return the device."""
        record, index = self._record, self._record.ifindex
        link = self._link or candidate.at(self._host, index)
        if not find.is_vf(link, record):
            raise NetlinkError(errno.ENODEV, operation=f"restore VF {record.pci}")
        batch = nl.Batch()
        if self._may_have_another_mac(link):
            batch.set_link(index, mac=record.before_mac)
        if link.up and not record.before_up:
            batch.set_link(index, up=False)
        if record.before_mtu not in (0, link.mtu):
            batch.set_link(index, mtu=record.before_mtu)
        before = record.before_settings
        batch.set_link(index, settings=LinkSettings(flags=before.flags, addrgenmode=before.addrgenmode))
        batch.get_link(index=index)
        answers = self._host.run(batch, check=False)
        if isinstance(answers[-1], NetlinkError):
            raise answers[-1]
        now: Link = answers[-1]
        self._warn_of_mtu(now)
        return now


def _delete(pod: nl.Socket, index: int) -> None:
    """Delete the macvlan, and close the socket; return when the pod cannot send through it any more.

    The kernel closes the device and takes it from its list, then waits for RCU (some 15 ms) before it
    answers. A helper thread waits for that answer.
    """

    def delete() -> None:
        with pod:
            _run_deletion(pod, index)

    fd = os.dup(pod.fileno())
    try:
        deletion = executor.detach(delete)
        pause = _GONE_PAUSE
        while not deletion.done() and netns.has_index(fd, index):
            with INTERPRETER.released():
                time.sleep(pause)
            pause = min(2 * pause, _LONGEST_GONE_PAUSE)
        if deletion.done():
            deletion.result()
    finally:
        descriptors.close(fd)


def _run_deletion(socket: nl.Socket, index: int) -> None:
    batch = nl.Batch()
    batch.del_link(index)
    (answer,) = socket.run(batch, check=False)
    if isinstance(answer, NetlinkError) and not is_absent(answer):
        raise answer


def silence(record: Attachment, log: Logger) -> bool:
    """Bring down a VF with a macvlan that cannot be found; return whether the PF also disabled its link."""
    try:
        with nl.Socket() as host:
            detach.set_link(host, record.ifindex, up=False)
    except NetlinkError as error:
        log.warning("the VF cannot be brought down", pf=record.pf, vf=record.vf, why=error.msg)
    return detach.silence(record, log)


def is_occupied(host: nl.Socket, index: int, host_fd: int = -1) -> bool:
    """Return whether the VF has a macvlan in any namespace: the kernel then refuses another one.

    The kernel has no request for it. If the VF has none, one is made in the host for a moment.
    """
    name = f"sriov{index}"
    here = netns.own(host_fd)
    try:
        _delete_named(host, name)  # of a process that was killed
        batch = nl.Batch()
        batch.new_macvlan(index, here, name, up=False)
        (answer,) = host.run(batch, check=False)
        _delete_named(host, name)
    finally:
        descriptors.close(here)
    if answer is None or answer.errno in _FREE:
        return False
    if answer.errno != errno.EINVAL:
        raise answer
    return True


def _delete_named(host: nl.Socket, name: str) -> None:
    try:
        index = netns.index_of(host.fileno(), name)
    except OSError as error:
        if is_absent(error):
            return
        raise
    _run_deletion(host, index)
