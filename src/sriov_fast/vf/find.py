"""Finds a VF's network device: in the pod, in the host, or on its way between them."""

from __future__ import annotations

import errno
import os
import time

from sriov_fast.common import descriptors
from sriov_fast.common.errors import HiddenError, NetlinkError, NoNamespaceError, is_absent
from sriov_fast.common.interpreter import INTERPRETER
from sriov_fast.common.record import Record
from sriov_fast.kernel.backend import nl
from sriov_fast.vf import candidate, driver_socket, netns
from sriov_fast.vf.journal import MACVLAN

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from sriov_fast.common.log import Logger
    from sriov_fast.common.paths import Roots
    from sriov_fast.common.record import Link
    from sriov_fast.vf.driver_socket import DriverSocket
    from sriov_fast.vf.journal import Attachment

# The kernel takes a namespace apart behind the scenes; its devices come back a little later.
RETURN_WAIT = 3.0  # seconds
SEARCH_AFTER = 0.1
PAUSE = 0.005


class VfLocation(Record):
    """The place of a VF: ``pod`` is None if ``link`` is in the host."""

    link: Link
    pod: DriverSocket | None = None


class PodNetns(Record):
    """The pod's namespace in the request: its path, and its descriptor, -1 for none.

    ``host_fd`` is an open descriptor of the host namespace, -1 for none.
    """

    path: str = ""
    fd: int = -1
    host_fd: int = -1

    def fd_of(self, path: str) -> int:
        """Return the descriptor of ``path``, -1 if there is none."""
        return self.fd if path == self.path else -1


def find(record: Attachment, pod_netns: PodNetns, roots: Roots, log: Logger) -> VfLocation | None:
    """Return the place of the VF, None if it has no network device any more.

    The VF may be in another namespace than ``pod_netns``; the path of the ADD is searched as well. Raises
    HiddenError if the device exists in a namespace that is not found, SriovError or OSError if a namespace
    cannot be searched.
    """
    if not has_device(record, roots):
        return None
    for pod in pod_sockets(record, pod_netns, log):
        location = in_namespace(pod, record)
        if location:
            return location
    return _in_host(record, pod_netns, roots)


def pod_sockets(record: Attachment, pod_netns: PodNetns, log: Logger) -> Iterator[DriverSocket]:
    """Open a socket in each namespace that the paths of the request and of the record lead to."""
    for path, fd in {pod_netns.path: pod_netns.fd, record.netns: pod_netns.fd_of(record.netns)}.items():
        pod = _socket(path, fd, pod_netns.host_fd, log) if path else None
        if pod:
            yield pod


def incarnation(pci: str, roots: Roots) -> tuple[int, ...]:
    """Return the inodes in sysfs of a PCI device and of the directory of its network devices.

    A new VF (``sriov_numvfs``) has a new first one, a newly bound driver makes a new second one. The second
    does not depend on the network device's namespace. Empty if either is missing.
    """
    device = roots.device(pci)
    try:
        return os.stat(device).st_ino, os.stat(f"{device}/net").st_ino
    except OSError as error:
        if is_absent(error):
            return ()
        raise


def has_device(record: Attachment, roots: Roots) -> bool:
    """Return whether the record's network device exists, in any namespace."""
    now = incarnation(record.pci, roots)
    return bool(now) and record.incarnation in ((), now)


def is_same_function(record: Attachment, roots: Roots) -> bool:
    """Return whether the VF's PCI device is the record's or missing, and not a new one."""
    try:
        now = os.stat(roots.device(record.pci)).st_ino
    except OSError as error:
        if is_absent(error):
            return True
        raise
    return not record.incarnation or record.incarnation[0] == now


def _socket(path: str, fd: int, host_fd: int, log: Logger) -> DriverSocket | None:
    """Return a socket in the namespace, None if it is gone, no namespace, or the host's."""
    try:
        opened = netns.open_netns(path, fd)
    except NoNamespaceError as error:
        log.info("the VF cannot be in this namespace", path=path, why=error.msg)
        return None
    try:
        return None if netns.is_here(opened, host_fd) else _connect(opened)
    finally:
        descriptors.close(opened)


def _connect(fd: int) -> DriverSocket:
    """Open a socket in a namespace; the caller may give it the patience of its verb."""
    return driver_socket.connect(driver_socket.Patience(), fd)


def in_namespace(pod: DriverSocket, record: Attachment, macs: tuple[str, ...] = ()) -> VfLocation | None:
    """Return the VF's place with ``pod``; None if the VF is not in it, and ``pod`` is closed then.

    ``macs``: the namespace need not have to do with the record. There an index alone says nothing, so a
    device without a parent must have one of these MACs.
    """
    link = None
    try:
        if macs:
            ours = (each for each in pod.links() if is_ours(each, record))
            link = next((each for each in ours if each.parent or each.mac in macs), None)
        else:
            link = link_in(pod, record)
    finally:
        if link is None:
            pod.close()
    return VfLocation(link=link, pod=pod) if link else None


