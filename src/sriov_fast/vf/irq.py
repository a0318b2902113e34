"""Pins a VF's interrupts to cores (Documentation/core-api/irq/irq-affinity.rst)."""

from __future__ import annotations

import errno
import os

from sriov_fast.common.errors import EXHAUSTED, ConfigError
from sriov_fast.kernel.backend import irq

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from sriov_fast.common.log import Logger
    from sriov_fast.common.paths import Roots

# The kernel's errors for an interrupt that it manages itself: EIO, in newer kernels EPERM.
_MANAGED = (errno.EIO, errno.EPERM)


def require_online(cores: Sequence[int], roots: Roots, key: str = "CORES") -> None:
    """Raise ConfigError (7) that names the cores which are not online."""
    if not cores:
        return
    online = read_online(roots.sys)
    missing = [core for core in dict.fromkeys(cores) if core not in online]
    if missing:
        raise ConfigError(
            f"{key}: core {', '.join(map(str, missing))} is not online",
            f"online are {ranges(online)}; name only these",
        )


def read_online(root: str = "/sys") -> list[int]:
    """Return the cores that are online, ascending. Raises OSError."""
    with open(f"{root}/devices/system/cpu/online", "rb") as file:
        parts = [part.partition(b"-") for part in file.readline().split(b",")]
    return [core for low, _, high in parts for core in range(int(low), int(high or low) + 1)]


def ranges(cores: Sequence[int]) -> str:
    """Return cores in the kernel's list form, such as "0-3,8"."""
    parts: list[list[int]] = []
    for core in sorted(cores):
        if parts and core == parts[-1][1] + 1:
            parts[-1][1] = core
        else:
            parts.append([core, core])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in parts)


def masks_of(pci: str, roots: Roots) -> dict[int, str]:
    """Return the mask of every interrupt that the VF has now."""
    numbers = irq.irqs(pci, roots.sys)
    return {n: mask for n, mask in zip(numbers, irq.read_masks(numbers, roots.proc), strict=True) if mask}


def plan(numbers: Sequence[int], cores: Sequence[int]) -> dict[int, str]:
    """Return the masks that pin interrupt i, in numeric order, to core i mod n."""
    return {number: mask_of(cores[i % len(cores)]) for i, number in enumerate(numbers)}


def mask_of(*cores: int) -> str:
    """Return the mask of cores as the kernel writes it: groups of eight hexadecimal digits."""
    digits = f"{sum(1 << core for core in set(cores)):0{(max(cores) // 32 + 1) * 8}x}"
    return ",".join(digits[at : at + 8] for at in range(0, len(digits), 8))


def bits(mask: str) -> int:
    """Return a mask of the kernel as a number."""
    return int(mask.replace(",", ""), 16)


def apply(masks: dict[int, str], roots: Roots, log: Logger) -> dict[int, str]:
    """Write the masks and return those that the kernel accepted; a managed interrupt is logged.

    Raises OSError if memory or descriptors ran out.
    """
    pairs = list(masks.items())
    taken = {}
    for (number, mask), failed in zip(pairs, irq.write_masks(pairs, roots.proc), strict=True):
        if not failed:
            taken[number] = mask
        elif failed in _MANAGED:
            log.warning("the kernel manages this interrupt itself and keeps its mask", irq=number, mask=mask)
        elif failed in EXHAUSTED:
            raise OSError(failed, os.strerror(failed), f"{roots.proc}/irq/{number}/smp_affinity")
        elif failed != errno.ENOENT:
            log.error("cannot set the interrupt's mask", irq=number, mask=mask, errno=os.strerror(failed))
    return taken


def differing(masks: dict[int, str], roots: Roots) -> dict[int, str]:
    """Return the current masks of the interrupts that differ from ``masks``."""
    now = irq.read_masks(list(masks), roots.proc)
    return {
        number: current
        for (number, mask), current in zip(masks.items(), now, strict=True)
        if not current or bits(current) != bits(mask)
    }


def warn_of_irqbalance(log: Logger, run: str = "/run") -> None:
    """Log a running irqbalance, which may move interrupts again. It is found by its socket."""
    try:
        names = os.listdir(f"{run}/irqbalance")
    except OSError:
        return
    pids = [name.removeprefix("irqbalance").removesuffix(".sock") for name in names]
    alive = [pid for pid in pids if pid.isdigit() and os.path.exists(f"/proc/{pid}")]
    if alive:
        log.warning("irqbalance runs and may move the interrupts again: ban them there", pid=alive[0])
