"""Reading one JSON object key by key, with an error that names the wrong key and its value."""

from __future__ import annotations

from sriov_fast.common import json
from sriov_fast.common.errors import ConfigError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Self, TypeVar

    from sriov_fast.common.errors import SriovError

    _T = TypeVar("_T")


class FieldError(Exception):
    """A value is not acceptable: ``reason``, and the remedy in ``advice``."""

    def __init__(self, reason: str, advice: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.advice = advice


def shown(value: object) -> str:
    """Return a value as an error message shows it: JSON, at most 120 characters."""
    try:
        text = json.text(value)
    except (TypeError, ValueError, RecursionError):
        text = repr(value)
    return text if len(text) <= 120 else f"{text[:117]}..."


# --- checks of single values: each returns the value, or raises FieldError


def string(value: object) -> str:
    """Accept a string without NUL."""
    if not isinstance(value, str):
        raise FieldError("not a string", "put the value in double quotes")
    if "\0" in value:
        raise FieldError("holds a NUL character", "remove it")
    return value


def absolute_path(value: object) -> str:
    """Accept an absolute path."""
    text = string(value)
    if not text.startswith("/"):
        raise FieldError("not an absolute path", "give a path that starts with '/'")
    return text


def label(value: object) -> str:
    """Accept a short printable identifier that came from outside."""
    text = string(value)
    if len(text) > 253 or not text.isprintable():
        raise FieldError("not a printable identifier", "give at most 253 printable characters")
    return text


def obj(value: object) -> dict[str, Any]:
    """Accept a JSON object."""
    if not isinstance(value, dict):
        raise FieldError("not an object", "give a JSON object: { ... }")
    return value


def array(value: object) -> list[Any]:
    """Accept a JSON array."""
    if not isinstance(value, list):
        raise FieldError("not a list", "give a JSON list: [ ... ]")
    return value


def list_of(check: Callable[[object], _T]) -> Callable[[object], list[_T]]:
    """Return a check for a list, each item of which passes ``check``."""
    return lambda value: [check(item) for item in array(value)]


strings = list_of(string)


def whole(low: int, high: int) -> Callable[[object], int]:
    """Return a check for a JSON integer in a range; true and "5" are no integers."""

    def check(value: object) -> int:
        if type(value) is not int:
            hint = ", without quotes" if isinstance(value, str) else ""
            raise FieldError("not a whole number", f"give a whole number from {low} to {high}{hint}")
        return within(value, low, high)

    return check


def within(number: int, low: int, high: int) -> int:
    """Accept a number in a range."""
    if not low <= number <= high:
        raise FieldError(f"not from {low} to {high}", f"give a whole number from {low} to {high}")
    return number


# --- the object


class JsonObject:
    """One JSON object. null and "" mean "not given".

    Keys match in any case; of keys that differ in case only, the last one counts, as with Go's encoding/json.
    A wrong value raises ``error``. With a list of ``faults`` the error is appended there, and the default is
    used. ``prefix`` precedes every key in messages, such as "ipam.".
    """

    __slots__ = ("_inner", "asked", "error", "faults", "obj", "prefix", "values")

    def __init__(
        self,
        value: object,
        prefix: str = "",
        *,
        error: type[SriovError] = ConfigError,
        faults: list[SriovError] | None = None,
    ) -> None:
        self.prefix = prefix
        self.error = error
        self.faults = faults
        self.obj: dict[str, Any] = value if type(value) is dict else self.checked(obj, value, self.where, {})
        self.values = {key.casefold(): item for key, item in self.obj.items()}
        self.asked: set[str] = set()
        self._inner: dict[str, Self] = {}

    @property
    def where(self) -> str:
        """The object's own place."""
        return self.prefix.rstrip(". ") or "the network configuration"

    def place(self, key: str) -> str:
        """Return the key with the path of its object."""
        return f"{self.prefix}{key}"

    def __contains__(self, key: str) -> bool:
        return key.casefold() in self.values

    def get(self, key: str) -> Any:
        """Return the unchecked value of a key, None if it is not given."""
        folded = key.casefold()
        self.asked.add(folded)
        value = self.values.get(folded)
        return None if value == "" else value

    def take(self, key: str, check: Callable[[object], _T], default: _T) -> _T:
        """Return the checked value of a key; ``default`` if it is not given."""
        value = self.get(key)
        return default if value is None else self.checked(check, value, self.place(key), default)

    def need(self, key: str, check: Callable[[object], _T], advice: str, default: _T) -> _T:
        """Return the checked value of a required key; ``default`` goes with a fault."""
        if self.get(key) is None:
            self.fail(self.error(f"{self.place(key)} is missing", advice))
            return default
        return self.take(key, check, default)

    def inner(self, key: str) -> Self:
        """Return the object under a key; an empty one if it is not given."""
        found = self._inner.get(key)
        if found is None:
            value: dict[str, Any] = self.take(key, obj, {})
            found = type(self)(value, f"{self.place(key)}.", error=self.error, faults=self.faults)
            self._inner[key] = found
        return found

    def items(self, key: str) -> list[tuple[str, Any]]:
        """Return place and unchecked value of each item of a list; none if it is not given."""
        values: list[Any] = self.take(key, array, [])
        return [(f"{self.place(key)}[{at}]", item) for at, item in enumerate(values)]

    def objects(self, key: str) -> list[Self]:
        """Return the objects of a list; none if it is not given."""
        return [
            type(self)(item, f"{place}.", error=self.error, faults=self.faults)
            for place, item in self.items(key)
        ]

    def checked(self, check: Callable[[object], _T], value: object, place: str, default: _T) -> _T:
        """Return a checked value; ``default`` goes with a fault."""
        try:
            return check(value)
        except FieldError as bad:
            self.fail(self.error(f"{place} = {shown(value)}: {bad.reason}", bad.advice))
        return default

    def fail(self, error: SriovError) -> None:
        """Raise an error, or add it to the faults."""
        if self.faults is None:
            raise error from None
        self.faults.append(error)

    def unasked(self) -> list[str]:
        """Return the keys that were not asked for, as they are written."""
        return [key for key in self.obj if key.casefold() not in self.asked]


# --- the attachments that a GC must keep

ATTACHMENTS = ("cni.dev/valid-attachments", "cni.dev/attachments")


def valid_attachments(conf: JsonObject) -> tuple[tuple[str, str], ...]:
    """Return (container ID, ifname) of the attachments that a GC must keep, from both spellings of the key.

    A wrong list is an error even for a GC, because it releases every attachment that is not listed. Go
    writes an empty list as null.
    """
    if not any(key in conf for key in ATTACHMENTS):
        raise ConfigError(
            f"{ATTACHMENTS[0]} is missing", "GC needs the list of attachments that are still valid"
        )
    found: dict[tuple[str, str], None] = {}
    for key in ATTACHMENTS:
        listed: list[tuple[str, str]] = conf.take(key, list_of(_attachment), [])
        found.update(dict.fromkeys(listed))
    return tuple(found)


def _attachment(value: object) -> tuple[str, str]:
    item = {key.casefold(): text for key, text in obj(value).items()}
    container, name = item.get("containerid"), item.get("ifname")
    if not isinstance(container, str) or not isinstance(name, str) or not container or not name:
        advice = 'list {"containerID": "...", "ifname": "..."}'
        raise FieldError("an attachment lacks containerID or ifname", advice)
    return container, name
