"""A strict JSON reader and a writer that are cheap to import.

The ``json`` package imports ``re`` and ``enum``, which takes longer than a whole ADD's work in Python. Its C
part, ``_json``, is enough for valid input; ``json`` is imported to explain a fault.
"""

from __future__ import annotations

import sys

from sriov_fast.common.errors import DecodeError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any, Protocol

    class _Scanner(Protocol):
        def __call__(self, text: str, start: int) -> tuple[Any, int]: ...

    c_make_scanner: Callable[[object], _Scanner] | None
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
_INFINITE = ("NaN", "Infinity", "-Infinity")
_ADVICE = "give one JSON object (RFC 8259), UTF-8 without a byte order mark"


class _RefusedError(ValueError):
    """A fault that one of the hooks below found during a scan."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise _RefusedError(f"the key {text(twice)} is given twice in one object")
    return found


def _finite(digits: str) -> float:
    number = float(digits)
    if number - number != 0:  # inf - inf is NaN
        raise _RefusedError(f"the number {digits[:40]} is too large")
    return number


def _integer(digits: str) -> int:
    # CPython refuses to read more than some 4300 digits, with an advice that does not help here.
    if len(digits) > 40:
        raise _RefusedError(f"the number {digits[:40]}... is too large")
    return int(digits)


def _constant(name: str) -> float:
    raise _RefusedError(f"{name} is not JSON")


class _Context:
    """The settings of ``make_scanner``, which reads them as attributes."""

    strict = True
    object_hook = None
    array_hook = None
    object_pairs_hook = staticmethod(_unique)
    parse_float = staticmethod(_finite)
    parse_int = staticmethod(_integer)
    parse_constant = staticmethod(_constant)


class _OwnContext(_Context):
    """The settings for documents of our own: without the hooks for each object and number."""

    object_pairs_hook = None  # type: ignore[assignment]
    parse_float = float  # type: ignore[assignment]
    parse_int = int  # type: ignore[assignment]


def _slow_scanner() -> _Scanner:
    import json

    decoder: Any = json.JSONDecoder(
        object_pairs_hook=_unique, parse_float=_finite, parse_int=_integer, parse_constant=_constant
    )
    return decoder.scan_once  # type: ignore[no-any-return]


# Without ``json`` in sys.modules the C scanner returns NULL for some faults without an exception; a debug
# build of CPython then calls abort().
_debug_build = hasattr(sys, "gettotalrefcount")
_quick = c_make_scanner if c_make_scanner and not _debug_build else None
_scan: _Scanner | None = _quick(_Context) if _quick else None
_scan_own: _Scanner | None = _quick(_OwnContext) if _quick else None


def _skip_blank(document: str, at: int) -> int:
    return len(document) - len(document[at:].lstrip(_BLANK))


def _place(document: str, at: int) -> str:
    line = document.count("\n", 0, at) + 1
    return f"line {line} column {at - document.rfind(chr(10), 0, at)} (character {at})"


def _find_constant(document: str) -> int:
    """Return the position of the first NaN or Infinity outside a string."""
    at = 0
    while at < len(document):
        if document[at] == '"':
            at += 1
            while document[at] != '"':
                at += 2 if document[at] == "\\" else 1
        elif document.startswith(_INFINITE, at):
            return at
        at += 1
    return 0


def _reason(document: str) -> str:
    """Return the fault of a text that the fast scanner refused."""
    start = _skip_blank(document, 0)
    if start == len(document):
        return "it is empty"
    try:
        _slow_scanner()(document, start)
    except _RefusedError as fault:
        words = str(fault)
        if words.startswith(_INFINITE):
            words += f" at {_place(document, _find_constant(document))}"
        return words
    except StopIteration as stop:
        return f"a value is missing at {_place(document, int(stop.value))}"
    except RecursionError:
        return f"it is nested deeper than {MAX_DEPTH} levels"
    except ValueError as error:  # JSONDecodeError
        words = str(getattr(error, "msg", error)).removesuffix(" at")  # in some messages only
        return f"{words} at {_place(document, getattr(error, 'pos', 0))}"
    return "it is not JSON"


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


def _lone_surrogate(value: object) -> bool:
    try:
        text(value).encode()
    except UnicodeEncodeError:
        return True
    return False


def _scanned(document: str, fail: Callable[[str], DecodeError], quick: _Scanner | None) -> Any:
    """Scan one value, which must be the only one. The slow scanner explains a failure of the C scanner."""
    start = _skip_blank(document, 0)
    scan = quick or _slow_scanner()
    try:
        value, end = scan(document, start)
    except (ValueError, StopIteration, RecursionError, SystemError, ImportError):
        raise fail(_reason(document)) from None
    end = _skip_blank(document, end)
    if end != len(document):
        raise fail(f"something follows the value at {_place(document, end)}")
    return value


def loads(data: bytes, name: str = "the input", *, own: bool = False) -> Any:
    """Read one JSON value, strictly. The error names the document.

    Refused with DecodeError: invalid UTF-8, a byte order mark, anything after the value, a key twice in one
    object, NaN, numbers beyond a double or 40 digits, lone surrogates, more than MAX_DEPTH levels, more than
    MAX_BYTES. With ``own``, for documents that we wrote, keys, numbers and size are not checked.
    orjson is not used here: of a key given twice it keeps the last one, and it makes a float of an integer of
    more than 64 bits, which IPAM plugins would get.
    """

    def fail(reason: str) -> DecodeError:
        return DecodeError(f"{name} cannot be decoded: {reason}", _ADVICE)

    if len(data) > MAX_BYTES and not own:
        raise fail(f"it is larger than {MAX_BYTES} bytes")
    if data.startswith(b"\xef\xbb\xbf"):
        raise fail("it starts with a byte order mark (BOM)")
    try:
        document = str(data, "utf-8")
    except UnicodeDecodeError as error:
        raise fail(f"byte {error.start} is not UTF-8 ({error.reason})") from None
    value = _scanned(document, fail, _scan_own if own else _scan)
    # Both checks visit every value, so they run only if the text could need them.
    if document.count("[") + document.count("{") > MAX_DEPTH and _too_deep(value):
        raise fail(f"it is nested deeper than {MAX_DEPTH} levels")
    if "\\u" in document and _lone_surrogate(value):
        raise fail("a string holds half of a surrogate pair")
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
