"""File locks that wait for a bounded time and can say who holds them.

``flock`` belongs to the open file, so the kernel lets go of it when a process dies, however it dies. Threads
of one process meet at a gate before it, where the next is woken at once; between processes there is polling.
"""

from __future__ import annotations

import _thread
import fcntl
import os
import time

from sriov_fast.common import descriptors
from sriov_fast.common.errors import FileError, TryAgainError
from sriov_fast.common.paths import private_directory

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Self

WAIT = 20.0  # seconds; a runtime gives up on its own after minutes
_PAUSE = 0.0005
_LONGEST_PAUSE = 0.002


class _Gate:
    """What the threads of this process wait at for one path; ``users`` hold it or wait."""

    __slots__ = ("lock", "users")

    def __init__(self) -> None:
        self.lock = _thread.allocate_lock()
        self.users = 0


_gates: dict[str, _Gate] = {}
_gates_lock = _thread.allocate_lock()


def _pass(path: str, wait: float) -> bool:
    """Go through the gate of a path, waiting at most ``wait`` seconds; say whether that was possible."""
    with _gates_lock:
        gate = _gates.setdefault(path, _Gate())
        gate.users += 1
    passed = False
    try:
        passed = gate.lock.acquire(timeout=wait) if wait > 0 else gate.lock.acquire(blocking=False)
    finally:
        if not passed:
            _leave(path)
    return passed


def _leave(path: str, *, held: bool = False) -> None:
    """Forget a gate that nobody is at, so that their number stays that of the locks in use."""
    with _gates_lock:
        gate = _gates[path]
        if held:
            gate.lock.release()
        gate.users -= 1
        if not gate.users:
            del _gates[path]


class Lock:
    """One held lock; leaving the ``with`` block lets go of it and leaves no file behind."""

    def __init__(self, fd: int, path: str) -> None:
        self._fd = fd
        self._path = path

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def release(self) -> None:
        """Let go; harmless when repeated."""
        if self._fd < 0:
            return
        fd, self._fd = self._fd, -1
        try:
            os.unlink(self._path)  # while it is ours, so that it cannot be somebody else's
        except OSError:
            pass  # the file alone holds nobody up
        descriptors.close(fd)  # which unlocks it
        _leave(self._path, held=True)


def _path(run: str, name: str) -> str:
    return f"{run}/locks/{name}"


def _open(path: str) -> int:
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    run = path.rpartition("/locks/")[0]
    try:
        try:
            return os.open(path, flags, 0o600)
        except FileNotFoundError:
            private_directory(run, "locks")
            return os.open(path, flags, 0o600)
    except OSError as error:
        raise FileError(
            f"the lock {path} cannot be made: {error.strerror}",
            f"see that {run} can be written to",
            errno=error.errno or 0,
        ) from error


def attempt(run: str, name: str, who: str) -> Lock | None:
    """Take the lock ``name`` if it is free now; ``who`` is what others are told. None: it is held."""
    path = _path(run, name)
    return _locked_inside(path, who) if _pass(path, 0) else None


def _locked_inside(path: str, who: str, wait: float = 0) -> Lock | None:
    """Take the file's lock, the gate being passed; the gate is left again where that fails."""
    lock = None
    try:
        deadline = time.monotonic() + wait
        pause = _PAUSE
        while (lock := _flocked(path, who)) is None and time.monotonic() < deadline:
            time.sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE)
    finally:
        if lock is None:
            _leave(path, held=True)
    return lock


def _flocked(path: str, who: str) -> Lock | None:
    while True:
        fd = _open(path)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            ours = os.fstat(fd)
            if _is_current(ours, path):
                _sign(fd, who, ours.st_size)
                return Lock(fd, path)
        except BlockingIOError:
            descriptors.close(fd)
            return None
        except BaseException:
            descriptors.close(fd)
            raise
        descriptors.close(fd)


def _is_current(ours: os.stat_result, path: str) -> bool:
    """Say whether the file that we locked still is the one of that name: its last holder removed it."""
    try:
        there = os.stat(path)
    except FileNotFoundError:
        return False
    return (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino)


def _sign(fd: int, who: str, size: int) -> None:
    """Say whose the lock is. It is ours without that, too: a DEL must be possible where the tmpfs is full.

    ``size`` is that of what a holder left that was killed.
    """
    try:
        if size:
            os.ftruncate(fd, 0)
        os.pwrite(fd, f"pid {os.getpid()}, {who}".encode("utf-8", "surrogateescape"), 0)
    except OSError:
        pass


def holder(run: str, name: str) -> str:
    """Return what the holder of a lock said of itself; for an error message, so it raises none."""
    try:
        with open(_path(run, name), "rb", buffering=0) as file:
            return file.read(512).decode("utf-8", "replace") or "somebody unknown"
    except FileNotFoundError:
        return "somebody who has just let go"
    except OSError as error:
        return f"somebody unknown ({error.strerror})"


def acquire(run: str, name: str, who: str, wait: float = WAIT) -> Lock:
    """Take the lock ``name``, waiting at most ``wait`` seconds; TryAgainError (11) names the holder."""
    deadline = time.monotonic() + wait
    path, lock = _path(run, name), None
    if _pass(path, wait):
        lock = _locked_inside(path, who, deadline - time.monotonic())
    if lock is None:
        raise TryAgainError(
            f"the lock of {name} was not free within {wait:g} s: held by {holder(run, name)}",
            "try again; if that process hangs, see what it waits for",
        )
    return lock
