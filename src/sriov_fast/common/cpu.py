"""Keeps the work of a request on one CPU.

The kernel's wait in a move is ``rcu_barrier``, for all CPUs that have something to free. The start of the
runtime's process, our client, leaves some on the CPU that it runs on. A server that works elsewhere makes a
second one to wait for; its tick comes a moment later, and then often a grace period more is needed. So a
request is served where it was made.
"""

from __future__ import annotations

import _thread
import os

_allowed = os.sched_getaffinity(0)  # the operator's choice (taskset, CPUAffinity=), not to be overstepped
_here = _thread._local()


def stay(number: int) -> None:
    """Have this thread run on one CPU only, until ``roam``; one that it must not use changes nothing."""
    if number not in _allowed:
        return
    try:
        os.sched_setaffinity(0, (number,))
    except OSError:
        return  # offline since, or another cpuset's now
    _here.number = number


def bring(thread: int, number: int) -> None:
    """Have another thread of ours wake on a CPU; ``thread`` is what the kernel calls it, and waits now.

    Only it can keep itself there (``stay``), which then moves nothing.
    """
    try:
        os.sched_setaffinity(thread, (number,))
    except OSError:
        pass  # as in ``stay``


def kept() -> int:
    """Return the CPU that this thread is kept on, -1 where it may choose."""
    return getattr(_here, "number", -1)


def roam() -> None:
    """Let this thread run on any CPU again, before it starts a process (which inherits that), or waits."""
    if kept() >= 0:
        release()


def release() -> None:
    """Let this thread run on any CPU, whatever it has from the thread that made it."""
    try:
        os.sched_setaffinity(0, _allowed)
    except OSError:
        return  # none of them is left to us: so it is the kernel's choice already
    _here.number = -1
