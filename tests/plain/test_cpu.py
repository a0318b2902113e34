"""Threads that are pinned to one CPU for a while."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterator

import pytest

from sriov_fast.common import cpu, helpers
from sriov_fast.common.executor import Scope, Task

ALLOWED = os.sched_getaffinity(0)


@pytest.fixture(autouse=True)
def back() -> Iterator[None]:
    yield
    cpu.roam()
    assert os.sched_getaffinity(0) == ALLOWED


@pytest.mark.parametrize("number", [-1, 70000])
def test_no_cpu_of_ours(number: int) -> None:
    """An unknown CPU (-1), or one that the operator has excluded, pins nothing."""
    cpu.stay(number)
    assert (os.sched_getaffinity(0), cpu.kept()) == (ALLOWED, -1)


def test_what_the_kernel_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    """An error of the kernel pins nothing: the CPU may have gone offline or to another cpuset."""

    def refuse(thread: int, numbers: object) -> None:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    monkeypatch.setattr(os, "sched_setaffinity", refuse)
    cpu.stay(min(ALLOWED))
    assert (os.sched_getaffinity(0), cpu.kept()) == (ALLOWED, -1)


def submit(work: Callable[[], object]) -> Task:
    return Scope(threads=True).submit(work)


@pytest.mark.parametrize("keep", [True, False])
def test_work_of_a_pinned_caller_is_delayed_and_on_its_cpu(keep: bool) -> None:
    """Work of a pinned caller runs on its CPU after a delay; other work begins at once, on any CPU."""
    found: list[object] = []
    done = threading.Event()

    def work() -> None:
        found.append(os.sched_getaffinity(0))
        done.set()

    if keep:
        cpu.stay(min(ALLOWED))
    helpers.run(work, lambda seconds: found.append(0 < seconds < 0.1))
    assert done.wait(10)
    assert found == ([True, {min(ALLOWED)}] if keep else [ALLOWED])


@pytest.mark.parametrize("number", sorted(ALLOWED))
def test_a_helper_thread_leaves_the_cpu_of_its_last_task(number: int) -> None:
    cpu.stay(number)
    assert submit(lambda: os.sched_getaffinity(0)).result() == {number}
    cpu.roam()
    assert submit(lambda: (cpu.kept(), os.sched_getaffinity(0))).result() == (-1, ALLOWED)
