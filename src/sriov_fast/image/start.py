"""Starts the builder of an image: behind the reply of a process that found none, and with the server."""

from __future__ import annotations

import fcntl
import os
import sys
import time

END = "from sriov_fast.entry import main\nsys.exit(main())\n"
LOCK = "image.lock"
FAILED = ".failed"
TRIAL = "SRIOV_FAST_IMAGE_TRIAL"  # set for the run that decides whether an image is put in place
_BUILD = "from sriov_fast.image.build import main\nmain()\n"
_AGAIN = 600.0  # seconds until what failed is tried again: memory may be freed, a package be repaired
_WORDS = 4  # interpreter, flags, -c, code: what stands behind the client


def is_supported() -> bool:
    """Say whether a process of this interpreter can be saved: x86-64, glibc, and compiled modules."""
    try:
        from sriov_fast import _park
    except ImportError:
        return False
    return _park.SUPPORTED


def is_worth_it(path: str) -> bool:
    """Say whether to try: what failed a moment ago would fail again, and what is tried now is being made."""
    if os.path.basename(path).startswith(".") or not is_supported():
        return False
    try:
        failed = os.stat(path + FAILED).st_mtime
    except OSError:
        return True
    return not 0 <= time.time() - failed < _AGAIN


def lock(path: str) -> int:
    """Return a descriptor that holds the lock of those who make images beside ``path``; -1 if somebody does.

    Raises OSError where there can be no such file.
    """
    directory = os.path.dirname(path)
    os.makedirs(directory, mode=0o700, exist_ok=True)
    fd = os.open(f"{directory}/{LOCK}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return -1
    return fd


def become_builder(path: str, executable: str) -> None:
    """Replace this process by the builder, started as this one was; return if there is one at work."""
    held = lock(path)
    if held < 0:
        return
    _become(builder(path, executable, sys.orig_argv[:_WORDS]), held)


def builder(path: str, executable: str, words: list[str]) -> list[str]:
    """Return the command that makes the image of an executable with these words behind it."""
    interpreter, flags, option, code = words
    return [interpreter, flags, option, code.removesuffix(END) + _BUILD, path, executable, *words]


def _become(argv: list[str], held: int) -> None:
    """Execute the builder. Of files it has the standard ones and the lock, which it lets go of at its end."""
    os.closerange(3, held)
    os.closerange(held + 1, 1 << 20)
    os.set_inheritable(held, True)
    os.chdir("/")
    os.execve(argv[0], argv, {})  # noqa: S606 (words of our own executable)


def order(executable: str, run: str) -> None:
    """Let the image of an installed executable be made, where that is to be; do not wait for it.

    Raises OSError and SriovError where the executable has none.
    """
    from sriov_fast.image import layout  # late: those who find an image missing need none of it

    words = layout.words_of(executable)
    packed = layout.packed_words(words)
    path = os.environ.get("SRIOV_FAST_IMAGE") or f"{run}/{layout.name_of(packed)}"
    if (
        path == "none"
        or words[0] != sys.executable
        or not is_worth_it(path)
        or not layout.fault_of(path, packed)
    ):
        return
    held = lock(path)
    if held < 0:
        return
    try:
        _detach(builder(path, executable, words), held)
    finally:
        os.close(held)


def _detach(argv: list[str], held: int) -> None:
    """Execute a command in a process that is nobody's child; of our files it has the one that is held."""
    child = os.fork()
    if child:
        os.waitpid(child, 0)
        return
    try:
        if not os.fork():
            os.setsid()
            null = os.open(os.devnull, os.O_RDWR)
            for fd in (0, 1, 2):
                os.dup2(null, fd)
            _become(argv, held)
    finally:
        os._exit(0)
