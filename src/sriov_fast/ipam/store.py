"""host-local's store on disk: a directory for each network, in it a file for each address that is taken.

A file is named by its address and holds its owner: container ID, CR LF, ifname. ``last_reserved_ip.<set>``
says where the round robin of a range set stands; ``flock`` on ``lock`` keeps everybody apart. This is the
store of containernetworking's host-local, which may work on it at the same time.

The store says whose an address is, but not what an owner has, short of reading every file. So there is an
index on tmpfs: a symbolic link for each owner, whose target is the addresses, written before they are taken.
What it says is looked up in the store. That it says everything is seen from the directory's modification
time, which we set a nanosecond back and write down: whoever else changes the directory leaves another. A
small store is then read again; in a large one that others change, what the index knows must do.

Of large range sets there is a map as well, in the store, so that it outlives a reboot: a bit for each
address, set where it is taken as far as we know. It only says where to look first.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time

from sriov_fast.errors import IpamError, is_absent
from sriov_fast.ipam.keys import parse_ip, show_ip

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Self

    from sriov_fast.ipam.keys import Ip

    Owner = tuple[str, str]

WAIT = 20.0  # seconds; a runtime gives up on its own after minutes
_PAUSE = 0.0001
_LONGEST_PAUSE = 0.005

# Longer than any container ID with an interface's name: a longer file is none of these.
_MOST = 1024
_TEMPORARY = "sriov-fast.new"
_STAMP = "stamp"
# A store with more files is large: reading them would take longer than everything else in an ADD.
_FEW = 512
# So does one whose directory is of so many bytes (ext4 needs 16 to 48 for a name): it is not even listed.
_LARGE = 1 << 17
# A map's file is of 2**BLOCK addresses, and named by the first of them.
BLOCK = 16
MAP_BYTES = (1 << BLOCK) // 8
_MAP = "sriov-fast.taken"
# No link is followed, and a FIFO does not wait for its other end.
_SAFE = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK


class Store:
    """The store of one network, locked. Leave the ``with`` block to let go of it."""

    def __init__(self, path: str, index: str, wait: float = WAIT) -> None:
        self.path = path
        self.index = index
        self._fd = _open_lock(path)
        try:
            _acquire(self._fd, path, wait)
            self._complete = self._is_stamped()
        except BaseException:
            os.close(self._fd)
            raise
        self._changed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            if self._changed and self._complete:
                self._stamp()
        finally:
            os.close(self._fd)  # the file stays: others may be waiting for a lock on it

    # --- addresses

    def is_taken(self, address: str) -> bool:
        """Say whether somebody has the address. A failed look is a "no": link(2) decides in ``reserve``."""
        return os.access(f"{self.path}/{address}", os.F_OK)

    def names(self) -> set[str]:
        """Return the names of all files, the addresses among them."""
        return set(os.listdir(self.path))

    def reserve(self, owner: Owner, addresses: list[str]) -> None:
        """Take all addresses or none; FileExistsError where one is taken.

        A file appears with its content (it is linked, not created), so a crash leaves none without an owner.
        """
        self._note(owner, [*self._noted(owner), *addresses])
        self._changed = True
        linked = []
        try:
            temporary = self._write_temporary(_content(owner))
            for address in addresses:
                os.link(temporary, f"{self.path}/{address}")
                linked.append(address)
            os.unlink(temporary)
        except BaseException:
            _forget(f"{self.path}/{_TEMPORARY}")
            self.give_back(owner, linked)
            raise

    def give_back(self, owner: Owner, addresses: list[str]) -> None:
        """Free addresses that an owner has just got, and leave the index as it was before."""
        self.drop(addresses)
        left = self._noted(owner)
        if left:
            self._note(owner, left)
        else:
            _forget(self._entry(owner))

    def _write_temporary(self, content: bytes) -> str:
        """Write the file that is then linked; one name serves, as there is one holder of the lock."""
        path = f"{self.path}/{_TEMPORARY}"
        try:
            fd = _create(path)
        except FileExistsError:
            # From somebody who was killed. It may be an address by now, so it must not be written to.
            os.unlink(path)
            fd = _create(path)
        try:
            os.write(fd, content)
        except BaseException:
            os.unlink(path)
            raise
        finally:
            os.close(fd)
        return path

    def drop(self, addresses: Iterable[str]) -> None:
        """Free addresses, whoever has them."""
        self._changed = True
        freed = []
        for address in addresses:
            _unlink(f"{self.path}/{address}")
            freed.append(_number(address))
        self.mark([ip for ip in freed if ip], taken=False)

    # --- owners

    def _noted(self, owner: Owner) -> list[str]:
        """Return the addresses of an owner as far as the index knows them, and the store agrees."""
        content = _content(owner)
        return [address for address in self._listed(owner) if self._read(address) == content]

    def owned(self, owner: Owner, *, thorough: bool = True) -> list[str]:
        """Return the addresses of an owner. They may be those with its container ID alone, as they once were.

        In a large store that others change, only the index is asked; if ``thorough``, and it knows of none,
        every file is read.
        """
        if not self._complete:
            names = self._few_names()
            if names is not None:
                return _pick(self._survey(names), owner)
        noted = self._noted(owner)
        if noted or self._complete or not thorough:
            return noted
        return _pick(self._by_content(os.listdir(self.path)), owner)

    def release(self, owner: Owner) -> None:
        """Free what an owner has; nothing is no fault."""
        self.drop(self.owned(owner))
        _unlink(f"{self.path}/{_TEMPORARY}")  # from an ADD that was killed
        _forget(self._entry(owner))

    def keep_only(self, valid: set[Owner]) -> None:
        """Free every address whose owner is not valid, and those without one: somebody was killed there."""
        contents = {_content(owner) for owner in valid}
        ids = {_encoded(owner[0]) for owner in valid}

        def is_stale(content: bytes) -> bool:
            if b"\r\n" in content:
                return content not in contents
            return content.partition(b"\n")[0] not in ids  # from before there were ifnames in it

        found = self._by_content(os.listdir(self.path))
        self.drop([name for content, names in found.items() if is_stale(content) for name in names])
        _unlink(f"{self.path}/{_TEMPORARY}")
        self._forget_all_but({os.path.basename(self._entry(owner)) for owner in valid})

    def _by_content(self, names: list[str]) -> dict[bytes, list[str]]:
        """Read the addresses' files; return their names by their contents."""
        found: dict[bytes, list[str]] = {}
        for name in names:
            content = self._read(name) if _number(name) else None
            if content is not None:
                found.setdefault(content, []).append(name)
        return found

    def _few_names(self) -> list[str] | None:
        """Return the names of all files, None where they are many."""
        if os.stat(self.path).st_size >= _LARGE:
            return None
        names = []
        with os.scandir(self.path) as entries:
            for entry in entries:
                names.append(entry.name)
                if len(names) > _FEW:
                    return None
        return names

    def _survey(self, names: list[str]) -> dict[bytes, list[str]]:
        """Read all files, and write the index anew."""
        found = self._by_content(names)
        owners = {content: _owner(content) for content in found}
        self._changed = True
        self._complete = None not in owners.values()
        self._forget_all_but({os.path.basename(self._entry(owner)) for owner in owners.values() if owner})
        for content, owner in owners.items():
            if owner and self._listed(owner) != found[content]:
                self._note(owner, found[content])
        return found

    def _read(self, name: str) -> bytes | None:
        """Return a file's content; None where there is no such file, or where it is a directory."""
        path = f"{self.path}/{name}"
        try:
            fd = os.open(path, os.O_RDONLY | _SAFE)
        except OSError as error:
            if is_absent(error):
                return None
            raise
        try:
            return os.read(fd, _MOST).strip()
        except IsADirectoryError:
            return None
        except OSError as error:
            error.filename = path
            raise
        finally:
            os.close(fd)

    # --- the round robin

    def last_reserved(self, number: int) -> str:
        """Return the address that a range set gave last, "" where that is not known."""
        return (self._read(f"last_reserved_ip.{number}") or b"").decode("ascii", "replace")

    def remember(self, number: int, address: str) -> None:
        """Write down what a range set gave last.

        The file is shortened, never emptied: ext4 writes a file that was emptied to disk when it is closed,
        which takes a millisecond. Nor is it shortened for nothing: on a busy disk that waits for the journal.
        Who is killed in between leaves an address that is wrong, and harmless.
        """
        fd = os.open(f"{self.path}/last_reserved_ip.{number}", os.O_WRONLY | os.O_CREAT | _SAFE, 0o600)
        try:
            size = os.write(fd, address.encode())
            if os.fstat(fd).st_size > size:
                os.ftruncate(fd, size)
        finally:
            os.close(fd)

    # --- the map of large range sets; without it everything is right, so its faults are none

    def _map(self, ip: Ip) -> str:
        return f"{self.path}/{_MAP}.{show_ip((ip[0], ip[1] >> BLOCK << BLOCK))}"

    def map_of(self, ip: Ip) -> bytes:
        """Return the map that an address is in, empty where there is none: a bit for each, lowest first."""
        try:
            fd = os.open(self._map(ip), os.O_RDONLY | _SAFE)
        except OSError:
            return bytes(MAP_BYTES)
        try:
            return bytes(_read_at(fd, 0, MAP_BYTES))
        finally:
            os.close(fd)

    def draw(self, ip: Ip, bits: int, size: int) -> None:
        """Write the map anew from an address on, ``size`` of it: a bit for each, lowest first."""
        first = ip[1] & (1 << BLOCK) - 1
        rest = int.from_bytes(self.map_of(ip), "little") & ~((1 << size) - 1 << first)
        data = (rest | bits << first).to_bytes(MAP_BYTES, "little")
        try:
            fd = self._open_map(ip, make=True)
        except OSError:
            return
        try:
            _write_back(fd, data, 0)
        finally:
            _close_map(fd)

    def mark(self, ips: Iterable[Ip], *, taken: bool, make: bool = False) -> None:
        """Note addresses as taken or free; where there is no map, only if it is to be made."""
        blocks: dict[Ip, list[int]] = {}
        for bits, value in ips:
            blocks.setdefault((bits, value >> BLOCK), []).append(value & (1 << BLOCK) - 1)
        for (bits, number), places in blocks.items():
            try:
                fd = self._open_map((bits, number << BLOCK), make=make)
            except OSError:
                continue  # there is none, as for every small set
            try:
                _mark_block(fd, places, taken=taken)
            finally:
                _close_map(fd)

    def _open_map(self, ip: Ip, *, make: bool) -> int:
        path = self._map(ip)
        try:
            return os.open(path, os.O_RDWR | _SAFE)
        except FileNotFoundError:
            if not make:
                raise
        self._changed = True
        return _create(path)

    # --- the index; without it everything is right, and slower, so its faults are none

    def _entry(self, owner: Owner) -> str:
        return f"{self.index}/{owner[0]}~{owner[1]}"

    def _listed(self, owner: Owner) -> list[str]:
        """Return the addresses that the index has for an owner; an entry that is no link has none."""
        try:
            return os.readlink(self._entry(owner)).split(",")
        except OSError as error:
            if error.errno == errno.EINVAL:
                self._complete = False
            elif not is_absent(error):
                raise
            return []

    def _note(self, owner: Owner, addresses: list[str]) -> None:
        entry = self._entry(owner)
        self._point(entry, ",".join(addresses))

    def _point(self, entry: str, target: str) -> None:
        _forget(entry)
        try:
            try:
                os.symlink(target, entry)
            except FileNotFoundError:
                self._make_index()
                os.symlink(target, entry)
        except OSError:
            self._complete = False

    def _make_index(self) -> None:
        ours, _, name = self.index.rpartition("/")
        os.makedirs(os.path.dirname(ours), mode=0o700, exist_ok=True)
        for directory in (ours, f"{ours}/{name}"):
            try:
                os.mkdir(directory, 0o700)
            except FileExistsError:
                pass

    def _forget_all_but(self, names: set[str]) -> None:
        try:
            entries = os.listdir(self.index)
        except OSError:
            return
        for name in entries:
            if name not in names and name != _STAMP:
                _forget(f"{self.index}/{name}")

    def _is_stamped(self) -> bool:
        """Say whether nobody but us has changed the directory since the index was complete."""
        try:
            return os.readlink(f"{self.index}/{_STAMP}") == str(os.stat(self.path).st_mtime_ns)
        except OSError:
            return False

    def _stamp(self) -> None:
        """Mark the directory. The kernel counts in ticks: its own value may come from somebody else, too."""
        try:
            status = os.stat(self.path)
            mark = status.st_mtime_ns - 1
            os.utime(self.path, ns=(status.st_atime_ns, mark))
        except OSError:
            return
        self._point(f"{self.index}/{_STAMP}", str(mark))


