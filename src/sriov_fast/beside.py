"""Runs something while the kernel makes us wait."""

from __future__ import annotations

import _thread

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeVar

    T = TypeVar("T")


def beside(work: Callable[[], T]) -> Callable[[], T]:
    """Start ``work`` in a thread; return what waits for it, and returns or raises what it did."""
    results: list[T] = []
    errors: list[BaseException] = []
    running = _thread.allocate_lock()
    running.acquire()

    def thread() -> None:
        try:
            results.append(work())
        except BaseException as error:
            errors.append(error)
        finally:
            running.release()

    _thread.start_new_thread(thread, ())

    def finish() -> T:
        with running:
            if errors:
                raise errors[0]
            return results[0]

    return finish
