"""A JSON reader and a writer that are cheap to import.

orjson reads and writes where it is loaded, as in the server. Its import takes longer than a whole ADD's work
in Python, as does that of the package ``json``, whose C part ``_json`` serves a process of one request.
"""

from __future__ import annotations

import sys

from sriov_fast.common.errors import DecodeError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

    c_make_scanner: Callable[[object], Callable[[str, int], tuple[Any, int]]] | None
    c_make_encoder: Callable[..., Callable[[object, int], Iterable[str]]] | None
else:
    try:
        from _json import make_encoder as c_make_encoder
        from _json import make_scanner as c_make_scanner
    except ImportError:
        c_make_encoder = c_make_scanner = None

MAX_BYTES = 1 << 20
MAX_DEPTH = 100
_BLANK = " \t\n\r"
_ADVICE = "give one JSON object (RFC 8259), UTF-8 without a byte order mark"


def _finite(digits: str) -> float:
    number = float(digits)
    if number - number != 0:  # inf - inf is NaN
        raise ValueError(digits)
    return number


def _integer(digits: str) -> float:
    number = int(digits)
    return number if -(1 << 63) <= number < 1 << 64 else _finite(digits)


def _constant(name: str) -> float:
    raise ValueError(name)


class _Context:
    """The settings of ``make_scanner``, which reads them as attributes: it reads as orjson does."""

    strict = True
    object_hook = None
    object_pairs_hook = None
    array_hook = None
    parse_float = staticmethod(_finite)
    parse_int = staticmethod(_integer)
    parse_constant = staticmethod(_constant)


# Without ``json`` in sys.modules the C scanner returns NULL for some faults without an exception; a debug
# build of CPython then calls abort().
_scan = c_make_scanner(_Context) if c_make_scanner and not hasattr(sys, "gettotalrefcount") else None


def _scanned(data: bytes) -> Any:
    """Read one value without orjson if possible; ValueError or StopIteration if there is none."""
    if _scan is None:
        import orjson

        return orjson.loads(data)
    document = str(data, "utf-8")
    value, end = _scan(document, len(document) - len(document.lstrip(_BLANK)))
    if document[end:].strip(_BLANK):
        raise ValueError("something follows the value")
    if "\\u" in document:
        text(value).encode()  # UnicodeEncodeError for half of a surrogate pair
    return value


def _reason(data: bytes) -> str:
    """Return the fault of a document that cannot be read."""
    try:
        import orjson

        orjson.loads(data)
    except ValueError as error:
        return str(error)
    except ImportError:
        return "it is not JSON"
    return f"it is nested deeper than {MAX_DEPTH} levels"


def _too_deep(value: object) -> bool:
    level = [value]
    for _ in range(MAX_DEPTH):
        inner: list[object] = []
        for item in level:
            if isinstance(item, dict):
                inner.extend(item.values())
            elif isinstance(item, list):
                inner.extend(item)
        if not inner:
            return False
        level = inner
    return any(isinstance(item, (dict, list)) for item in level)


def loads(data: bytes, name: str = "the input", *, limited: bool = True) -> Any:
    """Read one JSON value; DecodeError names the document.

    More than MAX_DEPTH levels and, if ``limited``, more than MAX_BYTES are refused. As in Go's encoding/json,
    the last one of equal keys counts, and an integer of more than 64 bits becomes a float.
    """
    if limited and len(data) > MAX_BYTES:
        reason = f"it is larger than {MAX_BYTES} bytes"
        raise DecodeError(f"{name} cannot be decoded: {reason}", _ADVICE)
    orjson = sys.modules.get("orjson")
    try:
        value = orjson.loads(data) if orjson else _scanned(data)
    except (ValueError, StopIteration, RecursionError, SystemError, ImportError):
        raise DecodeError(f"{name} cannot be decoded: {_reason(data)}", _ADVICE) from None
    # the check visits every value, so it runs only if the text could need it
    if data.count(b"[") + data.count(b"{") > MAX_DEPTH and _too_deep(value):
        reason = f"it is nested deeper than {MAX_DEPTH} levels"
        raise DecodeError(f"{name} cannot be decoded: {reason}", _ADVICE)
    return value


def _no_json(obj: object) -> str:
    raise TypeError(f"{type(obj).__name__} is not JSON")


def _encoder(ascii_only: bool) -> Callable[[object], str]:
    if c_make_encoder is None:
        import json

        return json.JSONEncoder(ensure_ascii=ascii_only, allow_nan=False, separators=(",", ":")).encode
    import _json

    strings = _json.encode_basestring_ascii if ascii_only else _json.encode_basestring
    encode = c_make_encoder({}, _no_json, strings, None, ":", ",", False, False, False)
    return lambda obj: "".join(encode(obj, 0))


def text(obj: object) -> str:
    """Return ``obj`` as one line of JSON without escapes of letters, for error messages."""
    return _encoder(ascii_only=False)(obj)


def _indented(obj: object, level: int, encode: Callable[[object], str]) -> str:
    if not obj or not isinstance(obj, (dict, list, tuple)):
        return encode(obj)
    brackets = "{}" if isinstance(obj, dict) else "[]"
    if isinstance(obj, dict):
        items = [f"{encode(str(key))}: {_indented(item, level + 1, encode)}" for key, item in obj.items()]
    else:
        items = [_indented(item, level + 1, encode) for item in obj]
    inner = "\n" + "  " * (level + 1)
    return f"{brackets[0]}{inner}{(',' + inner).join(items)}\n{'  ' * level}{brackets[1]}"


def dumps(obj: object, *, indented: bool = False) -> bytes:
    """Write JSON, compact or indented by two spaces a level. NaN and values of other types raise.

    orjson takes 25 ms to import, so it is used only if it is loaded already, as in the server.
    """
    orjson = sys.modules.get("orjson")
    if orjson is not None:
        try:
            return bytes(orjson.dumps(obj, option=orjson.OPT_INDENT_2 if indented else 0))
        except TypeError:
            pass  # integers of more than 64 bits and lone surrogates
    encode = _encoder(ascii_only=True)
    return (_indented(obj, 0, encode) if indented else encode(obj)).encode("ascii")