def index_of(runtime_dir: str, path: str) -> str:
    """Return where the index of the store ``path`` is: its whole path in one name."""
    return f"{runtime_dir}/ipam/{path.replace('%', '%25').replace('/', '%2F')}"


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _content(owner: Owner) -> bytes:
    return _encoded(f"{owner[0]}\r\n{owner[1]}")


def _owner(content: bytes) -> Owner | None:
    """Return the owner that a file names; None where the index cannot have it."""
    identifier, both, ifname = content.partition(b"\r\n")
    if not identifier or not both or not ifname or b"/" in content or b"\0" in content:
        return None
    return identifier.decode("utf-8", "surrogateescape"), ifname.decode("utf-8", "surrogateescape")


def _pick(found: dict[bytes, list[str]], owner: Owner) -> list[str]:
    return found.get(_content(owner)) or found.get(_encoded(owner[0])) or []


def _number(name: str) -> Ip | None:
    """Return the address that a file is named by, None for another file."""
    try:
        return parse_ip(name)
    except ValueError:
        return None


def _create(path: str) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)


def _read_at(fd: int, at: int, size: int) -> bytearray:
    """Return a piece of a map; zeros where it was never written or cannot be read."""
    try:
        found = os.pread(fd, size, at)
    except OSError:
        found = b""
    return bytearray(found.ljust(size, b"\0"))


