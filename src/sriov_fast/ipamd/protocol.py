"""What uvicorn's HTTP protocols lack for us.

The peer's certificate goes into the scope's ``state``; a request's head is bounded in time and size, so that
slow and endless ones cost no more than that; and what the parser refuses gets a problem document too.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from http import HTTPStatus
from importlib.util import find_spec
from typing import Any

from uvicorn.config import HTTP_PROTOCOLS
from uvicorn.importer import import_from_string

from sriov_fast.ipamd import problems

MAX_HEAD = 64 << 10
_GOODBYE = 1.0  # seconds
CERTIFICATE = "peer_certificate"


class _Connection:
    """Mixed into one of uvicorn's protocols, whose methods it extends."""

    # What uvicorn's protocols have.
    loop: asyncio.AbstractEventLoop
    transport: asyncio.Transport
    app_state: dict[str, Any]
    connections: set[Any]
    cycle: Any
    config: Any

    head_timeout = 10.0  # seconds
    max_connections = 2048

    on_lost: Callable[[], None] | None = None  # of who accepted the connection
    _head_timer: asyncio.TimerHandle | None = None
    _head_size = 0

    def connection_made(self, transport: asyncio.Transport) -> None:
        """Note who that is; a connection too many is closed at once."""
        super().connection_made(transport)  # type: ignore[misc]
        tls = transport.get_extra_info("ssl_object")
        # Only certificates that our client_ca vouches for survive the handshake.
        self.app_state = {**self.app_state, CERTIFICATE: tls.getpeercert(binary_form=True) if tls else None}
        if len(self.connections) > self.max_connections:
            self._refuse(503, "unavailable", "too many connections")
        else:
            self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        if self.on_lost:
            self.on_lost()
        self._head_is_there()
        super().connection_lost(exc)  # type: ignore[misc]

    def data_received(self, data: bytes) -> None:
        """Take what came, and see whether a request's head is still incomplete."""
        super().data_received(data)  # type: ignore[misc]
        if self.transport.is_closing() or (self.cycle is not None and not self.cycle.response_complete):
            self._head_is_there()
            return
        self._head_size += len(data)
        if self._head_size > MAX_HEAD:
            self._refuse(431, "invalid", f"the request's head is longer than {MAX_HEAD} bytes")
        else:
            self._await_head()

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP."""
        self._refuse(400, "invalid", msg)

    def shutdown(self) -> None:
        """Let a request that runs end, and close."""
        super().shutdown()  # type: ignore[misc]
        if self.transport.is_closing():
            self._end_soon()

    def _end_soon(self) -> None:
        """Do not wait for a peer that does not say goodbye: closing TLS would, for half a minute."""
        self.loop.call_later(_GOODBYE, self.transport.abort)

    def _await_head(self) -> None:
        if self._head_timer is None:
            self._head_timer = self.loop.call_later(self.head_timeout, self._too_slow)

    def _head_is_there(self) -> None:
        self._head_size = 0
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _too_slow(self) -> None:
        if not self.transport.is_closing():
            self._refuse(408, "unavailable", f"no whole request within {self.head_timeout:g} s")

    def _refuse(self, status: int, kind: str, detail: str) -> None:
        """Answer and close, past the framework: there is no request that it could know of."""
        self._head_is_there()
        body = problems.document(status, kind, detail)
        head = (
            f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\ncontent-type: {problems.MEDIA_TYPE}\r\n"
            f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode("ascii") + body)
        self.transport.close()
        self._end_soon()


def protocol_class(head_timeout: float, max_connections: int, parser: str = "auto") -> type[asyncio.Protocol]:
    """Return the protocol for uvicorn, with these bounds; ``parser``: httptools, h11, or auto, the faster."""
    if parser == "auto":
        parser = "httptools" if find_spec("httptools") else "h11"
    base = import_from_string(HTTP_PROTOCOLS[parser])
    bounds = {"head_timeout": head_timeout, "max_connections": max_connections}
    return type("Protocol", (_Connection, base), bounds)
