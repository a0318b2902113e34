"""The attach mode of a VF with a userspace driver (vfio-pci): a program of the pod uses the PCI device.

The VF has no network device. Only the PF's settings of the VF are made and restored.
"""

from __future__ import annotations

import os

from sriov_fast.common.errors import KernelError, NetlinkError, is_there
from sriov_fast.common.record import Link
from sriov_fast.kernel.backend import nl
from sriov_fast.vf import attach, detach, driver_socket, find
from sriov_fast.vf.detach import silence

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Self

    from sriov_fast.common.log import Logger
    from sriov_fast.common.paths import Roots
    from sriov_fast.vf.driver_socket import DriverSocket, Patience
    from sriov_fast.vf.find import PodNetns
    from sriov_fast.vf.journal import Attachment
    from sriov_fast.vf.select import ReservedVf

__all__ = ["RESTORE", "Release", "configure", "faults", "is_detached", "observe", "silence"]

RESTORE = "restore the VF"


def observe(host: nl.Socket, reserved: ReservedVf, record: Attachment, roots: Roots) -> Attachment:
    """Return the record with the PF's settings of the VF, and the PF's MTU."""
    function = os.stat(roots.device(record.pci)).st_ino
    observed, mtu = attach.observe_pf(host, reserved, record, roots)
    return observed.replace(before_mtu=mtu, incarnation=(function,))


def configure(host: DriverSocket, record: Attachment) -> None:
    """Set the requested values through the PF."""
    asked = attach.changes(record)
    if asked == attach.NOTHING:
        return
    batch = nl.Batch()
    batch.set_vf(record.pf_index, record.vf, asked)
    try:
        host.run(batch)
    except NetlinkError as error:
        raise attach.refused(error, record) from error


def verify(host: DriverSocket, record: Attachment) -> None:
    """Raise KernelError unless the PF has the requested MAC and VLAN."""
    wanted = record.asked.mac
    on_pf = attach.await_on_pf(host, record)
    if wanted and on_pf.mac not in (wanted, None):
        raise KernelError(
            f"mac {wanted}: {record.pf} holds {on_pf.mac} for VF {record.vf}",
            "the driver did not take the MAC; see the kernel's log",
            interface=record.pf,
            vf=record.vf,
        )
    attach.require_vlan(on_pf, record)


def described(record: Attachment) -> Link:
    """Return the result's interface as a device: with the PF's MAC of the VF, and the PF's MTU."""
    mac = record.asked.mac or record.before.mac or ""
    return Link(
        index=0,
        name=record.ifname,
        mac="" if mac == detach.ZERO_MAC else mac,
        mtu=record.before_mtu,
        up=True,
    )


def faults(record: Attachment, roots: Roots) -> list[str]:
    """Return the fault of a VF that is missing or was made anew."""
    if not is_there(roots.device(record.pci)):
        return [f"VF {record.pci} is gone"]
    return [] if find.is_same_function(record, roots) else [f"VF {record.pci} was made anew"]


def is_detached(record: Attachment, roots: Roots) -> bool:
    """Return True: no network namespace has the VF."""
    return True


class Release:
    """The return of one VF (``modes.Release``): the PF's settings are restored."""

    def __init__(
        self, record: Attachment, pod_netns: PodNetns, roots: Roots, log: Logger, patience: Patience
    ) -> None:
        self._record = record
        self._patience = patience
        self._roots = roots
        self._log = log

    def __enter__(self) -> Self:
        self._host = driver_socket.connect(self._patience)
        return self

    def __exit__(self, *_: object) -> None:
        self._host.close()

    def find(self) -> None:
        """Do nothing: the VF has no place in a namespace."""

    def quieten(self) -> None:
        """Restore the PF's settings; a refusal of the driver is logged."""
        record, log = self._record, self._log
        if not find.is_same_function(record, self._roots):
            log.warning("the VF was made anew and stays as it is", pci=record.pci, pf=record.pf, vf=record.vf)
            return
        refused = detach.restore_pf_mac(self._host, record)
        if refused:
            log.warning("the PF keeps the pod's MAC", pf=record.pf, vf=record.vf, why=refused.msg)
        detach.restore_pf(self._host, record, log)

    def bring_home(self) -> None:
        """Do nothing: the VF has not moved."""
