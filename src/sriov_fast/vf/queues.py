"""CPU masks of a device's queues: RPS and XPS (Documentation/networking/scaling.rst of the kernel).

The masks move with the device. Some drivers set XPS masks of their own when the device comes up, so ours are
set after that, through a sysfs of the pod's namespace.
"""

from __future__ import annotations

import os
from contextlib import contextmanager

from sriov_fast.common import descriptors
from sriov_fast.common.errors import EXHAUSTED, FileError, KernelError, is_absent
from sriov_fast.kernel.backend import nl
from sriov_fast.vf import irq
from sriov_fast.vf.journal import MACVLAN

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sriov_fast.common.log import Logger
    from sriov_fast.vf.journal import Attachment

_FILES = {"rx": "rps_cpus", "tx": "xps_cpus"}


def masks(netns_fd: int, name: str) -> dict[str, str]:
    """Return the masks of a device in a namespace (-1: the thread's own), by file such as "rx-0/rps_cpus".

    A device with one transmit queue has no XPS mask. Raises FileError (5).
    """
    found: dict[str, str] = {}
    try:
        with _directory(netns_fd, name) as queues:
            for queue in sorted(os.listdir(queues), key=lambda queue: (queue[:3], int(queue[3:]))):
                file = f"{queue}/{_FILES[queue[:2]]}"
                try:
                    with open(f"{queues}/{file}", "rb", buffering=0) as masked:
                        found[file] = masked.read().decode().strip()
                except OSError as error:
                    if not is_absent(error):
                        raise
    except OSError as error:
        why = error.strerror
        advice = "rps and xps need Linux 5.2"
        raise FileError(f"queues of {name}: {why}", advice, errno=error.errno or 0, interface=name) from error
    return found


@contextmanager
def _directory(netns_fd: int, name: str) -> Iterator[str]:
    """Give the path of a device's queues in the sysfs of a namespace."""
    sysfs = nl.sysfs_mount(netns_fd)
    try:
        yield f"/proc/self/fd/{sysfs}/class/net/{name}/queues"
    finally:
        descriptors.close(sysfs)


def plan(files: Sequence[str], rps: Sequence[int], xps: Sequence[int]) -> dict[str, str]:
    """Return the masks: all cores of ``rps`` for each receive queue, a share of ``xps`` for a transmit queue.

    With more queues than cores, transmit queue i gets core i mod n.
    """
    transmit = [file for file in files if file.startswith("tx")]
    wanted = {file: irq.mask_of(*rps) for file in files if rps and file.startswith("rx")}
    for number, file in enumerate(transmit if xps else ()):
        share = xps[number :: len(transmit)] or (xps[number % len(xps)],)
        wanted[file] = irq.mask_of(*share)
    return wanted


def place(record: Attachment, pod_netns: int) -> tuple[int, str]:
    """Return namespace and name of the device with the queues: the pod's, or the VF under a macvlan."""
    return (-1, record.host_name) if record.attach == MACVLAN else (pod_netns, record.ifname)


def apply(netns_fd: int, name: str, wanted: dict[str, str]) -> None:
    """Write masks. Raises KernelError that names the queue."""
    with _directory(netns_fd, name) as queues:
        for file, mask in wanted.items():
            try:
                with open(f"{queues}/{file}", "wb", buffering=0) as masked:
                    masked.write(mask.encode())
            except OSError as error:
                raise KernelError(
                    f"{file} = {mask} of {name}: {error.strerror}",
                    "leave out rps and xps, or see whether the driver supports them",
                    errno=error.errno or 0,
                    interface=name,
                ) from error


def restore(record: Attachment, name: str, host_fd: int, log: Logger) -> None:
    """Restore the masks of a VF that is in the host; a refusal is logged.

    Raises SriovError or OSError if memory or descriptors ran out.
    """
    try:
        left = _differing(masks(host_fd, name), record.before_queues)
        apply(host_fd, name, {file: record.before_queues[file] for file in left})
    except (FileError, KernelError, OSError) as error:
        if error.errno in EXHAUSTED:
            raise
        log.warning("the masks of the VF's queues are not restored", interface=name, why=error)


def faults(record: Attachment, pod_netns: int) -> list[str]:
    """Return the differences of the masks from those that the ADD set."""
    now = masks(*place(record, pod_netns))
    return [
        f"{file} is {now.get(file) or 'gone'}, not {record.queues[file]}"
        for file in _differing(now, record.queues, gone=True)
    ]


def _differing(now: dict[str, str], wanted: dict[str, str], *, gone: bool = False) -> list[str]:
    """Return the files with another mask; with ``gone`` also those that do not exist."""
    return [
        file
        for file, mask in wanted.items()
        if (irq.bits(now[file]) != irq.bits(mask) if file in now else gone)
    ]
