"""The server's listening socket: made by the server, or passed by systemd (sd_listen_fds(3))."""

from __future__ import annotations

import fcntl
import os
import socket

from sriov_fast.common import descriptors
from sriov_fast.common.errors import BusyError, FileError

NAME = "sriov.sock"
_BACKLOG = 1024
_FIRST_FD = 3  # SD_LISTEN_FDS_START


def from_systemd(environ: os._Environ[str]) -> socket.socket | None:
    """Return the socket that systemd passed, None if it passed none."""
    if environ.get("LISTEN_PID") != str(os.getpid()) or environ.get("LISTEN_FDS") != "1":
        return None
    for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"):
        environ.pop(name, None)  # executed plugins must not see them
    os.set_inheritable(_FIRST_FD, False)
    return socket.socket(fileno=_FIRST_FD)


def listen(run: str) -> socket.socket:
    """Listen on ``run/sriov.sock``: the directory 0700, the socket 0600.

    Raises BusyError if another server listens there. The lock is held until this process ends; the socket of
    a dead server is replaced.
    """
    path = f"{run}/{NAME}"
    try:
        os.makedirs(run, 0o700, exist_ok=True)
        os.chmod(run, 0o700)
        _lock(run)
        if os.path.lexists(path):
            os.unlink(path)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        before = os.umask(0o177)
        try:
            listener.bind(path)
        finally:
            os.umask(before)
        listener.listen(_BACKLOG)
    except OSError as error:
        advice = f"see that {run} can be written to"
        raise FileError(
            f"cannot listen on {path}: {error.strerror}", advice, errno=error.errno or 0
        ) from error
    return listener


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


def release(run: str) -> None:
    """Remove our own socket: clients then need no failing connect(2)."""
    try:
        os.unlink(f"{run}/{NAME}")
    except OSError:
        pass
