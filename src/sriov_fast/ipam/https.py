"""HTTPS to a service that may have several remotes: connections that are kept, tries that are repeated."""

from __future__ import annotations

import _thread
import os
import time

from sriov_fast.ipam.http import TryError
from sriov_fast.ipam.tls import Connection, Trust, make_context, stamp_of
from sriov_fast.values import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from sriov_fast.ipam.http import Asked, Remote, Reply

_CONNECT_WAIT = 2.0  # seconds for TCP where another try is left; the kernel repeats its SYN after 1
_PAUSE = 0.1  # seconds before the second try, twice as many before each one after it
_LONGEST_PAUSE = 2.0
_IDLE = 60.0  # seconds that an unused connection is kept
_MOST_IDLE = 8  # connections kept for one service


class Key(Value):
    """What a connection can be used again for: ``stamp`` says as which files it was made with."""

    host: str
    port: int
    trust: Trust
    stamp: object


class Pool:
    """TLS contexts, and connections that wait for the next request; for all threads of a process."""

    def __init__(self) -> None:
        self._lock = _thread.allocate_lock()
        self._contexts: dict[Trust, tuple[object, Any]] = {}
        self._idle: dict[Key, list[Connection]] = {}

    def context(self, trust: Trust) -> tuple[object, Any]:
        """Return a stamp and the TLS context, made anew where a file has changed."""
        stamp = stamp_of(trust)
        with self._lock:
            known = self._contexts.get(trust)
        if known and known[0] == stamp:
            return known
        made = stamp, make_context(trust)
        with self._lock:
            self._contexts[trust] = made
        self.clear(trust)  # whom an old file vouched for must show itself again
        return made

    def take(self, key: Key) -> Connection | None:
        """Return a connection that is still there, None where there is none."""
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
        """Close the connections that wait, all or those of one trust."""
        with self._lock:
            keys = [key for key in self._idle if trust is None or key.trust == trust]
            kept = [connection for key in keys for connection in self._idle.pop(key)]
        for connection in kept:
            connection.close()

    def forget(self) -> None:
        """Start anew, in a child: two processes cannot share one TLS session."""
        self.__init__()  # type: ignore[misc]


pool = Pool()
os.register_at_fork(after_in_child=pool.forget)


# --- one request, as often as need be


class Client:
    """The way to a service that has one remote or several, for one verb.

    ``uncertain`` is whether some try may have been carried out though its reply never came.
    """

    def __init__(self, remotes: tuple[Remote, ...], trust: Trust, retries: int, deadline: float) -> None:
        self.remotes = remotes
        self.trust = trust
        self.retries = retries
        self.deadline = deadline
        self.uncertain = False
        self.tries = 0

    def ask(self, asked: Asked) -> tuple[Remote, Reply]:
        """Return the first reply, and who gave it.

        A failure to connect, a lost reply and 502, 503, 504 lead to the next remote, and after a pause to the
        next round. Raises AllFailedError where all came to nothing.
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

    def _try(self, remote: Remote, asked: Asked, last: bool) -> Reply:
        """Try once, for half of the time that is left unless it is the last try."""
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

    def _on_kept(self, key: Key, asked: Asked, deadline: float) -> Reply | None:
        """Ask on a connection that waited; None where there is none, or the peer was about to close it.

        A request that was cut off there may be repeated at once: all requests here may be.
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
    def _on(connection: Connection, key: Key, asked: Asked, deadline: float) -> Reply:
        reply = None
        try:
            reply = connection.exchange(asked, deadline)
        finally:
            if reply is not None and reply.kept:
                pool.give(key, connection)
            else:
                connection.close()
        return reply

    def _pause(self, again: int) -> bool:
        """Wait before the next round; False where no time is left for one."""
        longest = min(_PAUSE * 2 ** (again - 1), _LONGEST_PAUSE)
        pause = longest * (0.5 + _random() / 2)
        if time.monotonic() + pause >= self.deadline:
            return False
        time.sleep(pause)
        return True


def _random() -> float:
    """Return a number from 0 to 1, so that a whole cluster does not come back at the same moment."""
    return int.from_bytes(os.urandom(2), "big") / 65535


class UnreadyError(TryError):
    """The service, or a proxy before it, says that it cannot answer now."""

    def __init__(self, reply: Reply) -> None:
        super().__init__(
            f"answered with status {reply.status}",
            "try again; the service's log says why",
            sent=True,
        )
        self.reply = reply


class AllFailedError(Exception):
    """No remote gave a reply: ``failed`` holds every try, ``fault`` the one that says most."""

    def __init__(self, failed: list[tuple[Remote, TryError]], tries: int) -> None:
        self.failed = failed
        self.tries = tries
        waiting = [item for item in failed if item[1].again]
        self.remote, self.fault = (waiting or failed)[-1]
        super().__init__(f"{self.remote.url} {self.fault.what}")
