"""TLS contexts and idle connections to the address service."""

from __future__ import annotations

import _thread
import os
import time

from sriov_fast.common.record import Record
from sriov_fast.ipam.txipam.tls import Trust, make_context, stamp_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ssl import SSLContext

    from sriov_fast.ipam.txipam.connection import Connection

_IDLE = 60.0  # seconds that an idle connection is kept
_MOST_IDLE = 8  # connections kept for one service


class PeerKey(Record):
    """The key of a kept connection: its peer, and the files (with their stamp) that TLS was set up with."""

    host: str
    port: int
    trust: Trust
    stamp: object


class ConnectionPool:
    """TLS contexts and idle connections, shared by all threads of a process."""

    def __init__(self) -> None:
        self._lock = _thread.allocate_lock()
        self._contexts: dict[Trust, tuple[object, SSLContext]] = {}
        self._idle: dict[PeerKey, list[Connection]] = {}

    def context(self, trust: Trust) -> tuple[object, SSLContext]:
        """Return a stamp and the TLS context, which is made again when a file has changed."""
        stamp = stamp_of(trust)
        with self._lock:
            known = self._contexts.get(trust)
        if known and known[0] == stamp:
            return known
        made = stamp, make_context(trust)
        with self._lock:
            self._contexts[trust] = made
        self.clear(trust)  # a peer that only the old files vouched for must be verified again
        return made

    def take(self, key: PeerKey) -> Connection | None:
        """Return an idle connection that is still open; None if there is none."""
        while True:
            with self._lock:
                kept = self._idle.get(key)
                found = kept.pop() if kept else None
            if found is None:
                return None
            if time.monotonic() - found.since < _IDLE and found.is_alive():
                return found
            found.close()

    def give(self, key: PeerKey, connection: Connection) -> None:
        """Keep a connection for the next request."""
        with self._lock:
            kept = self._idle.setdefault(key, [])
            kept.append(connection)
            spare = kept.pop(0) if len(kept) > _MOST_IDLE else None
        if spare:
            spare.close()

    def clear(self, trust: Trust | None = None) -> None:
        """Close the idle connections, all or those of one trust."""
        with self._lock:
            keys = [key for key in self._idle if trust is None or key.trust == trust]
            kept = [connection for key in keys for connection in self._idle.pop(key)]
        for connection in kept:
            connection.close()

    def forget(self) -> None:
        """Drop everything in a forked child: two processes cannot share one TLS session."""
        self.__init__()  # type: ignore[misc]


pool = ConnectionPool()
os.register_at_fork(after_in_child=pool.forget)
