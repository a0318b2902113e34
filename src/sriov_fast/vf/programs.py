"""The BPF programs on a network device that rtnetlink does not show or cannot detach.

These are the programs of tcx (Linux 6.6), which survive a move as XDP programs do, and the programs that a
bpf_link holds. bpf(2) acts in the namespace of the calling thread, so the device must be in the host. If the
kernel or a sandbox refuses a command, the device counts as one without such programs.
"""

from __future__ import annotations

import sys

from sriov_fast.common import descriptors
from sriov_fast.common.errors import EXHAUSTED, NetlinkError
from sriov_fast.kernel.backend import nl

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

# linux/bpf.h
_PROG_DETACH, _PROG_GET_FD_BY_ID, _OBJ_GET_INFO_BY_FD, _PROG_QUERY = 9, 13, 15, 16
_LINK_GET_FD_BY_ID, _LINK_GET_NEXT_ID, _LINK_DETACH = 30, 31, 34
_LINK_TYPE_XDP = 6
_HOOKS = (46, 47)  # BPF_TCX_INGRESS, BPF_TCX_EGRESS
_MOST = 64  # BPF_MPROG_MAX


def tcx(index: int) -> tuple[tuple[int, ...], ...]:
    """Return the IDs of the programs at ingress and of those at egress."""
    return tuple(tuple(_query(index, hook)) for hook in _HOOKS)


def restore_tcx(index: int, before: tuple[tuple[int, ...], ...]) -> bool:
    """Detach the programs that were not there before; return whether any differed."""
    differed = False
    for hook, known in zip(_HOOKS, before, strict=False):  # empty in the record of an older version
        now = _query(index, hook)
        differed |= tuple(now) != known
        for program in [program for program in now if program not in known]:
            _detach(index, hook, program, now[program])
    return differed


def detach_xdp_links(index: int) -> None:
    """Detach every bpf_link that holds an XDP program on a device."""
    for link in _links():
        fd = _descriptor(_LINK_GET_FD_BY_ID, link)
        if fd is None:
            continue
        try:
            link_type, _, _, _, device, *_ = _info(fd)
            if (link_type, device) == (_LINK_TYPE_XDP, index):
                nl.bpf(_LINK_DETACH, _u32(fd))
        except OSError:
            pass  # detached meanwhile, or refused: the device is read again afterwards
        finally:
            descriptors.close(fd)


def _query(index: int, hook: int) -> dict[int, int]:
    """Return the programs of a hook in their order: {ID: ID of the bpf_link that holds it, or 0}."""
    attributes = bytearray(64)
    fields = memoryview(attributes).cast("I")
    fields[0], fields[1] = index, hook
    programs, links = bytearray(4 * _MOST), bytearray(4 * _MOST)
    try:
        nl.bpf(_PROG_QUERY, attributes)  # without a buffer: the number of programs
        if not fields[6]:
            return {}
        fields[6] = _MOST
        nl.bpf(_PROG_QUERY, attributes, {16: programs, 40: links})
    except OSError as error:
        _raise_if_exhausted(error, f"query the programs of ifindex {index}")
        return {}
    return dict(zip(_numbers(programs)[: fields[6]], _numbers(links)[: fields[6]], strict=True))


def _detach(index: int, hook: int, program: int, link: int) -> None:
    """Detach a program of tcx; a bpf_link that holds it remains, without a device."""
    fd = _descriptor(_LINK_GET_FD_BY_ID, link) if link else _descriptor(_PROG_GET_FD_BY_ID, program)
    if fd is None:
        return
    try:
        if link:
            nl.bpf(_LINK_DETACH, _u32(fd))
        else:
            nl.bpf(_PROG_DETACH, _u32(index, fd, hook, *[0] * 5))
    except OSError:
        pass  # detached meanwhile, or refused: the device is read again afterwards
    finally:
        descriptors.close(fd)


def _descriptor(command: int, number: int) -> int | None:
    """Return a descriptor of the program or bpf_link with an ID, None if it does not exist any more."""
    try:
        return nl.bpf(command, _u32(number, 0, 0))
    except OSError as error:
        _raise_if_exhausted(error, f"open the program or bpf_link {number}")
        return None


def _raise_if_exhausted(error: OSError, operation: str) -> None:
    """Raise NetlinkError if memory or descriptors ran out: the programs are then unknown."""
    if error.errno in EXHAUSTED:
        raise NetlinkError(error.errno, "", 0, operation) from error


def _links() -> Iterator[int]:
    """Yield the IDs of all bpf_links."""
    last = 0
    while True:
        attributes = _u32(last, 0, 0)
        try:
            nl.bpf(_LINK_GET_NEXT_ID, attributes)
        except OSError:
            return
        last = _numbers(attributes)[1]
        yield last


def _info(fd: int) -> list[int]:
    """Return a struct bpf_link_info: type, ID, program, padding, and for XDP the device's index."""
    info = bytearray(64)
    nl.bpf(_OBJ_GET_INFO_BY_FD, _u32(fd, len(info), 0, 0), {8: info})
    return _numbers(info)


def _u32(*numbers: int) -> bytearray:
    return bytearray(b"".join(number.to_bytes(4, sys.byteorder) for number in numbers))


def _numbers(data: bytearray) -> list[int]:
    return memoryview(data).cast("I").tolist()
