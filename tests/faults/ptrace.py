"""The requests of ptrace(2) that the tracer uses, through ctypes, on x86-64."""

from __future__ import annotations

import ctypes
import os
import platform

SUPPORTED = platform.machine() == "x86_64" and platform.system() == "Linux"

# linux/ptrace.h
TRACEME, CONT, DETACH, SYSCALL = 0, 7, 17, 24
SETOPTIONS, GETEVENTMSG, SEIZE, INTERRUPT = 0x4200, 0x4201, 0x4206, 0x4207
_POKEUSER, _GET_SYSCALL_INFO = 6, 0x420E
O_TRACESYSGOOD, O_TRACEFORK, O_TRACEVFORK, O_TRACECLONE, O_TRACEEXEC = 1, 2, 4, 8, 16
O_EXITKILL = 1 << 20
NEW_TASK = (1, 2, 3)  # PTRACE_EVENT_FORK, _VFORK, _CLONE
EVENT_EXEC = 4
ENTRY, EXIT = 1, 2
OPTIONS = O_TRACESYSGOOD | O_TRACEFORK | O_TRACEVFORK | O_TRACECLONE | O_TRACEEXEC | O_EXITKILL
# sys/user.h, struct user_regs_struct: offsets of rax and orig_rax
_RAX, _ORIG_RAX = 10 * 8, 15 * 8
WALL = 0x40000000  # __WALL, linux/wait.h

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)
_libc.ptrace.restype = ctypes.c_long


class _Info(ctypes.Structure):
    """struct ptrace_syscall_info, with the union as its entry member."""

    _fields_ = (
        ("op", ctypes.c_uint8),
        ("pad", ctypes.c_uint8 * 3),
        ("arch", ctypes.c_uint32),
        ("ip", ctypes.c_uint64),
        ("sp", ctypes.c_uint64),
        ("number", ctypes.c_uint64),
        ("args", ctypes.c_uint64 * 6),
        ("rest", ctypes.c_uint64),
    )


def request(what: int, task: int, data: int = 0, address: int = 0) -> None:
    """Make one ptrace request; raise ProcessLookupError if the task has ended."""
    if _libc.ptrace(what, task, address or None, data or None) == -1:
        number = ctypes.get_errno()
        raise OSError(number, f"ptrace {what:#x}: {os.strerror(number)}")


def call_of(task: int) -> tuple[int, int, tuple[int, ...]]:
    """Return (ENTRY or EXIT, the call's number, its arguments) of a task in a system call stop."""
    info = _Info()
    if _libc.ptrace(_GET_SYSCALL_INFO, task, ctypes.sizeof(info), ctypes.byref(info)) == -1:
        number = ctypes.get_errno()
        raise OSError(number, f"ptrace: {os.strerror(number)}")
    return info.op, info.number, tuple(info.args)


def event_message(task: int) -> int:
    """Return the message of an event (PTRACE_GETEVENTMSG): the ID of a fork's new task."""
    found = ctypes.c_ulong()
    _libc.ptrace(GETEVENTMSG, task, None, ctypes.byref(found))
    return found.value


def skip_call(task: int) -> None:
    """Cancel the system call of a task in an entry stop."""
    request(_POKEUSER, task, (1 << 64) - 1, _ORIG_RAX)


def return_error(task: int, number: int) -> None:
    """Set the errno that the system call of a task in an exit stop returns."""
    request(_POKEUSER, task, (1 << 64) - number, _RAX)
