"""Runs something while the kernel makes us wait."""

from __future__ import annotations

import _thread

from sriov_fast import cpu

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, TypeVar

    T = TypeVar("T")

_LATER = 0.001  # seconds; the shortest move takes ten times that
_MOST = 64  # threads that are kept for the next time


class _Helper:
    """A thread that does one thing after the other; starting one takes longer than what it is to do."""

    def __init__(self) -> None:
        self._wake = _thread.allocate_lock()
        self._wake.acquire()
        self._work: Callable[[], object] = _nothing
        self._thread = 0
        _thread.start_new_thread(self._run, ())

    def do(self, work: Callable[[], object], number: int) -> None:
        """Start ``work``, which raises nothing, on CPU ``number`` if that is not -1."""
        if number >= 0 and self._thread:
            cpu.bring(self._thread, number)
        self._work = work
        self._wake.release()

    def _run(self) -> None:
        cpu.release()
        self._thread = _thread.get_native_id()
        while True:
            self._wake.acquire()
            work, self._work = self._work, _nothing
            work()
            del work
            cpu.roam()
            if len(_idle) >= _MOST:
                return
            _idle.append(self)


def _nothing() -> None:
    """Do nothing."""


_idle: list[_Helper] = []  # append and pop are atomic


def beside(work: Callable[[], T]) -> Callable[[], T]:
    """Start ``work`` in a thread; return what waits for it, and returns or raises what it did.

    Where no thread can be started, ``work`` is done here, before this returns.

    Beside a caller that is kept on its CPU it is kept there, too, since what it frees on another would be
    waited for by who comes next. It begins a moment later, when the caller no longer needs that CPU, or as
    soon as somebody waits for it.
    """
    number = cpu.kept()
    later = _LATER if number >= 0 else 0.0
    hurry = _thread.allocate_lock()
    hurry.acquire()
    results: list[T] = []
    errors: list[BaseException] = []
    running = _thread.allocate_lock()
    running.acquire()

    def thread() -> None:
        try:
            if later:
                cpu.stay(number)
                hurry.acquire(timeout=later)
            results.append(work())
        except BaseException as error:
            errors.append(error)
        finally:
            running.release()

    helper = _helper()
    if helper:
        helper.do(thread, number)
    else:
        hurry.release()
        thread()

    def finish() -> Any:
        if hurry.locked():
            hurry.release()
        with running:
            if errors:
                raise errors[0]
            return results[0]

    return finish


def _helper() -> _Helper | None:
    """Return an idle helper or a new one; None where no thread can be started (TasksMax=, memory)."""
    try:
        return _idle.pop()
    except IndexError:
        pass
    try:
        return _Helper()
    except (RuntimeError, MemoryError):
        return None
