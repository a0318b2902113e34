"""Records the system calls of a process with all that it starts, or interferes with one of them.

Calls are counted over all threads and children together, so that each (call, ordinal) is one moment, and a
fault happens once. A child that executes another program is let go.
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
    """What happens at one call: an error's name, or KILL."""

    call: str
    ordinal: int
    error: str


class Seen(NamedTuple):
    """One call that was made."""

    call: str
    ordinal: int
    about: str
    errors: tuple[str, ...]


@dataclass
class _Task:
    """A traced thread."""

    fresh: bool = True  # its first stop has not been seen
    answer: int = 0  # the error that its call is to return


@dataclass
class Tracer:
    """Follows the tasks that are given to it; ``fault`` None records.

    ``execs`` is how many programs the first one executes before the calls count.
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

    # --- beginning and end

    def follow_child(self, pid: int) -> None:
        """Follow a child that asked for it (PTRACE_TRACEME) and stands in its first exec."""
        self._root = pid
        _, status = os.waitpid(pid, ptrace.WALL)
        assert os.WIFSTOPPED(status), status
        self._tasks[pid] = _Task(fresh=False)
        ptrace.request(ptrace.SETOPTIONS, pid, ptrace.OPTIONS)
        self.execs -= 1
        self._resume(pid)

    def attach(self, pid: int) -> None:
        """Follow all threads of a process that runs."""
        for name in os.listdir(f"/proc/{pid}/task"):
            task = int(name)
            ptrace.request(ptrace.SEIZE, task, ptrace.OPTIONS)
            self._tasks[task] = _Task()
            ptrace.request(ptrace.INTERRUPT, task)

    def detach(self) -> None:
        """Let go of all tasks; they run on."""
        self._leaving = True
        for task in self._tasks:
            _unless_gone(lambda task=task: ptrace.request(ptrace.INTERRUPT, task))
        self.pump(lambda: not self._tasks, 10)

    @property
    def tasks(self) -> int:
        """How many are followed."""
        return len(self._tasks)

    # --- the loop

    def pump(self, done: Callable[[], bool], limit: float) -> bool:
        """Handle what the tasks do until ``done``; False where that takes more than ``limit`` seconds."""
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
            if child not in self.ended:  # its own first stop may have been reported before this
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
        """Return whether the kernel can give the error for this call: the ordinals vary between runs."""
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
    """Give what waits until a child, or a traced task, has something to report, for a time at most."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
    try:
        yield lambda limit: signal.sigtimedwait({signal.SIGCHLD}, limit)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
