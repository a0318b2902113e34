"""Files that a network configuration names; root decides which of them may be opened.

The author of a network configuration need not be root, but the plugin runs as root (docs/security.md). So
each key that names a file has a list of directories and files, from ``plugin.toml`` or the defaults below. A
path outside the list is refused before the file system is asked about it. Links are resolved, the result must
be in the list as well, and is opened component by component without following a link.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat

from sriov_fast.common import descriptors, paths
from sriov_fast.common.errors import ConfigError, FileError, RefusedError, is_absent
from sriov_fast.common.record import Record

NAME = "plugin.toml"
_OWN = ("/etc/sriov-fast", "/etc/cni")
_AUTHORITIES = (
    *_OWN,
    *("/etc/pki", "/etc/ssl", "/etc/ca-certificates", "/var/lib/ca-certificates"),
    *("/usr/share/ca-certificates", "/usr/local/share/ca-certificates", "/usr/share/pki"),
)
_RESOLVERS = (
    *("/etc/resolv.conf", "/run/systemd/resolve", "/var/run/systemd/resolve", "/usr/lib/systemd/resolv.conf"),
    *("/run/NetworkManager", "/run/resolvconf", "/run/netconfig", *_OWN),
    *("/var/lib/rancher/k3s/agent/etc/resolv.conf", "/var/lib/rancher/rke2/agent/etc/resolv.conf"),
)
DEFAULTS: dict[str, tuple[str, ...]] = {
    "logFile": ("/var/log/sriov-fast",),
    "dataDir": ("/var/lib/cni", "/run/cni", "/var/run/cni"),
    "resolvConf": _RESOLVERS,
    "ca": _AUTHORITIES,
    "cert": _OWN,
    "key": _OWN,
    "tokenFile": _OWN,
    "CNIDeviceInfoFile": ("/var/run/k8s.cni.cncf.io/devinfo/cni", "/run/k8s.cni.cncf.io/devinfo/cni"),
}

LARGEST = 4 << 20  # bytes of a file that is read; the authorities of a distribution have a quarter of a MiB
LARGEST_LOG = 10 << 20  # bytes; the previous log file has as many
_ATTEMPTS = 3

_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
_APPEND = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_IRREGULAR = "not a regular file"
# Faults of the path itself. With any other errno the file could not be examined.
_FAULTS_OF_A_PATH = (
    *(errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.EACCES, errno.EPERM),
    *(errno.EINVAL, errno.EFBIG, errno.ENXIO),
)


# --- root's rules


class Rules(Record):
    """Root's rules: ``allow`` has the paths for each key, ``tokens`` the remotes for each token file."""

    allow: dict[str, tuple[str, ...]]
    tokens: dict[str, tuple[str, ...]]


_DEFAULT = Rules(allow=DEFAULTS, tokens={})
_known: dict[str, tuple[tuple[int, ...], Rules]] = {}


def rules_path() -> str:
    """Return the path of root's rules; ``SRIOV_FAST_ETC`` moves the directory (for tests)."""
    return f"{os.environ.get('SRIOV_FAST_ETC') or '/etc/sriov-fast'}/{NAME}"


def rules() -> Rules:
    """Return root's rules, the defaults without a file. Raises FileError if the file cannot be used."""
    path = rules_path()
    try:
        # links are followed: Kubernetes mounts a ConfigMap as one, and the directory is root's
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return _DEFAULT
    except OSError as error:
        raise _unusable(path, error.strerror or str(error), error.errno or 0) from error
    try:
        return _loaded(path, fd)
    finally:
        descriptors.close(fd)


def _loaded(path: str, fd: int) -> Rules:
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        raise _unusable(path, _IRREGULAR)
    if status.st_uid not in (0, os.geteuid()) or status.st_mode & 0o022:
        raise _unusable(path, "others than root may write to it")
    stamp = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    known = _known.get(path)
    if known and known[0] == stamp:
        return known[1]
    found = _parsed(path, _bounded(fd, LARGEST))
    _known[path] = stamp, found
    return found


def _parsed(path: str, content: bytes) -> Rules:
    import tomllib  # late: most nodes have no such file

    try:
        document = tomllib.loads(content.decode())
    except ValueError as error:
        raise _unusable(path, str(error)) from error
    unknown = document.keys() - {"allow", "tokens"}
    if unknown:
        raise _unusable(path, f"{min(unknown)} is unknown")
    allow = _lists(path, document, "allow")
    strangers = allow.keys() - DEFAULTS.keys()
    if strangers:
        raise _unusable(path, f"allow.{min(strangers)} is unknown; known: {', '.join(DEFAULTS)}")
    for key, entries in allow.items():
        if not all(entry.startswith("/") for entry in entries):
            raise _unusable(path, f"allow.{key}: not a list of absolute paths")
    allowed = {key: tuple(map(_plain, entries)) for key, entries in allow.items()}
    tokens = {_plain(token): remotes for token, remotes in _lists(path, document, "tokens").items()}
    return Rules(allow=DEFAULTS | allowed, tokens=tokens)


