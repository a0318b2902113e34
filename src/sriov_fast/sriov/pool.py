"""Chooses the VF."""

from __future__ import annotations

import os

from sriov_fast.backend import sysfs
from sriov_fast.errors import ConfigError, TryAgainError
from sriov_fast.sriov import locks
from sriov_fast.values import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from sriov_fast.sriov.journal import Journal
    from sriov_fast.sriov.roots import Roots
    from sriov_fast.values import Vf


class Wish(Value):
    """What is asked of the VF: one of ``masters`` (PFs), index ``vf``, or the very one at PCI ``device_id``.

    With ``cores``, a PF on those cores' NUMA node comes first.
    """

    masters: tuple[str, ...] = ()
    vf: int | None = None
    device_id: str = ""
    cores: tuple[int, ...] = ()
    who: str = ""


class Choice(Value):
    """A VF that is ours to change while its ``lock`` is held."""

    pf: str
    vf: Vf
    lock: locks.Lock


def usable(vf: Vf) -> bool:
    """Say whether the VF's network device is here to be given away."""
    return bool(vf.driver and vf.netdev)


def scan(pf: str, roots: Roots, key: str = "master") -> list[Vf]:
    """Return the VFs of a PF; ConfigError names a PF that is none."""
    try:
        return sysfs.scan(pf, roots.sys)
    except (OSError, ValueError) as error:
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
        with locks.acquire(roots.run, f"pf-{pf}", wish.who):
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
    taken = journal.owners()
    for vf in vfs:
        if not usable(vf) or vf.pci in taken:
            continue
        lock = locks.attempt(roots.run, f"vf-{vf.pci}", wish.who)
        if lock is None:
            continue
        # its last owner may have finished an ADD between our listing and our lock
        if vf.pci not in journal.owners():
            return Choice(pf=pf, vf=vf, lock=lock)
        lock.release()
    return None


def _the_one(wish: Wish, journal: Journal, roots: Roots) -> Choice:
    try:
        pf, index = sysfs.pf_of(wish.device_id, roots.sys)
    except (OSError, ValueError) as error:
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
    lock = locks.acquire(roots.run, f"vf-{wish.device_id}", wish.who)
    try:
        vf = next((vf for vf in scan(pf, roots, "deviceID's PF") if vf.index == index), None)
        owner = journal.owners().get(wish.device_id)
        if owner and journal.read(wish.device_id, owner) is None:
            owner = None  # of an earlier boot
        if owner or vf is None or not usable(vf):
            raise TryAgainError(
                f"deviceID {wish.device_id} (VF {index} of {pf}) is not free{_why(vf, owner)}",
                "try again when its pod has ended",
                interface=pf,
                vf=index,
            )
    except BaseException:
        lock.release()
        raise
    return Choice(pf=pf, vf=vf, lock=lock)


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
    vf = next((vf for vf in scan(wish.masters[0], roots) if vf.index == wish.vf), None)
    return _why(vf, journal.owners().get(vf.pci) if vf else None)


def any_usable(masters: Sequence[str], device_id: str, journal: Journal, roots: Roots) -> bool:
    """Say whether a PF has a VF that is free or in use by us; a full node is no broken node."""
    owners = journal.owners()
    pfs = masters or ([sysfs.pf_of(device_id, roots.sys)[0]] if device_id else [])
    return any(usable(vf) or vf.pci in owners for pf in pfs for vf in sysfs.scan(pf, roots.sys))
