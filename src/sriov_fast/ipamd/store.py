"""What the service wants of a store: ordered keys, snapshots, and transactions."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import Protocol, TypeVar

T = TypeVar("T")

PROVEN = 5.0  # seconds for which a store that wrote is taken for one that can write

Span = tuple[str, str, int]  # from this key on, to before that one, at most so many (0: all)
Rows = list[tuple[str, bytes]]


def prefix_end(prefix: str) -> str:
    """Return the first key behind all that begin with the prefix (keys are ASCII)."""
    return prefix[:-1] + chr(ord(prefix[-1]) + 1)


class View(Protocol):
    """One consistent moment of a store."""

    async def fetch(
        self, keys: Iterable[str], spans: Iterable[Span] = ()
    ) -> tuple[list[bytes | None], list[Rows]]:
        """Return the values of keys and of spans, in one round trip."""
        ...


class Transaction(View, Protocol):
    """A view that can be written to: it is committed only if no key that it fetched has changed since."""

    async def absent(self, key: str) -> bool:
        """Whether a key is not there; a store may believe so until a commit fails over it."""
        ...

    def unchanged(self, first: str, end: str) -> None:
        """Commit only if nothing in this span was written since this moment (deleting is no writing)."""
        ...

    def put(self, key: str, value: bytes) -> None:
        """Write a key on commit."""
        ...

    def delete(self, key: str) -> None:
        """Delete a key on commit."""
        ...


class Store(Protocol):
    """A store; every method raises `Unavailable` when it cannot be reached or cannot write.

    The functions that are given may be called several times, and must await nothing but their view.
    """

    together: int  # so many transactions at a time are of use

    async def run(self, work: Callable[[Transaction], Awaitable[T]]) -> T:
        """Commit what `work` does and return its result, once that is durable; an error undoes it."""
        ...

    async def read(self, work: Callable[[View], Awaitable[T]]) -> T:
        """Return what `work` makes of one moment."""
        ...

    async def write(self, rows: Rows) -> None:
        """Write many keys, in no transaction."""
        ...

    async def wipe(self, first: str, end: str) -> None:
        """Delete a span of keys, in no transaction."""
        ...

    async def ready(self) -> None:
        """Raise `Unavailable` unless the store can write, which it tries every `PROVEN` seconds at most."""
        ...

    async def close(self) -> None:
        """Let go of the store."""
        ...
