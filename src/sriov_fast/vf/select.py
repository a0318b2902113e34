"""Selects the VF for a pod and locks it."""

from __future__ import annotations

import errno
import os
from contextlib import ExitStack

from sriov_fast.common.errors import BusyError, ConfigError, SriovError, TryAgainError, is_absent
from sriov_fast.common.record import Record
from sriov_fast.kernel.backend import sysfs
from sriov_fast.vf import candidate, locks
from sriov_fast.vf.journal import ATTACHED, BROKEN, PF

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterator, Sequence
    from contextlib import AbstractContextManager

    from sriov_fast.common.paths import Roots
    from sriov_fast.common.record import Link, Vf
    from sriov_fast.vf.candidate import Device
    from sriov_fast.vf.journal import Attachment, Entry, Journal


_WAIT = "try again when its pod has ended"


class VfRequest(Record):
    """A request for a VF: of one of ``masters`` (PFs), with index ``vf``, or the one at PCI ``device_id``.

    With ``cores``, a PF on those cores' NUMA node comes first. ``holder`` is the name of this request in the
    errors of others that wait for its lock; ``wait`` returns the seconds to wait for a lock. ``recover``
    frees the VF of a record of an interrupted or a deferred request. ``examine`` returns the device of a VF,
    None if it has none any more. Both are called with the VF's lock held. ``real_name`` returns the name of
    the device with an alternative name, "" for none. ``warn`` logs that a master is ignored.
    """

    journal: Journal
    roots: Roots
    holder: str
    wait: Callable[[], float]
    recover: Callable[[Attachment], object]
    examine: Callable[[Vf], Device | None]
    real_name: Callable[[str], str]
    warn: Callable[[str], None]
    masters: tuple[str, ...] = ()
    vf: int | None = None
    device_id: str = ""
    cores: tuple[int, ...] = ()

    @property
    def names_vf(self) -> bool:
        """Whether the request is for one certain VF."""
        return bool(self.device_id) or self.vf is not None

    def suits(self, vf: Vf) -> bool:
        """Return whether the VF has a driver and a network device in this namespace.

        A VF with a userspace driver suits only a request that names it: it gives a pod no interface.
        """
        return bool(vf.driver and vf.netdev) or (self.names_vf and candidate.has_userspace_driver(vf))

    def try_lock(self, pci: str, held: ExitStack) -> bool:
        """Have ``held`` hold the lock of a VF; return False if another request holds it."""
        lock = locks.attempt(self.roots.run, f"vf-{pci}", self.holder)
        if lock is not None:
            held.enter_context(lock)
        return lock is not None

    def await_lock(self, pci: str, held: ExitStack) -> None:
        """Have ``held`` hold the lock of a VF. Raises TryAgainError if another request keeps it."""
        held.enter_context(locks.acquire(self.roots.run, f"vf-{pci}", self.holder, self.wait()))


class ReservedVf(Record):
    """A VF that this request may change while it holds ``lock``.

    ``pf`` is "" if the PF is not visible, or is itself reserved (``whole_pf``). ``link`` is the VF's network
    device, ``candidate.NO_DEVICE`` with a userspace driver.
    """

    pf: str
    vf: Vf
    link: Link
    lock: AbstractContextManager[object]


def _is_no_device(error: OSError | ValueError) -> bool:
    """Return whether an error means that the device does not exist; others are not the request's fault."""
    return isinstance(error, ValueError) or is_absent(error) or error.errno == errno.ENOTSUP


def scan(pf: str, roots: Roots) -> list[Vf]:
    """Return the VFs of a PF. Raises ConfigError that names the device if it is no PF."""
    try:
        return sysfs.scan(pf, roots.sys)
    except (OSError, ValueError) as error:
        if not _is_no_device(error):
            raise
        why = (error.strerror if isinstance(error, OSError) else str(error)) or str(error)
        raise ConfigError(
            f"master {pf!r} is no PF with SR-IOV: {why}",
            "name the network device of a physical function; `sriov-fast vfs` lists them",
            interface=pf,
        ) from error


