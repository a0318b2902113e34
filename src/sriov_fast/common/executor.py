"""Tasks: functions that run while their caller waits in the kernel."""

from __future__ import annotations

import _thread

from sriov_fast.common.interpreter import INTERPRETER

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Self


class Task:
    """A submitted function and, when it has run, its result or its exception."""

    def __init__(self, work: Callable[[], Any], hurry: Callable[[], object] | None = None) -> None:
        self.hurry = hurry
        self._work = work
        self._value: Any = None
        self._error: BaseException | None = None
        self._awaited = _locked()
        self._ended = _locked()

    def run(self) -> None:
        """Run the function in this thread."""
        try:
            self._value = self._work()
        except BaseException as error:
            self._error = error
        finally:
            del self._work
            self._ended.release()

    def done(self) -> bool:
        """Return whether the function has ended."""
        return not self._ended.locked()

    def join(self) -> None:
        """Wait until the function has ended, with a result or with an exception."""
        if self._awaited.locked():
            self._awaited.release()
        if self._ended.locked():
            with INTERPRETER.released(), self._ended:
                pass

    def succeeded(self) -> bool:
        """Wait for the end of the function; return False if it raised."""
        self.join()
        return self._error is None

    def result(self) -> Any:
        """Wait for the end of the function; return its result or raise its exception."""
        self.join()
        if self._error:
            raise self._error
        return self._value

    def delay(self, seconds: float) -> None:
        """Sleep until another thread waits for this task, at most for ``seconds``."""
        self._awaited.acquire(timeout=seconds)


def _locked() -> _thread.LockType:
    lock = _thread.allocate_lock()
    lock.acquire()
    return lock


class Scope:
    """A block that joins its tasks, however it is left.

    With ``threads`` each task runs in a thread of its own. Without, ``submit`` runs the function and returns
    when it has ended.
    """

    def __init__(self, *, threads: bool) -> None:
        self.threads = threads
        self._tasks: list[Task] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for task in self._tasks:
            if task.hurry and not task.done():
                task.hurry()
            task.join()

    def submit(
        self, work: Callable[[], Any], *, waits: bool = False, hurry: Callable[[], object] | None = None
    ) -> Task:
        """Run a function while the caller goes on; return its Task.

        ``waits``: the function mostly waits for another process or for the network, which is worth a thread
        in every case. ``hurry`` is called to end the function sooner if the scope is left before its end.
        """
        task = Task(work, hurry)
        self._tasks.append(task)
        if self.threads or waits:
            from sriov_fast.common import helpers  # late: for most single requests no thread is needed

            helpers.run(task.run, task.delay)
        else:
            task.run()
        return task


class Turns:
    """The order of work that a lock of the kernel serialises: ``urgent`` work goes first.

    The kernel serves in the order of arrival. So ``background`` work goes there one at a time, and each waits
    until no urgent work is there, for ``patience`` seconds at most.
    """

    def __init__(self, patience: float) -> None:
        self._patience = patience
        self._count = _thread.allocate_lock()
        self._urgent = 0
        self._quiet = _thread.allocate_lock()  # held while there is urgent work
        self._background = _thread.allocate_lock()

    def __enter__(self) -> None:
        with self._count:
            self._urgent += 1
            if self._urgent == 1:
                self._quiet.acquire()

    def __exit__(self, *_: object) -> None:
        with self._count:
            self._urgent -= 1
            if not self._urgent:
                self._quiet.release()

    def background(self, work: Callable[[], None]) -> None:
        """Do background work when it is its turn."""
        with INTERPRETER.released():
            self._background.acquire()
            if self._quiet.acquire(timeout=self._patience):
                self._quiet.release()
        try:
            work()
        finally:
            self._background.release()


def detach(work: Callable[[], Any]) -> Task:
    """Run a function that may outlive the request in a helper thread, at once; return its Task."""
    from sriov_fast.common import helpers

    task = Task(work)
    helpers.run(task.run, lambda _: None)
    return task


def completed() -> Task:
    """Return a task that has ended; its result is None."""
    task = Task(_nothing)
    task.run()
    return task


def _nothing() -> None:
    """Do nothing."""
