"""Problem documents (RFC 9457), the form of all errors of the service."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from http import HTTPStatus
from typing import Any

import orjson
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from sriov_fast import ipamd_api

_SHOWN = 100  # characters of a wrong value that a message repeats


class Fault(BaseModel):
    """One wrong value of a request."""

    model_config = ConfigDict(extra="forbid")

    key: str = Field(description="where: body.host_ip, query.host_ip, pools[2].subnet")
    value: str = Field(description="what was there, shortened")
    message: str


class Problem(BaseModel):
    """A problem document of RFC 9457. ``kind`` is for programs."""

    type: str = "about:blank"
    title: str = Field(description="the status in words")
    status: int
    detail: str = Field(description="for people; names key and value")
    kind: str = Field(
        description="invalid, unauthorized, forbidden, unknown-network, unknown-host, not-found, exhausted, "
        "conflict, unavailable or internal"
    )
    errors: list[Fault] | None = Field(default=None, description="each wrong value, where there are several")


def problem(
    status: int,
    kind: str,
    detail: str,
    *,
    headers: Mapping[str, str] | None = None,
    errors: Sequence[Mapping[str, str]] = (),
) -> Response:
    """Return the response for an error."""
    return Response(document(status, kind, detail, errors), status, headers, ipamd_api.PROBLEM)


def document(status: int, kind: str, detail: str, errors: Sequence[Mapping[str, str]] = ()) -> bytes:
    """Return the document alone, for errors outside of the framework."""
    content: dict[str, Any] = {
        "type": "about:blank",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": _printable(detail),
        "kind": kind,
    }
    if errors:
        content["errors"] = [{key: _printable(text) for key, text in each.items()} for each in errors]
    return orjson.dumps(content)


def faults(errors: Iterable[Mapping[str, Any]], prefix: str = "") -> list[dict[str, str]]:
    """Turn pydantic's errors into {key, value, message}."""
    return [_fault(error, prefix) for error in errors]


def explain(errors: Iterable[Mapping[str, Any]], prefix: str = "") -> str:
    """Return pydantic's errors as one line: ``server.listen: 'x': must be ...; ...``."""
    return "; ".join(map(sentence, faults(errors, prefix)))


def sentence(fault: Mapping[str, str]) -> str:
    """Return one fault as text, with the value once."""
    key, value, message = fault["key"], fault["value"], fault["message"]
    return ": ".join(part for part in (key, "" if message.startswith(value) else value, message) if part)


def _fault(error: Mapping[str, Any], prefix: str) -> dict[str, str]:
    kind, given = error["type"], error.get("input")
    if kind == "json_invalid":
        return {"key": "body", "value": "", "message": f"is no JSON: {error['ctx']['error']}"}
    if tuple(error["loc"]) == ("body",) and isinstance(given, bytes):
        return {"key": "body", "value": "", "message": "is no JSON; content-type must say so"}
    key = _key(error["loc"], prefix)
    if kind == "missing":
        return {"key": key, "value": "", "message": "is missing"}
    # Tables are too long to be shown.
    value = "" if isinstance(given, (dict, BaseModel)) else shown(given)
    return {"key": key, "value": value, "message": str(error["msg"]).removeprefix("Value error, ")}


def _key(location: Sequence[str | int], prefix: str) -> str:
    key = prefix
    for part in location:
        key += f"[{part}]" if isinstance(part, int) else f".{part}" if key else part
    return key


def shown(value: object) -> str:
    """Return a value for a message, shortened."""
    text = repr(value)
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."


def _printable(text: str) -> str:
    """Escape lone surrogates, which JSON may contain and UTF-8 cannot encode."""
    return text.encode("utf-8", "backslashreplace").decode()