def pf_in_pod(journal: Journal, name: str, pci: str = "") -> Attachment | None:
    """Return the record of a PF in a pod (``pfOnly``), by its name in the host or by its PCI address."""
    for record in journal.all():
        names = (record.host_name, *(record.before_altnames or ()))
        if record.attach == PF and (record.pci == pci or name in names):
            return record
    return None


def _require_in_host(journal: Journal, what: str, name: str, pci: str = "") -> None:
    """Raise TryAgainError if a PF is in a pod."""
    record = pf_in_pod(journal, name, pci)
    if record is not None:
        raise TryAgainError(
            f"{what} is in a pod: it belongs to container {record.container_id}, {record.ifname}",
            "try again when that pod has ended",
            interface=record.host_name,
        )


def present(wanted: VfRequest) -> list[tuple[str, list[Vf]]]:
    """Return the PFs among the masters with their VFs.

    If none of them is a PF here, raises TryAgainError if one is in a pod, ConfigError otherwise.
    """
    pfs: list[tuple[str, list[Vf]]] = []
    missing: list[ConfigError] = []
    for name in wanted.masters:
        try:
            pfs.append(pf(name, wanted))
        except ConfigError as error:
            missing.append(error)
    if missing and not pfs:
        for name in wanted.masters:
            _require_in_host(wanted.journal, f"master {name!r}", name)
        raise missing[0]
    for absent in missing:
        wanted.warn(f"{absent.msg}: skipped, another master is here")
    return pfs


def pf(name: str, wanted: VfRequest) -> tuple[str, list[Vf]]:
    """Return the name of the PF with this name or alternative name, and its VFs."""
    try:
        return name, scan(name, wanted.roots)
    except ConfigError:
        real = wanted.real_name(name)
        if real in ("", name):
            raise
    return real, scan(real, wanted.roots)


def choose(wanted: VfRequest) -> ReservedVf:
    """Return a VF with its lock.

    Raises ConfigError if no such VF exists, TryAgainError if every VF is in use, and BusyError if the host
    uses the requested VF.
    """
    if wanted.device_id:
        return _by_address(wanted)
    reserved = _next_free(wanted)
    if reserved is not None:
        return reserved
    pfs = _by_preference(wanted)
    reserved = _first_free(wanted, pfs)
    if reserved is None and wanted.journal.prune():
        reserved = _first_free(wanted, pfs)
    if reserved is None:
        reserved = _first_recovered(wanted, pfs)
    if reserved is None:
        raise _none_free(wanted, pfs)
    return reserved


def _next_free(wanted: VfRequest) -> ReservedVf | None:
    """Reserve the first VF of the only master that has no record, or that of the requested index.

    Only the VFs up to that one are read: with 256 VFs, reading all takes a third of an ADD. Return None if
    there is no such VF.
    """
    if len(wanted.masters) != 1:
        return None
    pf, taken, index = wanted.masters[0], wanted.journal.taken(), wanted.vf or 0
    while (vf := _vf_from(pf, taken, index, wanted.roots)) and wanted.vf in (None, vf.index):
        reserved = _attempt(wanted, pf, vf) if wanted.suits(vf) else None
        if reserved is not None:
            return reserved
        index = vf.index + 1
    return None


def _vf_from(pf: str, taken: Container[str], index: int, roots: Roots) -> Vf | None:
    """Return the first VF from an index on that is not among the taken ones; None also without a PF."""
    try:
        return sysfs.first_vf(pf, taken, index, roots.sys)
    except (OSError, ValueError) as error:
        if _is_no_device(error):
            return None
        raise


def _by_preference(wanted: VfRequest) -> list[tuple[str, list[Vf]]]:
    """Return the PFs with the VFs that the request allows, the PF near the cores first."""
    pfs = present(wanted)
    if wanted.vf is not None:
        pfs = _indexed(pfs, wanted.vf)
    if wanted.cores and len(pfs) > 1:
        near = numa_nodes(wanted.cores, wanted.roots)
        pfs.sort(key=lambda item: not (item[1] and item[1][0].numa in near))
    return pfs


