"""A small logfmt logger: one line a record, to stderr and optionally to a file.

``logging`` takes 17 ms to import. A record that cannot be written is dropped: a verb must not fail because a
disk is full or stderr is closed.
"""

from __future__ import annotations

import os
import time

from sriov_fast.common import descriptors
from sriov_fast.common.errors import SriovError
from sriov_fast.common.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

LEVELS = ("debug", "info", "warning", "error")
# Characters that a shell takes literally, so a log file runs no command even if it is sourced.
_PLAIN = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-./:,+@%^~[]")
_KEY = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-./")
_ESCAPES = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t", "$": "\\x24", "`": "\\x60"}
_OWN = ("time", "level", "msg")
_STDERR = 2
_MOST = 2000  # characters of a value


def _text(value: object) -> str:
    if value is None:
        return ""
    if value is True or value is False:
        return "true" if value else "false"
    if isinstance(value, (list, tuple)) and not isinstance(value, Record):
        return ",".join(_text(item) for item in value)
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    try:
        return str(value)
    except Exception:
        return f"<{type(value).__name__}>"


def _escape(char: str) -> str:
    if char in _ESCAPES:
        return _ESCAPES[char]
    if char.isprintable():
        return char
    code = ord(char)
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}" if code < 65536 else f"\\U{code:08x}"


def quote(value: object, longest: int = _MOST) -> str:
    """Return ``value`` as logfmt: bare if possible, otherwise in double quotes with escapes."""
    text = value if type(value) is str else _text(value)
    if len(text) > longest:
        text = f"{text[:longest]}..."
    if text and _PLAIN.issuperset(text):
        return text
    return f'"{"".join(map(_escape, text))}"'


def _key(name: str) -> str:
    clean = name
    if not name or not _KEY.issuperset(name):
        clean = "".join(char if char in _KEY else "_" for char in name) or "_"
    return f"{clean}_" if clean in _OWN else clean


def _now() -> str:
    seconds, millis = divmod(time.time_ns() // 1_000_000, 1000)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(seconds))}.{millis:03d}Z"


def _put(fd: int, line: bytes) -> str:
    """Write one line with one call; return the error, "" without one."""
    try:
        os.write(fd, line)
    except OSError as error:
        return error.strerror or str(error)
    return ""


def _nothing() -> None:
    """Write nothing."""


class _Sink:
    """The outputs of a logger. Bound loggers share them, so the file is opened once."""

    __slots__ = ("fd", "file", "streams")

    def __init__(self, file: str, streams: Sequence[int]) -> None:
        self.file = file
        self.fd = -1
        self.streams = streams

    def write(self, line: bytes) -> None:
        self._tell(line)
        if not self.file:
            return
        fault = self._open() if self.fd < 0 else ""
        fault = fault or _put(self.fd, line)
        if fault:
            lost, self.file = self.file, ""  # report once, not on every line
            self._tell(_line("warning", "the log file cannot be written", {"file": lost, "error": fault}))

    def _tell(self, line: bytes) -> None:
        for stream in self.streams:
            _put(stream, line)

    def _open(self) -> str:
        from sriov_fast.common import files  # late: few networks have a log file

        try:
            self.fd = files.open_log(self.file)
        except (SriovError, OSError, ValueError) as error:
            return getattr(error, "strerror", None) or str(error)
        return ""

    def close(self) -> None:
        fd, self.fd = self.fd, -1
        if fd >= 0:
            descriptors.close(fd)


def _line(level: str, msg: str, fields: dict[str, object]) -> bytes:
    return _dated(_words(level, msg, fields))


def _words(level: str, msg: str, fields: dict[str, object]) -> str:
    """Return a line without its time."""
    parts = [f"level={level}", f"msg={quote(msg)}"]
    return " ".join(parts + [f"{_key(name)}={quote(value)}" for name, value in fields.items()])


def _dated(words: str) -> bytes:
    return f"time={_now()} {words}\n".encode("utf-8", "backslashreplace")


class Logger:
    """A writer of logfmt lines at or above ``level``; ``context`` is added to every line.

    ``file`` gets the same lines as stderr. It is opened with the first line, if root allows it (``files``).
    ``streams`` are the descriptors of stderr; a caller may change its list later.
    """

    __slots__ = ("_rank", "_sink", "context", "level")

    def __init__(
        self,
        level: str = "info",
        file: str = "",
        context: Mapping[str, object] | None = None,
        streams: Sequence[int] = (_STDERR,),
    ) -> None:
        self.level = level if level in LEVELS else "info"
        self._rank = LEVELS.index(self.level)
        self._sink = _Sink(file, streams)
        self.context = dict(context or {})

    def bind(self, **fields: object) -> Logger:
        """Return a logger that adds ``fields`` to every line and writes to the same outputs."""
        bound = Logger(self.level, "", self.context | fields)
        bound._sink = self._sink
        return bound

    def close(self) -> None:
        """Close the log file, if one is open; the next line opens it again."""
        self._sink.close()

    def debug(self, msg: str, /, **fields: object) -> None:
        """Write a line for the search of a fault."""
        self._emit(0, msg, fields)

    def info(self, msg: str, /, **fields: object) -> None:
        """Write a line about a completed action."""
        self._emit(1, msg, fields)

    def informing(self, msg: str, /, **fields: object) -> Callable[[], None]:
        """Return a function that writes a line. The line is composed now, its time is set by the call."""
        if self._rank > 1:
            return _nothing
        words, sink = _words("info", msg, self.context | fields), self._sink
        return lambda: sink.write(_dated(words))

    def warning(self, msg: str, /, **fields: object) -> None:
        """Write a line about a fault that did not stop the verb."""
        self._emit(2, msg, fields)

    def error(self, msg: str, /, **fields: object) -> None:
        """Write a line about the cause of a failure."""
        self._emit(3, msg, fields)

    def _emit(self, rank: int, msg: str, fields: dict[str, object]) -> None:
        if rank >= self._rank:
            self._sink.write(_line(LEVELS[rank], msg, self.context | fields))
