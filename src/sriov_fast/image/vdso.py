"""What the C library keeps pointers into and a new process has elsewhere: the kernel's vDSO (vdso(7)).

Its pages are saved with each function replaced by the system call that it spares. They have the same
arguments and return the same, ``-errno`` included, so that callers cannot tell. The state that glibc (2.41 or
later) keeps for __vdso_getrandom is not looked at any more: nobody gets another process' random numbers.
"""

from __future__ import annotations

import struct

from sriov_fast.image.layout import ImageError

# x86-64's numbers (arch/x86/entry/syscalls/syscall_64.tbl). __vdso_getrandom has two arguments more, for
# memory of its own, which the system call does not look at.
_CALLS = {
    "gettimeofday": 96,
    "time": 201,
    "clock_gettime": 228,
    "clock_getres": 229,
    "getcpu": 309,
    "getrandom": 318,
}
_NO_CALL = 0xFFFFFFFF  # the kernel answers -ENOSYS, which callers of the vDSO know
_STUB = struct.Struct("<BIBBB")
_PT_LOAD, _PT_DYNAMIC = 1, 2
_DT_STRTAB, _DT_SYMTAB, _DT_HASH, _DT_GNU_HASH = 5, 6, 4, 0x6FFFFEF5
_STT_FUNC = 2
_SYMBOL = struct.Struct("<IBBHQQ")


def stubbed(vdso: bytes) -> bytes:
    """Return the vDSO with a system call in place of each function; ImageError where it is not understood."""
    patched = bytearray(vdso)
    try:
        found = _functions(vdso)
    except (struct.error, ValueError, IndexError, KeyError) as error:
        raise ImageError(f"the vDSO is not understood: {error!r}") from error
    if "clock_gettime" not in {name.removeprefix("__vdso_") for name in found}:
        raise ImageError("the vDSO has no clock_gettime")
    for name, at in found.items():
        number = _CALLS.get(name.removeprefix("__vdso_"), _NO_CALL)
        _STUB.pack_into(patched, at, 0xB8, number, 0x0F, 0x05, 0xC3)  # mov $number, %eax; syscall; ret
    return bytes(patched)


def _functions(vdso: bytes) -> dict[str, int]:
    """Return the exported functions by name, each with its place in the vDSO."""
    if vdso[:6] != b"\x7fELF\x02\x01":
        raise ValueError("no 64-bit ELF")
    table, size, count = (*struct.unpack_from("<Q", vdso, 32), *struct.unpack_from("<HH", vdso, 54))
    base, dynamic = 0, {}
    for number in range(count):
        kind, _, offset, address, _, length = struct.unpack_from("<IIQQQQ", vdso, table + number * size)
        if kind == _PT_LOAD:
            base = address - offset
        if kind == _PT_DYNAMIC:
            pairs = struct.iter_unpack("<QQ", vdso[offset : offset + length])
            dynamic = dict(pairs)
    symbols, strings = dynamic[_DT_SYMTAB] - base, dynamic[_DT_STRTAB] - base
    found = {}
    # the strings follow the symbols in every vDSO; what is no symbol any more has no name among them
    for at in range(symbols, strings, _SYMBOL.size):
        name, info, _, section, value, _ = _SYMBOL.unpack_from(vdso, at)
        if info & 15 == _STT_FUNC and section:
            start = strings + name
            found[vdso[start : vdso.index(0, start)].decode()] = value - base
    return found
