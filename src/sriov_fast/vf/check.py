"""CHECK: compares the present state with the attachment."""

from __future__ import annotations

from sriov_fast.common.errors import CheckError
from sriov_fast.common.record import Route
from sriov_fast.kernel.backend import nl
from sriov_fast.vf import attach, candidate, find, irq, modes, tuning
from sriov_fast.vf.journal import MACVLAN, USERSPACE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from sriov_fast.common.paths import Roots
    from sriov_fast.common.record import Link
    from sriov_fast.vf.journal import Attachment


def check(record: Attachment, netns_fd: int, roots: Roots) -> None:
    """Raise CheckError (103) that lists every difference from ``record``.

    ``record`` is the journal's, or the journal's with the values of ``prevResult``. ``netns_fd`` is of the
    pod's namespace, and not used for a VF with a userspace driver.
    """
    faults = [] if record.attach == USERSPACE else _pod_faults(record, netns_fd, roots)
    with nl.Socket() as host:
        faults += _pf_faults(host, record)
    faults += modes.of(record).faults(record, roots)
    for number, mask in irq.differing(record.pinned, roots).items():
        shown = mask or "none: it is gone"
        faults.append(f"interrupt {number} has mask {shown}, not {record.pinned[number]}")
    if faults:
        raise _fault(record, "; ".join(faults))


def _pod_faults(record: Attachment, netns_fd: int, roots: Roots) -> list[str]:
    with nl.Socket(netns_fd) as pod:
        link = _device(pod, record)
        faults = [*_device_faults(link, record), *_address_faults(pod, link, record)]
    if record.queues:
        from sriov_fast.vf import queues  # late: few configurations have these keys

        faults += queues.faults(record, netns_fd)
    if record.rdma:
        from sriov_fast.vf import rdma

        faults += rdma.faults(record, netns_fd)
    return faults + tuning.faults(netns_fd, record, link, roots.proc)


def _fault(record: Attachment, what: str) -> CheckError:
    return CheckError(
        f"{record.ifname} of container {record.container_id}: {what}",
        "it is not as prevResult and the ADD's record say; delete the pod and start it anew",
        interface=record.ifname,
        vf=record.vf,
    )


def _device(pod: nl.Socket, record: Attachment) -> Link:
    link = candidate.named(pod, record.ifname)
    if link is None:
        raise _fault(record, "not in the namespace")
    if not find.is_ours(link, record) and not find.is_unknown(link, record):
        raise _fault(record, f"is another device ({link.parent or link.index}), not {_expected(record)}")
    return link


def _expected(record: Attachment) -> str:
    return f"{'a macvlan over ' if record.attach == MACVLAN else ''}VF {record.pci}"


def _device_faults(link: Link, record: Attachment) -> list[str]:
    faults = []
    if not link.up:
        faults.append("is down")
    if link.mac != record.mac:
        faults.append(f"mac is {link.mac}, not {record.mac}")
    if record.mtu and link.mtu != record.mtu:
        faults.append(f"mtu is {link.mtu}, not {record.mtu}")
    return faults


def _address_faults(pod: nl.Socket, link: Link, record: Attachment) -> list[str]:
    addresses = pod.addresses(link.index) if record.addresses else []
    faults = [f"address {cidr} is missing" for cidr in record.addresses if cidr not in addresses]
    routes = pod.routes(link.index) if record.routes else []
    for plain in record.routes:
        wanted = Route(**plain)
        if not any(_matches(wanted, route) for route in routes):
            faults.append(f"route {wanted.dst} {'via ' + wanted.gw if wanted.gw else 'on link'} is missing")
    return faults


def _matches(wanted: Route, found: Route) -> bool:
    """Say whether a route is there with every attribute that was given; the kernel fills in the others.

    One without a table may be in any: a later plugin, such as sbr or vrf, moves it out of the main one.
    """
    same = found.dst == wanted.dst and found.gw == wanted.gw
    pairs = ((getattr(wanted, key), getattr(found, key)) for key in ("mtu", "advmss", "priority", "table"))
    return same and all(not asked or asked == there for asked, there in pairs)


def _pf_faults(host: nl.Socket, record: Attachment) -> list[str]:
    asked = record.asked.known()
    if not asked:
        return []
    on_pf = attach.on_pf(host, record)
    if on_pf is None:
        return [f"{record.pf} shows no VF {record.vf}"]
    now = on_pf.as_dict()
    return [
        f"{record.pf} holds {key} {now[key]} for VF {record.vf}, not {value}"
        for key, value in asked.items()
        if now[key] not in (None, value) and (key, now[key]) != ("mac", record.mac)
    ]
