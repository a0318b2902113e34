"""Releases that the address service has not acknowledged yet: files, which are sent again later.

A DEL must succeed while the service is down, and must not lose the address. So the release is written to disk
and synced, and the DEL succeeds. The entries are sent again by the resident server, by GC, and by verbs that
the service has just answered. An ADD of the same owner sends its owner's entries first, under the same lock
(flock on the file); otherwise it would get the address that is about to be released.

A release without a reply may still reach the service, and does no harm, since it names a lease. An ADD's
request may still reach it, too, for ``IN_FLIGHT`` seconds: the address that it may allocate is released after
that time, unless its owner is attached then.

``<state>/pending/<network>/<container ID>~<ifname>~<service>`` is an entry, JSON, 0600.
"""

from __future__ import annotations

import _thread
import fcntl
import os
import time
from binascii import crc32
from contextlib import suppress

from sriov_fast.common import descriptors, json
from sriov_fast.common.errors import ConfigError, DecodeError, FileError, IpamError, SriovError, is_absent
from sriov_fast.common.interpreter import attempts
from sriov_fast.common.record import Record
from sriov_fast.ipam.txipam.client import Client, Owner, ServiceError
from sriov_fast.ipam.txipam.settings import Settings
from sriov_fast.ipam.txipam.tls import Trust
from sriov_fast.ipamd_api import TRY_AGAIN

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Self

    from sriov_fast.common.log import Logger

IN_FLIGHT = 30.0  # seconds after which a request without a reply cannot reach the service any more
_TIMEOUT = 5.0  # seconds for one release


class QueuedRelease(Record):
    """The release of one owner's address, not to be sent before ``due`` (Unix time in seconds).

    ``lease`` names the address; "" stands for the owner's current one. ``live``: the owner got its address by
    a second try and is attached; the release is sent only if the owner is deleted before ``due``, since the
    first try may still allocate another address.
    """

    owner: Owner
    settings: Settings
    lease: str = ""
    due: float = 0.0
    live: bool = False


def _directory(state_dir: str, network: str) -> str:
    return f"{state_dir}/pending/{network}"


def _file_name(release: QueuedRelease) -> str:
    service = crc32(" ".join(release.settings.remotes).encode())
    return f"{release.owner.container_id}~{release.owner.ifname}~{service:08x}"


# --- writing


def enqueue(state_dir: str, release: QueuedRelease) -> None:
    """Write a release to disk; a power cut after the return does not lose it. Raises OSError."""
    directory = _make(state_dir, release.owner.network)
    name = _file_name(release)
    path = f"{directory}/{name}"
    known = _read(path)
    if known and known.due > release.due:
        release = release.replace(due=known.due, lease="")  # another lease may be allocated until then
    draft = f"{directory}/.{os.getpid()}.{_thread.get_ident()}"
    try:
        _put(draft, json.dumps(_plain(release)))
        os.rename(draft, path)
    except OSError:
        with suppress(OSError):
            os.unlink(draft)
        raise
    _sync(directory)


def _make(state_dir: str, network: str) -> str:
    """Make the missing directories (0700) and sync their parents."""
    directory = _directory(state_dir, network)
    os.makedirs(os.path.dirname(state_dir) or "/", exist_ok=True)
    for path in (state_dir, f"{state_dir}/pending", directory):
        try:
            os.mkdir(path, 0o700)
        except FileExistsError:
            continue
        _sync(os.path.dirname(path))
    return directory


