"""File locks with a bounded wait; the file names the holder.

``flock`` belongs to the open file, so the kernel releases it when a process dies. Between processes a waiter
polls. The threads of one process first take an in-process lock for the path, where the next one is woken at
once.
"""

from __future__ import annotations

import _thread
import fcntl
import os
import time

from sriov_fast.common import descriptors
from sriov_fast.common.errors import FileError, TryAgainError
from sriov_fast.common.interpreter import INTERPRETER, attempts
from sriov_fast.common.paths import private_directory

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Self

WAIT = 20.0  # seconds; a runtime waits for minutes
_AT_ONCE = 0.0005  # seconds; taking a free lock is faster


class _ThreadLock:
    """The in-process lock of one path; ``users`` counts the holder and the waiters."""

    __slots__ = ("lock", "users")

    def __init__(self) -> None:
        self.lock = _thread.allocate_lock()
        self.users = 0


class Waits:
    """Number and seconds of this process's waits for locks, and how many of them were in vain."""

    __slots__ = ("number", "seconds", "timeouts")

    def __init__(self) -> None:
        self.number = 0
        self.seconds = 0.0
        self.timeouts = 0

    def count(self, seconds: float, *, taken: bool) -> None:
        """Count a wait; a lock that was free at once is none."""
        if taken and seconds < _AT_ONCE:
            return
        with _table_lock:
            self.number += 1
            self.seconds += seconds
            self.timeouts += not taken


waits = Waits()
_thread_locks: dict[str, _ThreadLock] = {}
_table_lock = _thread.allocate_lock()


def _acquire_thread_lock(path: str, wait: float) -> bool:
    """Take the in-process lock of a path within ``wait`` seconds; return whether it was free."""
    with _table_lock:
        entry = _thread_locks.setdefault(path, _ThreadLock())
        entry.users += 1
    acquired = False
    try:
        acquired = entry.lock.acquire(blocking=False)
        if wait > 0 and not acquired:
            with INTERPRETER.released():
                acquired = entry.lock.acquire(timeout=wait)
    finally:
        if not acquired:
            _leave_thread_lock(path)
    return acquired


def _leave_thread_lock(path: str, *, held: bool = False) -> None:
    """Release the in-process lock if ``held``; drop it without users, so that the table does not grow."""
    with _table_lock:
        entry = _thread_locks[path]
        if held:
            entry.lock.release()
        entry.users -= 1
        if not entry.users:
            del _thread_locks[path]


class Lock:
    """A held lock. Leaving the ``with`` block releases it and removes its file."""

    def __init__(self, fd: int, path: str) -> None:
        self._fd = fd
        self._path = path

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def release(self) -> None:
        """Release the lock; harmless if repeated."""
        if self._fd < 0:
            return
        fd, self._fd = self._fd, -1
        try:
            os.unlink(self._path)  # before the unlock, so that it is not the file of the next holder
        except OSError:
            pass  # an unlocked file does not block others
        descriptors.close(fd)  # releases the flock
        _leave_thread_lock(self._path, held=True)


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


def attempt(run: str, name: str, holder: str) -> Lock | None:
    """Take the lock ``name`` if it is free, else return None. Errors of waiters name ``holder``."""
    path = _path(run, name)
    return _acquire_file_lock(path, holder) if _acquire_thread_lock(path, 0) else None


def _acquire_file_lock(path: str, holder: str, wait: float = 0) -> Lock | None:
    """Take the file lock within ``wait`` seconds; if that fails, release the in-process lock."""
    lock = None
    try:
        for _ in attempts(time.monotonic() + wait):
            lock = _try_file_lock(path, holder)
            if lock is not None:
                break
    finally:
        if lock is None:
            _leave_thread_lock(path, held=True)
    return lock


def _try_file_lock(path: str, holder: str) -> Lock | None:
    while True:
        fd = _open(path)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            status = os.fstat(fd)
            if _is_current(status, path):
                _write_holder(fd, holder, status.st_size)
                return Lock(fd, path)
        except BlockingIOError:
            descriptors.close(fd)
            return None
        except BaseException:
            descriptors.close(fd)
            raise
        descriptors.close(fd)


def _is_current(locked: os.stat_result, path: str) -> bool:
    """Return whether the locked file still has this path: its last holder may have removed it."""
    try:
        current = os.stat(path)
    except FileNotFoundError:
        return False
    return (current.st_dev, current.st_ino) == (locked.st_dev, locked.st_ino)


def _write_holder(fd: int, holder: str, old_size: int) -> None:
    """Name the holder in the file. ``old_size`` is the size of the text of a holder that was killed.

    An error is ignored: a DEL must be possible on a full tmpfs.
    """
    try:
        if old_size:
            os.ftruncate(fd, 0)
        os.pwrite(fd, f"pid {os.getpid()}, {holder}".encode("utf-8", "surrogateescape"), 0)
    except OSError:
        pass


def holder_of(run: str, name: str) -> str:
    """Return the text of a lock's file, for an error message; never raises OSError."""
    try:
        with open(_path(run, name), "rb", buffering=0) as file:
            return file.read(512).decode("utf-8", "replace") or "an unknown process"
    except FileNotFoundError:
        return "a process that has just released it"
    except OSError as error:
        return f"an unknown process ({error.strerror})"


def acquire(run: str, name: str, holder: str, wait: float = WAIT) -> Lock:
    """Take the lock ``name`` within ``wait`` seconds. Raises TryAgainError (11) that names its holder."""
    begin = time.monotonic()
    path, lock = _path(run, name), None
    if _acquire_thread_lock(path, wait):
        lock = _acquire_file_lock(path, holder, begin + wait - time.monotonic())
    waits.count(time.monotonic() - begin, taken=lock is not None)
    if lock is None:
        raise TryAgainError(
            f"the lock of {name} was not free within {wait:g} s: held by {holder_of(run, name)}",
            "try again; if that process hangs, see what it waits for",
        )
    return lock
