"""Accept connections within limits: in total, for each address, and for the time of a TLS handshake.

A connection counts from accept(2) on, which includes connections without a handshake. At a limit the oldest
idle connection is closed in favour of the new one. If no connection is idle, the new one is refused.
"""

from __future__ import annotations

import asyncio
import logging
import resource
import socket
import ssl
import time
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

from sriov_fast.ipamd.logs import LOGGER
from sriov_fast.ipamd.protocol import Connection

HANDSHAKE = 5.0  # seconds
SPARE = 64  # connections above the limit that still get an answer 503
_FILES = 65536
_RESERVE = 128  # descriptors for the store, the log and the listening sockets
_QUIET = 10.0  # seconds between two log lines
_PAUSE = 0.1  # seconds after a failed accept(2)

log = logging.getLogger(LOGGER)


class Bounds(NamedTuple):
    """The limits of connections: in total, and of one address."""

    connections: int
    of_one: int


def bounds(wanted: Bounds) -> Bounds:
    """Raise the limit of open files as far as allowed; return bounds below that limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _FILES if hard == resource.RLIM_INFINITY else min(hard, _FILES)
    if soft == resource.RLIM_INFINITY or soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    connections = min(wanted.connections, max(1, max(soft, most) - _RESERVE - SPARE))
    if connections < wanted.connections:
        log.warning(
            "max_connections is lowered: too few files may be open (LimitNOFILE=)",
            extra={"max_connections": connections, "wanted": wanted.connections},
        )
    return Bounds(connections, min(wanted.of_one, connections + SPARE))


class Acceptor:
    """Accepts connections; ``make`` returns the protocol of one from an address."""

    def __init__(self, limits: Bounds, make: Callable[[str], Connection], tls: ssl.SSLContext | None) -> None:
        self._limits = limits
        self._make = make
        self._tls = tls
        self._open: dict[Connection, None] = {}  # in the order of accept(2)
        self._hosts: Counter[str] = Counter()
        self._closed: Counter[str] = Counter()
        self._said = 0.0

    async def serve(self, listener: socket.socket) -> None:
        """Accept until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                peer, address = await loop.sock_accept(listener)
            except OSError as error:
                self._evict()
                self._tell(f"cannot accept: {error.strerror}")
                await asyncio.sleep(_PAUSE)
                continue
            self._admit(peer, address[0])
            await asyncio.sleep(0)  # let the accepted connections run

    def stop(self) -> None:
        """Close the idle connections; uvicorn closes others after their request."""
        for connection in list(self._open):
            connection.stop()

    def _admit(self, peer: socket.socket, host: str) -> None:
        if not self._has_room(host):
            peer.close()
            self._tell("refused")
            return
        connection = self._make(host)
        connection.on_lost = lambda: self._forget(connection)
        self._open[connection] = None
        self._hosts[host] += 1
        connection.handshake = asyncio.get_running_loop().create_task(self._connect(connection, peer))

    def _has_room(self, host: str) -> bool:
        """Say whether one more connection fits; this may close an idle one."""
        if self._hosts[host] >= self._limits.of_one and not self._evict(host):
            return False
        return len(self._open) < self._limits.connections + SPARE or self._evict()

    def _evict(self, host: str | None = None) -> bool:
        """Close the oldest idle connection, of one address if given; say whether there was one."""
        for connection in self._open:
            if connection.idle and host in (None, connection.host):
                self._forget(connection)
                connection.abort()
                self._tell("idle")
                return True
        return False

    def _forget(self, connection: Connection) -> None:
        if connection not in self._open:
            return
        del self._open[connection]
        self._hosts[connection.host] -= 1
        if not self._hosts[connection.host]:
            del self._hosts[connection.host]

    async def _connect(self, connection: Connection, peer: socket.socket) -> None:
        """Do the handshake, and pass the socket to its connection."""
        loop = asyncio.get_running_loop()
        try:
            await loop.connect_accepted_socket(
                lambda: connection,
                peer,
                ssl=self._tls,
                ssl_handshake_timeout=HANDSHAKE if self._tls else None,
            )
        except asyncio.CancelledError:
            self._drop(connection, peer)
        except (OSError, TimeoutError, ssl.SSLError) as error:
            self._drop(connection, peer)
            self._tell("no handshake")
            log.debug("no TLS connection", extra={"peer": connection.host, "error": str(error)})
        finally:
            connection.handshake = None

    def _drop(self, connection: Connection, peer: socket.socket) -> None:
        self._forget(connection)
        peer.close()

    def _tell(self, reason: str) -> None:
        """Count closed connections, and log the counts at most every 10 seconds."""
        self._closed[reason] += 1
        if time.monotonic() - self._said >= _QUIET:
            self._said = time.monotonic()
            counts = ", ".join(f"{reason}: {number}" for reason, number in self._closed.items())
            log.warning("connections closed", extra={"closed": counts, "open": len(self._open)})
            self._closed.clear()
