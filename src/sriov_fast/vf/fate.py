"""Finds out whether the pod of an attachment has ended without a DEL.

Such an attachment keeps its VF: only a GC of its network or an operator can release it. A missing file of the
namespace proves nothing: the caller may not see the node's files, and a process may keep a namespace without
a file. The proof is the VF in the host, since the kernel returns it there when the namespace ends.
"""

from __future__ import annotations

import os
import time

from sriov_fast.common import descriptors
from sriov_fast.common.errors import FileError, NoNamespaceError, SriovError, is_there
from sriov_fast.common.record import Record
from sriov_fast.vf import find, modes, netns
from sriov_fast.vf.journal import USERSPACE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from sriov_fast.common.paths import Roots
    from sriov_fast.vf.journal import Attachment


class Fate(Record):
    """The state of a pod's namespace: ``gone`` if that is proven; ``why`` describes it."""

    gone: bool
    why: str


def of(record: Attachment, roots: Roots) -> Fate:
    """Return the state of the namespace of an attachment. After an error it is not ``gone``."""
    if not record.netns:
        return Fate(gone=False, why="its record names no namespace")
    try:
        descriptors.close(netns.open_netns(record.netns))
    except NoNamespaceError:
        return _without_file(record, roots)
    except (OSError, SriovError) as error:
        return Fate(gone=False, why=str(error))
    return Fate(gone=False, why=f"its namespace {record.netns} is there")


def _without_file(record: Attachment, roots: Roots) -> Fate:
    """Look for the VF in the host. Without a driver it has no network device in any namespace."""
    if record.attach == USERSPACE:
        why = "a VF with a userspace driver does not show whether its pod has ended"
        return Fate(gone=False, why=f"{record.netns} is gone, but {why}")
    try:
        driver = is_there(f"{roots.device(record.pci)}/driver")
        hidden = driver and not modes.of(record).is_detached(record, roots)
    except (OSError, SriovError) as error:
        return Fate(gone=False, why=str(error))
    if hidden:
        why = "something keeps the namespace, or its file is not visible here"
        return Fate(gone=False, why=f"{record.netns} is gone, but the VF is not back in the host: {why}")
    return Fate(gone=True, why=f"its namespace {record.netns} is gone{_since(record.netns)}")


def require_sight(record: Attachment, roots: Roots) -> None:
    """Raise FileError if the VF is in a namespace and this process cannot see the namespace's file.

    A server in a container sees no namespaces if their directory is not mounted. Without mount propagation,
    a namespace that was made later is an empty file there.
    """
    directory = os.path.dirname(record.netns)
    if not record.netns or record.netns.startswith("/proc/"):
        return
    try:
        descriptors.close(netns.open_netns(record.netns))
        return
    except NoNamespaceError:
        is_blind = is_there(record.netns) or not is_there(directory)
    if is_blind and find.has_device(record, roots) and not modes.of(record).is_detached(record, roots):
        raise FileError(
            f"VF {record.pci} is in a namespace of a pod, and {record.netns} is not visible here",
            f"mount {directory} into the server's container, with mountPropagation HostToContainer",
            interface=record.ifname,
            vf=record.vf,
        )


def _since(path: str) -> str:
    """Return the latest time at which a file was removed: the last change of its directory."""
    try:
        changed = os.stat(os.path.dirname(path)).st_mtime
    except OSError:
        return ""
    if path.startswith("/proc/"):  # a process's directory
        return ""
    return time.strftime(" since %Y-%m-%d %H:%M:%S at the latest", time.localtime(changed))
