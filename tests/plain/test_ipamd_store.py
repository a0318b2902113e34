"""Guarantees of both stores: consistent snapshots and atomic transactions."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from sriov_fast.ipamd.errors import Conflict, Unavailable
from sriov_fast.ipamd.service import open_store
from sriov_fast.ipamd.store import Rows, Store, Transaction, View, prefix_end
from sriov_fast.ipamd.store_sqlite import SqliteStore

pytestmark = pytest.mark.anyio


@contextlib.asynccontextmanager
async def opened(url: str) -> AsyncIterator[Store]:
    found = await open_store(url)
    try:
        yield found
    finally:
        await found.close()


@pytest.fixture
async def store(url: str) -> AsyncIterator[Store]:
    async with opened(url) as found:
        yield found


@pytest.fixture
async def other(url: str) -> AsyncIterator[Store]:
    """Open another store on the same data."""
    async with opened(url) as found:
        yield found


async def get(store: Store, *keys: str) -> list[bytes | None]:
    async def look(view: View) -> list[bytes | None]:
        return (await view.fetch(keys))[0]

    return await store.read(look)


async def span(store: Store, first: str, end: str, most: int = 0) -> Rows:
    async def look(view: View) -> Rows:
        return (await view.fetch([], [(first, end, most)]))[1][0]

    return await store.read(look)


async def test_keys_and_spans(store: Store) -> None:
    rows = [(f"a/{at:03d}", b"%d" % at) for at in range(250)]
    await store.write([*rows, ("a", b""), ("a0", b"\x00\xff"), ("b/1", b"b")])
    assert await get(store, "a/007", "a/250", "a", "a0") == [b"7", None, b"", b"\x00\xff"]
    assert await span(store, "a/", prefix_end("a/")) == rows
    assert await span(store, "a/010", "a/020", 3) == rows[10:13]
    assert await span(store, "c", "d") == []
    await store.wipe("a/", "a/100")
    assert await span(store, "a/", prefix_end("a/")) == rows[100:]
    assert await get(store, "a", "a0", "b/1") == [b"", b"\x00\xff", b"b"]


async def test_a_transaction_that_raises_changes_nothing(store: Store) -> None:
    await store.write([("a", b"1")])

    async def fail(tx: Transaction) -> None:
        tx.changes["a"] = b"2"
        tx.changes["b"] = None
        raise Conflict("no")

    with pytest.raises(Conflict, match="no"):
        await store.run(fail)
    assert await get(store, "a", "b") == [b"1", None]


async def test_counting_together_loses_nothing(store: Store, other: Store) -> None:
    """Concurrent transactions of two stores on the same data lose no update of a key."""

    async def count(tx: Transaction) -> int:
        (value,), _ = await tx.fetch(["n"])
        number = int(value or 0) + 1
        tx.changes["n"] = b"%d" % number
        return number

    numbers = await asyncio.gather(*((store, other)[at % 2].run(count) for at in range(40)))
    assert sorted(numbers) == list(range(1, 41))
    assert await get(store, "n") == [b"40"]


async def test_who_is_absent_is_taken_once(store: Store, other: Store) -> None:
    def take(name: bytes) -> Callable[[Transaction], Coroutine[Any, Any, bool]]:
        async def work(tx: Transaction) -> bool:
            if not await tx.absent("place"):
                return False
            tx.changes["place"] = name
            return True

        return work

    won = await asyncio.gather(*((store, other)[at % 2].run(take(b"%d" % at)) for at in range(16)))
    assert sum(won) == 1
    assert await get(store, "place") == [b"%d" % won.index(True)]


async def test_a_view_is_one_moment(store: Store) -> None:
    """Two keys that every transaction changes together have equal values in one view."""
    await store.write([("a", b"0"), ("b", b"0")])

    async def bump(tx: Transaction) -> None:
        (a, _), _ = await tx.fetch(["a", "b"])
        for key in ("a", "b"):
            tx.changes[key] = b"%d" % (int(a or 0) + 1)

    async def look(view: View) -> bool:
        (a,), _ = await view.fetch(["a"])
        _, (rows,) = await view.fetch([], [("b", "c", 0)])
        return rows == [("b", a)]

    async def change() -> None:
        for _ in range(30):
            await store.run(bump)

    async def watch() -> bool:
        return all([await store.read(look) for _ in range(60)])

    _, *same = await asyncio.gather(change(), watch(), watch())
    assert same == [True, True]
    assert await get(store, "a", "b") == [b"30", b"30"]


async def test_a_quiet_span_is_compared(store: Store, other: Store) -> None:
    """A transaction is repeated if another store has written to a span after the span was read."""
    alone = isinstance(store, SqliteStore)  # SQLite has one writer at a time
    seen: list[int] = []

    async def count(tx: Transaction) -> None:
        tx.unchanged("s/", "s0")
        _, (rows,) = await tx.fetch([], [("s/", "s0", 0)])
        seen.append(len(rows))
        if not alone and len(seen) == 1:
            await other.write([("s/2", b"")])
        tx.changes["count"] = b"%d" % len(rows)

    await store.write([("s/1", b"")])
    await store.run(count)
    assert seen == ([1] if alone else [1, 2])
    assert await get(store, "count") == [b"%d" % seen[-1]]


async def test_many_records_are_written_and_wiped(store: Store) -> None:
    rows = [(f"k/{at:05d}", b"x" * 200) for at in range(12_000)]
    await store.write(rows)
    await store.write([("k0", b"stays"), ("big/1", b"y" * 900_000), ("big/2", b"y" * 600_000)])
    assert len(await span(store, "k/", "k0")) == 12_000
    await store.wipe("k/", "k0")
    assert await span(store, "k/", "k0") == []
    assert await get(store, "k0") == [b"stays"]


async def test_what_failed_to_commit_is_unavailable(tmp_path: Path) -> None:
    """A database error fails every transaction of a group; later transactions succeed."""
    async with opened(f"sqlite://{tmp_path}/a.db") as store:

        def put(at: int) -> Callable[[Transaction], Coroutine[Any, Any, None]]:
            async def work(tx: Transaction) -> None:
                tx.changes[f"k{at}"] = b""

            return work

        other = sqlite3.connect(tmp_path / "a.db", isolation_level=None)
        other.execute(
            "CREATE TRIGGER stop BEFORE INSERT ON record BEGIN SELECT RAISE(ABORT, 'disk on fire'); END"
        )
        outcomes = await asyncio.gather(*(store.run(put(at)) for at in range(5)), return_exceptions=True)
        assert {type(it) for it in outcomes} == {Unavailable}
        assert "disk on fire" in str(outcomes[0])
        assert "a.db" in str(outcomes[0])
        other.execute("DROP TRIGGER stop")
        other.close()
        assert await get(store, "k0", "k4") == [None, None]
        await store.run(put(0))
        assert await get(store, "k0") == [b""]


async def test_a_transaction_may_not_wait_for_others(tmp_path: Path) -> None:
    async with opened(f"sqlite://{tmp_path}/a.db") as store:

        async def wait(tx: Transaction) -> None:
            tx.changes["a"] = b""
            await asyncio.sleep(0)

        with pytest.raises(RuntimeError, match="awaited"):
            await store.run(wait)
        assert await get(store, "a") == [None]


async def test_the_file_is_durable_and_private(tmp_path: Path) -> None:
    async with opened(f"sqlite://{tmp_path}/a.db") as store:
        assert isinstance(store, SqliteStore)
        assert store._db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert store._db.execute("PRAGMA synchronous").fetchone() == (2,)
        await store.write([("a", b"")])
        assert {it.stat().st_mode & 0o777 for it in tmp_path.iterdir()} == {0o600}


async def test_a_store_that_is_not_there_is_unavailable(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="gone"):
        await open_store(f"sqlite://{tmp_path}/gone/a.db")
    (tmp_path / "text.db").write_text("no database, but long enough to be looked at" * 50)
    with pytest.raises(Unavailable, match=r"text\.db"):
        await open_store(f"sqlite://{tmp_path}/text.db")
