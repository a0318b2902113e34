"""Interrupts and the CPUs that serve them: the plain twin of ``_irq.pyx``, and the rules that both follow.

The kernel's side is described in Documentation/core-api/irq/irq-affinity.rst (``smp_affinity``) and
Documentation/ABI/testing/sysfs-bus-pci (``msi_irqs``). A mask is the text of ``smp_affinity``: groups of
32 bits in hexadecimal, the highest CPUs first, with commas between.
"""

from __future__ import annotations

import errno
import os

from sriov_fast.common.errors import is_absent
from sriov_fast.kernel._sysfs_py import check_part, decimal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

CPUS = 8192  # the most that Linux can be built for
_BLANKS = " \t\r\n"
_HEX = frozenset("0123456789abcdefABCDEF")
_MAX_IRQ = 2**31 - 1


def irqs(pci: str, root: str = "/sys") -> list[int]:
    """List the IRQs of a PCI device, ascending: its ``msi_irqs``, [] while its driver has asked for none.

    The legacy ``irq`` file is left aside: a VF has no INTx. Raises OSError with errno and filename (ENOENT:
    no such device); ValueError for a ``pci`` that cannot be an address.
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


def parse_cpus(text: str) -> list[int]:
    """Return the CPUs of a list such as "1-4,8": in the order given, repetition kept.

    Blanks around the parts are allowed. Raises ValueError that names the bad part: not a number or an
    ascending range, a CPU beyond 8191, more than 8192 CPUs in all.
    """
    cpus: list[int] = []
    for part in text.split(","):
        first, last = _cpu_range(part.strip(_BLANKS), text)
        if len(cpus) + last - first >= CPUS:
            raise ValueError(f"CPU list: more than {CPUS} CPUs from {part.strip(_BLANKS)!r} on")
        cpus.extend(range(first, last + 1))
    return cpus


def cpu_mask(cpus: Iterable[int]) -> str:
    """Return the mask of these CPUs, as many groups as the highest needs, each of eight lower-case digits.

    No CPUs give "00000000". Raises ValueError for a CPU that is not in 0 to 8191.
    """
    bits = 0
    for cpu in cpus:
        if not 0 <= cpu < CPUS:
            raise ValueError(f"CPU {cpu}: not in 0 to {CPUS - 1}")
        bits |= 1 << cpu
    digits = f"{bits:x}"
    digits = digits.zfill(-len(digits) % 8 + len(digits))
    return ",".join(digits[i : i + 8] for i in range(0, len(digits), 8))


def parse_mask(text: str) -> list[int]:
    """Return the CPUs of a mask, ascending. Raises ValueError for what is no mask, or beyond CPU 8191."""
    groups = text.strip(_BLANKS).split(",")
    if len(groups) * 32 > CPUS:
        raise ValueError(f"CPU mask of {len(groups)} groups: more than {CPUS // 32}")
    bits = 0
    for group in groups:
        if not 1 <= len(group) <= 8 or not _HEX.issuperset(group):
            raise ValueError(f"CPU mask {text!r}: {group!r} is not one to eight hexadecimal digits")
        bits = bits << 32 | int(group, 16)
    return [cpu for cpu in range(bits.bit_length()) if bits >> cpu & 1]


def online(root: str = "/sys") -> list[int]:
    """Return the CPUs that are online, ascending. Raises OSError with errno and filename."""
    with open(f"{root}/devices/system/cpu/online", encoding="utf-8", errors="replace") as file:
        return parse_cpus(file.readline())


def read_masks(irqs: Sequence[int], root: str = "/proc") -> list[str]:
    """Return each IRQ's mask as the kernel writes it, without the newline; "" for an IRQ that is gone.

    Raises OSError with errno and filename for any other failure; ValueError for what can be no IRQ.
    """
    _check_irqs(irqs)
    return [_read_mask(f"{root}/irq/{irq}/smp_affinity") for irq in irqs]


def write_masks(masks: Sequence[tuple[int, str]], root: str = "/proc") -> list[int]:
    """Write the mask of each IRQ; return the errno of each, 0 where the kernel took it.

    ENOENT: the IRQ is gone. EIO, or EPERM (newer kernels): the kernel manages this one's affinity itself, or
    cannot set it. EINVAL: no online CPU in the mask, no mask, or "". Raises ValueError for what can be no
    IRQ, before any is written.
    """
    _check_irqs([irq for irq, _ in masks])
    return [_write_mask(f"{root}/irq/{irq}/smp_affinity", mask) for irq, mask in masks]


def _cpu_range(part: str, text: str) -> tuple[int, int]:
    low, dash, high = part.partition("-")
    first = _cpu(low)
    last = _cpu(high) if dash else first
    if first < 0 or last < 0:
        raise ValueError(f"CPU list {text!r}: {part!r} is no CPU (0 to {CPUS - 1}) and no range")
    if last < first:
        raise ValueError(f"CPU list {text!r}: {part!r} descends")
    return first, last


def _cpu(text: str) -> int:
    """Return the CPU that ``text`` is (leading zeros allowed), or -1."""
    if not (text.isascii() and text.isdigit()):
        return -1
    digits = text.lstrip("0")
    return int(digits or "0") if len(digits) <= 4 and int(digits or "0") < CPUS else -1


def _check_irqs(irqs: Sequence[int]) -> None:
    for irq in irqs:
        if not 0 <= irq <= _MAX_IRQ:
            raise ValueError(f"IRQ {irq}: not in 0 to {_MAX_IRQ}")


def _read_mask(path: str) -> str:
    try:
        with open(path, "rb") as file:  # a text file would import its codec
            return file.readline().decode("ascii", "replace").strip(_BLANKS)
    except OSError as error:
        # Removed between open and read, procfs says EIO.
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
            os.close(fd)
    except OSError as error:
        return error.errno or errno.EIO
    return 0
