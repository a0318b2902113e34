"""The embedded store: SQLite in WAL mode; one writer thread commits transactions in groups."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, TypeVar, cast

from sriov_fast.ipamd.errors import ServiceError, Unavailable
from sriov_fast.ipamd.store import PROVEN, Changes, Rows, Span, Transaction, View

T = TypeVar("T")

GROUP = 256  # transactions in one commit at most
BULK = 5000  # records in one transaction at most, of a bulk operation
READERS = 2
BUSY = 10.0  # seconds to wait for a write of another process
FULL = 10**9
PROBE = 16 << 10  # bytes: at least the pages of one allocation

_SCHEMA = "CREATE TABLE IF NOT EXISTS record (key TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID"
_GET = "SELECT value FROM record WHERE key = ?"
_SPAN = "SELECT key, value FROM record WHERE key >= ? AND key < ? ORDER BY key LIMIT ?"
_PUT = "INSERT INTO record VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value"
_DELETE = "DELETE FROM record WHERE key = ?"
_WIPE = "DELETE FROM record WHERE key IN (SELECT key FROM record WHERE key >= ? AND key < ? LIMIT ?)"


class _Transaction:
    """A view, and in the only writer thread a transaction, which needs no comparisons."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self.changes: Changes = {}
        self._db = db

    def _get(self, key: str) -> bytes | None:
        row = self._db.execute(_GET, (key,)).fetchone()
        return None if row is None else bytes(row[0])

    async def fetch(
        self, keys: Iterable[str], spans: Iterable[Span] = ()
    ) -> tuple[list[bytes | None], list[Rows]]:
        found = [self._db.execute(_SPAN, (first, end, most or FULL)).fetchall() for first, end, most in spans]
        return [self._get(key) for key in keys], found

    async def absent(self, key: str) -> bool:
        return self._get(key) is None

    def unchanged(self, first: str, end: str) -> None:
        pass

    def wipe(self, first: str, end: str) -> int:
        """Delete at most `BULK` keys of a span; return the number."""
        return self._db.execute(_WIPE, (first, end, BULK)).rowcount

    def apply(self) -> None:
        """Write the changes in the transaction of the group."""
        self._db.executemany(_PUT, [(key, value) for key, value in self.changes.items() if value is not None])
        self._db.executemany(_DELETE, [(key,) for key, value in self.changes.items() if value is None])


def _drive(work: Awaitable[T]) -> T:
    """Run a coroutine on a `_Transaction`; it never suspends."""
    coroutine = cast(Coroutine[Any, Any, T], work)
    try:
        coroutine.send(None)
    except StopIteration as end:
        return cast(T, end.value)
    coroutine.close()
    raise RuntimeError("a transaction awaited something else than its view")


class _Job:
    """Work for the writer thread. The future gets the result when that is durable."""

    def __init__(self, work: Callable[[_Transaction], object]) -> None:
        self.future: Future[Any] = Future()
        self._work = work
        self._result: object = None
        self._error: BaseException | None = None

    def run(self, db: sqlite3.Connection) -> None:
        """Do the work in the transaction of the group; only errors of the database fail the whole group."""
        tx = _Transaction(db)
        try:
            self._result = self._work(tx)
        except sqlite3.Error:
            raise
        except BaseException as error:
            self._error = error
        else:
            tx.apply()

    def settle(self, failure: Exception | None) -> None:
        """Set the result of the future, unless its waiter was cancelled. ``failure`` is the group's."""
        if not self.future.set_running_or_notify_cancel():
            return
        if error := failure or self._error:
            self.future.set_exception(error)
        else:
            self.future.set_result(self._result)


