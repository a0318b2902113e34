"""The server's listening socket: made by the server, or passed by systemd (sd_listen_fds(3))."""

from __future__ import annotations

import fcntl
import os
import socket
import struct

from sriov_fast.common import descriptors
from sriov_fast.common.errors import BusyError, FileError

NAME = "sriov.sock"
_BACKLOG = 1024
_FIRST_FD = 3  # SD_LISTEN_FDS_START
_NETLINK_SOCK_DIAG = 4  # linux/netlink.h
# struct nlmsghdr, then struct unix_diag_req of one inode with any cookie (linux/unix_diag.h).
_QUERY = struct.Struct("=IHHII BBHIIIQ")
_BY_FAMILY, _NLM_F_REQUEST, _NLMSG_ERROR, _SHOW_RQLEN = 20, 1, 2, 0x10


def from_systemd(environ: os._Environ[str]) -> list[socket.socket]:
    """Return the sockets that systemd passed."""
    number = environ.get("LISTEN_FDS", "")
    if environ.get("LISTEN_PID") != str(os.getpid()) or not (number.isascii() and number.isdecimal()):
        return []
    for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"):
        environ.pop(name, None)  # executed plugins must not see them
    fds = range(_FIRST_FD, _FIRST_FD + int(number))
    for fd in fds:
        os.set_inheritable(fd, False)
    return [socket.socket(fileno=fd) for fd in fds]


def listen(run: str) -> socket.socket:
    """Listen on ``run/sriov.sock``: the directory 0700, the socket 0600.

    Raises BusyError if another server, or systemd for it, listens there. The lock is held until this process
    ends; the socket of a dead server is replaced.
    """
    try:
        os.makedirs(run, 0o700, exist_ok=True)
        os.chmod(run, 0o700)
        _lock(run)
        _demand_silence(f"{run}/{NAME}")
    except OSError as error:
        raise _cannot_listen(f"{run}/{NAME}", error) from error
    return listen_at(f"{run}/{NAME}")


def listen_at(path: str) -> socket.socket:
    """Listen on a socket of mode 0600; the socket of a dead server is replaced.

    The caller must be the only server: it called ``listen`` before, or has a socket of systemd.
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        os.makedirs(os.path.dirname(path), 0o700, exist_ok=True)
        if os.path.lexists(path):
            os.unlink(path)
        before = os.umask(0o177)
        try:
            listener.bind(path)
        finally:
            os.umask(before)
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise _cannot_listen(path, error) from error
    return listener


def queued(listener: socket.socket) -> int:
    """Return the number of connections that are not accepted yet (UNIX_DIAG_RQLEN).

    Raises OSError on a kernel without CONFIG_UNIX_DIAG.
    """
    header = (_QUERY.size, _BY_FAMILY, _NLM_F_REQUEST, 0, 0)
    inode = os.fstat(listener.fileno()).st_ino
    query = _QUERY.pack(*header, socket.AF_UNIX, 0, 0, (1 << 32) - 1, inode, _SHOW_RQLEN, (1 << 64) - 1)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_SOCK_DIAG) as kernel:
        kernel.settimeout(1.0)
        kernel.send(query)
        reply = kernel.recv(4096)
    if reply[4] == _NLMSG_ERROR:
        code = -int(struct.unpack_from("=i", reply, 16)[0])
        raise OSError(code, os.strerror(code))
    return int(struct.unpack_from("=I", reply, 36)[0])  # the first attribute, after struct unix_diag_msg


def _cannot_listen(path: str, error: OSError) -> FileError:
    advice = f"see that {os.path.dirname(path)} can be written to"
    return FileError(f"cannot listen on {path}: {error.strerror}", advice, errno=error.errno or 0)


def _lock(run: str) -> None:
    fd = os.open(f"{run}/server.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        pid = os.pread(fd, 64, 0).decode(errors="replace")
        descriptors.close(fd)
        raise BusyError(f"a server runs already for {run}: pid {pid}", "stop that server first") from None
    try:
        os.ftruncate(fd, 0)
        os.pwrite(fd, str(os.getpid()).encode(), 0)
    except OSError:
        pass  # the tmpfs may be full; the lock is held without the content


def _demand_silence(path: str) -> None:
    """Raise BusyError if a process listens at a path: systemd, whose server needs no lock."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except (FileNotFoundError, ConnectionRefusedError):
            return
        except BlockingIOError:
            pass  # its backlog is full
    raise BusyError(f"a process listens at {path} already", "stop it first, such as sriov-fast.socket")


def remove(path: str) -> None:
    """Remove a socket of ours: clients then need no failing connect(2)."""
    try:
        os.unlink(path)
    except OSError:
        pass
