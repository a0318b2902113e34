"""Problem documents (RFC 9457), the form of all errors of the service."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from http import HTTPStatus
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

_SHOWN = 100  # characters of a wrong value that a message repeats


def _printable(text: str) -> str:
    """Escape lone surrogates, which JSON may contain and UTF-8 cannot encode."""
    return text.encode("utf-8", "backslashreplace").decode()


_Text = Annotated[str, BeforeValidator(_printable)]


class Fault(BaseModel):
    """One wrong value of a request."""

    model_config = ConfigDict(extra="forbid")

    key: _Text = Field(description="where: body.host_ip, query.host_ip, pools[2].subnet")
    value: _Text = Field(description="what was there, shortened")
    message: _Text

    def __str__(self) -> str:
        value = "" if self.message.startswith(self.value) else self.value  # shown once
        return ": ".join(part for part in (self.key, value, self.message) if part)


class Problem(BaseModel):
    """A problem document of RFC 9457. ``kind`` is for programs."""

    type: str = "about:blank"
    title: str = Field(description="the status in words")
    status: int
    detail: _Text = Field(description="for people; names key and value")
    kind: str = Field(
        description="invalid, unauthorized, forbidden, unknown-network, unknown-host, not-found, exhausted, "
        "conflict, unavailable or internal"
    )
    errors: list[Fault] | None = Field(default=None, description="each wrong value, where there are several")


def document(status: int, kind: str, detail: str, errors: Sequence[Fault] = ()) -> bytes:
    """Return the document of an error."""
    title = HTTPStatus(status).phrase
    found = Problem(title=title, status=status, detail=detail, kind=kind, errors=list(errors) or None)
    return found.model_dump_json(exclude_none=True).encode()


def explain(errors: Iterable[Mapping[str, Any]], prefix: str = "") -> str:
    """Return pydantic's errors as one line: ``server.listen: 'x': must be ...; ...``."""
    return "; ".join(str(fault(error, prefix)) for error in errors)


def fault(error: Mapping[str, Any], prefix: str = "") -> Fault:
    """Return an error of pydantic, with the key below ``prefix``."""
    kind, given = error["type"], error.get("input")
    if kind == "json_invalid":
        return Fault(key="body", value="", message=f"is no JSON: {error['ctx']['error']}")
    if tuple(error["loc"]) == ("body",) and isinstance(given, bytes):
        return Fault(key="body", value="", message="is no JSON; content-type must say so")
    key = _key(error["loc"], prefix)
    if kind == "missing":
        return Fault(key=key, value="", message="is missing")
    # Tables are too long to be shown.
    value = "" if isinstance(given, (dict, BaseModel)) else shown(given)
    return Fault(key=key, value=value, message=str(error["msg"]).removeprefix("Value error, "))


def _key(location: Sequence[str | int], prefix: str) -> str:
    key = prefix
    for part in location:
        key += f"[{part}]" if isinstance(part, int) else f".{part}" if key else part
    return key


def shown(value: object) -> str:
    """Return a value for a message, shortened."""
    text = repr(value)
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."
