"""Tasks, their scopes, and the turns of background work."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from sriov_fast.common import executor
from sriov_fast.common.executor import Scope


@pytest.mark.parametrize("threads", [True, False])
def test_results_and_exceptions(threads: bool) -> None:
    with Scope(threads=threads) as tasks:
        good, bad = tasks.submit(lambda: 7), tasks.submit(lambda: 1 // 0)
        assert (good.result(), good.result(), good.succeeded(), bad.succeeded()) == (7, 7, True, False)
        for _ in range(2):
            with pytest.raises(ZeroDivisionError):
                bad.result()


@pytest.mark.parametrize("threads", [True, False])
def test_a_scope_joins_its_tasks_however_it_is_left(threads: bool) -> None:
    ended: list[int] = []

    def work() -> None:
        time.sleep(0.1)
        ended.append(1)

    def leave() -> None:
        with Scope(threads=threads) as tasks:
            for submitted in (work, lambda: 1 // 0, work):
                tasks.submit(submitted)
            raise KeyError

    with pytest.raises(KeyError):
        leave()
    assert ended == [1, 1]


def test_without_threads_a_task_has_ended_when_it_is_submitted() -> None:
    here = threading.get_ident()
    with Scope(threads=False) as tasks:
        task = tasks.submit(threading.get_ident)
        assert (task.done(), task.result()) == (True, here)
        assert tasks.submit(threading.get_ident, waits=True).result() != here


def test_a_scope_that_is_left_hurries_what_has_not_ended() -> None:
    stop, calls = threading.Event(), []

    def hurry() -> None:
        calls.append("hurry")
        stop.set()

    with Scope(threads=True) as tasks:
        tasks.submit(stop.wait, hurry=hurry)
    assert calls == ["hurry"]
    with Scope(threads=True) as tasks:
        tasks.submit(stop.wait, hurry=hurry).result()
    assert calls == ["hurry"]


def in_threads(*works: Callable[[], object]) -> list[threading.Thread]:
    threads = [threading.Thread(target=work, daemon=True) for work in works]
    for thread in threads:
        thread.start()
    return threads


def test_background_work_lets_urgent_work_go_first() -> None:
    turns = executor.Turns(patience=60)
    done: list[str] = []
    with turns:
        (thread,) = in_threads(lambda: turns.background(lambda: done.append("background")))
        with turns:  # urgent work is not serialised
            done.append("urgent")
        thread.join(0.05)
        assert done == ["urgent"]
    thread.join(10)
    assert done == ["urgent", "background"]


def test_background_work_is_done_one_at_a_time() -> None:
    turns = executor.Turns(patience=60)
    inside: list[int] = []
    most: list[int] = []

    def work() -> None:
        inside.append(1)
        time.sleep(0.01)
        most.append(len(inside))
        inside.pop()

    for thread in in_threads(*[lambda: turns.background(work)] * 4):
        thread.join(10)
    assert most == [1, 1, 1, 1]


def test_background_work_does_not_wait_for_ever_and_frees_its_turn_when_it_fails() -> None:
    turns = executor.Turns(patience=0.01)
    with turns:
        with pytest.raises(OSError, match="refused"):
            turns.background(lambda: refuse(OSError("refused")))
        done: list[int] = []
        turns.background(lambda: done.append(1))
        assert done == [1]


def refuse(error: OSError) -> None:
    raise error
