"""Releases that are owed: addresses to be given back when the service answers again.

A DEL whose service is down must not keep a pod from ending, and must not lose its address. So the release is
written down, on disk and synced, and the DEL has succeeded. What is owed is tried again by the resident
server, by GC, and by verbs that find the service well. An ADD of the same owner pays first, under the same
lock (flock on the record), or the late release would take the new address away.

A request whose reply was lost may still be on its way, for ``LATE`` seconds. So where that was an ADD's, what
it may yet bring is released after that time, unless its owner still lives then; and where it was a release,
the same owner gets no new address before, which that would take away.

``<state>/pending/<network>/<container ID>~<ifname>~<service>`` is a record, JSON, 0600. Its modification time
is when a release was last sent without an answer, 0 for never.
"""

from __future__ import annotations

import fcntl
import os
import time

from sriov_fast import codec
from sriov_fast.errors import ConfigError, DecodeError, IpamError, SriovError
from sriov_fast.ipam.service import Owner, Service, ServiceError, Settings
from sriov_fast.ipam.tls import Trust
from sriov_fast.values import Value
from sriov_fast.wire import TRY_AGAIN

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

    ``live``: its owner has it, by a second try; it is owed only if the owner is deleted before ``due``, when
    the first try may still bring another.
    """

    owner: Owner
    settings: Settings
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


def owe(state_dir: str, release: Release, *, sent: bool) -> None:
    """Write a release down; when this returns, a power cut does not lose it. Raises OSError.

    ``sent``: it was sent, and may be on its way.
    """
    directory = _make(state_dir, release.owner.network)
    name = _file_name(release)
    path = f"{directory}/{name}"
    known = _read(path)
    if known and known.due > release.due:
        release = release.replace(due=known.due)
    draft = f"{directory}/.{os.getpid()}.{_thread_id()}"
    try:
        _put(draft, codec.dumps(_plain(release)))
        if not sent:
            os.utime(draft, (0, 0))
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
        "settings": settings.as_dict() | {"trust": settings.trust.as_dict()},
        "due": release.due,
        "live": release.live,
    }


# --- reading


def _read(path: str) -> Release | None:
    """Return a record; None where it is gone, or is none."""
    try:
        with open(path, "rb", buffering=0) as file:
            plain = codec.loads(file.read(), path)
        settings = plain["settings"]
        settings |= {"trust": Trust(**settings["trust"]), "remotes": tuple(settings["remotes"])}
        return Release(**plain | {"owner": Owner(**plain["owner"]), "settings": Settings(**settings)})
    except (OSError, DecodeError, KeyError, TypeError, ValueError, AttributeError):
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

    A record that cannot be read is removed: it would stay for ever.
    """

    def __init__(self, path: str, deadline: float = 0.0) -> None:
        self.path = path
        self.release: Release | None = None
        self.busy = False
        self._fd = -1
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            return
        self.busy = not self._locked(deadline)
        if not self.busy and self._is_current():
            self.release = _read(path)
            if self.release is None:
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

    def on_its_way(self) -> float:
        """Return for how many seconds a release that was sent before may still be on its way."""
        since = time.time() - os.fstat(self._fd).st_mtime
        return LATE - since if 0 <= since < LATE else 0.0

    def pay(self, verb: str, timeout: float) -> None:
        """Give the address back, and remove the record unless a release may still be on its way.

        Raises SriovError; the record stays then, but for one that the service will never take.
        """
        if self.release is None:
            return
        settings = self.release.settings.replace(timeout=max(timeout, 0.001))
        try:
            Service(settings, verb, retries=0).release(self.release.owner)
        except ServiceError as error:
            if error.final:
                self.drop()
            elif error.uncertain:
                os.utime(self._fd)
            raise
        if not self.on_its_way():
            self.drop()

    def drop(self) -> None:
        """Remove the record."""
        if self._is_current():
            _unlink(self.path)


# --- paying


def settle(state_dir: str, owner: Owner, remotes: tuple[str, ...], deadline: float) -> float:
    """Pay what this owner owes, before it asks for anything new; raises SriovError where that fails.

    What it owes to another service does not matter then: what is given back there is not what will be given.
    Returns until when (Unix time) an earlier request of this owner may still be on its way.
    """
    late = 0.0
    for path in _owed_by(state_dir, owner):
        with Held(path, deadline) as held:
            late = max(late, _settle_one(held, remotes, deadline))
    return late


def _settle_one(held: Held, remotes: tuple[str, ...], deadline: float) -> float:
    if held.busy:
        raise _not_yet(held.path, "is in use: an address is just being given back", 1)
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
    wait = held.on_its_way()
    if same and wait:
        raise _not_yet(held.path, "says that a release of this interface's address may be on its way", wait)
    return held.release.due


def _not_yet(path: str, what: str, seconds: float) -> IpamError:
    return IpamError(f"IPAM txipam, ADD: {path} {what}", f"try again in {seconds:.0f} s", code=TRY_AGAIN)


def forget(state_dir: str, owner: Owner, remotes: tuple[str, ...]) -> None:
    """Remove what was owed by an owner whose address was just given back; raises OSError.

    What may yet come is owed from now on.
    """
    for path in _owed_by(state_dir, owner):
        with Held(path) as held:
            found = held.release
            if found is None or not set(found.settings.remotes) & set(remotes):
                continue
            if found.due <= time.time() and not held.on_its_way():
                held.drop()
            elif found.live:
                owe(state_dir, found.replace(live=False), sent=False)


def retry(state_dir: str, log: Logger, deadline: float) -> int:
    """Try everything that is due, until ``deadline`` (monotonic); return how many releases are still owed.

    A service that does not answer is asked once, not for each of its records. Never raises for a record.
    """
    left = 0
    down: set[tuple[str, ...]] = set()
    for path in owed(state_dir):
        with Held(path) as held:
            left += _retry_one(held, log, deadline, down)
    return left


def _retry_one(held: Held, log: Logger, deadline: float, down: set[tuple[str, ...]]) -> bool:
    """Return whether the release is still owed."""
    release = held.release
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
    except (ServiceError, ConfigError) as error:
        if getattr(error, "final", False):
            log.warning("an address that was owed is not known to the service", why=error.msg, **facts)
            return False
        down.add(remotes)
        log.warning("an address is still owed to the service", why=error.msg, **facts)
        return True
    log.info("an address that was owed has been given back", **facts)
    return held.on_its_way() > 0
