"""Turns of the server's threads at RTNL, the kernel's lock of all network configuration.

A netlink request sleeps until RTNL is free. A write of the sysctl ``disable_ipv6`` is restarted again and
again until then (``addrconf_disable_ipv6`` in net/ipv6/addrconf.c), which takes a whole CPU. So one thread at
a time writes it, and not while another one of the server deletes a device: the kernel then keeps RTNL for
some milliseconds.
"""

from __future__ import annotations

import _thread

from sriov_fast.common.interpreter import INTERPRETER
from sriov_fast.kernel.backend import nl


class Turns:
    """A lock; a thread that waits for it lets others have the interpreter."""

    def __init__(self) -> None:
        self._lock = _thread.allocate_lock()

    def __enter__(self) -> None:
        if not self._lock.acquire(blocking=False):
            with INTERPRETER.released():
                self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()


TURNS = Turns()


def change_disable_ipv6(netns_fd: int, name: str, value: str, proc: str = "/proc") -> None:
    """Set the sysctl disable_ipv6 of a device in a namespace (-1: this one). Raises OSError."""
    with TURNS:
        nl.netns_write(netns_fd, _path(name, proc), value)


def require_disable_ipv6(netns_fd: int, name: str, value: str, proc: str = "/proc") -> None:
    """Set the sysctl unless it has the value already: reading it needs no RTNL. Raises OSError."""
    if nl.netns_read(netns_fd, _path(name, proc)) != value:
        change_disable_ipv6(netns_fd, name, value, proc)


def _path(name: str, proc: str) -> str:
    return f"{proc}/sys/net/ipv6/conf/{name}/disable_ipv6"
