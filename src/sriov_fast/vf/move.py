"""The attach mode "move": the VF's own device moves into the pod, and back."""

from __future__ import annotations

import errno

from sriov_fast.common.errors import BusyError, NetlinkError
from sriov_fast.common.record import LinkSettings
from sriov_fast.kernel.backend import nl
from sriov_fast.vf import attach, device, driver_socket, find, programs
from sriov_fast.vf.detach import Release, silence

TYPE_CHECKING = False
if TYPE_CHECKING:
    from sriov_fast.common.paths import Roots
    from sriov_fast.vf.driver_socket import DriverSocket
    from sriov_fast.vf.journal import Attachment
    from sriov_fast.vf.select import ReservedVf

__all__ = ["ENTER", "RESTORE", "WAITS", "Release", "configure", "enter", "faults", "is_detached", "observe"]
__all__ += ["silence"]

WAITS = True  # the kernel waits for RCU in ``enter``
ENTER, RESTORE = "move", "move home"  # the names of the steps


def observe(host: nl.Socket, reserved: ReservedVf, record: Attachment, roots: Roots) -> Attachment:
    """Return the record with the original state of the VF, and all of its device that a pod can change."""
    link = reserved.link
    return attach.observe(host, reserved, record, roots).replace(
        before_altnames=link.altnames,
        before_xdp=link.xdp,
        before_tcx=programs.tcx(link.index),
        before_ethtool=device.ethtool_state(host.fileno(), link.index),
        before_disable_ipv6=link.disable_ipv6,
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


def faults(record: Attachment, roots: Roots) -> list[str]:
    """Return no faults in the host: the device is in the pod."""
    return []


def is_detached(record: Attachment, roots: Roots) -> bool:
    """Return whether the device is in the host."""
    return find.link_in_host(record, roots) is not None
