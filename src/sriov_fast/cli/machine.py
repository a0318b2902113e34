"""The state of this machine for the operator's commands: PFs, their VFs, and the owners of these."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from sriov_fast.common import cni_args
from sriov_fast.common.errors import is_there
from sriov_fast.common.paths import Roots
from sriov_fast.common.record import Vf
from sriov_fast.kernel.backend import nl, sysfs
from sriov_fast.vf import candidate, fate, sriov_cni, state, uplink
from sriov_fast.vf.journal import ATTACHED, BROKEN, RETURNING, Attachment, Journal

Owners = dict[str, tuple[str, str]]


class Pf(NamedTuple):
    """A physical function: its network device, the largest number of VFs, and its VFs."""

    name: str
    total: int
    vfs: list[Vf]


def pf_names(roots: Roots) -> list[str]:
    """Return the network devices of cards with SR-IOV, without the representors of their ports."""
    net = Path(roots.sys, "class/net")
    names = [path.parts[-3] for path in net.glob("*/device/sriov_totalvfs")]
    return sorted(name for name in names if not uplink.is_representor(f"{net}/{name}"))


def pf(name: str, roots: Roots) -> Pf:
    """Return a PF by its name or an alternative name. Raises OSError or ValueError if it is no PF."""
    if not is_there(f"{roots.sys}/class/net/{name}"):
        with nl.Socket() as host:
            name = candidate.real_name(host, name) or name
    vfs = sysfs.scan(name, roots.sys)
    return Pf(name, int(Path(roots.sys, "class/net", name, "device/sriov_totalvfs").read_text()), vfs)


def owners(roots: Roots) -> Owners:
    """Return {PCI address: (container ID, interface)} of VFs in pods; empty without permission to read it.

    VFs that the SR-IOV CNI gave to pods are among them.
    """
    try:
        return sriov_cni.owners(roots) | Journal(roots.run, roots.proc).owners()
    except PermissionError:
        return {}


def of_sriov_cni(roots: Roots) -> Owners:
    """Return the VFs that the SR-IOV CNI gave to pods; empty where we may not look."""
    try:
        return sriov_cni.owners(roots)
    except PermissionError:
        return {}


def records(roots: Roots) -> list[Attachment]:
    """Return the records of this boot; none without permission to read them."""
    try:
        return Journal(roots.run, roots.proc).all()
    except PermissionError:
        return []


def pods(attachments: Iterable[Attachment]) -> dict[str, str]:
    """Return namespace/name of the pods that have VFs, by PCI address, where the runtime named them."""
    named = ((record.pci, cni_args.readable(record.request.get("args", ""))) for record in attachments)
    return {
        pci: f"{args.get('K8S_POD_NAMESPACE', '')}/{args['K8S_POD_NAME']}"
        for pci, args in named
        if "K8S_POD_NAME" in args
    }


def states(pfs: Iterable[Pf], roots: Roots) -> dict[str, str]:
    """Return the state of each VF by PCI address; without permission to read the records none is attached."""
    taken: dict[str, str] = {}
    with suppress(PermissionError):
        for pci, entry in Journal(roots.run, roots.proc).entries().items():
            taken[pci] = RETURNING if entry.returning else BROKEN if entry.aside else ATTACHED
    addressed = state.addressed()
    return {vf.pci: state.of(vf, taken, addressed, roots) for pf in pfs for vf in pf.vfs}


def strays(attachments: Iterable[Attachment], roots: Roots) -> list[tuple[Attachment, str]]:
    """Return the attachments of pods that ended without a DEL, each with the proof."""
    fates = ((record, fate.of(record, roots)) for record in attachments)
    return [(record, state.why) for record, state in fates if state.gone]


def lone_vfs(roots: Roots) -> list[Vf]:
    """Return the network cards without SR-IOV that a pod could get: each may be a VF without a visible PF."""
    addresses = sorted(path.name for path in Path(roots.sys, "bus/pci/devices").glob("*"))
    found = (candidate.lone_vf(address, roots) for address in addresses)
    return [vf for vf in found if vf and usable(vf, {})]


def pfs_in_pods(roots: Roots, owned: Owners) -> Owners:
    """Return the owners of PFs that are in pods, by PCI address."""
    return {pci: owner for pci, owner in owned.items() if is_there(f"{roots.device(pci)}/sriov_totalvfs")}


def usable(vf: Vf, owned: Owners) -> bool:
    """Return whether a pod has this VF or could get it."""
    return vf.pci in owned or bool(vf.driver and vf.netdev) or candidate.has_userspace_driver(vf)
