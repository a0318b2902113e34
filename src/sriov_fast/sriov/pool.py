"""Chooses the VF."""

from __future__ import annotations

import errno
import os
from contextlib import ExitStack

from sriov_fast.backend import sysfs
from sriov_fast.errors import ConfigError, TryAgainError, is_absent
from sriov_fast.sriov import locks
from sriov_fast.sriov.journal import ATTACHED
from sriov_fast.values import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sriov_fast.sriov.journal import Attachment, Entry, Journal
    from sriov_fast.sriov.roots import Roots
    from sriov_fast.values import Vf


def _leave(_: Attachment) -> None:
    """Recover nothing."""


class Wish(Value):
    """What is asked of the VF: one of ``masters`` (PFs), index ``vf``, or the very one at PCI ``device_id``.

    With ``cores``, a PF on those cores' NUMA node comes first. ``recover`` is given the record of a VF whose
    last request was cut short, or is bringing it home; it makes the VF free. That VF's lock is held then.
    """

    masters: tuple[str, ...] = ()
    vf: int | None = None
    device_id: str = ""
    cores: tuple[int, ...] = ()
    who: str = ""
    recover: Callable[[Attachment], None] = _leave


class Choice(Value):
    """A VF that is ours to change while its ``lock`` is held."""

    pf: str
    vf: Vf
    lock: locks.Lock


def usable(vf: Vf) -> bool:
    """Say whether the VF's network device is here to be given away."""
    return bool(vf.driver and vf.netdev)


def _says_no(error: OSError | ValueError) -> bool:
    """Say whether an error means that there is no such thing; any other one is no fault of the request."""
    return isinstance(error, ValueError) or is_absent(error) or error.errno == errno.ENOTSUP


def scan(pf: str, roots: Roots, key: str = "master") -> list[Vf]:
    """Return the VFs of a PF; ConfigError names a PF that is none."""
    try:
        return sysfs.scan(pf, roots.sys)
    except (OSError, ValueError) as error:
        if not _says_no(error):
            raise
        why = (error.strerror if isinstance(error, OSError) else str(error)) or str(error)
        raise ConfigError(
            f"{key} {pf!r} is no PF with SR-IOV: {why}",
            "name the network device of a physical function; `sriov-fast vfs` lists them",
            interface=pf,
        ) from error


def choose(wish: Wish, journal: Journal, roots: Roots) -> Choice:
    """Return a VF with its lock; ConfigError says what cannot be, TryAgainError what is in use."""
    if wish.device_id:
        return _the_one(wish, journal, roots)
    found = _first_free(wish, journal, roots)
    if found is None and journal.prune():
        found = _first_free(wish, journal, roots)
    if found is None:
        found = _first_recovered(_Search(wish=wish, journal=journal, roots=roots))
    if found is not None:
        return found
    which = "no VF" if wish.vf is None else f"vf {wish.vf} is not"
    busy = ", ".join(f"{pf} ({len(scan(pf, roots))} VFs)" for pf in wish.masters)
    raise TryAgainError(
        f"{which} free on {busy}{_taken_by(wish, journal, roots)}",
        "try again when a pod has ended, or give the PF more VFs (sriov_numvfs)",
    )


def _first_free(wish: Wish, journal: Journal, roots: Roots) -> Choice | None:
    for pf, vfs in _by_preference(wish, roots):
        found = _free_one(pf, _indexed(pf, vfs, wish), wish, journal, roots)
        if found is not None:
            return found
    return None


def _indexed(pf: str, vfs: Sequence[Vf], wish: Wish) -> list[Vf]:
    """Keep the VF that was asked for by index, if one was."""
    if wish.vf is None:
        return list(vfs)
    found = [vf for vf in vfs if vf.index == wish.vf]
    if not found:
        have = f"0 to {vfs[-1].index}" if vfs else "none"
        raise ConfigError(f"vf {wish.vf}: {pf} has no such VF", f"it has {have}", interface=pf, vf=wish.vf)
    return found


def _by_preference(wish: Wish, roots: Roots) -> list[tuple[str, list[Vf]]]:
    pfs = [(pf, scan(pf, roots)) for pf in wish.masters]
    if wish.cores and len(pfs) > 1:
        near = numa_nodes(wish.cores, roots)
        pfs.sort(key=lambda item: not (item[1] and item[1][0].numa in near))
    return pfs


def numa_nodes(cores: Sequence[int], roots: Roots) -> set[int]:
    """Return the NUMA nodes of the cores (the links ``cpuN/nodeM``)."""
    found: set[int] = set()
    for core in set(cores):
        try:
            names = os.listdir(f"{roots.sys}/devices/system/cpu/cpu{core}")
        except OSError:
            continue
        found.update(int(name[4:]) for name in names if name.startswith("node") and name[4:].isdigit())
    return found


def _free_one(pf: str, vfs: Sequence[Vf], wish: Wish, journal: Journal, roots: Roots) -> Choice | None:
    """Take the first that nobody has. Who looks at the same time passes over those whose lock is held."""
    taken = journal.taken()
    for vf in vfs:
        if not usable(vf) or vf.pci in taken:
            continue
        lock = locks.attempt(roots.run, f"vf-{vf.pci}", wish.who)
        if lock is None:
            continue
        with ExitStack() as undo:
            undo.callback(lock.release)
            # its last owner may have finished an ADD between our listing and our lock
            if vf.pci not in journal.taken():
                undo.pop_all()
                return Choice(pf=pf, vf=vf, lock=lock)
    return None


