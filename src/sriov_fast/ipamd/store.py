"""The interface of a store: sorted keys, consistent views, and transactions."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import Protocol, TypeVar

T = TypeVar("T")

PROVEN = 5.0  # seconds after a write during which a store counts as writable

Span = tuple[str, str, int]  # first key, end key (excluded), limit (0: none)
Rows = list[tuple[str, bytes]]
Changes = dict[str, bytes | None]  # the new values of keys; None deletes the key


def prefix_end(prefix: str) -> str:
    """Return the first key after all keys with the prefix (keys are ASCII)."""
    return prefix[:-1] + chr(ord(prefix[-1]) + 1)


class View(Protocol):
    """A consistent view of a store."""

    async def fetch(
        self, keys: Iterable[str], spans: Iterable[Span] = ()
    ) -> tuple[list[bytes | None], list[Rows]]:
        """Return the values of keys and of spans, in one round trip."""
        ...


class Transaction(View, Protocol):
    """A writable view; the commit fails if a fetched key has changed."""

    changes: Changes  # to be written on commit

    async def absent(self, key: str) -> bool:
        """Say whether a key is absent; a store may assume so, and then the commit checks it."""
        ...

    def unchanged(self, first: str, end: str) -> None:
        """Fail the commit if a key of this span was written since this view (deletions do not count)."""
        ...


class Store(Protocol):
    """A store; all methods raise `Unavailable` if it cannot be reached or written.

    The functions passed to it may be called several times, and must await only their view.
    """

    together: int  # the useful number of concurrent transactions

    async def run(self, work: Callable[[Transaction], Awaitable[T]]) -> T:
        """Run `work` in a transaction, and return its result when that is durable; an error undoes it."""
        ...

    async def read(self, work: Callable[[View], Awaitable[T]]) -> T:
        """Return the result of `work` on a consistent view."""
        ...

    async def write(self, rows: Rows) -> None:
        """Write many keys without a common transaction."""
        ...

    async def wipe(self, first: str, end: str) -> None:
        """Delete a span of keys without a common transaction."""
        ...

    async def ready(self) -> None:
        """Raise `Unavailable` unless the store is writable; tested at most every `PROVEN` seconds."""
        ...

    async def close(self) -> None:
        """Close the store."""
        ...
