"""The VFs in sysfs, plain: the same interface as ``_sysfs.pyx``.

See the kernel's Documentation/ABI/testing/sysfs-bus-pci (``virtfnN``, ``physfn``, ``sriov_totalvfs``,
``numa_node``) and sysfs-class-net (``device``).
"""

from __future__ import annotations

import errno
import os

from sriov_fast.common.errors import is_absent, is_there
from sriov_fast.common.record import Vf

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Container

_NUMBER_DIGITS = 9


def check_part(text: str, what: str) -> None:
    """Raise ValueError unless ``text`` can be one part of a path."""
    if text in ("", ".", "..") or "/" in text or "\0" in text:
        raise ValueError(f"{what} {text!r}: cannot be part of a path")


def decimal(text: str) -> int:
    """Return the number in ``text``: no sign, no leading zero, at most 9 digits; otherwise -1."""
    if (
        not (text.isascii() and text.isdigit())
        or len(text) > _NUMBER_DIGITS
        or (text[0] == "0" and text != "0")
    ):
        return -1
    return int(text)


def os_error(err: int, path: str, why: str = "") -> OSError:
    """Return the OSError of ``err`` (FileNotFoundError and so on) that names ``path``."""
    return OSError(err, why or os.strerror(err), path)


def scan(pf: str, root: str = "/sys") -> list[Vf]:
    """List the VFs of a PF in the order of their indices, without those that disappear during the scan.

    ``pf`` is the netdev's name. The NUMA node is that of the PF. Raises OSError with errno and filename:
    ENOENT (no such netdev), ENOTSUP (not the netdev of an SR-IOV PF), or the kernel's error; ValueError for a
    ``pf`` that cannot be a name.
    """
    check_part(pf, "PF")
    device = f"{root}/class/net/{pf}/device"
    try:
        names = os.listdir(device)
    except OSError as error:
        if not is_absent(error):
            raise
        os.stat(f"{root}/class/net/{pf}")  # no such netdev: ENOENT
        raise os_error(errno.ENOTSUP, device, "no SR-IOV PF") from None
    indices = _indices(names)
    if not indices and "sriov_totalvfs" not in names:
        raise os_error(errno.ENOTSUP, device, "no SR-IOV PF")
    numa = _numa(device) if indices else -1
    return [vf for index in indices if (vf := _vf(device, index, numa))]


def first_vf(pf: str, skipped: Container[str], index: int = 0, root: str = "/sys") -> Vf | None:
    """Return the first VF of a PF from an index on, except those at the addresses in ``skipped``.

    Return None if there is none; a missing index ends the search, and a device that is no PF has none.
    ``pf`` and the errors are those of ``scan``.
    """
    check_part(pf, "PF")
    device = f"{root}/class/net/{pf}/device"
    while pci := _link_name(f"{device}/virtfn{index}"):
        vf = None if pci in skipped else _vf(device, index, _numa(device))
        if vf:
            return vf
        index += 1
    return None


def vf_index(pci: str, root: str = "/sys") -> int:
    """Return the index of the VF at a PCI address on its PF.

    Raises OSError with errno and filename: ENOENT (no such device), ENODEV (not a VF), or the kernel's error;
    ValueError for a ``pci`` that cannot be an address.
    """
    check_part(pci, "PCI address")
    device = f"{root}/bus/pci/devices/{pci}"
    physfn = f"{device}/physfn"
    try:
        names = os.listdir(physfn)
    except OSError as error:
        if not is_absent(error):
            raise
        os.stat(device)  # no such device: ENOENT
        raise os_error(errno.ENODEV, device, "not a VF") from None
    for index in _indices(names):
        if _link_name(f"{physfn}/virtfn{index}") == pci:
            return index
    raise os_error(errno.ENODEV, device, "not among the VFs of its PF")


def _indices(names: list[str]) -> list[int]:
    found = [decimal(name[6:]) for name in names if name.startswith("virtfn")]
    return sorted(index for index in found if index >= 0)


def _vf(device: str, index: int, numa: int) -> Vf | None:
    path = f"{device}/virtfn{index}"
    pci = _link_name(path)
    driver = _link_name(f"{path}/driver")
    # Without a driver, either the VF has none or only the link to the VF exists.
    if not pci or not (driver or is_there(path)):
        return None
    return Vf(index=index, pci=pci, driver=driver, netdev=_netdev(path), numa=numa)


def _link_name(path: str) -> str:
    try:
        return os.path.basename(os.readlink(path))
    except OSError as error:
        if is_absent(error):
            return ""
        raise


def _netdev(device: str) -> str:
    try:
        return min(os.listdir(f"{device}/net"), key=os.fsencode, default="")
    except OSError as error:
        if is_absent(error):
            return ""
        raise


def _numa(device: str) -> int:
    try:
        with open(f"{device}/numa_node", "rb") as file:
            return int(file.read(31))
    except ValueError:
        return -1
    except OSError as error:
        if is_absent(error):
            return -1
        raise
