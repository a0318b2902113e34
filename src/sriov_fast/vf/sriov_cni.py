"""The files of the Kubernetes project's SR-IOV CNI, which this plugin may have replaced on the node.

That plugin writes two files for an attachment: ``CONTAINER-IFNAME``, its configuration with the original
state of the VF as JSON, and ``pci/ADDRESS``, the path of the pod's namespace. The VF is in use as long as
that namespace exists (its pkg/types and pkg/utils).
"""

from __future__ import annotations

import os

from sriov_fast.common import descriptors, json
from sriov_fast.common.errors import NoNamespaceError, is_absent
from sriov_fast.common.json_object import JsonObject, obj, string
from sriov_fast.vf import netns

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from sriov_fast.common.paths import Roots
    from sriov_fast.vf.journal import Attachment

_NAME = "the SR-IOV CNI"


def holder(pci: str, roots: Roots) -> str:
    """Return the path of the namespace that a VF was given to, "" if there is no such file."""
    content = read(f"{roots.sriov_cni}/pci/{pci}")
    return "" if content is None else content.decode("utf-8", "surrogateescape").strip()


def holds(pci: str, roots: Roots) -> bool:
    """Return whether a VF is in use: the namespace that it was given to exists."""
    path = holder(pci, roots)
    if not path:
        return False
    try:
        descriptors.close(netns.open_netns(path))
    except NoNamespaceError:
        return False
    return True


def use(pci: str, roots: Roots) -> str:
    """Describe the use of a VF, "" if it is not in use."""
    return f"a pod of {_NAME}, {holder(pci, roots)}" if holds(pci, roots) else ""


def owners(roots: Roots) -> dict[str, tuple[str, str]]:
    """Return {PCI address: (container ID, ifname)} of the VFs in use."""
    return {pci: owner for pci, owner in _attachments(roots) if holds(pci, roots)}


def is_in_another_pod(record: Attachment, netns: str, roots: Roots) -> bool:
    """Return whether a VF was given to another pod since.

    ``record.netns`` is the namespace that the VF was last given to, ``netns`` that of the request, "" for
    none. Without one, another attachment of a VF that is in use is the later one.
    """
    if not record.netns:
        return False
    if netns:
        return netns != record.netns
    others = (owner for pci, owner in _attachments(roots) if pci == record.pci and owner != record.owner)
    return any(others) and holds(record.pci, roots)


def _attachments(roots: Roots) -> Iterator[tuple[str, tuple[str, str]]]:
    """Yield PCI address and owner of each attachment; a file that is not understood is left out."""
    for name in _listed(roots.sriov_cni):
        container_id, dash, ifname = name.partition("-")
        content = read(f"{roots.sriov_cni}/{name}") if dash else None
        if content is None:
            continue
        try:
            pci = JsonObject(obj(json.loads(content))).take("deviceID", string, "").lower()
        except Exception:  # noqa: S112 (the file is no attachment)
            continue
        if pci and "/" not in pci:
            yield pci, (container_id, ifname)


def forget(record: Attachment, roots: Roots, *, released: bool) -> None:
    """Remove the files of an attachment; the VF's only if the VF was ``released``."""
    if released:
        _remove(f"{roots.sriov_cni}/pci/{record.pci}")
    _remove(f"{roots.sriov_cni}/{record.container_id}-{record.ifname}")


def _remove(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass


def _listed(directory: str) -> list[str]:
    try:
        return os.listdir(directory)
    except OSError as error:
        if is_absent(error):
            return []
        raise


def read(path: str) -> bytes | None:
    """Return the content of a regular file, None if there is none."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        if is_absent(error):
            return None
        raise
    with open(fd, "rb", buffering=0) as file:
        return file.read(json.MAX_BYTES)
