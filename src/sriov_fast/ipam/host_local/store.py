"""The store of host-local on disk: one directory for each network, in it one file for each taken address.

A file is named by its address and contains its owner: container ID, CR LF, interface name. The file
``last_reserved_ip.<n>`` contains the address that range set n gave last. Every user of the store holds
``flock(2)`` on the file ``lock``. This is the store of containernetworking's host-local, which may work on
the same directory at the same time.
"""

from __future__ import annotations

import fcntl
import os
import time

from sriov_fast.common import descriptors, paths
from sriov_fast.common.errors import IpamError, TryAgainError, is_absent
from sriov_fast.common.interpreter import attempts
from sriov_fast.ipam.keys import parse_ip

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Self

    from sriov_fast.ipam.keys import Ip

    Owner = tuple[str, str]  # container ID, interface name

WAIT = 20.0  # seconds; a runtime waits for minutes

_LONGEST_OWNER = 1024  # bytes; more than any container ID with an interface name
_TEMPORARY = "sriov-fast.new"
# A link is not followed, and opening a FIFO does not block.
_SAFE = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK


class Store:
    """The store of one network. Its lock is held until the ``with`` block ends."""

    def __init__(self, path: str, wait: float = WAIT) -> None:
        self.path = path
        self._lock = _open_lock(path)
        try:
            _acquire(self._lock, path, wait)
        except BaseException:
            descriptors.close(self._lock)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        # The file stays: other processes may wait for the lock on it.
        descriptors.close(self._lock)

    def names(self) -> set[str]:
        """Return the names of all files: the taken addresses and the store's own files."""
        return set(os.listdir(self.path))

    def reserve(self, owner: Owner, addresses: list[str]) -> None:
        """Take one address of each range set, or none; FileExistsError if one of them is taken.

        The file of an address is linked, not created, so it has its content from the first moment: a crash
        leaves no file without an owner.
        """
        linked: list[str] = []
        try:
            temporary = self._write_temporary(_content(owner))
            for number, address in enumerate(addresses):
                os.link(temporary, f"{self.path}/{address}")
                linked.append(address)
                self._remember(number, address)
            os.unlink(temporary)
        except BaseException:
            self.free(linked)
            raise

    def free(self, addresses: Iterable[str]) -> None:
        """Free addresses, and remove the temporary file that a killed ADD may have left."""
        for name in (*addresses, _TEMPORARY):
            _unlink(f"{self.path}/{name}")

    def release(self, owner: Owner, hints: Iterable[str] = ()) -> None:
        """Free the addresses of an owner, if there are any; ``hints`` as for ``find``."""
        self.free(self.find(owner, hints))

    def keep_only(self, valid: set[Owner]) -> None:
        """Free every address that no valid owner has, also those of files without an owner."""
        kept = {_content(owner) for owner in valid} | {_encoded(owner[0]) for owner in valid}
        stale = []
        for name, content in self._contents(self.names()).items():
            # without CR LF it is of an old version, which wrote the container ID alone
            owner = content if b"\r\n" in content else content.partition(b"\n")[0]
            if owner not in kept:
                stale.append(name)
        self.free(stale)

    def find(self, owner: Owner, hints: Iterable[str] = ()) -> list[str]:
        """Return the addresses of an owner.

        ``hints`` are the addresses that it probably has. All files are read only if it has none of these.
        """
        return self.owned(owner, hints) or self.owned(owner, self.names())

    def owned(self, owner: Owner, names: Iterable[str]) -> list[str]:
        """Return those of the named addresses that an owner has.

        If there are none, return those of its container ID alone: old versions wrote no interface name.
        """
        contents = self._contents(names)
        for wanted in (_content(owner), _encoded(owner[0])):
            found = [name for name, content in contents.items() if content == wanted]
            if found:
                return found
        return []

    def last_reserved(self, number: int) -> Ip | None:
        """Return the address that a range set gave last; None if the file is missing or damaged."""
        content = self._read(f"last_reserved_ip.{number}") or b""
        try:
            return parse_ip(content.decode("ascii", "replace"))
        except ValueError:
            return None

    def _remember(self, number: int, address: str) -> None:
        """Write the address that a range set gives now.

        The file is shortened, never emptied: ext4 writes a file that was emptied to disk when it is closed,
        which takes a millisecond. It is shortened only if needed: on a busy disk that waits for the journal.
        A kill between the two leaves a wrong address, which is harmless.
        """
        fd = os.open(f"{self.path}/last_reserved_ip.{number}", os.O_WRONLY | os.O_CREAT | _SAFE, 0o600)
        try:
            size = os.write(fd, address.encode())
            if os.fstat(fd).st_size > size:
                os.ftruncate(fd, size)
        finally:
            os.close(fd)

    def _write_temporary(self, content: bytes) -> str:
        """Write the file to link, and return its path. One name suffices: only one process has the lock."""
        path = f"{self.path}/{_TEMPORARY}"
        _unlink(path)  # a killed ADD may have left it; it may be an address by now, so it is not written to
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.write(fd, content)
        finally:
            os.close(fd)
        return path

    def _contents(self, names: Iterable[str]) -> dict[str, bytes]:
        """Return the contents of the address files among the named files, by their names."""
        read = ((name, self._read(name)) for name in names if _is_address(name))
        return {name: content for name, content in read if content is not None}

    def _read(self, name: str) -> bytes | None:
        """Return the content of a file; None if there is no such file, or if it is a directory."""
        path = f"{self.path}/{name}"
        try:
            fd = os.open(path, os.O_RDONLY | _SAFE)
        except OSError as error:
            if is_absent(error):
                return None
            raise
        try:
            return os.read(fd, _LONGEST_OWNER).strip()
        except IsADirectoryError:
            return None
        except OSError as error:
            error.filename = path
            raise
        finally:
            os.close(fd)


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _content(owner: Owner) -> bytes:
    return _encoded(f"{owner[0]}\r\n{owner[1]}")


def _is_address(name: str) -> bool:
    try:
        parse_ip(name)
    except ValueError:
        return False
    return True


def _unlink(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass


def _open_lock(path: str) -> int:
    """Open the lock file, with the modes of the original plugin; make the store if it is missing."""
    flags = os.O_RDONLY | os.O_CREAT | _SAFE
    try:
        return os.open(f"{path}/lock", flags, 0o750)
    except FileNotFoundError:
        paths.make_directories(path, 0o755)
        return os.open(f"{path}/lock", flags, 0o750)


def _acquire(fd: int, path: str, wait: float) -> None:
    """Take the lock; IpamError if it is not free within ``wait`` seconds."""
    for _ in attempts(time.monotonic() + wait):
        try:
            return fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pass
    raise IpamError(
        f"the lock {path}/lock was not free within {wait:g} s",
        "try again; `fuser` shows which process has it open",
        code=TryAgainError.code,
    )
