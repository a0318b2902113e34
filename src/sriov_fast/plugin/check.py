"""CHECK: compare an attachment with its record."""

from __future__ import annotations

from sriov_fast.common import descriptors
from sriov_fast.common.errors import CheckError
from sriov_fast.common.record import Route
from sriov_fast.plugin.context import IPAM_WAIT, Reply
from sriov_fast.vf import check as attachment
from sriov_fast.vf import netns
from sriov_fast.vf.journal import BROKEN, USERSPACE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from sriov_fast.cni.result import Result
    from sriov_fast.plugin.context import Call
    from sriov_fast.vf.journal import Attachment


def check(call: Call) -> Reply:
    """Compare an attachment with its record and with ``prevResult`` (SPEC, "CHECK")."""
    asked = call.request
    record = call.journal.find(asked.container_id, asked.ifname) or _of_sriov_cni(call)
    if record is None:
        raise CheckError(
            f"container {asked.container_id} has no {asked.ifname} of ours",
            "it was never attached, or is deleted",
        )
    if record.state == BROKEN:
        raise CheckError(
            f"container {asked.container_id}, {asked.ifname}: the record of VF {record.pci} is broken",
            "`sriov-fast doctor` shows what is wrong with it; delete the pod and start it anew",
            interface=asked.ifname,
        )
    expected = _expected(call, record)
    ipam = call.as_added(record).ipam()
    if ipam is not None:
        ipam.run("CHECK", call.wait(IPAM_WAIT))
    if expected.attach == USERSPACE:  # no interface in the pod, so its namespace may be hidden
        attachment.check(expected, -1, call.roots)
        return Reply()
    fd = netns.open_netns(asked.netns, call.context.netns_fd)
    try:
        attachment.check(expected, fd, call.roots)
    finally:
        descriptors.close(fd)
    return Reply()


def _of_sriov_cni(call: Call) -> Attachment | None:
    """Return the attachment that the SR-IOV CNI made, None if there is none."""
    from sriov_fast.vf import sriov_cni_record  # late: an attachment of ours has a record

    record = sriov_cni_record.find(call.request.container_id, call.request.ifname, call.roots)
    return record.replace(netns=record.netns or call.request.netns) if record else None


def _expected(call: Call, record: Attachment) -> Attachment:
    """Return the record with the values of ``prevResult``, the result of the whole chain's ADD.

    A later plugin may have changed the device's MAC or MTU and removed addresses and routes. Values that are
    not in ``prevResult``, such as the MTU before CNI 1.1.0, are not compared.
    """
    previous = call.conf.prev_result
    if previous is None or not previous.interfaces:
        return record
    for number, item in enumerate(previous.interfaces):
        if item.name == record.ifname and item.sandbox in (record.netns, call.request.netns):
            return record.replace(
                mac=item.mac or record.mac,
                mtu=_expected_mtu(record, item.mtu),
                addresses=_expected_addresses(record, previous, number),
                routes=_expected_routes(record, previous),
            )
    raise CheckError(
        f"prevResult: no interface {record.ifname!r} in {record.netns}",
        "the runtime's memory and ours differ; delete the pod and start it anew",
    )


def _expected_mtu(record: Attachment, listed: int) -> int:
    """Return the expected MTU, 0 for any.

    The tuning plugin changes the MTU of the device but not that of the result. So the MTU of our own result
    is compared only if the configuration asked for it.
    """
    ours = record.mtu or record.before_mtu
    return listed if listed != ours else record.mtu


def _expected_addresses(record: Attachment, previous: Result, number: int) -> tuple[str, ...]:
    """Return the addresses of the interface; one without an interface counts if it is in the record."""
    return tuple(
        item.address
        for item in previous.ips
        if item.interface == number or (item.interface is None and item.address in record.addresses)
    )


def _expected_routes(record: Attachment, previous: Result) -> tuple[dict[str, Any], ...]:
    """Return the routes of the record that ``prevResult`` has, with the gateways of ``prevResult``."""
    found = []
    for route in previous.routes:
        ours = [own for own in record.routes if own["dst"] == route.dst]
        same = [own for own in ours if route.gw in ("", own["gw"])]
        if ours and not same:
            same = [Route(dst=route.dst, gw=route.gw).as_dict()]
        found += same
    return tuple(found)
