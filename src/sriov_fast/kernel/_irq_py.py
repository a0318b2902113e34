"""Interrupts and their CPU masks, plain: the same interface as ``_irq.pyx``.

See the kernel's Documentation/core-api/irq/irq-affinity.rst (``smp_affinity``) and
Documentation/ABI/testing/sysfs-bus-pci (``msi_irqs``). A mask is the text of ``smp_affinity``: groups of
32 bits in hexadecimal, the highest CPUs first, with commas between.
"""

from __future__ import annotations

import errno
import os

from sriov_fast.common import descriptors
from sriov_fast.common.errors import is_absent
from sriov_fast.kernel._sysfs_py import check_part, decimal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

_BLANKS = " \t\r\n"
_MAX_IRQ = 2**31 - 1


def irqs(pci: str, root: str = "/sys") -> list[int]:
    """List the IRQs of a PCI device, ascending: its ``msi_irqs``, [] until its driver has requested some.

    The legacy ``irq`` file is ignored: a VF has no INTx. Raises OSError with errno and filename (ENOENT: no
    such device); ValueError for a ``pci`` that cannot be an address.
    """
    check_part(pci, "PCI address")
    device = f"{root}/bus/pci/devices/{pci}"
    try:
        names = os.listdir(f"{device}/msi_irqs")
    except OSError as error:
        if not is_absent(error):
            raise
        os.stat(device)  # no such device: ENOENT
        return []
    return sorted(irq for irq in map(decimal, names) if irq >= 0)


def read_masks(irqs: Sequence[int], root: str = "/proc") -> list[str]:
    """Return the mask of each IRQ in the kernel's form, without the newline; "" for an IRQ that is gone.

    Raises OSError with errno and filename for any other failure; ValueError for a number that is no IRQ.
    """
    _check_irqs(irqs)
    return [_read_mask(f"{root}/irq/{irq}/smp_affinity") for irq in irqs]


def write_masks(masks: Sequence[tuple[int, str]], root: str = "/proc") -> list[int]:
    """Write the mask of each IRQ; return the errno of each, 0 for a mask that the kernel accepted.

    ENOENT: the IRQ is gone. EIO, or EPERM (newer kernels): the kernel manages the affinity of this IRQ, or
    cannot set it. EINVAL: no online CPU in the mask, no mask, or "". Raises ValueError for a number that is
    no IRQ, before any mask is written.
    """
    _check_irqs([irq for irq, _ in masks])
    return [_write_mask(f"{root}/irq/{irq}/smp_affinity", mask) for irq, mask in masks]


def _check_irqs(irqs: Sequence[int]) -> None:
    for irq in irqs:
        if not 0 <= irq <= _MAX_IRQ:
            raise ValueError(f"IRQ {irq}: not in 0 to {_MAX_IRQ}")


def _read_mask(path: str) -> str:
    try:
        with open(path, "rb") as file:  # a text file would import its codec
            return file.readline().decode("ascii", "replace").strip(_BLANKS)
    except OSError as error:
        # procfs returns EIO for an IRQ that was removed between open and read.
        if is_absent(error) or error.errno == errno.EIO:
            return ""
        raise


def _write_mask(path: str, mask: str) -> int:
    try:
        fd = os.open(path, os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC)
        try:
            if not mask:
                return errno.EINVAL
            os.write(fd, mask.encode("ascii", "replace") + b"\n")
        finally:
            descriptors.close(fd)  # the kernel has the mask: /proc has no late write
    except OSError as error:
        return error.errno or errno.EIO
    return 0
