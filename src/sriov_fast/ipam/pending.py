"""Releases that are owed: addresses to be given back when the service answers again.

A DEL whose service is down must not keep a pod from ending, and must not lose its address. So the release is
written down, on disk and synced, and the DEL has succeeded. What is owed is tried again by the resident
server, by GC, and by verbs that find the service well. An ADD of the same owner pays first, under the same
lock (flock on the record), or it would get once more what is about to be given back.

A release whose reply was lost may still be on its way, and does no harm: it names a lease. So may an ADD's
ask, for ``LATE`` seconds: what it may yet bring is released after that time, unless its owner lives then.

``<state>/pending/<network>/<container ID>~<ifname>~<service>`` is a record, JSON, 0600.
"""

from __future__ import annotations

import fcntl
import os
import time

from sriov_fast import codec
from sriov_fast.errors import ConfigError, DecodeError, FileError, IpamError, SriovError, is_absent
from sriov_fast.ipam.service import Owner, Service, ServiceError, Settings
from sriov_fast.ipam.tls import Trust
from sriov_fast.ipamd_api import TRY_AGAIN
from sriov_fast.values import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Self

    from sriov_fast.log import Logger

STATE_DIR = "/var/lib/sriov-fast"
LATE = 30.0  # seconds after which no request is on its way any more
_TIMEOUT = 5.0  # seconds for one release
_PAUSE = 0.01


class Release(Value):
    """One address to be given back: whose, where, and not before ``due`` (Unix time in seconds).

    ``lease`` is what is owed, "" for whatever the owner has. ``live``: its owner has it, by a second try; it
    is owed only if the owner is deleted before ``due``, when the first try may still bring another.
    """

    owner: Owner
    settings: Settings
    lease: str = ""
    due: float = 0.0
    live: bool = False


def _directory(state_dir: str, network: str) -> str:
    return f"{state_dir}/pending/{network}"


def _file_name(release: Release) -> str:
    from binascii import crc32  # late: only an ADD or DEL that went wrong comes here

    service = crc32(" ".join(release.settings.remotes).encode())
    return f"{release.owner.container_id}~{release.owner.ifname}~{service:08x}"


def _is_of(owner: Owner, path: str) -> bool:
    return os.path.basename(path).rpartition("~")[0] == f"{owner.container_id}~{owner.ifname}"


# --- writing


def owe(state_dir: str, release: Release) -> None:
    """Write a release down; when this returns, a power cut does not lose it. Raises OSError."""
    directory = _make(state_dir, release.owner.network)
    name = _file_name(release)
    path = f"{directory}/{name}"
    known = _read(path)
    if known and known.due > release.due:
        release = release.replace(due=known.due, lease="")  # more may come than what is owed now
    draft = f"{directory}/.{os.getpid()}.{_thread_id()}"
    try:
        _put(draft, codec.dumps(_plain(release)))
        os.rename(draft, path)
    except OSError:
        _unlink(draft)
        raise
    _sync(directory)


def _thread_id() -> int:
    import _thread

    return _thread.get_ident()


def _make(state_dir: str, network: str) -> str:
    """Make the directories that are missing (0700) and see that they stay."""
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
    try:
        rest = memoryview(content)
        while rest:
            rest = rest[os.write(fd, rest) :]
        os.fsync(fd)
    finally:
        os.close(fd)


def _sync(directory: str) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _unlink(path: str) -> None:
    try:
        os.unlink(path)
    except OSError:
        pass


def _plain(release: Release) -> dict[str, object]:
    settings = release.settings
    return {
        "owner": release.owner.as_dict(),
        "lease": release.lease,
        "settings": settings.as_dict() | {"trust": settings.trust.as_dict()},
        "due": release.due,
        "live": release.live,
    }


# --- reading


def _read(path: str) -> Release | None:
    """Return a record; None where it is gone, or is none. Raises OSError where it cannot be read."""
    try:
        with open(path, "rb", buffering=0) as file:
            plain = codec.loads(file.read(), path)
        settings = plain["settings"]
        settings |= {"trust": Trust(**settings["trust"]), "remotes": tuple(settings["remotes"])}
        return Release(**plain | {"owner": Owner(**plain["owner"]), "settings": Settings(**settings)})
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


def owed(state_dir: str, network: str = "") -> Iterator[str]:
    """Go through the paths of all records, or of one network's."""
    for each in [network] if network else _listed(f"{state_dir}/pending"):
        directory = _directory(state_dir, each)
        for name in _listed(directory):
            yield f"{directory}/{name}"


def _owed_by(state_dir: str, owner: Owner) -> list[str]:
    return [path for path in owed(state_dir, owner.network) if _is_of(owner, path)]


