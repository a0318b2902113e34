"""The memory of a process that stands still: what is where, and which of it must be saved."""

from __future__ import annotations

import mmap
import os
import re
from collections.abc import Iterator
from typing import NamedTuple

from sriov_fast.image import vdso
from sriov_fast.image.layout import COPY, FILE, PAGE, SAVED, ZERO, File, ImageError, Piece, seen

# proc_pid_maps(5); of a path, what was deleted says so at its end.
_LINE = re.compile(r"([0-9a-f]+)-([0-9a-f]+) (\S{4}) ([0-9a-f]+) \S+ (\d+) *(.*)")
# The kernel's own, of which every process has one: the data behind the vDSO, and what was before it.
_KERNEL = ("[vvar", "[vsyscall]")
_NAMED = ("[heap]", "[stack]", "[anon")
_MAP_SHARED, _MAP_PRIVATE, _MAP_GROWSDOWN, _MAP_NORESERVE = 1, 2, 0x100, 0x4000
_STACK = 32 * PAGE  # below what is used; it grows from there as every main thread's
# So many pages of zeros are saved with their neighbours: a mapping more costs more than them.
_GAP = 16
# Of a file, what is read alone and so small (bytes) is saved, and often mapped with what follows it.
_SMALL = 16 * PAGE


class Mapping(NamedTuple):
    """A line of /proc/PID/maps."""

    start: int
    end: int
    mode: str
    offset: int
    inode: int
    name: str

    @property
    def protection(self) -> int:
        """What mmap(2) calls PROT_*."""
        bits = (mmap.PROT_READ, mmap.PROT_WRITE, mmap.PROT_EXEC)
        return sum(bit for bit, letter in zip(bits, self.mode, strict=False) if letter != "-")

    @property
    def sharing(self) -> int:
        """MAP_SHARED or MAP_PRIVATE."""
        return _MAP_SHARED if self.mode[3] == "s" else _MAP_PRIVATE


class Saved:
    """What is saved of one process: pieces, the files that some are of, and the bytes of the others."""

    def __init__(self, pid: int) -> None:
        self.pieces: list[Piece] = []
        self.files: list[File] = []
        self.data: list[bytes] = []
        self.size = 0
        with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
            self._memory = memory.fileno()
            for mapping in mappings(pid):
                if not mapping.name.startswith(_KERNEL):
                    self._save(mapping)

    def file(self, path: str) -> int:
        """Return the number of a file, which becomes one that this is made of."""
        for number, known in enumerate(self.files):
            if known.path == path:
                return number
        self.files.append(seen(path))
        return len(self.files) - 1

    def _save(self, mapping: Mapping) -> None:
        if mapping.name == "[vdso]":
            self._add(mapping, mapping.start, COPY, vdso.stubbed(self._read(mapping)))
        elif not mapping.protection:
            self._add_zeros(mapping, mapping.start, mapping.end - mapping.start)
        elif mapping.inode:
            self._save_file(mapping)
        elif mapping.name and not mapping.name.startswith(_NAMED):
            raise ImageError(f"memory of an unknown kind: {mapping}")
        else:
            self._save_own(mapping)

    def _read(self, mapping: Mapping) -> bytes:
        size = mapping.end - mapping.start
        data = os.pread(self._memory, size, mapping.start)
        while len(data) < size:
            more = os.pread(self._memory, size - len(data), mapping.start + len(data))
            if not more:
                raise ImageError(f"cannot be read: {mapping}")
            data += more
        return data

    def _save_file(self, mapping: Mapping) -> None:
        """Save what a file is mapped to: the file's name will do, unless its pages were changed."""
        data = self._read(mapping)
        number = self.file(mapping.name)
        with open(mapping.name, "rb") as file:
            same = os.pread(file.fileno(), len(data), mapping.offset).ljust(len(data), b"\0") == data
        if same and (len(data) > _SMALL or "x" in mapping.mode or "s" in mapping.mode):
            where = mapping.start, mapping.end - mapping.start, FILE, mapping.protection, mapping.sharing
            self.pieces.append(Piece(*where, mapping.offset, number))
        elif not same and "s" in mapping.mode:
            raise ImageError(f"memory that is shared and changed: {mapping}")
        else:
            self._save_pages(mapping, data)

    def _save_own(self, mapping: Mapping) -> None:
        if "s" in mapping.mode:
            raise ImageError(f"memory that is shared: {mapping}")
        if mapping.name == "[stack]":
            self._add_zeros(mapping, mapping.start - _STACK, _STACK, _MAP_GROWSDOWN)
        self._save_pages(mapping, self._read(mapping))

    def _save_pages(self, mapping: Mapping, data: bytes) -> None:
        if "x" in mapping.mode:
            raise ImageError(f"code that no file has: {mapping}")
        for begin, end, is_zero in runs(data):
            if is_zero:
                self._add_zeros(mapping, mapping.start + begin, end - begin)
            else:
                self._add(mapping, mapping.start + begin, SAVED, data[begin:end])

    def _add(self, mapping: Mapping, start: int, kind: int, data: bytes) -> None:
        piece = Piece(start, len(data), kind, mapping.protection, _MAP_PRIVATE, self.size)
        last = self.pieces[-1] if self.pieces else piece
        if kind == SAVED == last.kind and _are_one(last, piece):
            self.pieces[-1] = last._replace(size=last.size + piece.size)
        else:
            self.pieces.append(piece)
        self.data.append(data)
        self.size += len(data)

    def _add_zeros(self, mapping: Mapping, start: int, size: int, more: int = 0) -> None:
        flags = _MAP_PRIVATE | _MAP_NORESERVE | more
        self.pieces.append(Piece(start, size, ZERO, mapping.protection, flags))


def _are_one(first: Piece, second: Piece) -> bool:
    """Say whether two saved pieces can be mapped at once."""
    return (
        first.start + first.size == second.start
        and first.offset + first.size == second.offset
        and first.protection == second.protection
    )


def mappings(pid: int) -> Iterator[Mapping]:
    """Return the mappings of a process."""
    with open(f"/proc/{pid}/maps", encoding="utf-8", errors="surrogateescape") as file:
        lines = file.read().splitlines()
    for line in lines:
        found = _LINE.fullmatch(line)
        if not found:
            raise ImageError(f"not understood: {line}")
        start, end, mode, offset, inode, name = found.groups()
        yield Mapping(int(start, 16), int(end, 16), mode, int(offset, 16), int(inode), name)


def runs(data: bytes) -> Iterator[tuple[int, int, bool]]:
    """Split into runs of whole pages: begin, end, and whether all of it is zero."""
    zeros = bytes(PAGE)
    marks = [data[at : at + PAGE] == zeros for at in range(0, len(data), PAGE)]
    spans: list[list[int]] = []  # begin, end in pages of what is not zero
    for number, is_zero in enumerate(marks):
        if is_zero:
            continue
        if spans and number - spans[-1][1] < _GAP:
            spans[-1][1] = number + 1
        else:
            spans.append([number, number + 1])
    at = 0
    for begin, end in spans:
        if begin > at:
            yield at * PAGE, begin * PAGE, True
        yield begin * PAGE, end * PAGE, False
        at = end
    if at < len(marks):
        yield at * PAGE, len(marks) * PAGE, True
