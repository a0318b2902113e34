"""The file of an image, as ``client/image.h`` describes it: written, and looked at before it is remade."""

from __future__ import annotations

import array
import mmap
import os
import struct
from typing import NamedTuple

from sriov_fast import _park
from sriov_fast.errors import SriovError

MAGIC = b"SRFIMG01"
PAGE = 4096
_HEAD = struct.Struct("=8s4Q16I4I40s")
_FILE = struct.Struct("=5Q")
_PIECE = struct.Struct("=3Q4I")
_TRAILER = struct.Struct("=I8s")
_TRAILER_MAGIC = b"SRFARGV1"
_SUMMED = 16  # magic and sum come before
_BOOT = "/proc/sys/kernel/random/boot_id"
_MOST_HEAD = 4 << 20

# enum piece_kind
ZERO, SAVED, FILE, COPY = range(4)


class ImageError(SriovError):
    """No image can be made here, or the one that is there does not fit."""


class File(NamedTuple):
    """A file that an image was made of, as it was (stat(2))."""

    path: str
    dev: int
    ino: int
    mtime_ns: int
    size: int


class Piece(NamedTuple):
    """Some of the saved memory. ``offset`` is in the file ``file``, or in what follows the head."""

    start: int
    size: int
    kind: int
    protection: int
    flags: int
    offset: int = 0
    file: int = 0


class Image(NamedTuple):
    """What an image says of itself."""

    words: bytes
    files: list[File]


def words_of(executable: str | os.PathLike[str]) -> list[str]:
    """Return the words behind the client (``struct trailer`` in sriov.c). ImageError where there are none."""
    with open(executable, "rb") as file:
        content = file.read()
    size, magic = _TRAILER.unpack(content[-_TRAILER.size :].rjust(_TRAILER.size, b"\0"))
    end = len(content) - _TRAILER.size
    if magic != _TRAILER_MAGIC or not 0 < size <= end or content[end - 1]:
        raise ImageError(f"{executable}: not the client that sriov-fast install writes")
    return [os.fsdecode(word) for word in content[end - size : end - 1].split(b"\0")]


def packed_words(words: list[str]) -> bytes:
    """Return the words as they stand behind the client."""
    return b"".join(os.fsencode(word) + b"\0" for word in words)


def seen(path: str) -> File:
    """Return a file as it is now; OSError where it is not."""
    now = os.stat(path)
    return File(path, now.st_dev, now.st_ino, now.st_mtime_ns, now.st_size)


def boot() -> bytes:
    """Return the identity of this boot, 36 characters."""
    with open(_BOOT, "rb") as file:
        return file.read(36)


def head(words: bytes, files: list[File], pieces: list[Piece], parked: int, saved: int) -> bytes:
    """Return the head of an image with ``saved`` bytes of pages behind it; whole pages, too."""
    strings = bytearray(words)
    packed_files = bytearray()
    for each in files:
        packed_files += _FILE.pack(each.dev, each.ino, each.mtime_ns, each.size, len(strings))
        strings += os.fsencode(each.path) + b"\0"
    tables = _HEAD.size + len(packed_files) + len(pieces) * _PIECE.size + len(strings)
    size = -(-(tables + 1) // PAGE) * PAGE  # the last byte is a NUL
    packed_pieces = b"".join(_packed(piece, size) for piece in pieces)
    cpu, personality = _park.machine()
    counts = personality, len(files), len(pieces), len(words)
    first = _HEAD.pack(MAGIC, 0, size, size + saved, parked, *cpu, *counts, boot())
    body = bytearray(b"".join((first, packed_files, packed_pieces, strings)).ljust(size, b"\0"))
    struct.pack_into("=Q", body, 8, _sum(body[_SUMMED:]))
    return bytes(body)


def _packed(piece: Piece, base: int) -> bytes:
    offset = piece.offset + (base if piece.kind in (SAVED, COPY) else 0)
    return _PIECE.pack(piece.start, piece.size, offset, piece.kind, piece.protection, piece.flags, piece.file)


def _sum(data: bytes | bytearray) -> int:
    """FNV-1a over words of eight bytes."""
    value = 0xCBF29CE484222325
    for word in array.array("Q", bytes(data)):
        value = (value ^ word) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return value


def read(path: str) -> Image:
    """Read the head of an image that is whole, and for this boot and this processor. ImageError, OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    with open(fd, "rb"):
        about = os.fstat(fd)
        if about.st_uid != os.geteuid() or about.st_mode & 0o177077 != 0o100000:
            raise ImageError(f"{path}: not a file of ours alone")
        if about.st_size < PAGE:
            raise ImageError(f"{path}: cut short")
        with mmap.mmap(fd, min(about.st_size, _MOST_HEAD), prot=mmap.PROT_READ) as data:
            try:
                return _parsed(path, data, about.st_size)
            except (struct.error, ValueError) as error:
                raise ImageError(f"{path}: damaged: {error}") from error


def _parsed(path: str, data: mmap.mmap, file_size: int) -> Image:
    magic, summed, size, whole, _, *rest = _HEAD.unpack_from(data)
    cpu, (personality, files, pieces, words), booted = rest[:16], rest[16:20], rest[20]
    if magic != MAGIC or whole != file_size or not _HEAD.size <= size <= len(data):
        raise ImageError(f"{path}: not an image, or cut short")
    if _sum(data[_SUMMED:size]) != summed:
        raise ImageError(f"{path}: damaged")
    if booted.rstrip(b"\0") != boot():
        raise ImageError(f"{path}: of another boot")
    if (cpu, personality) != _park.machine():
        raise ImageError(f"{path}: for another processor")
    strings = data[_HEAD.size + files * _FILE.size + pieces * _PIECE.size : size]
    found = []
    for number in range(files):
        dev, ino, mtime_ns, length, at = _FILE.unpack_from(data, _HEAD.size + number * _FILE.size)
        name = os.fsdecode(strings[at : strings.index(b"\0", at)])
        found.append(File(name, dev, ino, mtime_ns, length))
    return Image(strings[:words], found)


def fault_of(path: str, words: bytes | None = None) -> str:
    """Say why the image at ``path`` cannot be used (for ``words``, where given); "" where it can."""
    try:
        image = read(path)
    except (OSError, ImageError) as error:
        return getattr(error, "strerror", None) or str(error)
    if words is not None and image.words != words:
        return "it is for another executable"
    for file in image.files:
        try:
            if seen(file.path) == file:
                continue
        except OSError:
            pass
        return f"{file.path} was changed since"
    return ""


def name_of(words: bytes) -> str:
    """Return the name of the image for an executable's words, as the client finds it (FNV-1a)."""
    value = 0xCBF29CE484222325
    for byte in words:
        value = (value ^ byte) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return f"sriov-{value:016x}.image"
