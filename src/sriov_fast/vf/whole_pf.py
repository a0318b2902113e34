"""Reserves a PF for a pod that gets the whole card (``pfOnly``).

The PF then moves like a VF without a visible PF. The VFs' locks are held meanwhile, so that no other request
gives a VF of this PF to a pod.
"""

from __future__ import annotations

import os
from contextlib import ExitStack

from sriov_fast.common.errors import ConfigError, SriovError, TryAgainError
from sriov_fast.common.record import Vf
from sriov_fast.vf import candidate, select
from sriov_fast.vf.journal import ATTACHED, BROKEN

TYPE_CHECKING = False
if TYPE_CHECKING:
    from sriov_fast.common.paths import Roots
    from sriov_fast.vf.select import ReservedVf, VfRequest


def choose(wanted: VfRequest) -> ReservedVf:
    """Return the first master that is free, with the locks of the PF and its VFs.

    Raises the first master's error if none is free: ConfigError if it is no PF, TryAgainError if a pod has it
    or one of its VFs, BusyError if the host uses it.
    """
    errors = []
    for name in wanted.masters:
        try:
            return _reserve(name, wanted)
        except SriovError as error:
            errors.append(error)
    raise errors[0]


def any_usable(wanted: VfRequest) -> bool:
    """Return whether a master is a PF here or in a pod. Raises ConfigError if none is."""
    in_pods = any(select.pf_in_pod(wanted.journal, name) for name in wanted.masters)
    return in_pods or bool(select.present(wanted))


def _reserve(name: str, wanted: VfRequest) -> ReservedVf:
    record = select.pf_in_pod(wanted.journal, name)
    pci = record.pci if record else _address(select.pf(name, wanted)[0], wanted.roots)
    with ExitStack() as held:
        wanted.await_lock(pci, held)
        if owner := _owner(pci, wanted):
            raise TryAgainError(
                f"master {name!r} is not free: it belongs to {owner}",
                "try again when its pod has ended",
                interface=name,
            )
        pf, vfs = select.pf(name, wanted)
        for vf in vfs:
            use = _use_of_vf(vf, wanted) if wanted.try_lock(vf.pci, held) else "another request works on it"
            if use:
                raise TryAgainError(
                    f"pfOnly: VF {vf.index} of {pf} is in use: {use}",
                    "try again when the pods with VFs of this PF have ended",
                    interface=pf,
                    vf=vf.index,
                )
        whole = _as_vf(pf, pci, wanted.roots)
        device = wanted.examine(whole)
        if device is None:
            raise TryAgainError(f"master {name!r} has no network device any more", "try again", interface=pf)
        if device.use:
            raise select.in_use_by_host(f"pfOnly: {pf}", device.use, pf)
        return select.ReservedVf(pf="", vf=whole, link=device.link, lock=held.pop_all())


def _use_of_vf(vf: Vf, wanted: VfRequest) -> str:
    """Describe the use of a locked VF by a pod, "" if it is unused."""
    owner = _owner(vf.pci, wanted) or candidate.use_of_others(vf.pci, wanted.roots)
    return owner and f"it belongs to {owner}"


def _owner(pci: str, wanted: VfRequest) -> str:
    """Describe the owner of a locked PF or VF, "" without one; an interrupted request is finished first."""
    journal = wanted.journal
    entry = journal.entries().get(pci)
    record = journal.read(pci, entry) if entry else None
    if record is not None and record.state not in (ATTACHED, BROKEN):
        wanted.recover(record)
        record = journal.again(record)
    return f"container {record.container_id}, {record.ifname}" if record else ""


def _address(pf: str, roots: Roots) -> str:
    """Return the PCI address of a network device."""
    return os.path.basename(os.path.realpath(f"{roots.sys}/class/net/{pf}/device"))


def _as_vf(pf: str, pci: str, roots: Roots) -> Vf:
    """Return the PF as a VF without a PF. Raises ConfigError if the card shows further network devices."""
    function = roots.device(pci)
    more = [name for name in candidate.netdevs(function) if name != pf]
    if more:
        raise ConfigError(
            f"pfOnly: the card of {pf} also has {', '.join(sorted(more))}",
            "use a card with one network device, in legacy mode (devlink dev eswitch)",
            interface=pf,
        )
    return Vf(index=-1, pci=pci, driver=os.path.basename(os.readlink(f"{function}/driver")), netdev=pf)
