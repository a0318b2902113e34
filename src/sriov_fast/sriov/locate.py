"""Finds a VF's network device again: in the pod, in the host, or on its way between them."""

from __future__ import annotations

import errno
import os
import time

from sriov_fast.backend import nl
from sriov_fast.errors import NetlinkError, NoNamespaceError, is_absent, is_there
from sriov_fast.sriov import netns
from sriov_fast.values import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from sriov_fast.log import Logger
    from sriov_fast.sriov.journal import Attachment
    from sriov_fast.sriov.roots import Roots
    from sriov_fast.values import Link

# The kernel takes a namespace apart behind the scenes; its devices come back a little later.
RETURN_WAIT = 3.0  # seconds
_PAUSE = 0.005


class Place(Value):
    """Where the VF is: ``pod`` is None when ``link`` is in the host."""

    link: Link
    pod: nl.Socket | None = None


class Where(Value):
    """What the runtime says of the pod's namespace now: its path, and a descriptor where it passed one.

    ``home`` is a descriptor of our own, -1 where we have none open.
    """

    path: str = ""
    fd: int = -1
    home: int = -1

    def fd_of(self, path: str) -> int:
        """Return the descriptor of ``path``, -1 where there is none."""
        return self.fd if path == self.path else -1


def find(record: Attachment, where: Where, roots: Roots, log: Logger) -> Place | None:
    """Return where the VF is, None where it has no network device any more.

    It need not be ``where`` the runtime says; then the ADD's path may lead. Raises SriovError or OSError
    where a place could not be searched: the VF may be there.
    """
    for candidate, fd in {where.path: where.fd, record.netns: where.fd_of(record.netns)}.items():
        pod = _socket(candidate, fd, where.home, log) if candidate else None
        place = _in_pod(pod, record) if pod else None
        if place:
            return place
    link = _in_host(record, roots)
    return Place(link=link) if link else None


def _socket(path: str, given: int, home: int, log: Logger) -> nl.Socket | None:
    """Return a socket in the namespace; None where it is gone, is no namespace, or is ours."""
    try:
        fd = netns.open_netns(path, given)
    except NoNamespaceError as error:
        log.info("no namespace to bring the VF home from", path=path, why=error.msg)
        return None
    try:
        return None if netns.is_here(fd, home) else nl.Socket(fd)
    finally:
        os.close(fd)


def _in_pod(pod: nl.Socket, record: Attachment) -> Place | None:
    """Return the VF's place, which has ``pod``; None, with that closed, where the VF is not in there."""
    link = None
    try:
        link = link_in(pod, record)
    finally:
        if link is None:
            pod.close()
    return Place(link=link, pod=pod) if link else None


def link_in(pod: nl.Socket, record: Attachment) -> Link | None:
    """Look for the VF under its pod name; where that is another device or none, among all."""
    batch = nl.Batch()
    batch.get_link(name=record.ifname)
    found = pod.run(batch, check=False)[0]
    if not isinstance(found, NetlinkError) and is_ours(found, record):
        link: Link = found
        return link
    return next((link for link in pod.links() if is_ours(link, record)), None)


def is_ours(link: Link, record: Attachment) -> bool:
    """Say whether a device is the record's VF: by its PCI address, by its index where it has no parent."""
    return link.parent == record.pci if link.parent else link.index == record.ifindex


def _in_host(record: Attachment, roots: Roots) -> Link | None:
    deadline = time.monotonic() + RETURN_WAIT
    while True:
        link = link_in_host(record, roots)
        if link or time.monotonic() >= deadline or not _has_driver(record, roots):
            return link
        time.sleep(_PAUSE)


def _has_driver(record: Attachment, roots: Roots) -> bool:
    return is_there(f"{roots.sys}/bus/pci/devices/{record.pci}/driver")


def link_in_host(record: Attachment, roots: Roots) -> Link | None:
    """Return the VF's device if it is in the host now, whatever its name."""
    try:
        names = os.listdir(f"{roots.sys}/bus/pci/devices/{record.pci}/net")
    except OSError as error:
        if is_absent(error):
            return None
        raise
    if not names:
        return None
    batch = nl.Batch()
    for name in names:
        batch.get_link(name=name)
    with nl.Socket() as host:
        links = [link for link in map(_found, host.run(batch, check=False)) if link]
    return next((link for link in links if is_ours(link, record)), None)


def _found(answer: Link | NetlinkError) -> Link | None:
    """Return the device that the kernel answered with, None where there is none."""
    if not isinstance(answer, NetlinkError):
        return answer
    if answer.errno != errno.ENODEV:
        raise answer
    return None
