"""Requests to a service that may have several remotes: a pool of connections, and repeated tries."""

from __future__ import annotations

import _thread
import os
import time

from sriov_fast.ipam.http import Connection
from sriov_fast.ipam.tls import Trust, TryError, make_context, stamp_of
from sriov_fast.values import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ssl import SSLContext

    from sriov_fast.ipam.http import Remote, Reply, Request

_CONNECT_WAIT = 2.0  # seconds for TCP where another try is left; the kernel repeats its SYN after 1
_PAUSE = 0.1  # seconds before the second try, twice as many before each one after it
_LONGEST_PAUSE = 2.0
_IDLE = 60.0  # seconds that an idle connection is kept
_MOST_IDLE = 8  # connections kept for one service


class Key(Value):
    """The key of a kept connection: its peer, and the files (with their stamp) that TLS was set up with."""

    host: str
    port: int
    trust: Trust
    stamp: object


class Pool:
    """TLS contexts and idle connections, shared by all threads of a process."""

    def __init__(self) -> None:
        self._lock = _thread.allocate_lock()
        self._contexts: dict[Trust, tuple[object, SSLContext]] = {}
        self._idle: dict[Key, list[Connection]] = {}

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

    def take(self, key: Key) -> Connection | None:
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

    def give(self, key: Key, connection: Connection) -> None:
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


pool = Pool()
os.register_at_fork(after_in_child=pool.forget)


# --- one request, repeated as necessary


class Client:
    """A service with its remotes, for one verb.

    ``uncertain``: the service may have carried out a request though its reply never came.
    """

    def __init__(self, remotes: tuple[Remote, ...], trust: Trust, retries: int, deadline: float) -> None:
        self.remotes = remotes
        self.trust = trust
        self.retries = retries
        self.deadline = deadline
        self.uncertain = False
        self.tries = 0

    def ask(self, asked: Request) -> tuple[Remote, Reply]:
        """Return the remote that replied first, and its reply.

        A failure to connect, a lost reply and 502, 503, 504 lead to the next remote, and after a pause to the
        next round. Raises AllFailedError if every try failed.
        """
        left = list(self.remotes)
        failed: list[tuple[Remote, TryError]] = []
        for again in range(self.retries + 1):
            if again and not self._pause(again):
                break
            for remote in tuple(left):
                last = again == self.retries and remote is left[-1]
                try:
                    return remote, self._try(remote, asked, last)
                except TryError as fault:
                    failed.append((remote, fault))
                    self.uncertain = self.uncertain or fault.sent
                    if not fault.again:
                        left.remove(remote)
            if not left:
                break
        raise AllFailedError(failed, self.tries)

    def _try(self, remote: Remote, asked: Request, last: bool) -> Reply:
        """Try once, for half of the time that is left unless this is the last try."""
        now = time.monotonic()
        deadline = self.deadline if last else now + max(0.0, self.deadline - now) / 2
        self.tries += 1
        stamp, context = pool.context(self.trust)
        key = Key(host=remote.host, port=remote.port, trust=self.trust, stamp=stamp)
        reply = self._on_kept(key, asked, deadline)
        if reply is None:
            connect_by = deadline if last else min(deadline, now + _CONNECT_WAIT)
            connection = Connection(remote, context, deadline, connect_by)
            reply = self._on(connection, key, asked, deadline)
        if reply.status in (502, 503, 504):
            raise UnreadyError(reply)
        return reply

    def _on_kept(self, key: Key, asked: Request, deadline: float) -> Reply | None:
        """Ask on an idle connection; return None if there is none, or the peer was about to close it.

        A request that was cut off may be repeated at once, since all requests to the service are idempotent.
        """
        while connection := pool.take(key):
            try:
                return self._on(connection, key, asked, deadline)
            except TryError as fault:
                if not fault.again or time.monotonic() >= deadline:
                    raise
                self.uncertain = True
        return None

    @staticmethod
    def _on(connection: Connection, key: Key, asked: Request, deadline: float) -> Reply:
        reply = None
        try:
            reply = connection.exchange(asked, deadline)
        finally:
            if reply is not None and connection.sock:
                pool.give(key, connection)
            else:
                connection.close()
        return reply

    def _pause(self, again: int) -> bool:
        """Wait before the next round; return False if no time is left for one."""
        longest = min(_PAUSE * 2 ** (again - 1), _LONGEST_PAUSE)
        pause = longest * (0.5 + _random() / 2)
        if time.monotonic() + pause >= self.deadline:
            return False
        time.sleep(pause)
        return True


def _random() -> float:
    """Return a number from 0 to 1: the nodes of a cluster must not come back at the same moment."""
    return int.from_bytes(os.urandom(2), "big") / 65535


class UnreadyError(TryError):
    """The service, or a proxy in front of it, cannot answer now."""

    def __init__(self, reply: Reply) -> None:
        super().__init__(
            f"answered with status {reply.status}",
            "try again; the service's log says why",
            sent=True,
        )
        self.reply = reply


class AllFailedError(Exception):
    """No remote replied: ``failed`` holds every try, ``fault`` is the most telling one."""

    def __init__(self, failed: list[tuple[Remote, TryError]], tries: int) -> None:
        self.failed = failed
        self.tries = tries
        waiting = [item for item in failed if item[1].again]
        self.remote, self.fault = (waiting or failed)[-1]
        super().__init__(f"{self.remote.url} {self.fault.outcome}")
