"""Network namespaces: open them by path, and compare them."""

from __future__ import annotations

import errno as errnos
import fcntl
import os
import sys

from sriov_fast.common import descriptors
from sriov_fast.common.errors import EnvError, FileError, NoNamespaceError, is_absent

_NS_GET_NSTYPE = 0xB703  # _IO(0xb7, 3), linux/nsfs.h
_CLONE_NEWNET = 0x40000000  # linux/sched.h
_SIOCGIFNAME, _SIOCGIFINDEX = 0x8910, 0x8933  # linux/sockios.h
# The errors of the ioctl on a file that is no namespace.
_OTHER_FILE = (errnos.ENOTTY, errnos.EINVAL)
_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK  # opening a FIFO must not wait
_ADVICE = "it must be a network namespace's file, such as /run/netns/NAME"


def open_netns(path: str, passed_fd: int = -1) -> int:
    """Return a descriptor of the network namespace at ``path``.

    Raises NoNamespaceError (4) if it certainly does not exist, FileError (5) if it cannot be opened for
    another reason. ``passed_fd`` is a descriptor of that file, -1 for none: the client may have opened it in
    another mount namespace.
    """
    try:
        fd = os.dup(passed_fd) if passed_fd >= 0 else os.open(path, _FLAGS)
    except OSError as error:
        raise _not_opened(path, error) from error
    try:
        _require_network(fd, path)
    except BaseException:
        descriptors.close(fd)
        raise
    return fd


def _require_network(fd: int, path: str) -> None:
    """Raise an error unless a descriptor is of a network namespace."""
    try:
        namespace_type = fcntl.ioctl(fd, _NS_GET_NSTYPE)
    except OSError as error:
        if error.errno in _OTHER_FILE:
            raise NoNamespaceError(
                f"CNI_NETNS {path!r}: is no namespace", _ADVICE, errno=error.errno or 0
            ) from error
        raise _not_opened(path, error) from error
    if namespace_type != _CLONE_NEWNET:
        raise NoNamespaceError(f"CNI_NETNS {path!r}: is a namespace of another kind", _ADVICE)


def _not_opened(path: str, error: OSError) -> NoNamespaceError | FileError:
    number, why = error.errno or 0, error.strerror or str(error)
    if is_absent(error):
        return NoNamespaceError(f"CNI_NETNS {path!r}: {why}", _ADVICE, errno=number)
    return FileError(f"CNI_NETNS {path!r} cannot be opened: {why}", "try again", errno=number)


def open_pod(path: str, passed_fd: int = -1, host_fd: int = -1) -> int:
    """Return a descriptor of a pod's network namespace. Raises EnvError (4) for the host's own.

    ``host_fd`` here and below is an open descriptor of the host namespace, -1 for none.
    """
    fd = open_netns(path, passed_fd)
    try:
        if is_here(fd, host_fd):
            raise EnvError(f"CNI_NETNS {path!r}: is the host's own namespace", _ADVICE)
    except BaseException:
        descriptors.close(fd)
        raise
    return fd


def own(host_fd: int = -1) -> int:
    """Return a descriptor of the network namespace of this thread."""
    return (
        os.dup(host_fd) if host_fd >= 0 else os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    )


def is_here(fd: int, host_fd: int = -1) -> bool:
    """Return whether a descriptor is of the network namespace of this thread."""
    here = os.fstat(host_fd) if host_fd >= 0 else os.stat("/proc/thread-self/ns/net")
    there = os.fstat(fd)
    return (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino)


def index_of(socket_fd: int, name: str) -> int:
    """Return the index of a device in a socket's namespace (netdevice(7)). Raises OSError without one."""
    request = os.fsencode(name).ljust(40, b"\0")  # struct ifreq: the name has 16 bytes, the index follows
    try:
        answer: bytes = fcntl.ioctl(socket_fd, _SIOCGIFINDEX, request)
    except OSError as error:
        error.filename = name
        raise
    return int.from_bytes(answer[16:20], sys.byteorder)


def has_index(socket_fd: int, index: int) -> bool:
    """Say whether a socket's namespace lists a device with an index. Does not wait for the kernel's RTNL."""
    request = bytes(16) + index.to_bytes(4, sys.byteorder) + bytes(20)  # struct ifreq, as above
    try:
        fcntl.ioctl(socket_fd, _SIOCGIFNAME, request)
    except OSError as error:
        if error.errno == errnos.ENODEV:
            return False
        raise
    return True
