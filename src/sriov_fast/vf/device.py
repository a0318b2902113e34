"""The state of a VF's network device that a pod can change, except name, MAC, MTU and up.

The journal's record has the original state. ``restore`` compares, and sets only the differences. README.md
lists the state that the kernel resets on a move, and the state that cannot be restored.
"""

from __future__ import annotations

import errno
import sys

from sriov_fast.common.errors import EXHAUSTED, NetlinkError
from sriov_fast.common.record import LinkSettings
from sriov_fast.kernel.backend import nl
from sriov_fast.vf import candidate, programs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    from sriov_fast.common.log import Logger
    from sriov_fast.common.record import Link
    from sriov_fast.vf.journal import Attachment

XDP_MODES = ("generic", "driver", "offload")  # the order of Link.xdp

# linux/ethtool.h: the commands that read and write one struct, and its size. The order is that of restoring:
# private flags may limit all others, channels the rings.
_STRUCTS = {
    "private flags": (0x27, 0x28, 8),  # ETHTOOL_GPFLAGS, ETHTOOL_SPFLAGS, struct ethtool_value
    "channels": (0x3C, 0x3D, 36),  # ETHTOOL_GCHANNELS, ETHTOOL_SCHANNELS, struct ethtool_channels
    "rings": (0x10, 0x11, 36),  # ETHTOOL_GRINGPARAM, ETHTOOL_SRINGPARAM, struct ethtool_ringparam
    "coalescing": (0x0E, 0x0F, 92),  # ETHTOOL_GCOALESCE, ETHTOOL_SCOALESCE, struct ethtool_coalesce
    "message level": (0x07, 0x08, 8),  # ETHTOOL_GMSGLVL, ETHTOOL_SMSGLVL, struct ethtool_value
}
# struct ethtool_gfeatures: blocks of 32 features, each (available, requested, active, never changed).
_FEATURES = "features"
_GFEATURES, _SFEATURES = 0x3A, 0x3B
_BLOCKS = 4  # Linux 6 has two


# --- reading


def ethtool_state(socket_fd: int, index: int) -> dict[str, str]:
    """Return features and the other ethtool settings of a device: {kind: hexadecimal digits}.

    Kinds that the driver does not support are left out. Raises NetlinkError (ENODEV) without a device.
    """
    answers = {kind: _read(socket_fd, index, kind) for kind in (*_STRUCTS, _FEATURES)}
    return {kind: value for kind, value in answers.items() if value}


def _read(socket_fd: int, index: int, kind: str) -> str:
    """Return the settings of one kind, "" if the driver does not support or report it."""
    if kind == _FEATURES:
        request = _u32(_GFEATURES, _BLOCKS).ljust(8 + 16 * _BLOCKS, b"\0")
    else:
        command, _, size = _STRUCTS[kind]
        request = command.to_bytes(4, sys.byteorder) + bytes(size - 4)
    try:
        answer = nl.ethtool(socket_fd, index, request)
    except OSError as error:
        if error.errno == errno.ENODEV or error.errno in EXHAUSTED:
            raise NetlinkError(error.errno, "", 0, f"read {kind} of ifindex {index}") from error
        return ""
    return (_requested(answer) if kind == _FEATURES else answer[4:]).hex()


def _requested(answer: bytes) -> bytes:
    """Return the features that are requested, of a struct ethtool_gfeatures."""
    numbers = memoryview(answer).cast("I")
    return _u32(*numbers[3 : 2 + 4 * min(numbers[1], _BLOCKS) : 4])


def _u32(*numbers: int) -> bytes:
    """Return numbers as the kernel's __u32."""
    return b"".join(number.to_bytes(4, sys.byteorder) for number in numbers)


# --- restoring


def strip(batch: nl.Batch, record: Attachment, link: Link) -> None:
    """Append messages that take the pod's XDP programs and alternative names from the device.

    Send them before the move: a program may forbid the old MTU, and a name that exists in the host forbids
    the move.
    """
    for mode in _foreign_programs(record, link):
        batch.drop_xdp(link.index, mode)
    added = _missing(link.altnames, record.before_altnames)
    if added:
        batch.del_altname(link.index, *added)


def restore(host: nl.Socket, record: Attachment, link: Link, log: Logger) -> None:
    """Restore the differences from the record, on a device that is in the host and down.

    A refusal of the driver is logged. Raises NetlinkError if the device is gone.
    """
    differed = _restore_link(host, record, link)
    differed |= programs.restore_tcx(link.index, record.before_tcx)
    differed |= _restore_ethtool(host.fileno(), record, link.index)
    if differed:
        _report(host, record, link.index, log)


