"""ASGI middleware: request log and metrics, authentication, and limits of requests.

It is plain ASGI because it runs before the body is read. A request without credentials is refused unread.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from typing import Any

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import Response

from sriov_fast import ipamd_api
from sriov_fast.ipamd.auth import Authenticator, AuthError
from sriov_fast.ipamd.logs import LOGGER
from sriov_fast.ipamd.metrics import Metrics
from sriov_fast.ipamd.problems import Fault, document
from sriov_fast.ipamd.protocol import CERTIFICATE, CONNECTION, Connection
from sriov_fast.ipamd.settings import ServerSettings

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

# Paths without credentials and limits, so that monitoring works under load.
PROBES = frozenset((ipamd_api.HEALTH, ipamd_api.READY, ipamd_api.METRICS))
PUBLIC = PROBES | {ipamd_api.OPENAPI}
CLOSE = {"connection": "close"}

log = logging.getLogger(LOGGER)


class Event:
    """The facts of a request for the log and the metrics; the endpoint adds fields."""

    def __init__(self) -> None:
        self.status = 0
        self.kind: str | None = None
        self.fields: dict[str, object] = {}


_EVENT: contextvars.ContextVar[Event] = contextvars.ContextVar("event")


def note(**fields: object) -> None:
    """Add fields to the log line of the current request."""
    _EVENT.get().fields.update(fields)


def refuse(
    status: int,
    kind: str,
    detail: str,
    *,
    headers: Mapping[str, str] | None = None,
    errors: Sequence[Fault] = (),
) -> Response:
    """Return a problem document, and note it for the log and the metrics."""
    event = _EVENT.get()
    event.kind = kind
    event.fields["detail"] = detail
    return Response(document(status, kind, detail, errors), status, headers, ipamd_api.PROBLEM)


class Observe:
    """The outermost layer: log and metrics of every request, and an answer to unexpected errors."""

    def __init__(self, app: App, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Serve one request."""
        begin = time.perf_counter()
        event = Event()
        token = _EVENT.set(event)

        async def watched(message: Message) -> None:
            if message["type"] == "http.response.start":
                event.status = message["status"]
            await send(message)

        connection: Connection = scope["state"][CONNECTION]
        connection.begin()
        self._metrics.running.inc()
        try:
            await self._app(scope, receive, watched)
        except Exception as error:
            await self._failed(error, scope, receive, watched)
        finally:
            self._metrics.running.dec()
            connection.end()
            self._report(scope, event, begin)
            _EVENT.reset(token)

    async def _failed(
        self, error: Exception, scope: MutableMapping[str, Any], receive: Receive, send: Send
    ) -> None:
        if isinstance(error, _ClientGoneError):
            _EVENT.get().fields["detail"] = str(error)
            return
        log.error("internal error", exc_info=error, extra={"path": scope["path"]})
        if not _EVENT.get().status:
            await refuse(500, "internal", "internal error; the log has more")(scope, receive, send)

    def _report(self, scope: MutableMapping[str, Any], event: Event, begin: float) -> None:
        route = getattr(scope.get("route"), "path", "unmatched")
        self._metrics.request(scope["method"], route, event.status, begin)
        if event.kind:
            self._metrics.errors.labels(event.kind).inc()
        level = _level(scope, event.status)
        if not log.isEnabledFor(level):
            return
        client = scope.get("client")
        fields = {
            "method": scope["method"],
            "path": scope["path"],
            "status": event.status,
            "ms": round((time.perf_counter() - begin) * 1e3, 2),
            "peer": client[0] if client else None,
            "kind": event.kind,
        }
        log.log(level, "request", extra=fields | event.fields)


def _level(scope: MutableMapping[str, Any], status: int) -> int:
    """Return the log level: probes and successful reads are debug, errors of the service are warnings."""
    if status >= 500 and scope["path"] not in PROBES:
        return logging.WARNING
    if scope["method"] in ("GET", "HEAD") and status < 400:
        return logging.DEBUG
    return logging.DEBUG if scope["path"] in PROBES else logging.INFO


class _ClientGoneError(Exception):
    """The client disconnected, or reads too slowly."""


class Admit:
    """The second layer: the limit of concurrent requests, credentials, limits of body and answer."""

    def __init__(self, app: App, authenticator: Authenticator, options: ServerSettings) -> None:
        self._app = app
        self._authenticator = authenticator
        self._options = options
        self._running = 0

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Serve one request, or refuse it."""
        refusal = None if scope["path"] in PUBLIC else self._refusal(scope)
        if refusal is not None:
            await refusal(scope, receive, send)
            return
        self._running += 1
        try:
            body = _Body(receive, self._bound(scope), self._options.receive_timeout)
            await self._app(scope, body, _bounded(send, self._options.request_timeout))
        finally:
            self._running -= 1

    def _refusal(self, scope: MutableMapping[str, Any]) -> Response | None:
        if self._running >= self._options.max_requests:
            more = {"retry-after": "1"} | CLOSE
            return refuse(503, "unavailable", f"{self._running} requests run already", headers=more)
        client = scope.get("client")
        try:
            caller = self._authenticator.admit(
                Headers(scope=scope).get("authorization"),
                scope["state"].get(CERTIFICATE),
                client[0] if client else None,
            )
        except AuthError as error:
            challenge = {"www-authenticate": 'Bearer realm="sriov-fast"'} | CLOSE
            return refuse(401, "unauthorized", str(error), headers=challenge)
        scope["state"]["caller"] = caller
        note(caller=caller.name)
        return None

    def _bound(self, scope: MutableMapping[str, Any]) -> int:
        caller = scope["state"].get("caller")
        return self._options.max_document if caller is not None and caller.admin else self._options.max_body


class BodyError(HTTPException):
    """The body is too long or too late.

    Only an HTTPException passes through the framework unchanged.
    """

    def __init__(self, status: int, kind: str, text: str) -> None:
        super().__init__(status, text, CLOSE)
        self.kind = kind


class _Body:
    """An ASGI ``receive`` with limits of the whole body in seconds and bytes."""

    def __init__(self, receive: Receive, size: int, seconds: float) -> None:
        self._receive = receive
        self._bound = size
        self._left = size
        self._seconds = seconds
        self._deadline = asyncio.get_running_loop().time() + seconds
        self._complete = False

    async def __call__(self) -> Message:
        """Return the next message; after the body the only one is the disconnect, without a time limit."""
        if self._complete:
            return await self._receive()
        try:
            async with asyncio.timeout_at(self._deadline):
                message = await self._receive()
        except TimeoutError:
            raise BodyError(408, "unavailable", f"no whole body within {self._seconds:g} s") from None
        if message["type"] == "http.disconnect":
            return message
        self._left -= len(message.get("body", b""))
        self._complete = not message.get("more_body", False)
        if self._left < 0:
            raise BodyError(413, "invalid", f"the body is longer than {self._bound} bytes")
        return message


def _bounded(send: Send, seconds: float) -> Send:
    """Return an ASGI ``send`` that fails if the client does not read in time."""

    async def bounded(message: Message) -> None:
        try:
            async with asyncio.timeout(seconds):
                await send(message)
        except TimeoutError:
            raise _ClientGoneError(f"the client did not read its answer within {seconds:g} s") from None

    return bounded
