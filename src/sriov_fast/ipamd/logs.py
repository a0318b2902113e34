"""Structured logs on stderr: one line an event, JSON or logfmt, libraries included."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import orjson

from sriov_fast.common.log import quote

LOGGER = "sriov_fast.ipamd"
_LONGEST = 20_000  # characters of a value in logfmt: enough for a traceback
# Standard attributes of a record; all others are from ``extra``.
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "color_message", "taskName"}


def configure(level: str, style: str) -> None:
    """Send all logs of at least ``level`` to stderr, in ``style`` (json, logfmt)."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Formatter(style))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for name in ("uvicorn", "uvicorn.error", "uvicorn.asgi"):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
        logger.setLevel(max(logging.WARNING, root.level))
    # The middleware logs each request with its caller.
    access = logging.getLogger("uvicorn.access")
    access.handlers.clear()
    access.propagate = False
    # HTTP clients log each request at level info.
    for name in ("httpx", "httpcore", "asyncio"):
        logging.getLogger(name).setLevel(max(logging.WARNING, root.level))


class Formatter(logging.Formatter):
    """Formats a record and its ``extra`` fields as one line."""

    def __init__(self, style: str) -> None:
        super().__init__()
        self._render: Callable[[dict[str, Any]], str] = {"json": _json, "logfmt": _logfmt}[style]

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, without its end."""
        event: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "msg": record.getMessage(),
        }
        event |= {key: value for key, value in vars(record).items() if key not in _STANDARD}
        event = {key: value for key, value in event.items() if value is not None}
        if record.exc_info:
            event["exception"] = self.formatException(record.exc_info)
        return self._render(event)


def _json(event: dict[str, Any]) -> str:
    try:
        return orjson.dumps(event, default=str).decode()
    except TypeError:  # lone surrogates
        return orjson.dumps({key: _safe(value) for key, value in event.items()}).decode()


def _safe(value: object) -> str:
    return str(value).encode("utf-8", "backslashreplace").decode()


def _logfmt(event: dict[str, Any]) -> str:
    return " ".join(f"{key}={quote(value, _LONGEST)}" for key, value in event.items())
