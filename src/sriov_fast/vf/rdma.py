"""The RDMA device of a VF, with the key ``rdma``: it follows the VF into the pod and back.

Only in the RDMA subsystem's exclusive mode does a device belong to a network namespace (rdma-system(8)); in
shared mode every namespace sees it. A device keeps its index on every move. The kernel returns the devices of
a deleted namespace to the initial one. Messages are those of include/uapi/rdma/rdma_netlink.h.
"""

from __future__ import annotations

import errno
import os
import sys

from sriov_fast.common import descriptors
from sriov_fast.common.errors import ConfigError, KernelError, NoNamespaceError, is_absent, is_there
from sriov_fast.common.record import Record
from sriov_fast.kernel.backend import nl
from sriov_fast.kernel.netlink import constants as c
from sriov_fast.kernel.netlink.attributes import aligned, packed, payloads
from sriov_fast.vf import find, netns

TYPE_CHECKING = False
if TYPE_CHECKING:
    from sriov_fast.common.log import Logger
    from sriov_fast.common.paths import Roots
    from sriov_fast.vf.find import PodNetns
    from sriov_fast.vf.journal import Attachment

AF_NETLINK, SOCK_RAW, NETLINK_RDMA = 16, 3, 20  # linux/socket.h, linux/net.h, linux/netlink.h
_NLDEV = 5 << 10  # RDMA_NL_GET_TYPE(RDMA_NL_NLDEV, 0)
CMD_GET, CMD_SET, CMD_SYS_GET = _NLDEV + 1, _NLDEV + 2, _NLDEV + 6  # RDMA_NLDEV_CMD_*
DEV_INDEX, DEV_NAME, NETNS_MODE, NET_NS_FD = 1, 2, 66, 68  # RDMA_NLDEV_ATTR_*, _SYS_ATTR_*, _NET_NS_FD
_SIZE = 1 << 16  # bytes of an answer


class RdmaDevice(Record):
    """An RDMA device."""

    index: int
    name: str


# --- the actions of the verbs


def observe(record: Attachment, roots: Roots, log: Logger) -> Attachment:
    """Return the record with the VF's RDMA device, the same record in shared mode.

    Raises ConfigError without such a device.
    """
    name = _name_of(record.pci, roots)
    if is_shared():
        log.info("the RDMA subsystem is in shared mode: every namespace sees the device", device=name)
        return record
    found = next((device for device in devices() if device.name == name), None)
    if found is None:
        raise ConfigError(f"rdma: the device {name} of {record.label} is in another namespace", "return it")
    return record.replace(rdma=found.name, rdma_index=found.index)


def enter(record: Attachment, netns_fd: int) -> None:
    """Move the RDMA device into the pod. Raises KernelError if its driver cannot do that."""
    try:
        _move(record.rdma_index, -1, netns_fd)
    except OSError as error:
        raise KernelError(
            f"rdma: {record.rdma} of {record.label} cannot be moved to {record.netns}: {error.strerror}",
            "its driver must support namespaces (rdma system); leave rdma out otherwise",
            errno=error.errno or 0,
            interface=record.host_name,
            vf=record.vf,
        ) from error


def bring_home(record: Attachment, pod_netns: PodNetns, roots: Roots, log: Logger) -> None:
    """Return the RDMA device to the host under its old name; a missing one is logged.

    Raises HiddenError if the device is in a namespace that is not found.
    """
    device = _returned(record, pod_netns, roots)
    if device is None:
        log.warning("the RDMA device does not exist any more", device=record.rdma, pci=record.pci)
    elif device.name != record.rdma:
        log.info("the pod renamed its RDMA device", device=device.name, before=record.rdma)
        _rename(record, device.name, log)


def _rename(record: Attachment, name: str, log: Logger) -> None:
    """Give a device in the host its old name. If another device got that meanwhile, log an error."""
    try:
        _set(record.rdma_index, -1, DEV_NAME, os.fsencode(record.rdma) + b"\0")
    except OSError as error:
        if error.errno != errno.EEXIST:
            raise
        log.error("another device has the old name of the RDMA device", device=name, before=record.rdma)


def faults(record: Attachment, netns_fd: int) -> list[str]:
    """Return the fault of an RDMA device that is not in the pod."""
    if any(device.index == record.rdma_index for device in devices(netns_fd)):
        return []
    return [f"the RDMA device {record.rdma} is not in the namespace"]


