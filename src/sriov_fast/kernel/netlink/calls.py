"""System calls in another network namespace, ethtool's ioctl and bpf(2)."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import struct
import sys
import time
from array import array

from sriov_fast.kernel.netlink import constants as c
from sriov_fast.kernel.netlink.arguments import number

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

_RETURN_TRIES, _RETURN_PAUSE = 1000, 0.001  # seconds

if sys.version_info >= (3, 12):

    def _setns(fd: int) -> None:
        os.setns(fd, os.CLONE_NEWNET)

else:

    def _setns(fd: int) -> None:
        import ctypes

        libc = ctypes.CDLL(None, use_errno=True)
        if libc.setns(fd, c.CLONE_NEWNET) != 0:
            raise _os_error(ctypes.get_errno())


def _os_error(error: int) -> OSError:
    return OSError(error, os.strerror(error))


@contextlib.contextmanager
def inside(netns_fd: int) -> Iterator[None]:
    """Have the calling thread in a namespace (-1: its own) for a ``with`` block."""
    if netns_fd == -1:
        yield
        return
    number(netns_fd, "netns_fd", 0, c.INT_MAX)
    own = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        _setns(netns_fd)
        try:
            yield
        finally:
            _return_to(own)
    finally:
        os.close(own)


def _return_to(own: int) -> None:
    """Return the calling thread to its namespace, or end the process: it would configure the wrong one.

    setns(2) fails while the kernel has no memory, so it is repeated for a second.
    """
    for _ in range(_RETURN_TRIES):
        try:
            return _setns(own)
        except OSError:
            time.sleep(_RETURN_PAUSE)
    os.write(2, b"sriov-fast: cannot return from a network namespace, giving up\n")
    os.abort()


def raw_socket(netns_fd: int, family: int, kind: int, protocol: int) -> int:
    """Open ``socket(family, kind | SOCK_CLOEXEC, protocol)`` in a namespace (-1: this one)."""
    with inside(netns_fd):
        return socket.socket(family, kind, protocol).detach()


def _require_sysctl(path: str) -> None:
    if "/sys/net/" not in path or "/../" in path or "\0" in path:
        raise ValueError(f"path {path!r}: not below /proc/sys/net")


def netns_read(netns_fd: int, path: str) -> str:
    """Read a file below /proc/sys/net of a namespace (-1: this one): ``sysctl -n $path`` in there."""
    _require_sysctl(path)
    with inside(netns_fd):
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, 4096).decode("ascii", "replace").strip()
    except OSError as error:
        error.filename = path
        raise
    finally:
        os.close(fd)


def netns_write(netns_fd: int, path: str, text: str) -> None:
    """Write a file below /proc/sys/net of a namespace (-1: this one): ``sysctl -w $path=$text`` in there."""
    _require_sysctl(path)
    with inside(netns_fd):
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        if os.write(fd, text.encode()) != len(text.encode()):
            raise _os_error(errno.EIO)
    except OSError as error:
        error.filename = path
        raise
    finally:
        os.close(fd)


def sysfs_mount(netns_fd: int) -> int:
    """Return a descriptor of a new sysfs of a namespace (-1: this one), which is mounted nowhere."""
    with inside(netns_fd):
        context = _call(c.SYS_FSOPEN, b"sysfs", c.FSOPEN_CLOEXEC)
    try:
        _call(c.SYS_FSCONFIG, context, c.FSCONFIG_CMD_CREATE, None, None, 0)
        return _call(c.SYS_FSMOUNT, context, c.FSMOUNT_CLOEXEC, 0)
    finally:
        os.close(context)


def _call(number: int, *arguments: object) -> int:
    import ctypes

    done: int = ctypes.CDLL(None, use_errno=True).syscall(ctypes.c_long(number), *arguments)
    if done < 0:
        raise _os_error(ctypes.get_errno())
    return done


def ethtool(socket_fd: int, index: int, request: bytes) -> bytes:
    """Do one ``ioctl(SIOCETHTOOL)`` for a device in a socket's namespace; return the struct it leaves."""
    if len(request) < 4:
        raise ValueError(f"ethtool request of {len(request)} bytes: has no command")
    number(index, "index", 1, c.INT_MAX)
    answer = array("B", request)
    try:
        _ethtool_once(socket_fd, index, answer)
    except OSError as error:
        if error.errno != errno.ENODEV:
            raise
        _ethtool_once(socket_fd, index, answer)  # a rename in between
    return answer.tobytes()


def _ethtool_once(socket_fd: int, index: int, data: array[int]) -> None:
    # SIOCETHTOOL takes a name, so the device's current name is read just before.
    named: bytes = fcntl.ioctl(socket_fd, c.SIOCGIFNAME, struct.pack("@16xi20x", index))
    fcntl.ioctl(socket_fd, c.SIOCETHTOOL, struct.pack("@16sP16x", named[:16], data.buffer_info()[0]))


def bpf(command: int, attributes: bytearray, buffers: dict[int, bytearray] | None = None) -> int:
    """Do one ``bpf(command)`` (bpf(2)), in the namespace of the thread; return its result."""
    import ctypes

    held = []
    for at, buffer in (buffers or {}).items():
        if not 0 <= at <= len(attributes) - 8:
            raise ValueError(f"offset {at!r}: outside of {len(attributes)} bytes")
        held.append((ctypes.c_char * len(buffer)).from_buffer(buffer))
        attributes[at : at + 8] = ctypes.addressof(held[-1]).to_bytes(8, sys.byteorder)
    call = c.SYS_BPF.get(os.uname().machine)
    if call is None:
        raise _os_error(errno.ENOSYS)
    libc = ctypes.CDLL(None, use_errno=True)
    whole = (ctypes.c_char * len(attributes)).from_buffer(attributes)
    done: int = libc.syscall(ctypes.c_long(call), command, whole, ctypes.c_size_t(len(attributes)))
    if done < 0:
        raise _os_error(ctypes.get_errno())
    return done
