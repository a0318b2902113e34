"""The guest's initial file system: a shell, a few modules, and the script that mounts the shared tree."""

from __future__ import annotations

import gzip
import lzma
from collections.abc import Iterable, Iterator
from pathlib import Path

SCRIPTS = Path(__file__).parent / "guest"
DIRECTORIES = ("bin", "dev", "lower", "modules", "new", "proc", "sys", "upper")
MODULES = ("overlay", "9p", "9pnet_virtio")

_DIRECTORY = 0o040755
_EXECUTABLE = 0o100755
_FILE = 0o100644


def build(root: Path, version: str) -> bytes:
    """Build the compressed archive for the kernel ``version`` of the tree ``root``."""
    modules = list(load_order(root / "usr/lib/modules" / version, MODULES))
    entries: list[tuple[str, int, bytes]] = [(name, _DIRECTORY, b"") for name in DIRECTORIES]
    entries.append(("bin/busybox", _EXECUTABLE, (root / "usr/bin/busybox").read_bytes()))
    entries.append(("init", _EXECUTABLE, (SCRIPTS / "init.sh").read_bytes()))
    for number, path in enumerate(modules):
        entries.append((f"modules/{number:02}-{module_name(path)}.ko", _FILE, _plain(path)))
    return gzip.compress(cpio(entries), compresslevel=1)


def load_order(directory: Path, names: Iterable[str]) -> Iterator[Path]:
    """Yield the files of the modules ``names`` and of all they depend on, in the order to load them."""
    dependencies = dict(_dependencies((directory / "modules.dep").read_text()))
    by_name = {module_name(Path(path)): path for path in dependencies}
    done: set[str] = set()
    for name in names:
        if name in by_name:
            path = by_name[name]
            for each in (*reversed(dependencies[path]), path):
                if each not in done:
                    done.add(each)
                    yield directory / each


def _dependencies(text: str) -> Iterator[tuple[str, list[str]]]:
    for line in text.splitlines():
        path, _, needed = line.partition(":")
        yield path, needed.split()


def module_name(path: Path) -> str:
    """Return the kernel's name of a module file."""
    return path.name.partition(".")[0].replace("-", "_")


def _plain(path: Path) -> bytes:
    data = path.read_bytes()
    return lzma.decompress(data) if path.suffix == ".xz" else data


def cpio(entries: Iterable[tuple[str, int, bytes]]) -> bytes:
    """Pack ``(name, mode, data)`` in the "newc" format that the kernel unpacks."""
    packed = [_record(inode, *entry) for inode, entry in enumerate(entries, start=1)]
    packed.append(_record(0, "TRAILER!!!", 0, b""))
    return b"".join(packed)


def _record(inode: int, name: str, mode: int, data: bytes) -> bytes:
    encoded = name.encode() + b"\0"
    # ino mode uid gid nlink mtime size devmajor devminor rdevmajor rdevminor namesize check
    numbers = (inode, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(encoded), 0)
    header = b"070701" + b"".join(b"%08X" % number for number in numbers)
    return _padded(header + encoded) + _padded(data)


def _padded(data: bytes) -> bytes:
    return data + b"\0" * (-len(data) % 4)
