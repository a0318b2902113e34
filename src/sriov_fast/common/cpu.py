"""Pinning of a request's threads to one CPU.

A move waits in the kernel (``rcu_barrier``) for the RCU callbacks of all CPUs that have some. The start of
the client leaves some on its CPU. A server on another CPU adds a second CPU with callbacks; the tick of that
CPU comes later, so the move often waits for one more grace period. So a request is served on the CPU of its
client.
"""

from __future__ import annotations

import _thread
import os

_allowed = os.sched_getaffinity(0)  # the operator's choice (taskset, CPUAffinity=), not to be overstepped
_here = _thread._local()


def stay(number: int) -> None:
    """Pin this thread to one CPU until ``roam``; a CPU that it must not use changes nothing."""
    if number not in _allowed:
        return
    try:
        os.sched_setaffinity(0, (number,))
    except OSError:
        return  # the CPU has gone offline, or to another cpuset
    _here.number = number


def bring(thread: int, number: int) -> None:
    """Let another, waiting thread wake on a CPU; ``thread`` is its kernel ID.

    The thread itself then calls ``stay``, which moves nothing.
    """
    try:
        os.sched_setaffinity(thread, (number,))
    except OSError:
        pass  # as in ``stay``


def kept() -> int:
    """Return the CPU that this thread is pinned to, -1 for none."""
    return getattr(_here, "number", -1)


def roam() -> None:
    """Let this thread run on any CPU again, before it waits or starts a process, which inherits the CPUs."""
    if kept() >= 0:
        release()


def release() -> None:
    """Let this thread run on any CPU, also after it has inherited another choice."""
    try:
        os.sched_setaffinity(0, _allowed)
    except OSError:
        return  # none of them is left, so the kernel chooses already
    _here.number = -1