def _put(path: str, content: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    with open(fd, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(fd)


def _sync(directory: str) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _plain(release: QueuedRelease) -> dict[str, object]:
    settings = release.settings
    return {
        "owner": release.owner.as_dict(),
        "lease": release.lease,
        "settings": settings.as_dict() | {"trust": settings.trust.as_dict()},
        "due": release.due,
        "live": release.live,
    }


# --- reading


def _read(path: str) -> QueuedRelease | None:
    """Return an entry; None if it is gone or malformed. Raises OSError if it cannot be read."""
    try:
        with open(path, "rb", buffering=0) as file:
            plain = json.loads(file.read(), path)
        settings = plain["settings"]
        settings |= {"trust": Trust(**settings["trust"]), "remotes": tuple(settings["remotes"])}
        return QueuedRelease(**plain | {"owner": Owner(**plain["owner"]), "settings": Settings(**settings)})
    except OSError as error:
        if is_absent(error):
            return None
        raise
    except (DecodeError, KeyError, TypeError, ValueError, AttributeError):
        return None


def _listed(directory: str) -> list[str]:
    try:
        return sorted(name for name in os.listdir(directory) if name[0] != ".")
    except (FileNotFoundError, NotADirectoryError):
        return []


def entries(state_dir: str, network: str = "") -> Iterator[str]:
    """Iterate over the paths of all entries, or of one network's."""
    for each in [network] if network else _listed(f"{state_dir}/pending"):
        directory = _directory(state_dir, each)
        for name in _listed(directory):
            yield f"{directory}/{name}"


def _entries_of(state_dir: str, owner: Owner) -> list[str]:
    name = f"{owner.container_id}~{owner.ifname}"
    paths = entries(state_dir, owner.network)
    return [path for path in paths if os.path.basename(path).rpartition("~")[0] == name]


class OutboxEntry:
    """An entry under its lock.

    ``busy``: another thread or process has the lock. ``release`` is None then, and if the entry is gone.
    ``lost``: the entry was malformed and was removed, since it would stay for ever. Raises OSError if the
    entry cannot be read.
    """

    def __init__(self, path: str, deadline: float = 0.0) -> None:
        self.path = path
        self.release: QueuedRelease | None = None
        self.busy = False
        self.lost = False
        self._fd = -1
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            return
        try:
            self._take(deadline)
        except BaseException:
            descriptors.close(self._fd)
            raise

    def _take(self, deadline: float) -> None:
        """Lock the open file, and read it."""
        self.busy = not self._locked(deadline)
        if not self.busy and self._is_current():
            self.release = _read(self.path)
            if self.release is None:
                self.lost = True
                self.remove()

    def _locked(self, deadline: float) -> bool:
        for _ in attempts(deadline):
            try:
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            return True
        return False

    def _is_current(self) -> bool:
        """Return whether the locked file still has its name."""
        try:
            return os.path.samestat(os.fstat(self._fd), os.stat(self.path))
        except FileNotFoundError:
            return False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._fd >= 0:
            descriptors.close(self._fd)

    def send(self, verb: str, timeout: float) -> str:
        """Release the address, and remove the entry. Raises SriovError; the entry stays then.

        Returns the message of a service that will never accept the release, otherwise "".
        """
        release = self.release
        if release is None:
            return ""
        client = Client(release.settings.replace(timeout=max(timeout, 0.001), retries=0), verb)
        try:
            if release.lease:
                client.release(release.owner, release.lease)
            else:
                client.release_current(release.owner)
        except ServiceError as error:
            if not error.final:
                raise
            self.remove()
            return error.msg
        self.remove()
        return ""

    def remove(self) -> None:
        """Remove the entry."""
        if self._is_current():
            with suppress(OSError):
                os.unlink(self.path)


# --- sending


def flush_owner(state_dir: str, owner: Owner, remotes: tuple[str, ...], deadline: float) -> float:
    """Send an owner's entries before the owner asks for an address; raises SriovError if that fails.

    A failure at another service does not matter: an address released there is not allocated here.
    Returns until when (Unix time) an earlier request of this owner may still reach the service.
    """
    until = 0.0
    for path in _entries_of(state_dir, owner):
        with OutboxEntry(path, deadline) as entry:
            until = max(until, _flush_before_add(entry, remotes, deadline))
    return until


def _flush_before_add(entry: OutboxEntry, remotes: tuple[str, ...], deadline: float) -> float:
    if entry.busy:
        raise IpamError(
            f"IPAM txipam, ADD: {entry.path} is in use: an address is just being given back",
            "try again in a second",
            code=TRY_AGAIN,
        )
    if entry.release is None:
        return 0.0
    if entry.release.live:
        return entry.release.due
    try:
        entry.send("ADD", deadline - time.monotonic())
    except SriovError:
        if set(entry.release.settings.remotes) & set(remotes):
            raise
    return entry.release.due


def discard(state_dir: str, owner: Owner, lease: str) -> None:
    """Remove the release of a lease that its owner has got again: two remotes may lead to one service."""
    for path in _entries_of(state_dir, owner):
        with OutboxEntry(path) as entry:
            if entry.release and entry.release.lease == lease:
                entry.remove()


def complete(state_dir: str, owner: Owner, remotes: tuple[str, ...]) -> None:
    """Remove the entries of an owner after the release of its address; raises OSError.

    A live entry that is not due becomes one to be sent: an earlier request may still allocate an address.
    """
    for path in _entries_of(state_dir, owner):
        with OutboxEntry(path) as entry:
            found = entry.release
            if found is None or not set(found.settings.remotes) & set(remotes):
                continue
            if found.due <= time.time():
                entry.remove()
            elif found.live:
                enqueue(state_dir, found.replace(live=False))


def flush(state_dir: str, log: Logger, deadline: float) -> int:
    """Send every entry that is due, until ``deadline`` (monotonic); return the number of entries left.

    A service that does not answer is asked once, not for each of its entries. No entry's failure is raised.
    """
    left = 0
    down: set[tuple[str, ...]] = set()
    for path in entries(state_dir):
        try:
            with OutboxEntry(path) as entry:
                left += _flush_one(entry, log, deadline, down)
        except OSError as error:
            log.warning("what is owed cannot be read", file=path, why=error.strerror)
            left += 1
    return left


def _flush_one(entry: OutboxEntry, log: Logger, deadline: float, down: set[tuple[str, ...]]) -> bool:
    """Return whether the entry is left."""
    release = entry.release
    if entry.lost:
        log.warning("what was owed cannot be read, and is left to GC", file=entry.path)
    if release is None:
        return entry.busy
    if release.live:
        if release.due <= time.time():
            entry.remove()
        return False
    timeout = min(_TIMEOUT, deadline - time.monotonic())
    remotes = release.settings.remotes
    if timeout <= 0 or release.due > time.time() or remotes in down:
        return True
    facts = {"containerID": release.owner.container_id, "ifname": release.owner.ifname, "file": entry.path}
    try:
        refusal = entry.send("DEL", timeout)
    except (ServiceError, ConfigError, FileError) as error:
        down.add(remotes)
        log.warning("an address is still owed to the service", why=error.msg, **facts)
        return True
    if refusal:
        log.warning("an address that was owed is not known to the service", why=refusal, **facts)
    else:
        log.info("an address that was owed has been given back", **facts)
    return False
