"""The turns in which the server's threads run Python code."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from sriov_fast.common.interpreter import INTERPRETER, Interpreter, attempts

Threads = ThreadPoolExecutor
LONG = 10.0  # seconds; a test that passes never waits for as long


@pytest.fixture
def threads() -> Iterator[Threads]:
    with ThreadPoolExecutor(8) as pool:
        yield pool


@pytest.fixture
def interpreter() -> Interpreter:
    return Interpreter(patience=LONG)


def taken(interpreter: Interpreter) -> bool:
    """Take the interpreter, release it, and return whether this thread held it."""
    interpreter.take()
    return interpreter.release()


def test_another_thread_gets_it_while_the_holder_waits(
    interpreter: Interpreter, threads: ThreadPoolExecutor
) -> None:
    interpreter.take()
    other = threads.submit(taken, interpreter)
    with interpreter.released():
        assert other.result(LONG)
    assert interpreter.release()


def test_the_holder_has_it_after_its_wait(interpreter: Interpreter, threads: ThreadPoolExecutor) -> None:
    interpreter.take()
    with interpreter.released():
        pass
    assert not threads.submit(interpreter.release).result(LONG), "another thread cannot release it"
    assert interpreter.release()


def test_a_thread_without_it_releases_nothing(interpreter: Interpreter, threads: Threads) -> None:
    interpreter.take()

    def wait() -> bool:
        with interpreter.released():
            return interpreter.release()

    assert not threads.submit(wait).result(LONG)
    assert interpreter.release()
    assert not interpreter.release()


def test_one_at_a_time(interpreter: Interpreter, threads: Threads) -> None:
    running, most = 0, 0

    def work() -> None:
        nonlocal running, most
        for _ in range(50):
            interpreter.take()
            running += 1
            most = max(most, running)
            time.sleep(0.0001)  # releases the GIL, as every blocking system call does
            running -= 1
            interpreter.release()

    for task in [threads.submit(work) for _ in range(4)]:
        task.result(LONG)
    assert most == 1


def test_nobody_waits_for_a_holder_that_is_stuck(threads: Threads) -> None:
    interpreter = Interpreter(patience=0.001)
    stuck, end = threading.Event(), threading.Event()

    def hold() -> None:
        interpreter.take()
        stuck.set()
        end.wait(LONG)
        interpreter.release()

    holder = threads.submit(hold)
    assert stuck.wait(LONG)
    assert not taken(interpreter), "goes on without it"
    end.set()
    holder.result(LONG)
    assert taken(interpreter)


def test_an_error_in_a_wait_gives_it_back(interpreter: Interpreter) -> None:
    interpreter.take()
    with pytest.raises(ZeroDivisionError), interpreter.released():
        1 / 0  # noqa: B018
    assert interpreter.release()


def test_other_threads_run_between_attempts(threads: ThreadPoolExecutor) -> None:
    INTERPRETER.take()
    others = [threads.submit(taken, INTERPRETER)]
    for _ in attempts(time.monotonic() + LONG):
        if others[0].done():
            break
    assert INTERPRETER.release()
    assert others[0].result()


def test_a_last_attempt_is_made_at_the_deadline() -> None:
    begin = time.monotonic()
    assert len(list(attempts(begin + 0.02))) > 2
    assert len(list(attempts(begin))) == 1


def test_who_has_to_wait_is_told(interpreter: Interpreter, threads: Threads) -> None:
    assert not interpreter.take()
    other = threads.submit(interpreter.take)
    with pytest.raises(TimeoutError):
        other.result(0.05)
    interpreter.release()
    assert other.result(LONG)
