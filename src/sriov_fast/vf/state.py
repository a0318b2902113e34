"""The state of a VF as metrics and the operator's commands show it."""

from __future__ import annotations

import errno
from socket import if_indextoname

from sriov_fast.common.errors import SriovError, is_absent
from sriov_fast.common.paths import Roots
from sriov_fast.common.record import Vf
from sriov_fast.kernel.backend import nl
from sriov_fast.vf import candidate
from sriov_fast.vf.journal import ATTACHED, ATTACHING, BROKEN

FREE, USED = "free", "used"


def of(vf: Vf, taken: dict[str, str], addressed: set[str], roots: Roots) -> str:
    """Return the state of a VF. A VF without a driver is broken.

    ``taken`` has the states of the records by PCI address, ``addressed`` is that of ``addressed()``.

    A VF with a userspace driver is free for a pod that names it, whether or not a program has it open.
    """
    recorded = taken.get(vf.pci)
    if recorded:
        return ATTACHED if recorded == ATTACHING else recorded
    if not vf.driver:
        return BROKEN
    if candidate.has_userspace_driver(vf):
        return USED if candidate.use_of_others(vf.pci, roots) else FREE
    if not vf.netdev:
        return USED
    try:
        above = candidate.devices_above(f"{roots.device(vf.pci)}/net/{vf.netdev}")
        return USED if above or vf.netdev in addressed else FREE
    except (OSError, SriovError) as error:
        if is_absent(error):
            return USED  # it is being moved or renamed
        raise


def addressed() -> set[str]:
    """Return the names of the host's devices with a configured address; all addresses are read at once.

    A mere route is not seen, since a list of routes takes too long.
    """
    with nl.Socket() as host:
        found = host.addresses_by_index()
    return {_name(index) for index, cidrs in found.items() if candidate.configured(cidrs, index)[0]}


def _name(index: int) -> str:
    """Return the name of a device, "" if it is gone."""
    try:
        return if_indextoname(index)
    except OSError as error:
        if error.errno == errno.ENXIO:
            return ""
        raise
