"""Helper threads, which are used again: a new thread takes longer to start than most functions run."""

from __future__ import annotations

import _thread

from sriov_fast.common import cpu

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    Work = Callable[[], object]
    Delay = Callable[[float], object]

_DELAY = 0.001  # seconds; a move takes at least ten times as long
_MOST_IDLE = 64  # idle helper threads


class _Helper:
    """A thread that runs one function after the other."""

    def __init__(self) -> None:
        self._wake = _thread.allocate_lock()
        self._wake.acquire()
        self._next: list[tuple[Work, Delay, int]] = []
        self._thread = 0
        _thread.start_new_thread(self._run, ())

    def run(self, work: Work, delay: Delay, number: int) -> None:
        """Run a function on CPU ``number``, on any CPU if that is -1."""
        if number >= 0 and self._thread:
            cpu.bring(self._thread, number)
        self._next.append((work, delay, number))
        self._wake.release()

    def _run(self) -> None:
        cpu.release()
        self._thread = _thread.get_native_id()
        while True:
            self._wake.acquire()
            self._run_next()
            cpu.roam()
            if len(_idle) >= _MOST_IDLE:
                return
            _idle.append(self)

    def _run_next(self) -> None:
        work, delay, number = self._next.pop()
        if number >= 0:
            cpu.stay(number)
            delay(_DELAY)
        work()


_idle: list[_Helper] = []  # append and pop are atomic


def run(work: Work, delay: Delay) -> None:
    """Run a function, which raises nothing, in a helper thread, or in this one if no thread can be started.

    If the caller is pinned to a CPU, the function runs on the same one, so that the next move waits for one
    CPU's RCU callbacks and not for two. It begins after a delay, when the caller is in the kernel and no
    longer needs the CPU. ``delay`` sleeps that many seconds, or until somebody waits for the function.
    """
    helper = _helper()
    if helper:
        helper.run(work, delay, cpu.kept())
    else:
        work()


def _helper() -> _Helper | None:
    """Return an idle helper or a new one; None if no thread can be started (TasksMax=, memory)."""
    try:
        return _idle.pop()
    except IndexError:
        pass
    try:
        return _Helper()
    except (RuntimeError, MemoryError):
        return None