def _lists(path: str, document: dict[str, object], table: str) -> dict[str, tuple[str, ...]]:
    """Return a table of lists of strings."""
    found = document.get(table, {})
    if not isinstance(found, dict):
        raise _unusable(path, f"{table} is no table")
    for key, value in found.items():
        if not isinstance(value, list) or not all(
            isinstance(each, str) and "\0" not in each for each in value
        ):
            raise _unusable(path, f"{table}.{key}: not a list of strings")
    return {key: tuple(value) for key, value in found.items()}


def _unusable(path: str, why: str, number: int = 0) -> FileError:
    advice = "it says which files a network configuration may name: a TOML file that only root may write to"
    return FileError(f"{path}: {why}", advice, errno=number)


# --- whether a path is allowed


def demand(where: str, path: str) -> None:
    """Raise RefusedError unless root lists the path for this key. The path itself is not examined.

    ``where`` is the key with its object, such as "ipam.ca".
    """
    _listed(where, path)


def _listed(where: str, path: str) -> tuple[str, tuple[str, ...]]:
    """Return the normal form of a path that is in the list of its key, and that list."""
    if not path.startswith("/"):
        raise RefusedError(
            f"{where} = {path[:200]!r}: not an absolute path", "give a path that starts with '/'"
        )
    asked, entries = _plain(path), rules().allow[where.rpartition(".")[2]]
    if not any(_is_within(asked, entry) for entry in entries):
        raise _refused(where, path, entries)
    return asked, entries


def _placed(where: str, path: str, name: str = "") -> tuple[str, str]:
    """Return the directory that root allows, and the rest of ``path/name`` below it; links are resolved."""
    asked, entries = _listed(where, path)
    real = os.path.realpath(f"{asked}/{name}")
    for entry in map(os.path.realpath, entries):
        if real == entry and not os.path.isdir(real):
            return os.path.split(real)
        if _is_within(real, entry):
            return entry, real[len(entry) :].strip("/") or "."
    raise _refused(where, path, entries)


def _plain(path: str) -> str:
    return os.path.normpath("/" + path.lstrip("/"))


def _is_within(path: str, entry: str) -> bool:
    return path == entry or path.startswith(entry.rstrip("/") + "/")


def _refused(where: str, path: str, entries: tuple[str, ...]) -> RefusedError:
    key = where.rpartition(".")[2]
    return RefusedError(
        f"{where} = {path[:200]!r}: root does not allow a network configuration to name this path",
        f"allowed: {', '.join(entries) or 'none'}; root can list others: {key} in [allow] of {rules_path()}",
    )


def remotes_of(token: str) -> tuple[str, ...] | None:
    """Return the remotes to which root allows a token to be sent; None without a rule for this token."""
    return rules().tokens.get(_plain(token))


def shares_directory(path: str, other: str) -> bool:
    """Return whether ``path`` is in the directory of ``other`` or below it."""
    return _is_within(_plain(path), os.path.dirname(_plain(other)))


# --- opening


class Opened:
    """A regular file that root allows for a key, open for reading.

    Raises ConfigError with key and path if these are wrong, FileError if the file could not be examined.
    """

    def __init__(self, where: str, path: str) -> None:
        base, rest = _placed(where, path)
        try:
            self.fd = _open_below(base, rest, _READ)
        except OSError as error:
            raise _wrong(where, path, error) from error
        try:
            if os.fstat(self.fd).st_size > LARGEST:
                raise _wrong(where, path, OSError(errno.EFBIG, f"larger than {LARGEST} bytes"))
        except BaseException:
            descriptors.close(self.fd)
            raise

    def __enter__(self) -> int:
        return self.fd

    def __exit__(self, *_: object) -> None:
        descriptors.close(self.fd)


def read(where: str, path: str, most: int) -> bytes:
    """Return at most ``most`` bytes of a file that root allows for this key; see ``Opened``."""
    with Opened(where, path) as fd:
        try:
            return _bounded(fd, most)
        except OSError as error:
            raise _wrong(where, path, error) from error


def directory(where: str, path: str, name: str) -> None:
    """Raise an error of ``Opened`` unless root allows the directory ``path``, and only root may change it.

    The same holds for the directory ``name`` in it. Both may be missing.
    """
    base, rest = _placed(where, path, name)
    try:
        parent, _ = _parent(base, f"{rest}/.")
    except FileNotFoundError:
        return  # it will be made in a directory that was checked
    except OSError as error:
        raise _wrong(where, path, error) from error
    descriptors.close(parent)


