"""Reserves a PF for a pod that gets the whole card (``pfOnly``).

The PF then moves like a VF without a visible PF. The VFs' locks are held meanwhile, so that no other request
gives a VF of this PF to a pod.
"""

from __future__ import annotations

import os
from contextlib import ExitStack

from sriov_fast.common.errors import ConfigError, SriovError, TryAgainError
from sriov_fast.common.record import Vf
from sriov_fast.vf import candidate, locks, select
from sriov_fast.vf.journal import ATTACHED, BROKEN

TYPE_CHECKING = False
if TYPE_CHECKING:
    from sriov_fast.common.paths import Roots
    from sriov_fast.vf.journal import Journal
    from sriov_fast.vf.select import ReservedVf, VfRequest


def choose(vf_request: VfRequest, journal: Journal, roots: Roots) -> ReservedVf:
    """Return the first master that is free, with the locks of the PF and its VFs.

    Raises the first master's error if none is free: ConfigError if it is no PF, TryAgainError if a pod has it
    or one of its VFs, BusyError if the host uses it.
    """
    errors = []
    for name in vf_request.masters:
        try:
            return _reserve(name, vf_request, journal, roots)
        except SriovError as error:
            errors.append(error)
    raise errors[0]


def any_usable(vf_request: VfRequest, journal: Journal, roots: Roots) -> bool:
    """Return whether a master is a PF here or in a pod. Raises ConfigError if none is."""
    return any(select.pf_in_pod(journal, name) for name in vf_request.masters) or bool(
        select.present(vf_request, journal, roots)
    )


def _reserve(name: str, vf_request: VfRequest, journal: Journal, roots: Roots) -> ReservedVf:
    record = select.pf_in_pod(journal, name)
    pci = record.pci if record else _address(select.pf(name, vf_request, roots)[0], roots)
    with ExitStack() as held:
        held.enter_context(locks.acquire(roots.run, f"vf-{pci}", vf_request.holder, vf_request.wait()))
        _require_free(name, pci, vf_request, journal)
        pf, vfs = select.pf(name, vf_request, roots)
        for vf in vfs:
            _require_unattached(vf, pf, held, vf_request, journal, roots)
        whole = _as_vf(pf, pci, roots)
        device = vf_request.examine(whole)
        if device is None:
            raise TryAgainError(f"master {name!r} has no network device any more", "try again", interface=pf)
        if device.use:
            raise select.in_use_by_host(f"pfOnly: {pf}", device.use, pf)
        return select.ReservedVf(pf="", vf=whole, link=device.link, lock=held.pop_all())


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


def _require_free(name: str, pci: str, vf_request: VfRequest, journal: Journal) -> None:
    """Raise TryAgainError if a pod has the PF; finish an interrupted request for it first."""
    entry = journal.entries().get(pci)
    record = journal.read(pci, entry) if entry else None
    if record is not None and record.state not in (ATTACHED, BROKEN):
        vf_request.recover(record)
        record = journal.again(record)
    if record is not None:
        raise TryAgainError(
            f"master {name!r} is not free: it belongs to container {record.container_id}, {record.ifname}",
            "try again when its pod has ended",
            interface=name,
        )


def _require_unattached(  # noqa: PLR0913, PLR0917
    vf: Vf, pf: str, held: ExitStack, vf_request: VfRequest, journal: Journal, roots: Roots
) -> None:
    """Lock a VF of the PF. Raises TryAgainError if a pod has the VF or another request works on it."""
    lock = locks.attempt(roots.run, f"vf-{vf.pci}", vf_request.holder)
    use = "another request works on it" if lock is None else ""
    if lock is not None:
        held.enter_context(lock)
        entry = journal.entries().get(vf.pci)
        record = journal.read(vf.pci, entry) if entry else None
        owner = f"container {record.container_id}, {record.ifname}" if record else ""
        owner = owner or candidate.use_of_others(vf.pci, roots)
        use = owner and f"it belongs to {owner}"
    if use:
        raise TryAgainError(
            f"pfOnly: VF {vf.index} of {pf} is in use: {use}",
            "try again when the pods with VFs of this PF have ended",
            interface=pf,
            vf=vf.index,
        )
