"""One thread of the server at a time runs Python code, until it waits.

CPython's own lock changes hands at every system call while another thread wants it. An ADD makes some 250 of
them, so in a burst most of the CPU's time would go to switching threads. A thread that has called ``take``
keeps the interpreter until it calls ``release``, or enters the block of ``released`` in order to wait.
"""

from __future__ import annotations

import _thread
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

# Seconds between two attempts, twice as many before each later one.
_PAUSE, _LONGEST_PAUSE = 0.0001, 0.002


class Interpreter:
    """The right to run Python code.

    A thread waits for it until nothing has changed hands for ``patience`` seconds: the holder may wait for
    something without saying so. Then the thread goes on without it.
    """

    def __init__(self, patience: float) -> None:
        self._patience = patience
        self._lock = _thread.allocate_lock()
        self._holder = 0  # the thread's identifier; 0: nobody, as in a process without the server
        self._changes = 0

    def take(self) -> bool:
        """Wait for the interpreter; return whether it was not free at once."""
        waits, seen = not self._lock.acquire(blocking=False), -1
        while waits and not self._lock.acquire(timeout=self._patience):
            if seen == self._changes:
                return True
            seen = self._changes
        self._holder = _thread.get_ident()
        self._changes += 1
        return waits

    def release(self) -> bool:
        """Let the next thread have the interpreter; return whether this one had it."""
        if self._holder != _thread.get_ident():
            return False
        self._holder = 0
        self._lock.release()
        return True

    def released(self) -> Released:
        """Return a block in which the thread waits, and others run."""
        return Released(self)


class Released:
    """A block without the interpreter; the thread has it again afterwards, if it had it before."""

    __slots__ = ("_had", "_interpreter")

    def __init__(self, interpreter: Interpreter) -> None:
        self._interpreter = interpreter

    def __enter__(self) -> None:
        self._had = self._interpreter.release()

    def __exit__(self, *_: object) -> None:
        if self._had:
            self._interpreter.take()


INTERPRETER = Interpreter(patience=0.02)


def attempts(deadline: float) -> Iterator[None]:
    """Yield once for each attempt, until ``deadline`` (time.monotonic). Other threads run in the pauses."""
    pause = _PAUSE
    while True:
        yield
        if time.monotonic() >= deadline:
            return
        with INTERPRETER.released():
            time.sleep(pause)
        pause = min(pause * 2, _LONGEST_PAUSE)
