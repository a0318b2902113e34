"""Opening network namespaces by path."""

from __future__ import annotations

import fcntl
import os
import sys

from sriov_fast.errors import EnvError

_NS_GET_NSTYPE = 0xB703  # _IO(0xb7, 3), linux/nsfs.h
_CLONE_NEWNET = 0x40000000  # linux/sched.h
_SIOCGIFINDEX = 0x8933  # linux/sockios.h


def open_netns(path: str, given: int = -1) -> int:
    """Return a descriptor of the network namespace at ``path``; EnvError (4) where there is none.

    ``given`` is a descriptor of that file, where who asks us has opened it: we may not see what he sees.
    """
    try:
        # O_NONBLOCK: a FIFO in its place must not hold us up
        fd = os.dup(given) if given >= 0 else os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise _wrong(path, error.strerror or str(error), error.errno or 0) from error
    try:
        kind = fcntl.ioctl(fd, _NS_GET_NSTYPE)
    except OSError as error:
        os.close(fd)
        raise _wrong(path, "is no namespace", error.errno or 0) from error
    if kind != _CLONE_NEWNET:
        os.close(fd)
        raise _wrong(path, "is a namespace of another kind", 0)
    return fd


def _wrong(path: str, why: str, errno: int) -> EnvError:
    advice = "it must be a network namespace's file, such as /run/netns/NAME"
    return EnvError(f"CNI_NETNS {path!r}: {why}", advice, errno=errno)


def open_pod(path: str, given: int = -1, home: int = -1) -> int:
    """Return a descriptor of a pod's network namespace; EnvError (4) for the one that we are in ourselves.

    ``home`` here and below is a descriptor of that one, where somebody has it open.
    """
    fd = open_netns(path, given)
    if is_here(fd, home):
        os.close(fd)
        raise _wrong(path, "is the host's own namespace", 0)
    return fd


def own(home: int = -1) -> int:
    """Return a descriptor of the network namespace that we are in."""
    return os.dup(home) if home >= 0 else os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)


def is_here(fd: int, home: int = -1) -> bool:
    """Say whether a descriptor is of the network namespace that we are in."""
    here = os.fstat(home) if home >= 0 else os.stat("/proc/thread-self/ns/net")
    there = os.fstat(fd)
    return (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino)


def index_of(socket_fd: int, name: str) -> int:
    """Return the index of a device in a socket's namespace (netdevice(7)); OSError where there is none."""
    request = os.fsencode(name).ljust(40, b"\0")  # struct ifreq: the name has 16 bytes, the index follows
    try:
        answer: bytes = fcntl.ioctl(socket_fd, _SIOCGIFINDEX, request)
    except OSError as error:
        error.filename = name
        raise
    return int.from_bytes(answer[16:20], sys.byteorder)
