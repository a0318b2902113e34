"""Repeated tries at a service that may have several remotes."""

from __future__ import annotations

import os
import time

from sriov_fast.common.interpreter import INTERPRETER
from sriov_fast.ipam.txipam.connection import Connection
from sriov_fast.ipam.txipam.pool import PeerKey, pool
from sriov_fast.ipam.txipam.tls import Trust, TryError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from sriov_fast.ipam.txipam.connection import HttpRequest, HttpResponse, Remote

_CONNECT_WAIT = 2.0  # seconds for TCP where another try is left; the kernel repeats its SYN after 1
_PAUSE = 0.1  # seconds before the second try, twice as many before each one after it
_LONGEST_PAUSE = 2.0


class Repeated:
    """The number of requests that this process has sent again; it may miss some of concurrent ones."""

    number = 0


repeated = Repeated()


class Remotes:
    """The remotes of a service, for one verb.

    ``uncertain``: the service may have carried out a request of this verb though its reply never came.
    """

    def __init__(self, remotes: tuple[Remote, ...], trust: Trust, retries: int, deadline: float) -> None:
        self.remotes = remotes
        self.trust = trust
        self.retries = retries
        self.deadline = deadline
        self.uncertain = False

    def ask(self, asked: HttpRequest) -> tuple[Remote, HttpResponse]:
        """Return the remote that replied first, and its reply.

        A failure to connect, a lost reply and 502, 503, 504 lead to the next remote, and after a pause to the
        next round. Raises AllFailedError if every try failed.
        """
        left = list(self.remotes)
        failed: list[tuple[Remote, TryError]] = []
        for again in range(self.retries + 1):
            if again and not self._pause(again):
                break
            repeated.number += again > 0
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
        raise AllFailedError(failed)

    def _try(self, remote: Remote, asked: HttpRequest, last: bool) -> HttpResponse:
        """Try once, for half of the time that is left unless this is the last try."""
        now = time.monotonic()
        deadline = self.deadline if last else now + max(0.0, self.deadline - now) / 2
        stamp, context = pool.context(self.trust)
        key = PeerKey(host=remote.host, port=remote.port, trust=self.trust, stamp=stamp)
        reply = self._on_kept(key, asked, deadline)
        if reply is None:
            connect_by = deadline if last else min(deadline, now + _CONNECT_WAIT)
            connection = Connection(remote, context, deadline, connect_by)
            reply = self._on(connection, key, asked, deadline)
        if reply.status in (502, 503, 504):
            raise UnreadyError(reply)
        return reply

    def _on_kept(self, key: PeerKey, asked: HttpRequest, deadline: float) -> HttpResponse | None:
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
    def _on(connection: Connection, key: PeerKey, asked: HttpRequest, deadline: float) -> HttpResponse:
        reply = None
        try:
            with INTERPRETER.released():
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
        with INTERPRETER.released():
            time.sleep(pause)
        return True


def _random() -> float:
    """Return a number from 0 to 1: the nodes of a cluster must not come back at the same moment."""
    return int.from_bytes(os.urandom(2), "big") / 65535


class UnreadyError(TryError):
    """The service, or a proxy in front of it, cannot answer now."""

    def __init__(self, reply: HttpResponse) -> None:
        super().__init__(
            f"answered with status {reply.status}",
            "try again; the service's log says why",
            sent=True,
        )
        self.reply = reply


class AllFailedError(Exception):
    """No remote replied: ``failed`` holds every try, ``fault`` is the most telling one."""

    def __init__(self, failed: list[tuple[Remote, TryError]]) -> None:
        self.failed = failed
        waiting = [item for item in failed if item[1].again]
        self.remote, self.fault = (waiting or failed)[-1]
        super().__init__(f"{self.remote.url} {self.fault.outcome}")