class SqliteStore:
    """Records in one table, sorted by key."""

    together = 2 * GROUP

    def __init__(self, path: str) -> None:
        self._path = path
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._local = threading.local()
        self._opened: list[sqlite3.Connection] = []
        self._closed = False
        self._changes = 0
        self._written = -PROVEN  # time of the last commit with changes
        try:
            self._db = self._connect()
            self._db.execute(_SCHEMA)
        except sqlite3.Error as error:
            raise Unavailable(f"store {path!r}: {error}") from error
        self._readers = ThreadPoolExecutor(READERS, "txipam-read")
        self._writer = threading.Thread(target=self._write_on, name="txipam-write", daemon=True)
        try:
            self._writer.start()
        except RuntimeError as error:
            raise Unavailable(f"store {path!r}: {error}") from error

    def _connect(self) -> sqlite3.Connection:
        """Open the file; a new one gets mode 0600."""
        with suppress(FileExistsError):
            os.close(os.open(self._path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        db = sqlite3.connect(self._path, timeout=BUSY, isolation_level=None, check_same_thread=False)
        self._opened.append(db)
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")  # a commit is durable before its result is returned
        db.execute("PRAGMA cache_size = -65536")
        return db

    def _write_on(self) -> None:
        while True:
            job = self._jobs.get()
            if job is None:
                return
            group = [job, *self._waiting()]
            self._commit([job for job in group if job is not None])
            if None in group:
                return

    def _waiting(self) -> list[_Job | None]:
        found: list[_Job | None] = []
        with suppress(Empty):
            while len(found) < GROUP - 1:
                found.append(self._jobs.get_nowait())
                if found[-1] is None:
                    break
        return found

    def _commit(self, group: list[_Job]) -> None:
        """Run all the work in one transaction, completely or not at all."""
        failure = None
        try:
            self._db.execute("BEGIN IMMEDIATE")
            for job in group:
                job.run(self._db)
            writes = self._db.total_changes
            self._db.execute("COMMIT")
            if writes != self._changes:
                self._changes, self._written = writes, time.monotonic()
        except sqlite3.Error as error:
            with suppress(sqlite3.Error):
                self._db.execute("ROLLBACK")
            self._written = -PROVEN
            failure = Unavailable(f"store {self._path!r}: {error}")
        for job in group:
            job.settle(failure)

    async def _submit(self, work: Callable[[_Transaction], object]) -> Any:
        if self._closed:
            raise Unavailable(f"store {self._path!r}: is closed")
        job = _Job(work)
        self._jobs.put(job)
        return await asyncio.wrap_future(job.future)

    async def run(self, work: Callable[[Transaction], Awaitable[T]]) -> T:
        """Run `work` in a transaction, which is committed together with other waiting ones."""
        return cast(T, await self._submit(lambda tx: _drive(work(tx))))

    async def read(self, work: Callable[[View], Awaitable[T]]) -> T:
        """Return the result of `work` on a consistent view, in a reader thread."""
        if self._closed:
            raise Unavailable(f"store {self._path!r}: is closed")
        try:
            reading = asyncio.get_running_loop().run_in_executor(self._readers, self._read, work)
        except RuntimeError as error:  # no thread can be started
            raise Unavailable(f"store {self._path!r}: {error}") from error
        return await reading

    def _read(self, work: Callable[[View], Awaitable[T]]) -> T:
        try:
            db = getattr(self._local, "db", None)
            if db is None:
                db = self._local.db = self._connect()
                db.execute("PRAGMA query_only = ON")
            db.execute("BEGIN")
            try:
                return _drive(work(_Transaction(db)))
            finally:
                db.execute("COMMIT")
        except sqlite3.Error as error:
            raise Unavailable(f"store {self._path!r}: {error}") from error

    async def write(self, rows: Rows) -> None:
        """Write many keys in several transactions, so that others run in between."""
        for at in range(0, len(rows), BULK):
            await self._write(dict(rows[at : at + BULK]))

    async def _write(self, rows: dict[str, bytes]) -> None:
        await self._submit(lambda tx: tx.changes.update(rows))

    async def wipe(self, first: str, end: str) -> None:
        """Delete a span of keys in several transactions, so that others run in between."""
        while await self._submit(lambda tx: tx.wipe(first, end)) == BULK:
            pass

    async def ready(self) -> None:
        """Raise `Unavailable` unless a write succeeds now or succeeded lately."""
        probe = {} if time.monotonic() - self._written < PROVEN else {"probe": os.urandom(PROBE)}
        await self._write(probe)

    async def close(self) -> None:
        """Finish the queued work, then close the file."""
        if self._closed:
            return
        self._closed = True
        self._jobs.put(None)
        try:
            shutting = asyncio.get_running_loop().run_in_executor(None, self._shut)
        except RuntimeError:  # no thread can be started
            self._shut()
        else:
            await shutting

    def _shut(self) -> None:
        self._writer.join()
        self._readers.shutdown()
        for db in self._opened:
            db.close()


def open_sqlite(path: str) -> SqliteStore:
    """Open or create the file; its directory must exist."""
    if not path:
        raise ServiceError("store: give a path: sqlite:///var/lib/sriov-fast/ipam.db")
    parent = Path(path).parent
    if not parent.is_dir():
        raise Unavailable(f"store {path!r}: directory {str(parent)!r} is not there")
    return SqliteStore(path)
