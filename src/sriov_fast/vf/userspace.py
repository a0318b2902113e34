"""The attach mode of a VF with a userspace driver (vfio-pci): a program of the pod uses the PCI device.

The VF has no network device. Only the PF's settings of the VF are made and restored.
"""

from __future__ import annotations

import os

from sriov_fast.common.errors import is_there
from sriov_fast.common.record import Link
from sriov_fast.vf import attach, detach, find

TYPE_CHECKING = False
if TYPE_CHECKING:
    from sriov_fast.common.paths import Roots
    from sriov_fast.kernel.backend import nl
    from sriov_fast.vf.journal import Attachment
    from sriov_fast.vf.select import ReservedVf

configure, silence = attach.configure, detach.silence


def observe(host: nl.Socket, reserved: ReservedVf, record: Attachment, roots: Roots) -> Attachment:
    """Return the record with the PF's settings of the VF, and the PF's MTU."""
    function = os.stat(roots.device(record.pci)).st_ino
    observed, mtu = attach.observe_pf(host, reserved, record, roots)
    return observed.replace(before_mtu=mtu, incarnation=(function,))


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


class Release(detach.Release):
    """The return of a VF, which has no place in a namespace: the PF's settings are restored."""

    def quieten(self) -> None:
        """Restore the PF's settings; a refusal of the driver is logged."""
        record, log = self._record, self._log
        if not find.is_same_function(record, self._roots):
            log.warning("the VF was made anew and stays as it is", pci=record.pci, pf=record.pf, vf=record.vf)
            return
        detach.restore_pf_mac(self._host, record, log)  # also without one of the ADD: a program may set it
        detach.restore_pf(self._host, record, log)
