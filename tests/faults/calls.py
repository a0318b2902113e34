"""The errors that the kernel can return for each system call (x86-64), and the objects of calls.

``FAILS`` has the errors by call; ``errors_of`` adapts them to the arguments. A call without an entry returns
no error that a program has to handle (getpid, futex): only SIGKILL is injected into it.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

# asm/unistd_64.h
NUMBERS = {
    "read": 0, "write": 1, "open": 2, "close": 3, "stat": 4, "fstat": 5, "lstat": 6, "poll": 7, "lseek": 8,
    "mmap": 9, "mprotect": 10, "munmap": 11, "brk": 12, "rt_sigaction": 13, "rt_sigprocmask": 14,
    "rt_sigreturn": 15, "ioctl": 16, "pread64": 17, "pwrite64": 18, "readv": 19, "writev": 20, "access": 21,
    "pipe": 22, "select": 23, "sched_yield": 24, "mremap": 25, "madvise": 28, "dup": 32, "dup2": 33,
    "nanosleep": 35, "getpid": 39, "socket": 41, "connect": 42, "accept": 43, "sendto": 44, "recvfrom": 45,
    "sendmsg": 46, "recvmsg": 47, "shutdown": 48, "bind": 49, "listen": 50, "getsockname": 51,
    "socketpair": 53, "setsockopt": 54, "getsockopt": 55, "clone": 56, "fork": 57, "vfork": 58, "execve": 59,
    "exit": 60, "wait4": 61, "kill": 62, "uname": 63, "fcntl": 72, "flock": 73, "fsync": 74, "fdatasync": 75,
    "ftruncate": 77, "getdents": 78, "getcwd": 79, "chdir": 80, "rename": 82, "mkdir": 83, "rmdir": 84,
    "link": 86, "unlink": 87, "symlink": 88, "readlink": 89, "chmod": 90, "fchmod": 91, "umask": 95,
    "sysinfo": 99, "getuid": 102, "geteuid": 107, "setsid": 112, "sigaltstack": 131, "personality": 135,
    "statfs": 137, "fstatfs": 138, "prctl": 157, "arch_prctl": 158, "gettid": 186, "futex": 202,
    "sched_setaffinity": 203, "sched_getaffinity": 204, "getdents64": 217, "set_tid_address": 218,
    "rt_sigtimedwait": 128, "clock_gettime": 228, "clock_nanosleep": 230, "exit_group": 231,
    "epoll_wait": 232, "epoll_ctl": 233, "tgkill": 234, "waitid": 247, "openat": 257, "mkdirat": 258,
    "newfstatat": 262, "unlinkat": 263, "renameat": 264, "linkat": 265, "symlinkat": 266, "readlinkat": 267,
    "faccessat": 269, "pselect6": 270, "ppoll": 271, "unshare": 272, "set_robust_list": 273,
    "utimensat": 280, "fallocate": 285, "accept4": 288, "epoll_create1": 291, "dup3": 292, "pipe2": 293,
    "prlimit64": 302, "setns": 308, "getcpu": 309, "renameat2": 316, "getrandom": 318, "memfd_create": 319,
    "execveat": 322, "statx": 332, "rseq": 334, "pidfd_send_signal": 424, "pidfd_open": 434, "clone3": 435,
    "close_range": 436, "faccessat2": 439,
}  # fmt: skip
NAMES = {number: name for name, number in NUMBERS.items()}

_FILE = ("EIO", "ENOMEM")
_DESCRIPTOR = ("EMFILE", "ENOMEM")
_SPACE = ("EIO", "ENOSPC", "ENOMEM")
FAILS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("open", "openat"), ("EIO", "EMFILE", "ENOMEM")),
    **dict.fromkeys(("stat", "lstat", "newfstatat", "statx", "access", "faccessat", "faccessat2"), _FILE),
    **dict.fromkeys(("readlink", "readlinkat", "statfs", "chdir", "utimensat", "chmod", "fchmod"), _FILE),
    **dict.fromkeys(("getdents", "getdents64", "unlink", "unlinkat", "rmdir"), _FILE),
    **dict.fromkeys(("rename", "renameat", "renameat2", "link", "linkat", "symlink", "symlinkat"), _SPACE),
    **dict.fromkeys(("mkdir", "mkdirat"), _SPACE),
    **dict.fromkeys(("read", "pread64", "readv"), ("EIO",)),
    **dict.fromkeys(("write", "pwrite64", "writev"), ("EIO", "ENOSPC")),
    **dict.fromkeys(("ftruncate", "fallocate", "fsync", "fdatasync"), ("EIO",)),
    "close": ("EIO",),
    "flock": ("ENOMEM", "EINTR"),
    **dict.fromkeys(("socket", "socketpair"), ("EMFILE", "ENOMEM")),
    **dict.fromkeys(("bind", "setsockopt", "getsockopt", "listen"), ("ENOMEM",)),
    "connect": ("ENOMEM", "EAGAIN", "EINTR"),
    **dict.fromkeys(("sendto", "sendmsg"), ("ENOMEM", "EINTR")),
    **dict.fromkeys(("recvfrom", "recvmsg"), ("ENOMEM", "EINTR")),
    **dict.fromkeys(("accept", "accept4"), ("EMFILE", "ENOMEM", "EINTR", "EAGAIN")),
    **dict.fromkeys(("setns", "unshare", "ioctl", "prctl"), ("ENOMEM",)),
    **dict.fromkeys(("clone", "clone3", "fork", "vfork"), ("EAGAIN", "ENOMEM")),
    **dict.fromkeys(("execve", "execveat"), ("EIO", "ENOMEM", "EMFILE")),
    **dict.fromkeys(("pipe", "pipe2", "epoll_create1", "memfd_create", "pidfd_open"), _DESCRIPTOR),
    **dict.fromkeys(("dup", "dup2", "dup3"), ("EMFILE",)),
    **dict.fromkeys(("mmap", "brk", "mremap", "mprotect", "munmap", "madvise"), ("ENOMEM",)),
    **dict.fromkeys(("poll", "ppoll", "select", "pselect6"), ("EINTR", "ENOMEM")),
    **dict.fromkeys(("wait4", "waitid", "clock_nanosleep", "rt_sigtimedwait", "epoll_wait"), ("EINTR",)),
    **dict.fromkeys(("sched_setaffinity", "sched_getaffinity"), ("ENOMEM",)),
    "epoll_ctl": ("ENOMEM", "ENOSPC"),
    "getrandom": ("EINTR", "EAGAIN"),
}
# Calls that do not return to the caller.
LAST = ("exit", "exit_group", "rt_sigreturn")
# Calls that the kernel completes even if it returns an error.
DONE_ANYWAY = ("close",)

_BY_PATH = {"open": 0, "stat": 0, "lstat": 0, "access": 0, "readlink": 0, "unlink": 0, "mkdir": 0, "rmdir": 0}
_BY_PATH |= {"execve": 0, "rename": 1, "link": 1, "symlink": 1, "statfs": 0, "chdir": 0}
_BY_PATH |= dict.fromkeys(("openat", "newfstatat", "unlinkat", "mkdirat", "readlinkat", "faccessat"), 1)
_BY_PATH |= {"statx": 1, "faccessat2": 1, "symlinkat": 2, "utimensat": 1}
_BY_FD = {"read", "write", "close", "fstat", "lseek", "ioctl", "pread64", "pwrite64", "connect", "sendto"}
_BY_FD |= {"recvfrom", "sendmsg", "recvmsg", "bind", "getsockname", "setsockopt", "getsockopt", "fcntl"}
_BY_FD |= {"flock", "ftruncate", "getdents64", "accept4", "setns", "fsync", "dup", "dup2", "shutdown"}
_FLAGS = {"open": 1, "openat": 2}
_SENT_OR_GOT = ("read", "write", "sendto", "recvfrom", "sendmsg", "recvmsg")
_MSG_FLAGS = {"sendto": 3, "recvfrom": 3, "sendmsg": 2, "recvmsg": 2}
_MSG_DONTWAIT = 0x40  # linux/socket.h
_LOCK_NB = 4  # asm-generic/fcntl.h
_EPOLL_CTL_ADD = 1  # linux/eventpoll.h
_F_DUPFD_CLOEXEC = 1030  # linux/fcntl.h


def name_of(number: int) -> str:
    """Return the name of a call, "call_NUMBER" for one that is not in the table."""
    return NAMES.get(number, f"call_{number}")


def object_of(task: int, name: str, args: tuple[int, ...]) -> str:
    """Return the path of a stopped task's call, or the file of its descriptor; "" without either."""
    try:
        if name in _BY_PATH:
            return _string(task, args[_BY_PATH[name]])
        if name in _BY_FD:
            return os.readlink(f"/proc/{task}/fd/{args[0]}")
    except OSError:
        pass
    return ""