def _indexed(pfs: list[tuple[str, list[Vf]]], index: int) -> list[tuple[str, list[Vf]]]:
    """Return the PFs that have a VF of this index, each with that VF only."""
    matching = [(pf, [vf for vf in vfs if vf.index == index]) for pf, vfs in pfs]
    if not any(vfs for _, vfs in matching):
        have = [f"{pf} has {f'0 to {vfs[-1].index}' if vfs else 'none'}" for pf, vfs in pfs]
        names = ", ".join(pf for pf, _ in pfs)
        raise ConfigError(
            f"vf {index}: {names} has no such VF", "; ".join(have), interface=pfs[0][0], vf=index
        )
    return [item for item in matching if item[1]]


def numa_nodes(cores: Sequence[int], roots: Roots) -> set[int]:
    """Return the NUMA nodes of the cores (the links ``cpuN/nodeM``)."""
    nodes: set[int] = set()
    for core in set(cores):
        try:
            names = os.listdir(f"{roots.sys}/devices/system/cpu/cpu{core}")
        except OSError:
            continue
        nodes.update(int(name[4:]) for name in names if name.startswith("node") and name[4:].isdigit())
    return nodes


def _first_free(wanted: VfRequest, pfs: Sequence[tuple[str, list[Vf]]]) -> ReservedVf | None:
    """Reserve the first VF without a record. A VF with a held lock is skipped: another ADD examines it."""
    taken = wanted.journal.taken()
    for pf, vfs in pfs:
        for vf in vfs:
            reserved = _attempt(wanted, pf, vf) if vf.pci not in taken and wanted.suits(vf) else None
            if reserved is not None:
                return reserved
    return None


def _attempt(wanted: VfRequest, pf: str, vf: Vf) -> ReservedVf | None:
    """Reserve a VF, unless it is locked, was taken meanwhile, or is used by the host."""
    with ExitStack() as held:
        # another ADD may have taken and unlocked it between the listing and the lock
        if wanted.try_lock(vf.pci, held) and vf.pci not in wanted.journal.taken():
            return _unused(wanted, pf, vf, held)
    return None


def _unused(wanted: VfRequest, pf: str, vf: Vf, held: ExitStack) -> ReservedVf | None:
    """Return a VF with the lock that ``held`` holds; None if it has no device or the host uses that."""
    device = wanted.examine(vf)
    if device is None or device.use:
        return None
    return ReservedVf(pf=pf, vf=vf, link=device.link, lock=held.pop_all())


def _first_recovered(wanted: VfRequest, pfs: Sequence[tuple[str, list[Vf]]]) -> ReservedVf | None:
    """Reserve a VF that is moving to the host, or one of a request that was killed."""
    entries = wanted.journal.entries()
    for pf, vfs in pfs:
        taken = [vf for vf in vfs if vf.pci in entries]
        for vf in sorted(taken, key=lambda vf: not entries[vf.pci].returning):
            reserved = _recover(wanted, pf, vf, entries[vf.pci])
            if reserved is not None:
                return reserved
    return None


def _recover(wanted: VfRequest, pf: str, vf: Vf, entry: Entry) -> ReservedVf | None:
    record = None if entry.returning else wanted.journal.read(vf.pci, entry)
    if not entry.returning and (record is None or record.state in (ATTACHED, BROKEN)):
        return None  # attached: its lock is not tried, since its DEL may need the lock now
    with ExitStack() as held:
        if entry.returning:
            wanted.await_lock(vf.pci, held)
        elif not wanted.try_lock(vf.pci, held):
            return None
        free = _free(wanted, pf, vf.index)
        return _unused(wanted, pf, free, held) if free else None


def _free(wanted: VfRequest, pf: str, index: int) -> Vf | None:
    """Return a locked VF if it is free, else None; an interrupted request for it is finished first."""
    vf = _vf_of(wanted, pf, index)
    entry = wanted.journal.entries().get(vf.pci) if vf else None
    if vf is None or entry is None:
        return vf if vf and wanted.suits(vf) else None
    record = wanted.journal.read(vf.pci, entry)
    if record is not None and record.state in (ATTACHED, BROKEN):
        return None
    if record is not None:
        wanted.recover(record)
    vf = _vf_of(wanted, pf, index)
    is_free = vf and wanted.suits(vf) and vf.pci not in wanted.journal.taken()
    return vf if is_free else None


