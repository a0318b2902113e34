"""Threads that are kept on one CPU for a while."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator

import pytest

from sriov_fast import beside, cpu

ALLOWED = os.sched_getaffinity(0)


@pytest.fixture(autouse=True)
def back() -> Iterator[None]:
    yield
    cpu.roam()
    assert os.sched_getaffinity(0) == ALLOWED


@pytest.mark.parametrize("number", sorted(ALLOWED))
def test_stay_and_roam(number: int) -> None:
    cpu.stay(number)
    assert (os.sched_getaffinity(0), cpu.kept()) == ({number}, number)
    cpu.roam()
    assert (os.sched_getaffinity(0), cpu.kept()) == (ALLOWED, -1)


@pytest.mark.parametrize("number", [-1, 70000])
def test_no_cpu_of_ours(number: int) -> None:
    """Nobody knows where the client ran, or it was where the operator does not want us."""
    cpu.stay(number)
    assert (os.sched_getaffinity(0), cpu.kept()) == (ALLOWED, -1)


def test_what_the_kernel_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "_allowed", {70000})
    cpu.stay(70000)
    assert (os.sched_getaffinity(0), cpu.kept()) == (ALLOWED, -1)


def test_each_thread_for_itself() -> None:
    cpu.stay(min(ALLOWED))
    seen: list[object] = []
    thread = threading.Thread(target=lambda: seen.extend((cpu.kept(), cpu.roam())))
    thread.start()
    thread.join()
    assert (seen, cpu.kept()) == ([-1, None], min(ALLOWED))


@pytest.mark.parametrize("keep", [True, False])
def test_what_runs_beside(keep: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside somebody who is kept on a CPU it is on the same, and begins when that one waits for it."""
    monkeypatch.setattr(beside, "_LATER", 60.0)
    began = threading.Event()

    def work() -> set[int]:
        began.set()
        return os.sched_getaffinity(0)

    if keep:
        cpu.stay(min(ALLOWED))
    finish = beside.beside(work)
    assert began.wait(0.2 if keep else 10) is not keep
    wanted = {min(ALLOWED)} if keep else ALLOWED
    assert (finish(), finish()) == (wanted, wanted)


def test_what_runs_beside_can_leave() -> None:
    """As it does before it starts a process, which may run anywhere then."""
    cpu.stay(min(ALLOWED))

    def work() -> tuple[int, set[int]]:
        kept = cpu.kept()
        cpu.roam()
        return kept, os.sched_getaffinity(0)

    assert beside.beside(work)() == (min(ALLOWED), ALLOWED)


@pytest.mark.parametrize("number", sorted(ALLOWED))
def test_nobody_keeps_a_cpu_for_the_next(number: int) -> None:
    """The thread is another request's afterwards, which may be on another CPU, or on none."""
    cpu.stay(number)
    assert beside.beside(lambda: os.sched_getaffinity(0))() == {number}
    cpu.roam()
    assert beside.beside(lambda: (cpu.kept(), os.sched_getaffinity(0)))() == (-1, ALLOWED)


def test_it_begins_without_being_waited_for() -> None:
    began = threading.Event()
    cpu.stay(min(ALLOWED))
    finish = beside.beside(began.set)
    assert began.wait(10)
    finish()
