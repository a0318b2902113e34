"""Sysctls and flags of the pod's interface.

The kernel gives a device the defaults of its namespace on every move, and a macvlan ends with its pod, so
sysctls need no restoring. ``device`` restores the flags.
"""

from __future__ import annotations

import errno
from contextlib import suppress

from sriov_fast.common.errors import ConfigError, FileError, is_absent, is_there
from sriov_fast.kernel.backend import nl
from sriov_fast.vf import attach, rtnl
from sriov_fast.vf.journal import MACVLAN

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from sriov_fast.common.record import Link
    from sriov_fast.vf.journal import Attachment

IFNAME = "IFNAME"  # the place of the interface's name in a sysctl, as in the plugin "tuning"
IFF_PROMISC, IFF_ALLMULTI, IFF_MULTICAST = 0x100, 0x200, 0x1000  # linux/if.h
# The kernel announces the addresses when the device comes up again or gets another MAC, and uses a new
# link-local address at once. The SR-IOV CNI of Kubernetes sets the same.
_ALWAYS = (
    "net/ipv4/conf/IFNAME/arp_notify",
    "net/ipv6/conf/IFNAME/ndisc_notify",
    "net/ipv6/conf/IFNAME/optimistic_dad",
)
_FOR_IPV6 = ("net/ipv6/conf/IFNAME/keep_addr_on_down",)


def require_known(sysctls: Iterable[str], proc: str) -> None:
    """Raise ConfigError (7) for a sysctl that the kernel does not have."""
    for key in sysctls:
        if not is_there(_path(key, "lo", proc)):  # the device that every namespace has
            raise ConfigError(f"sysctl: the kernel has no {key}", "see sysctl -a for the names")


def _path(key: str, ifname: str, proc: str) -> str:
    return f"{proc}/sys/{key.replace(IFNAME, ifname)}"


def set_sysctls(netns_fd: int, record: Attachment, proc: str, *, ipv6: bool) -> None:
    """Set the sysctls of the pod's interface; with ``ipv6`` also those that IPv6 addresses need.

    Many runtimes disable IPv6 in new namespaces. Only a refusal of a requested sysctl is an error: the kernel
    may have no IPv6, and /proc/sys may be read-only.
    """
    with suppress(OSError):
        if ipv6:
            rtnl.require_disable_ipv6(netns_fd, record.ifname, "0", proc)
    for key in _ALWAYS + _FOR_IPV6 if ipv6 else _ALWAYS:
        with suppress(OSError):
            nl.netns_write(netns_fd, _path(key, record.ifname, proc), "1")
    for key, value in record.sysctl.items():
        _set(netns_fd, record, _path(key, record.ifname, proc), value)


def _set(netns_fd: int, record: Attachment, path: str, value: str) -> None:
    try:
        nl.netns_write(netns_fd, path, value)
    except OSError as error:
        is_wrong = error.errno in (errno.EINVAL, errno.ERANGE)
        kind = ConfigError if is_wrong else FileError
        raise kind(
            f"sysctl {path} = {value!r}: {error.strerror}",
            "give a value that the kernel takes" if is_wrong else "see whether /proc/sys can be written to",
            errno=error.errno or 0,
            interface=record.ifname,
            vf=record.vf,
        ) from error


def flags(record: Attachment) -> int | None:
    """Return the flags for the pod's device, None if none was asked for."""
    if record.promisc is None and record.allmulti is None:
        return None
    now = (
        IFF_MULTICAST if record.attach == MACVLAN else (record.before_settings.flags or 0) & ~attach.IFF_NOARP
    )
    for bit, value in _flags_of(record):
        if value is not None:
            now = now | bit if value else now & ~bit
    return now


def _flags_of(record: Attachment) -> tuple[tuple[int, bool | None], ...]:
    return (IFF_PROMISC, record.promisc), (IFF_ALLMULTI, record.allmulti)


def faults(netns_fd: int, record: Attachment, link: Link, proc: str) -> list[str]:
    """Return the differences of the pod's device from the requested flags and sysctls."""
    names = ("promisc", "allmulti")
    found = [
        f"{name} is not {'on' if value else 'off'}"
        for name, (bit, value) in zip(names, _flags_of(record), strict=True)
        if value is not None and value != bool((link.settings.flags or 0) & bit)
    ]
    for key, value in record.sysctl.items():
        now = _read(netns_fd, record, _path(key, record.ifname, proc))
        if now.split() != value.split():
            found.append(f"sysctl {key} is {now or 'gone'}, not {value}")
    return found


def _read(netns_fd: int, record: Attachment, path: str) -> str:
    """Return the value of a sysctl of the pod's interface, "" if the kernel has none."""
    try:
        return nl.netns_read(netns_fd, path)
    except OSError as error:
        if is_absent(error):
            return ""
        raise FileError(
            f"sysctl {path} cannot be read: {error.strerror}",
            "try again",
            errno=error.errno or 0,
            interface=record.ifname,
        ) from error