def _string(task: int, address: int) -> str:
    found = b""
    with open(f"/proc/{task}/mem", "rb", buffering=0) as memory:
        while b"\0" not in found and len(found) < 4096:
            memory.seek(address + len(found))
            found += memory.read(4096 - (address + len(found)) % 4096)  # within one mapped page
    return os.fsdecode(found.partition(b"\0")[0])


def errors_of(task: int, name: str, args: tuple[int, ...], about: str) -> tuple[str, ...]:
    """Return the errors that the kernel can return for this call of a stopped task."""
    errors = list(FAILS.get(name, ()))
    if name in _FLAGS and args[_FLAGS[name]] & os.O_CREAT:
        errors.append("ENOSPC")
    if name == "flock":
        errors = ["ENOMEM", "EAGAIN" if args[1] & _LOCK_NB else "EINTR"]
    if name == "epoll_ctl" and args[1] != _EPOLL_CTL_ADD:
        errors = []  # the kernel allocates memory for EPOLL_CTL_ADD only
    if name == "fcntl" and args[1] in (0, _F_DUPFD_CLOEXEC):
        errors.append("EMFILE")
    if name == "close" and not (_is_on_disk(about) and _flags(task, args[0]) & os.O_ACCMODE):
        errors = []
    if name in _SENT_OR_GOT and about.startswith(("socket:", "pipe:")):
        errors = [word for word in errors if word not in ("EIO", "ENOSPC")]
        errors += [word for word in _of_a_stream(task, name, args) if word not in errors]
    return tuple(errors)


def _is_on_disk(about: str) -> bool:
    """Return whether the file is on a file system that may report a failed write at close(2)."""
    return about.startswith("/") and not about.startswith(("/proc/", "/sys/", "/dev/null", "/run/netns/"))


def _of_a_stream(task: int, name: str, args: tuple[int, ...]) -> list[str]:
    flags = args[_MSG_FLAGS[name]] if name in _MSG_FLAGS else 0
    waits = not (flags & _MSG_DONTWAIT or _flags(task, args[0]) & os.O_NONBLOCK)
    return ["EINTR"] if waits else ["EINTR", "EAGAIN"]


def _flags(task: int, fd: int) -> int:
    """Return the flags of a descriptor's open(2) (proc_pid_fdinfo(5)); 0 without that file."""
    try:
        text = Path(f"/proc/{task}/fdinfo/{fd}").read_text()
    except OSError:
        return 0
    return int(text.partition("flags:")[2].split()[0], 8)


def errno_of(word: str) -> int:
    """Return the errno of an error's name."""
    return int(getattr(errno, word))