class _Search(Value):
    """What is looked for, and where."""

    wish: Wish
    journal: Journal
    roots: Roots


def _first_recovered(search: _Search) -> Choice | None:
    """Wait for a VF that is on its way home, or bring home one that somebody left who was killed."""
    for pf in search.wish.masters:
        taken = search.journal.entries()
        vfs = [vf for vf in _indexed(pf, scan(pf, search.roots), search.wish) if vf.pci in taken]
        for vf in sorted(vfs, key=lambda vf: not taken[vf.pci].homing):
            found = _recovered(search, pf, vf, taken[vf.pci])
            if found is not None:
                return found
    return None


def _recovered(search: _Search, pf: str, vf: Vf, entry: Entry) -> Choice | None:
    if not entry.homing and not _is_unfinished(search.journal, vf.pci, entry):
        return None  # without a look at its lock: who uses it may be about to give it back
    run, who, name = search.roots.run, search.wish.who, f"vf-{vf.pci}"
    lock = locks.acquire(run, name, who) if entry.homing else locks.attempt(run, name, who)
    if lock is None:
        return None
    with ExitStack() as undo:
        undo.callback(lock.release)
        free = _freed(search, pf, vf.index)
        if free is not None:
            undo.pop_all()
            return Choice(pf=pf, vf=free, lock=lock)
    return None


def _is_unfinished(journal: Journal, pci: str, entry: Entry) -> bool:
    record = journal.read(pci, entry)
    return record is not None and record.state != ATTACHED


def _freed(search: _Search, pf: str, index: int, key: str = "master") -> Vf | None:
    """Return a VF whose lock we hold, None where it is somebody's; what was cut short is finished first."""
    vf = _vf_of(search, pf, index, key)
    entry = search.journal.entries().get(vf.pci) if vf else None
    if vf is None or entry is None:
        return vf if vf and usable(vf) else None
    record = search.journal.read(vf.pci, entry)
    if record is not None and record.state == ATTACHED:
        return None
    if record is not None:
        search.wish.recover(record)
    vf = _vf_of(search, pf, index, key)
    return vf if vf and usable(vf) and vf.pci not in search.journal.taken() else None


def _vf_of(search: _Search, pf: str, index: int, key: str = "master") -> Vf | None:
    return next((vf for vf in scan(pf, search.roots, key) if vf.index == index), None)


def _the_one(wish: Wish, journal: Journal, roots: Roots) -> Choice:
    try:
        pf, index = sysfs.pf_of(wish.device_id, roots.sys)
    except (OSError, ValueError) as error:
        if not _says_no(error):
            raise
        raise ConfigError(
            f"deviceID {wish.device_id!r} is no VF of a PF here: {error}", "give the PCI address of a VF"
        ) from error
    if wish.masters and pf not in wish.masters:
        raise ConfigError(
            f"deviceID {wish.device_id} is a VF of {pf}, not of master {', '.join(wish.masters)}",
            "leave master out, or name the right PF",
        )
    if wish.vf is not None and wish.vf != index:
        raise ConfigError(
            f"deviceID {wish.device_id} is VF {index} of {pf}, not vf {wish.vf}", "leave vf out"
        )
    search = _Search(wish=wish, journal=journal, roots=roots)
    with ExitStack() as undo:
        lock = locks.acquire(roots.run, f"vf-{wish.device_id}", wish.who)
        undo.callback(lock.release)
        vf = _freed(search, pf, index, "deviceID's PF")
        if vf is None:
            raise TryAgainError(
                f"deviceID {wish.device_id} (VF {index} of {pf}) is not free{_state_of(search, pf, index)}",
                "try again when its pod has ended",
                interface=pf,
                vf=index,
            )
        undo.pop_all()
    return Choice(pf=pf, vf=vf, lock=lock)


def _state_of(search: _Search, pf: str, index: int) -> str:
    vf = _vf_of(search, pf, index)
    return _why(vf, search.journal.owners().get(vf.pci) if vf else None)


def _why(vf: Vf | None, owner: tuple[str, str] | None) -> str:
    if owner:
        return f": it belongs to container {owner[0]}, {owner[1]}"
    if vf is None:
        return ": it is gone"
    if not vf.driver:
        return ": it has no driver"
    return f": driver {vf.driver}, and no network device in this namespace"


def _taken_by(wish: Wish, journal: Journal, roots: Roots) -> str:
    """Say why the one VF that was asked for by index is not free."""
    if wish.vf is None or len(wish.masters) != 1:
        return ""
    return _state_of(_Search(wish=wish, journal=journal, roots=roots), wish.masters[0], wish.vf)


def any_usable(masters: Sequence[str], device_id: str, journal: Journal, roots: Roots) -> bool:
    """Say whether a PF has a VF that is free or in use by us; a full node is no broken node."""
    owners = journal.owners()
    pfs = masters or ([sysfs.pf_of(device_id, roots.sys)[0]] if device_id else [])
    return any(usable(vf) or vf.pci in owners for pf in pfs for vf in sysfs.scan(pf, roots.sys))
