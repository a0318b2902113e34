"""The protocol of a connection: uvicorn's HTTP protocol, with limits of a request's head.

The head of a request is limited in time and size. The scope's ``state`` has the connection and the
peer's certificate. An error of the HTTP parser is answered with a problem document.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

import uvicorn

from sriov_fast import ipamd_api
from sriov_fast.ipamd import problems

MAX_HEAD = 64 << 10
_GOODBYE = 1.0  # seconds
CERTIFICATE = "peer_certificate"
CONNECTION = "connection"


class Connection(asyncio.Protocol):
    """A connection; it passes the data to uvicorn's protocol, and counts the running requests.

    The middleware reports the requests.
    """

    def __init__(self, server: uvicorn.Server, head_timeout: float, max_connections: int, host: str) -> None:
        self._server, self._head_timeout, self._max_connections = server, head_timeout, max_connections
        self.host = host
        # Set by the acceptor.
        self.handshake: asyncio.Task[None] | None = None
        self.on_lost: Callable[[], None] = lambda: None
        self._loop = asyncio.get_running_loop()
        self._requests = 0  # running ones
        self._head_size = 0
        self._head_timer: asyncio.TimerHandle | None = None
        self._checking = False

    @property
    def idle(self) -> bool:
        """Whether the connection has no running request."""
        return self.handshake is not None or not (self._requests or self._checking)

    def connection_made(self, transport: Any) -> None:
        """Pass the connection to uvicorn; refuse it above the limit of connections."""
        self._transport: asyncio.Transport = transport
        tls = transport.get_extra_info("ssl_object")
        # The handshake has verified the certificate.
        certificate = tls.getpeercert(binary_form=True) if tls else None
        config, server_state = self._server.config, self._server.server_state
        make: Any = config.http_protocol_class
        state = {CERTIFICATE: certificate, CONNECTION: self}
        self._http = make(config=config, server_state=server_state, app_state=state)
        self._http.send_400_response = lambda text: self._refuse(400, "invalid", text)
        self._http.connection_made(transport)
        if len(server_state.connections) > self._max_connections:
            self._refuse(503, "unavailable", "too many connections")
        else:
            self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self.on_lost()
        self._end_head()
        self._http.connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Pass data to uvicorn, and check the limits of a request's head."""
        if not self._requests:
            self._head_size += len(data)
        self._http.data_received(data)
        if not self._checking:
            # The check runs after the first step of a request with a complete head.
            self._checking = True
            self._loop.call_soon(self._check_head)

    def eof_received(self) -> None:
        """Pass the end of the data to uvicorn."""
        self._http.eof_received()

    def pause_writing(self) -> None:
        """Tell uvicorn to stop writing."""
        self._http.pause_writing()

    def resume_writing(self) -> None:
        """Tell uvicorn to continue writing."""
        self._http.resume_writing()

    def begin(self) -> None:
        """Note the start of a request."""
        self._requests += 1
        self._end_head()

    def end(self) -> None:
        """Note the end of a request."""
        self._requests -= 1

    def stop(self) -> None:
        """Close the connection if it is idle; uvicorn closes others after their request."""
        if self.handshake is None and self.idle:
            self._close()

    def abort(self) -> None:
        """Close the connection at once, also during its handshake."""
        if self.handshake is not None:
            self.handshake.cancel()
        else:
            self._transport.abort()

    def _close(self) -> None:
        """Close the connection; closing TLS would wait 30 seconds for a silent peer."""
        self._transport.close()
        self._loop.call_later(_GOODBYE, self._transport.abort)

    def _check_head(self) -> None:
        self._checking = False
        if self._requests or self._transport.is_closing():
            return
        if self._head_size > MAX_HEAD:
            self._refuse(431, "invalid", f"the request's head is longer than {MAX_HEAD} bytes")
        elif self._head_size:
            self._await_head()

    def _await_head(self) -> None:
        if self._head_timer is None:
            self._head_timer = self._loop.call_later(self._head_timeout, self._too_slow)

    def _end_head(self) -> None:
        self._head_size = 0
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _too_slow(self) -> None:
        if not self._transport.is_closing():
            self._refuse(408, "unavailable", f"no whole request within {self._head_timeout:g} s")

    def _refuse(self, status: int, kind: str, detail: str) -> None:
        """Answer an error without a request, and close the connection."""
        self._end_head()
        body = problems.document(status, kind, detail)
        head = (
            f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\ncontent-type: {ipamd_api.PROBLEM}\r\n"
            f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
        )
        self._transport.write(head.encode("ascii") + body)
        self._close()
