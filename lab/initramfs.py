"""The guest's initial file system: a shell, a few modules, and the script that mounts the shared tree."""

from __future__ import annotations

import gzip
import lzma
from collections.abc import Iterable
from pathlib import Path

from lab.chroot import Chroot

SCRIPTS = Path(__file__).parent / "guest"
DIRECTORIES = ("bin", "dev", "lower", "modules", "new", "proc", "sys", "upper")
MODULES = ("overlay", "9p", "9pnet_virtio")

_DIRECTORY = 0o040755
_EXECUTABLE = 0o100755
_FILE = 0o100644


def build(root: Path, version: str) -> bytes:
    """Build the compressed archive for the kernel ``version`` of the tree ``root``."""
    entries: list[tuple[str, int, bytes]] = [(name, _DIRECTORY, b"") for name in DIRECTORIES]
    entries.append(("bin/busybox", _EXECUTABLE, (root / "usr/bin/busybox").read_bytes()))
    entries.append(("init", _EXECUTABLE, (SCRIPTS / "init.sh").read_bytes()))
    for number, path in enumerate(load_order(root, version)):
        entries.append((f"modules/{number:02}-{path.name.partition('.')[0]}.ko", _FILE, _plain(path)))
    return gzip.compress(cpio(entries), compresslevel=1)


def load_order(root: Path, version: str) -> list[Path]:
    """Return the files of MODULES and their dependencies, in the order to load them."""
    argv = ["modprobe", "--set-version", version, "--all", "--show-depends", *MODULES]
    lines = [line.split() for line in Chroot(root).run(argv).splitlines()]
    names = [words[1] for words in lines if words[:1] == ["insmod"]]
    return [root / name.lstrip("/") for name in dict.fromkeys(names)]


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