def _restore_link(host: nl.Socket, record: Attachment, link: Link) -> bool:
    """Restore programs, names and settings in one send; return whether anything differed."""
    batch = nl.Batch()
    strip(batch, record, link)
    lost = _missing(record.before_altnames or (), link.altnames)
    if lost:
        batch.add_altname(link.index, *lost)
    changed = _differing(record.before_settings, link.settings)
    if changed:
        batch.set_link(link.index, settings=LinkSettings(**changed))
    if not len(batch):
        return False
    answers = host.run(batch, check=False)
    if any(isinstance(answer, NetlinkError) and answer.errno == errno.EBUSY for answer in answers):
        programs.detach_xdp_links(link.index)
    if changed and isinstance(answers[-1], NetlinkError):
        _set_one_by_one(host, link.index, changed)
    return True


def _set_one_by_one(host: nl.Socket, index: int, changed: dict[str, Any]) -> None:
    """Set each setting in a message of its own: the kernel stops at the first that it refuses."""
    batch = nl.Batch()
    for key, value in changed.items():
        batch.set_link(index, settings=LinkSettings(**{key: value}))
    host.run(batch, check=False)


def _foreign_programs(record: Attachment, link: Link) -> list[int]:
    """Return the modes in which the device has an XDP program that it did not have."""
    pairs = zip(record.before_xdp, link.xdp, strict=False)  # empty in the record of an older version
    return [mode for mode, (before, now) in enumerate(pairs) if now not in (0, before)]


def _missing(names: Iterable[str], known: Iterable[str] | None) -> list[str]:
    return [] if known is None else [name for name in names if name not in known]


def _differing(before: LinkSettings, now: LinkSettings) -> dict[str, Any]:
    """Return the old values of the changed settings, and of those that the kernel sets with them."""
    if before == now:
        return {}
    known = before.known()
    changed = {key: value for key, value in known.items() if value != getattr(now, key)}
    for size, ipv4 in (("gso_max_size", "gso_ipv4_max_size"), ("gro_max_size", "gro_ipv4_max_size")):
        if size in changed and ipv4 in known:  # netif_set_gso_max_size() sets both
            changed[ipv4] = known[ipv4]
    return changed


def _restore_ethtool(socket_fd: int, record: Attachment, index: int) -> bool:
    """Restore each kind that differs; return whether any did."""
    differed = False
    for kind in (*_STRUCTS, _FEATURES):
        before = record.before_ethtool.get(kind, "")
        now = _read(socket_fd, index, kind) if before else ""
        if now not in ("", before):
            differed = True
            _write(socket_fd, index, kind, bytes.fromhex(now), bytes.fromhex(before))
    return differed


def _write(socket_fd: int, index: int, kind: str, now: bytes, before: bytes) -> None:
    is_struct = kind in _STRUCTS
    request = _u32(_STRUCTS[kind][1]) + before if is_struct else _feature_request(now, before)
    try:
        nl.ethtool(socket_fd, index, request)
    except OSError:
        pass  # ``_report`` reads the result


def _feature_request(now: bytes, before: bytes) -> bytes:
    """Return the struct ethtool_sfeatures that asks for the old features: blocks of (valid, requested)."""
    pairs = zip(memoryview(now).cast("I"), memoryview(before).cast("I"), strict=True)
    blocks = [_u32(is_now ^ was, was) for is_now, was in pairs]
    return _u32(_SFEATURES, len(blocks)) + b"".join(blocks)


# --- the result


def _report(host: nl.Socket, record: Attachment, index: int, log: Logger) -> None:
    """Log each remaining difference from the record."""
    link = candidate.at(host, index)
    name = link.name
    for key, value in _differing(record.before_settings, link.settings).items():
        _warn(log, name, key, value, getattr(link.settings, key))
    if record.before_altnames is not None and set(record.before_altnames) != set(link.altnames):
        _warn(log, name, "alternative names", record.before_altnames, link.altnames)
    for mode, before, now in zip(XDP_MODES, record.before_xdp, link.xdp, strict=False):
        if before != now:
            _warn(log, name, f"XDP program ({mode})", before, now)
    tcx = programs.tcx(link.index) if record.before_tcx else ()
    if tcx != record.before_tcx:
        _warn(log, name, "tcx programs", record.before_tcx, tcx)
    for kind, digits in record.before_ethtool.items():
        now_digits = _read(host.fileno(), link.index, kind)
        if now_digits != digits:
            _warn(log, name, kind, digits, now_digits)


def _warn(log: Logger, name: str, what: str, before: object, now: object) -> None:
    log.warning("the VF's device differs from before", interface=name, what=what, before=before, now=now)