def _name_of(pci: str, roots: Roots) -> str:
    """Return the name of the one RDMA device of a PCI device. Raises ConfigError."""
    try:
        names = sorted(os.listdir(f"{roots.device(pci)}/infiniband"))
    except OSError as error:
        if not is_absent(error):
            raise
        names = []
    if len(names) == 1:
        return names[0]
    which = f"has {', '.join(names)}" if names else "has no RDMA device here"
    raise ConfigError(f"rdma: {pci} {which}", "load its RDMA driver, or leave rdma out")


def _returned(record: Attachment, pod_netns: PodNetns, roots: Roots) -> RdmaDevice | None:
    """Return the device when it is in the host, None if it does not exist.

    The directory ``infiniband`` exists as long as the PCI device has an RDMA device in any namespace. The
    kernel returns the device a little after the end of its namespace.
    """
    for _ in find.looks(record):
        if not is_there(f"{roots.device(record.pci)}/infiniband"):
            return None
        device = _in_host(record) or _moved_home(record, pod_netns)
        if device:
            return device
    raise find.hidden(record, f"its RDMA device {record.rdma}")


def _in_host(record: Attachment) -> RdmaDevice | None:
    return next((device for device in devices() if device.index == record.rdma_index), None)


def _moved_home(record: Attachment, pod_netns: PodNetns) -> RdmaDevice | None:
    """Move the device from the pod to the host, and return it; None if the pod does not have it."""
    try:
        pod = netns.open_netns(record.netns, pod_netns.fd_of(record.netns))
    except NoNamespaceError:
        return None
    try:
        if not faults(record, pod):
            host = netns.own(pod_netns.host_fd)
            try:
                _move(record.rdma_index, pod, host)
            finally:
                descriptors.close(host)
        return _in_host(record)
    finally:
        descriptors.close(pod)


# --- the messages


def is_shared() -> bool:
    """Return whether every network namespace sees every RDMA device: ``rdma system show``."""
    (answer,) = exchange(-1, CMD_SYS_GET, c.NLM_F_ACK)
    return answer.get(NETNS_MODE, b"\1")[0] != 0


def devices(netns_fd: int = -1) -> list[RdmaDevice]:
    """Return the RDMA devices of a namespace: ``rdma dev show``."""
    return [
        RdmaDevice(
            index=int.from_bytes(found[DEV_INDEX], sys.byteorder),
            name=os.fsdecode(found[DEV_NAME].rstrip(b"\0")),
        )
        for found in exchange(netns_fd, CMD_GET, c.NLM_F_DUMP)
    ]


def _move(index: int, netns_fd: int, target_fd: int) -> None:
    """Move a device from one namespace to another: ``rdma dev set $dev netns $name``."""
    _set(index, netns_fd, NET_NS_FD, target_fd.to_bytes(4, sys.byteorder))


def _set(index: int, netns_fd: int, attribute: int, value: bytes) -> None:
    exchange(netns_fd, CMD_SET, c.NLM_F_ACK, {DEV_INDEX: index.to_bytes(4, sys.byteorder), attribute: value})


def exchange(
    netns_fd: int, command: int, flags: int, attributes: dict[int, bytes] | None = None
) -> list[dict[int, bytes]]:
    """Send one message to the RDMA subsystem; return the attributes of each answer. Raises OSError."""
    try:
        fd = nl.raw_socket(netns_fd, AF_NETLINK, SOCK_RAW, NETLINK_RDMA)
    except OSError as error:
        if error.errno != errno.EPROTONOSUPPORT:
            raise
        raise ConfigError("rdma: the kernel has no RDMA subsystem", "load the module ib_core") from error
    try:
        os.write(fd, request(command, flags, attributes or {}))
        answers: list[dict[int, bytes]] = []
        while not decode(os.read(fd, _SIZE), answers):
            pass
        return answers
    finally:
        descriptors.close(fd)


def request(command: int, flags: int, attributes: dict[int, bytes]) -> bytes:
    """Return a message: struct nlmsghdr, then the attributes."""
    body = b"".join(packed(kind, value) for kind, value in attributes.items())
    return c.HEADER.pack(c.HEADER.size + len(body), command, flags | c.NLM_F_REQUEST, 0, 0) + body


def decode(datagram: bytes, answers: list[dict[int, bytes]]) -> bool:
    """Append the attributes of each answer; return whether it was the last. Raises OSError for a refusal."""
    while datagram:
        length, kind, *_ = c.HEADER.unpack_from(datagram)
        if kind in (c.NLMSG_ERROR, c.NLMSG_DONE):
            refusal = -int.from_bytes(datagram[16:20], sys.byteorder, signed=True)
            if refusal:
                raise OSError(refusal, os.strerror(refusal))
            return True
        answers.append(dict(payloads(datagram[:length], c.HEADER.size)))
        datagram = datagram[aligned(length) :]
    return False
