"""The device information file of an attachment: Multus copies it to the pod's annotation ``network-status``.

See the Device Information Specification 1.1.0 of the Network Plumbing Working Group. Multus names the file in
``runtimeConfig``. If the device plugin has such a file, Multus copies it there before the ADD and removes it
after the DEL: a file that exists before the ADD stays as it is.
"""

from __future__ import annotations

import os

from sriov_fast.common import files, json
from sriov_fast.common.errors import RefusedError, is_there

TYPE_CHECKING = False
if TYPE_CHECKING:
    from sriov_fast.common.log import Logger
    from sriov_fast.common.paths import Roots
    from sriov_fast.vf.journal import Attachment

_KEY = "runtimeConfig.CNIDeviceInfoFile"


def demand(path: str) -> None:
    """Raise RefusedError unless root allows the path."""
    files.demand(_KEY, path)


def missing(path: str) -> str:
    """Return the path of a file to write, "" if the file exists already."""
    return "" if is_there(path) else path


def write(record: Attachment, roots: Roots) -> None:
    """Write the record's file."""
    addresses = {"pci-address": record.pci}
    if record.pf:
        pf = os.readlink(f"{roots.device(record.pci)}/physfn")
        addresses["pf-pci-address"] = os.path.basename(pf)
    files.create(_KEY, record.device_info, json.dumps({"type": "pci", "version": "1.1.0", "pci": addresses}))


def remove(record: Attachment, log: Logger) -> None:
    """Remove the record's file; one that root does not allow any more stays."""
    try:
        files.remove(_KEY, record.device_info)
    except RefusedError as error:
        log.warning("the device information file stays", why=error)