class Held:
    """A record under its lock. ``busy``: somebody else has it. ``release`` is None then, or where it is gone.

    A record that is none is removed: it would stay for ever. ``lost`` is set then. Raises OSError where it
    cannot be read.
    """

    def __init__(self, path: str, deadline: float = 0.0) -> None:
        self.path = path
        self.release: Release | None = None
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
            os.close(self._fd)
            raise

    def _take(self, deadline: float) -> None:
        """Lock the file that is open, and read it."""
        self.busy = not self._locked(deadline)
        if not self.busy and self._is_current():
            self.release = _read(self.path)
            if self.release is None:
                self.lost = True
                self.drop()

    def _locked(self, deadline: float) -> bool:
        while True:
            try:
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    return False
                time.sleep(_PAUSE)
            else:
                return True

    def _is_current(self) -> bool:
        """Whether the file that is locked is still the one of that name."""
        try:
            return os.path.samestat(os.fstat(self._fd), os.stat(self.path))
        except FileNotFoundError:
            return False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._fd >= 0:
            os.close(self._fd)

    def pay(self, verb: str, timeout: float) -> None:
        """Give the address back, and remove the record.

        Raises SriovError; the record stays then, but for one that the service will never take.
        """
        owed = self.release
        if owed is None:
            return
        service = Service(owed.settings.replace(timeout=max(timeout, 0.001)), verb, retries=0)
        try:
            if owed.lease:
                service.release(owed.owner, owed.lease)
            else:
                service.give_back(owed.owner)
        except ServiceError as error:
            if error.final:
                self.drop()
            raise
        self.drop()

    def drop(self) -> None:
        """Remove the record."""
        if self._is_current():
            _unlink(self.path)


# --- paying


def settle(state_dir: str, owner: Owner, remotes: tuple[str, ...], deadline: float) -> float:
    """Pay what this owner owes, before it asks for anything new; raises SriovError where that fails.

    What it owes to another service does not matter then: what is given back there is not what will be given.
    Returns until when (Unix time) an earlier ask of this owner may still be on its way.
    """
    late = 0.0
    for path in _owed_by(state_dir, owner):
        with Held(path, deadline) as held:
            late = max(late, _settle_one(held, remotes, deadline))
    return late


def _settle_one(held: Held, remotes: tuple[str, ...], deadline: float) -> float:
    if held.busy:
        raise IpamError(
            f"IPAM txipam, ADD: {held.path} is in use: an address is just being given back",
            "try again in a second",
            code=TRY_AGAIN,
        )
    if held.release is None:
        return 0.0
    if held.release.live:
        return held.release.due
    same = set(held.release.settings.remotes) & set(remotes)
    try:
        held.pay("ADD", deadline - time.monotonic())
    except SriovError as error:
        if same and not getattr(error, "final", False):
            raise
    return held.release.due


def void(state_dir: str, owner: Owner, lease: str) -> None:
    """Remove the debt of what its owner has again: another remote may lead to the same service."""
    for path in _owed_by(state_dir, owner):
        with Held(path) as held:
            if held.release and held.release.lease == lease:
                held.drop()


def forget(state_dir: str, owner: Owner, remotes: tuple[str, ...]) -> None:
    """Remove what was owed by an owner whose address was just given back; raises OSError.

    What may yet come is owed from now on.
    """
    for path in _owed_by(state_dir, owner):
        with Held(path) as held:
            found = held.release
            if found is None or not set(found.settings.remotes) & set(remotes):
                continue
            if found.due <= time.time():
                held.drop()
            elif found.live:
                owe(state_dir, found.replace(live=False))


def retry(state_dir: str, log: Logger, deadline: float) -> int:
    """Try everything that is due, until ``deadline`` (monotonic); return how many releases are still owed.

    A service that does not answer is asked once, not for each of its records. Never raises for a record.
    """
    left = 0
    down: set[tuple[str, ...]] = set()
    for path in owed(state_dir):
        try:
            with Held(path) as held:
                left += _retry_one(held, log, deadline, down)
        except OSError as error:
            log.warning("what is owed cannot be read", file=path, why=error.strerror)
            left += 1
    return left


def _retry_one(held: Held, log: Logger, deadline: float, down: set[tuple[str, ...]]) -> bool:
    """Return whether the release is still owed."""
    release = held.release
    if held.lost:
        log.warning("what was owed cannot be read, and is left to GC", file=held.path)
    if release is None:
        return held.busy
    if release.live:
        if release.due <= time.time():
            held.drop()
        return False
    timeout = min(_TIMEOUT, deadline - time.monotonic())
    remotes = release.settings.remotes
    if timeout <= 0 or release.due > time.time() or remotes in down:
        return True
    facts = {"containerID": release.owner.container_id, "ifname": release.owner.ifname, "file": held.path}
    try:
        held.pay("DEL", timeout)
    except (ServiceError, ConfigError, FileError) as error:
        if getattr(error, "final", False):
            log.warning("an address that was owed is not known to the service", why=error.msg, **facts)
            return False
        down.add(remotes)
        log.warning("an address is still owed to the service", why=error.msg, **facts)
        return True
    log.info("an address that was owed has been given back", **facts)
    return False