def link_in(pod: nl.Socket, record: Attachment) -> Link | None:
    """Return the VF by its name in the pod; if that is another device or none, search all."""
    link = candidate.named(pod, record.ifname)
    if link and (is_ours(link, record) or is_unknown(link, record)):
        return link
    return next((link for link in pod.links() if is_ours(link, record)), None)


def is_ours(link: Link, record: Attachment) -> bool:
    """Return whether a device is the pod's interface of the record: the VF's device, or its macvlan."""
    if record.attach == MACVLAN:
        return link.kind == "macvlan" and link.outer_lower == record.ifindex
    return is_vf(link, record)


def is_vf(link: Link, record: Attachment) -> bool:
    """Return whether a device is the record's VF: by its PCI address, by its index if it has no parent."""
    return link.parent == record.pci if link.parent else link.index == record.ifindex


def is_unknown(link: Link, record: Attachment) -> bool:
    """Return whether device and record lack the values that ``is_ours`` compares: the record is broken.

    The device is then identified by its place: its name in the pod, or the VF's directory in sysfs.
    """
    return not link.parent and not record.ifindex and link.kind != "macvlan"


def _in_host(record: Attachment, pod_netns: PodNetns, roots: Roots) -> VfLocation | None:
    """Wait until the device is in the host; if it is not there at once, search all namespaces once."""
    for is_search_due in looks(record):
        link = link_in_host(record, roots)
        if link:
            return VfLocation(link=link)
        if not has_device(record, roots):
            return None
        location = searched(record, pod_netns, roots) if is_search_due else None
        if location:
            return location
    raise hidden(record)


def looks(record: Attachment) -> Iterator[bool]:
    """Yield for each look for a device that is on its way back, until the patience ends.

    Yield True once: when all namespaces are to be searched, since the device has not come back at once.
    """
    begin = time.monotonic()
    patience = 0.0 if record.stranded else RETURN_WAIT
    has_searched = False
    while True:
        waited = time.monotonic() - begin
        is_due = not has_searched and waited >= min(SEARCH_AFTER, patience)
        has_searched = has_searched or is_due
        yield is_due
        if waited >= patience:
            return
        with INTERPRETER.released():
            time.sleep(PAUSE)


def hidden(record: Attachment, what: str = "its device") -> HiddenError:
    """Return the error for a device that exists and is not found."""
    return HiddenError(
        f"{record.label}: {what} is in a namespace that is not found",
        "it comes back when that namespace ends; see which process or container holds the namespace",
        interface=record.ifname,
        vf=record.vf,
    )


def searched(record: Attachment, pod_netns: PodNetns, roots: Roots, mac: str = "") -> VfLocation | None:
    """Look for the record's device in the namespaces of all processes; ``mac`` is its MAC, if known."""
    host = netns.own(pod_netns.host_fd)
    try:
        known = {_identity(os.fstat(host))}
    finally:
        descriptors.close(host)
    for pid in filter(str.isdigit, os.listdir(roots.proc)):
        try:
            fd = os.open(f"{roots.proc}/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            continue  # it has ended, or we may not look: the device stays hidden, it is not gone
        try:
            identity = _identity(os.fstat(fd))
            pod = _connect(fd) if identity not in known else None
        finally:
            descriptors.close(fd)
        known.add(identity)
        location = (
            in_namespace(pod, record, (mac,) if mac else (record.mac, record.before_mac)) if pod else None
        )
        if location:
            return location
    return None


def _identity(of: os.stat_result) -> tuple[int, int]:
    return of.st_dev, of.st_ino


def link_in_host(record: Attachment, roots: Roots) -> Link | None:
    """Return the VF's device, of any name, if it is in the host now. After a rename it is read again."""
    read: list[str] = []
    while (names := candidate.netdevs(roots.device(record.pci))) not in ([], read):
        link = _link_among(names, record)
        if link:
            return link
        read = names
    return None


def _link_among(names: list[str], record: Attachment) -> Link | None:
    """Return the VF's device if it has one of the names."""
    batch = nl.Batch()
    for name in names:
        batch.get_link(name=name)
    with nl.Socket() as host:
        answers = host.run(batch, check=False)
    for answer in answers:
        if isinstance(answer, NetlinkError):
            if answer.errno != errno.ENODEV:
                raise answer
        elif is_vf(answer, record) or is_unknown(answer, record):
            link: Link = answer
            return link
    return None