def _vf_of(wanted: VfRequest, pf: str, index: int) -> Vf | None:
    if not pf:
        return candidate.lone_vf(wanted.device_id, wanted.roots)
    vf = _vf_from(pf, (), index, wanted.roots)
    return vf if vf and vf.index == index else None


def _by_address(wanted: VfRequest) -> ReservedVf:
    """Reserve the VF at the requested PCI address."""
    pf, index = _pf_and_index(wanted)
    which = f"deviceID {wanted.device_id}" + (f" (VF {index} of {pf})" if pf else "")
    with ExitStack() as held:
        wanted.await_lock(wanted.device_id, held)
        vf = _free(wanted, pf, index)
        device = wanted.examine(vf) if vf else None
        if vf is None or device is None:
            why, advice = _state_of(wanted, pf, index)
            raise TryAgainError(f"{which} is not free: {why}", advice, interface=pf, vf=index)
        if device.use:
            raise in_use_by_host(which, device.use, pf, index)
        return ReservedVf(pf=pf, vf=vf, link=device.link, lock=held.pop_all())


def _pf_and_index(wanted: VfRequest) -> tuple[str, int]:
    """Return the PF and the index of the VF at the requested PCI address; "" and -1 without a visible PF."""
    roots = wanted.roots
    try:
        index = sysfs.vf_index(wanted.device_id, roots.sys)
    except (OSError, ValueError) as error:
        if not _is_no_device(error):
            raise
        names_pf = wanted.masters or wanted.vf is not None
        if not names_pf and candidate.lone_vf(wanted.device_id, roots):
            return "", -1
        raise ConfigError(
            f"deviceID {wanted.device_id!r} is no VF of a PF here: {error}",
            "give the PCI address of a VF",
        ) from error
    pf = _pf_of(wanted, f"{roots.device(wanted.device_id)}/physfn")
    if wanted.vf is not None and wanted.vf != index:
        raise ConfigError(
            f"deviceID {wanted.device_id} is VF {index} of {pf}, not vf {wanted.vf}", "leave vf out"
        )
    return pf, index


def _pf_of(wanted: VfRequest, physfn: str) -> str:
    """Return the PF's network device: the requested master, else the uplink.

    A master that is another PF is ignored with a warning: a device plugin may allocate VFs of several PFs.
    """
    names = candidate.netdevs(physfn)
    if not names:
        what = f"deviceID {wanted.device_id}: its PF"
        _require_in_host(wanted.journal, what, "", os.path.basename(os.readlink(physfn)))
        raise ConfigError(
            f"deviceID {wanted.device_id}: its PF shows no network interface here",
            "bind the PF's driver, and leave its device in the host's namespace",
        )
    for master in wanted.masters:
        name = master if master in names else wanted.real_name(master)
        if name in names:
            return name
    uplink = candidate.netdev_of(physfn)
    if wanted.masters:
        ignored = ", ".join(wanted.masters)
        wanted.warn(f"master {ignored} is ignored: deviceID {wanted.device_id} is a VF of {uplink}")
    return uplink


def in_use_by_host(which: str, use: str, pf: str, index: int = -1) -> BusyError:
    """Return the error for a device that the host uses."""
    return BusyError(
        f"{which} is used by the host: {use}",
        "take that away from the device first, or name another one",
        interface=pf,
        vf=index,
    )


def _none_free(wanted: VfRequest, pfs: Sequence[tuple[str, list[Vf]]]) -> SriovError:
    """Return the error that tells why no VF is free."""
    uses = list(_uses(wanted, pfs))
    index = wanted.vf
    if index is not None and uses:
        pf, _, use = uses[0]
        return in_use_by_host(f"vf {index} of {pf}", use, pf, index)
    if not wanted.names_vf and _are_for_userspace(pfs):
        return _none_with_device(pfs)
    busy = ", ".join(f"{pf} ({len(scan(pf, wanted.roots))} VFs)" for pf, _ in pfs)
    if index is not None:
        why, advice = _state_of(wanted, pfs[0][0], index) if len(pfs) == 1 else ("", _WAIT)
        return TryAgainError(f"vf {index} is not free on {busy}{': ' if why else ''}{why}", advice)
    host = "; ".join(f"VF {vf.index} of {pf} is used by the host: {use}" for pf, vf, use in uses)
    return TryAgainError(
        f"no VF free on {busy}{'; ' if host else ''}{host}",
        "try again when a pod has ended, or give the PF more VFs (sriov_numvfs)",
    )