def _open_below(base: str, rest: str, flags: int) -> int:
    """Open the regular file ``rest`` below the directory ``base``; OSError for anything else."""
    parent, name = _parent(base, rest)
    try:
        return _open_regular(parent, name, flags)
    finally:
        descriptors.close(parent)


def _open_regular(parent: int, name: str, flags: int) -> int:
    fd = os.open(name, flags, 0o600, dir_fd=parent)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(errno.EINVAL, _IRREGULAR)
    except BaseException:
        descriptors.close(fd)
        raise
    return fd


def _parent(base: str, rest: str) -> tuple[int, str]:
    """Open the directory of ``rest`` below ``base``, and return it with the name of ``rest`` in it.

    Raises OSError if others than root may change a directory of the path. ``base`` itself may belong to a
    system user, such as systemd-resolve.
    """
    *between, name = rest.split("/")
    fd = os.open(base, _DIRECTORY)
    try:
        _demand_closed(base, not os.fstat(fd).st_mode & stat.S_IWOTH)
        for each in between:
            deeper = os.open(each, _DIRECTORY, dir_fd=fd)
            descriptors.close(fd)
            fd = deeper
            status = os.fstat(fd)
            _demand_closed(each, status.st_uid in (0, os.geteuid()) and not status.st_mode & 0o022)
    except BaseException:
        descriptors.close(fd)
        raise
    return fd, name


def _demand_closed(name: str, closed: bool) -> None:
    if not closed:
        raise PermissionError(errno.EPERM, f"others than root may change the directory {name}")


def _bounded(fd: int, most: int) -> bytes:
    """Read at most ``most`` bytes."""
    chunks: list[bytes] = []
    while most > 0 and (chunk := os.read(fd, most)):
        chunks.append(chunk)
        most -= len(chunk)
    return b"".join(chunks)


def _wrong(where: str, path: str, error: OSError) -> ConfigError | FileError:
    """Return the error for a file that cannot be read: ConfigError for a fault of the path, or FileError."""
    kind: type[ConfigError | FileError] = FileError
    advice = "see what keeps it from being read; try again"
    if error.errno in _FAULTS_OF_A_PATH:
        kind = ConfigError
        advice = "name a regular file that root can read, in directories that nobody else may change"
    return kind(f"{where} = {path!r}: {error.strerror or error}", advice, errno=error.errno or 0)


# --- writing


def create(where: str, path: str, content: bytes) -> None:
    """Write a file that root allows for this key, unless there is one.

    A listed directory is made if it is missing. Raises an error of ``Opened``.
    """
    base, rest = _placed(where, path)
    try:
        paths.make_directories(base, 0o755)
        with open(_open_below(base, rest, _CREATE), "wb") as file:
            os.fchmod(file.fileno(), 0o444)
            file.write(content)
    except FileExistsError:
        pass
    except OSError as error:
        raise _wrong(where, path, error) from error


def remove(where: str, path: str) -> None:
    """Remove a file that root allows for this key; harmless if it is gone. Raises an error of ``Opened``."""
    base, rest = _placed(where, path)
    try:
        parent, name = _parent(base, rest)
        try:
            os.unlink(name, dir_fd=parent)
        finally:
            descriptors.close(parent)
    except OSError as error:
        if not is_absent(error):
            raise _wrong(where, path, error) from error


# --- log files


def open_log(path: str) -> int:
    """Open a log file that root allows, for appending; create it, and a listed directory, if missing.

    A file that has become too large is renamed to ``<name>.1``. Raises RefusedError, OSError.
    """
    base, rest = _placed("logFile", path)
    if os.path.islink(_plain(path)):
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))  # the link may lead to another program's log
    try:
        os.mkdir(base, 0o700)
    except (FileExistsError, FileNotFoundError):
        pass  # opening it raises the error
    parent, name = _parent(base, rest)
    try:
        fd = _open_regular(parent, name, _APPEND)
        for _ in range(_ATTEMPTS):
            if os.fstat(fd).st_size < LARGEST_LOG or not _rotated(parent, name, fd):
                break
            descriptors.close(fd)
            fd = _open_regular(parent, name, _APPEND)
    finally:
        descriptors.close(parent)
    return fd


def _rotated(parent: int, name: str, fd: int) -> bool:
    """Rename a log file; return False if another process is doing so, or if it failed."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        there = os.stat(name, dir_fd=parent, follow_symlinks=False)
        if os.path.samestat(there, os.fstat(fd)):  # otherwise it was renamed after we opened it
            os.rename(name, f"{name}.1", src_dir_fd=parent, dst_dir_fd=parent)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True