def _write_back(fd: int, data: bytes | bytearray, at: int) -> None:
    """Write to a map. What cannot be written (a full disk) is not known then."""
    try:
        os.pwrite(fd, data, at)
    except OSError:
        pass


def _close_map(fd: int) -> None:
    """Close a map that was written. An error tells of a write that failed late."""
    try:
        os.close(fd)
    except OSError:
        pass


def _mark_block(fd: int, places: list[int], *, taken: bool) -> None:
    """Set or clear bits of a map, given by their places."""
    first, last = min(places) >> 3, max(places) >> 3
    data = _read_at(fd, first, last + 1 - first)
    for place in places:
        at, bit = (place >> 3) - first, 1 << (place & 7)
        data[at] = data[at] | bit if taken else data[at] & ~bit
    _write_back(fd, data, first)


def _unlink(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass


def _forget(entry: str) -> None:
    """Remove an entry of the index."""
    try:
        os.unlink(entry)
    except OSError:
        pass


def _open_lock(path: str) -> int:
    """Open the lock as the real plugin does, with its modes; where the store is missing, make it."""
    flags = os.O_RDONLY | os.O_CREAT | _SAFE
    try:
        return os.open(f"{path}/lock", flags, 0o750)
    except FileNotFoundError:
        os.makedirs(path, 0o755, exist_ok=True)
        return os.open(f"{path}/lock", flags, 0o750)


def _acquire(fd: int, path: str, wait: float) -> None:
    deadline = time.monotonic() + wait
    pause = _PAUSE
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise IpamError(
                    f"the lock {path}/lock was not free within {wait:g} s",
                    "try again; `fuser` shows which process has it open",
                    code=11,  # "try again later"
                ) from None
            time.sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE)
        else:
            return
