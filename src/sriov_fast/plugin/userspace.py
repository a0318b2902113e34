"""ADD of a VF with a userspace driver: the PF's settings and IPAM, without an interface in the pod."""

from __future__ import annotations

from sriov_fast.common.errors import ConfigError
from sriov_fast.ipam.kinds import needs_interface
from sriov_fast.plugin.prepare import prepare
from sriov_fast.vf import attach, userspace
from sriov_fast.vf.journal import MACVLAN, USERSPACE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from sriov_fast.plugin.addresses import Addresses
    from sriov_fast.plugin.context import Call
    from sriov_fast.plugin.prepare import Prepared
    from sriov_fast.vf.driver_socket import DriverSocket
    from sriov_fast.vf.journal import Attachment
    from sriov_fast.vf.select import ReservedVf


def accept(call: Call, reserved: ReservedVf) -> Call:
    """Return the call with the attach mode of the VF.

    Raises ConfigError if it needs a network device, or interrupts, which the VF has only while a program uses
    it. The key ``mtu`` is ignored, as by the Kubernetes SR-IOV CNI.
    """
    conf, vf = call.conf, reserved.vf
    label = f"VF {vf.index} of {reserved.pf} ({vf.pci})" if reserved.pf else f"VF {vf.pci}"
    asked = {
        "attach macvlan": conf.attach == MACVLAN,
        "cores": bool(conf.cores),
        "rdma": conf.rdma,
        "rps": bool(conf.rps),
        "xps": bool(conf.xps),
        "sysctl": bool(conf.sysctl),
        "promisc": conf.promisc is not None,
        "allmulti": conf.allmulti is not None,
        "enabledad": conf.enable_dad,
        f"ipam {conf.ipam_type}": needs_interface(conf.ipam_type),
    }
    for what in (key for key, is_asked in asked.items() if is_asked):
        raise ConfigError(
            f"{what}: {label} has no network device: driver {vf.driver}",
            "leave that out, or bind the VF's network driver",
            interface=reserved.pf,
            vf=vf.index,
        )
    if conf.mtu:
        call.log.warning("mtu is ignored: the VF has no network device", pci=vf.pci, driver=vf.driver)
    return call.replace(conf=conf.replace(attach=USERSPACE, mtu=0))


def serve(call: Call, record: Attachment, host: DriverSocket, addresses: Addresses) -> Prepared:
    """Make the PF's settings, run IPAM, and prepare the reply."""
    userspace.configure(host, record)
    call.step("configure", "kernel")
    answer = addresses.obtain()
    call.step("wait for IPAM", "ipam")
    prepared = prepare(call, record, answer.result, userspace.described(record))
    attach.verify_on_pf(host, record)
    call.journal.publish(prepared.record)
    prepared.tell()
    call.step("journal, result")
    return prepared