def _are_for_userspace(pfs: Sequence[tuple[str, list[Vf]]]) -> bool:
    """Return whether there are VFs, and all have userspace drivers."""
    vfs = [vf for _, its_vfs in pfs for vf in its_vfs]
    return bool(vfs) and all(map(candidate.has_userspace_driver, vfs))


def _none_with_device(pfs: Sequence[tuple[str, list[Vf]]]) -> ConfigError:
    names, drivers = [pf for pf, _ in pfs], sorted({vf.driver for _, vfs in pfs for vf in vfs})
    return ConfigError(
        f"no VF of {', '.join(names)} has a network device: driver {', '.join(drivers)}",
        'name the VF that the pod shall get: "deviceID" or "vf"; or bind the network driver',
        interface=names[0],
    )


def names_userspace_vf(wanted: VfRequest) -> bool:
    """Return whether the request is for a certain VF, and that VF has a userspace driver."""
    return wanted.names_vf and _are_for_userspace(_allowed(wanted))


def _uses(wanted: VfRequest, pfs: Sequence[tuple[str, list[Vf]]]) -> Iterator[tuple[str, Vf, str]]:
    """Yield the VFs that the host uses, each with its PF and a description of the use."""
    taken = wanted.journal.taken()
    for pf, vfs in pfs:
        for vf in vfs:
            is_free = vf.pci not in taken and wanted.suits(vf)
            device = wanted.examine(vf) if is_free else None
            if device and device.use:
                yield pf, vf, device.use


def _state_of(wanted: VfRequest, pf: str, index: int) -> tuple[str, str]:
    """Return why a VF is not free, and the remedy, for an error."""
    vf = _vf_of(wanted, pf, index)
    if vf is None:
        return "it is gone", "see who changes the number of VFs (sriov_numvfs)"
    if owner := wanted.journal.owners().get(vf.pci):
        return f"it belongs to container {owner[0]}, {owner[1]}", _WAIT
    from sriov_fast.vf import sriov_cni  # late: only for errors

    if others := sriov_cni.use(vf.pci, wanted.roots):
        return f"it belongs to {others}", _WAIT
    if not vf.driver:
        return "it has no driver", "bind its network driver"
    if wanted.suits(vf):
        return "another request works on it", "try again"
    why = f"driver {vf.driver}, and no network device in this namespace"
    return why, "bind its network driver, or return its device to the host's namespace"


def any_usable(wanted: VfRequest) -> bool:
    """Return whether a PF has a VF that is free or in a pod: a node with all VFs in pods is healthy.

    The same holds for a PF in a pod. Raises the error that an ADD with the same request would raise, if that
    is not a temporary one.
    """
    owners = wanted.journal.owners()
    try:
        vfs = [vf for _, its_vfs in _allowed(wanted) for vf in its_vfs]
    except TryAgainError:
        return True
    if any(vf.pci in owners or (wanted.suits(vf) and _is_unused(wanted, vf)) for vf in vfs):
        return True
    from sriov_fast.vf import sriov_cni  # late: only on a node without a usable VF

    return any(sriov_cni.holds(vf.pci, wanted.roots) for vf in vfs)


def _allowed(wanted: VfRequest) -> list[tuple[str, list[Vf]]]:
    """Return the VFs that an ADD may use, by PF."""
    if not wanted.device_id:
        return _by_preference(wanted) if wanted.masters else []
    pf, index = _pf_and_index(wanted)
    vf = _vf_of(wanted, pf, index)
    return [(pf, [vf] if vf else [])]


def _is_unused(wanted: VfRequest, vf: Vf) -> bool:
    device = wanted.examine(vf)
    return device is not None and not device.use
