"""Record the system calls of a process and its children, or inject a fault into one of the calls.

Calls are counted over all threads and children together: each (call, ordinal) names one call, and a fault
happens once. The tracer detaches from a child that executes another program.
"""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

from faults import calls, ptrace

KILL = "KILL"


class Fault(NamedTuple):
    """A fault at one call: the name of an error, or KILL."""

    call: str
    ordinal: int
    error: str


class Seen(NamedTuple):
    """A recorded call, with its path or file and the errors that the kernel can return for it."""

    call: str
    ordinal: int
    about: str
    errors: tuple[str, ...]


@dataclass
class _Task:
    """A traced thread."""

    fresh: bool = True  # its first stop was not handled yet
    answer: int = 0  # the errno that its current call will return; 0 for none


@dataclass
class Tracer:
    """A tracer of tasks: injects ``fault``, or records the calls if ``fault`` is None.

    ``execs`` is the number of programs that the first task executes before the calls are counted.
    """

    fault: Fault | None = None
    execs: int = 0
    seen: list[Seen] = field(default_factory=list)
    fired: bool = False
    ended: dict[int, int] = field(default_factory=dict)
    _tasks: dict[int, _Task] = field(default_factory=dict)
    _counts: Counter[str] = field(default_factory=Counter)
    _root: int = 0
    _leaving: bool = False

    # --- attach and detach

    def follow_child(self, pid: int) -> None:
        """Trace a child that requested PTRACE_TRACEME and stops in its first exec or by SIGSTOP."""
        self._root = pid
        _, status = os.waitpid(pid, ptrace.WALL)
        assert os.WIFSTOPPED(status), status
        self._tasks[pid] = _Task(fresh=False)
        ptrace.request(ptrace.SETOPTIONS, pid, ptrace.OPTIONS)
        self.execs -= 1
        self._resume(pid)

    def attach(self, pid: int) -> None:
        """Trace all threads of a running process."""
        for name in os.listdir(f"/proc/{pid}/task"):
            task = int(name)
            ptrace.request(ptrace.SEIZE, task, ptrace.OPTIONS)
            self._tasks[task] = _Task()
            ptrace.request(ptrace.INTERRUPT, task)

    def detach(self) -> None:
        """Detach from all tasks; they continue to run."""
        self._leaving = True
        for task in self._tasks:
            _unless_gone(lambda task=task: ptrace.request(ptrace.INTERRUPT, task))
        self.pump(lambda: not self._tasks, 10)

    @property
    def tasks(self) -> int:
        """The number of traced tasks."""
        return len(self._tasks)

    # --- the loop

    def pump(self, done: Callable[[], bool], limit: float) -> bool:
        """Handle the stops of the tasks until ``done``; return False after ``limit`` seconds."""
        deadline = time.monotonic() + limit
        with _children_announced() as wait:
            while True:
                while self._handle_one():
                    pass
                if done():
                    return True
                if time.monotonic() > deadline:
                    return False
                wait(0.01)

    def _handle_one(self) -> bool:
        try:
            task, status = os.waitpid(-1, os.WNOHANG | ptrace.WALL)
        except ChildProcessError:
            return False
        if not task:
            return False
        if not os.WIFSTOPPED(status):
            self._tasks.pop(task, None)
            self.ended[task] = os.waitstatus_to_exitcode(status)
        else:
            _unless_gone(lambda: self._stopped(task, os.WSTOPSIG(status), status >> 16))
        return True

    def _stopped(self, task: int, number: int, event: int) -> None:
        state = self._tasks.setdefault(task, _Task())
        first, state.fresh = state.fresh, False
        passed = 0
        if number == signal.SIGTRAP | 0x80:
            self._in_call(task, state)
        elif event == ptrace.EVENT_EXEC:
            self._execs(task)
            if task not in self._tasks:
                return
        elif event in ptrace.NEW_TASK:
            child = ptrace.event_message(task)
            if child not in self.ended:  # its first stop or its end may have been reported before
                self._tasks.setdefault(child, _Task())
        elif event or (first and number in (signal.SIGSTOP, signal.SIGTRAP)):
            pass
        else:
            passed = number
        self._resume(task, passed)

    def _resume(self, task: int, passed: int = 0) -> None:
        answering = bool(self._tasks[task].answer)
        if self._leaving and not answering:  # a skipped call still gets its error: else it returns ENOSYS
            del self._tasks[task]
            ptrace.request(ptrace.DETACH, task, passed)
            return
        watched = answering or not (self.fired or self.execs > 0)
        ptrace.request(ptrace.SYSCALL if watched else ptrace.CONT, task, passed)

    def _execs(self, task: int) -> None:
        if task == self._root:
            self.execs -= 1
        else:
            del self._tasks[task]
            ptrace.request(ptrace.DETACH, task)

    # --- calls

    def _in_call(self, task: int, state: _Task) -> None:
        where, number, args = ptrace.call_of(task)
        if where == ptrace.ENTRY:
            self._entered(task, state, calls.name_of(number), args)
        elif state.answer:
            ptrace.return_error(task, state.answer)
            state.answer = 0

    def _entered(self, task: int, state: _Task, name: str, args: tuple[int, ...]) -> None:
        self._counts[name] += 1
        if self.fault is None:
            about = calls.object_of(task, name, args)
            errors = calls.errors_of(task, name, args, about)
            self.seen.append(Seen(name, self._counts[name], about, errors))
        elif not self.fired and self.fault[:2] == (name, self._counts[name]) and self._fits(task, name, args):
            self._fire(task, state, name)

    def _fits(self, task: int, name: str, args: tuple[int, ...]) -> bool:
        """Return whether the kernel can return the error for this call: ordinals vary between runs."""
        assert self.fault
        about = calls.object_of(task, name, args)
        return self.fault.error == KILL or self.fault.error in calls.errors_of(task, name, args, about)

    def _fire(self, task: int, state: _Task, name: str) -> None:
        assert self.fault
        self.fired = True
        if self.fault.error == KILL:
            os.kill(task, signal.SIGKILL)
            return
        state.answer = calls.errno_of(self.fault.error)
        if name not in calls.DONE_ANYWAY:
            ptrace.skip_call(task)


def _unless_gone(work: Callable[[], None]) -> None:
    try:
        work()
    except ProcessLookupError:
        pass  # killed meanwhile: its end is reported next


@contextmanager
def _children_announced() -> Iterator[Callable[[float], object]]:
    """Yield a function that waits for SIGCHLD of a child or traced task, with a timeout in seconds."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
    try:
        yield lambda limit: signal.sigtimedwait({signal.SIGCHLD}, limit)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
