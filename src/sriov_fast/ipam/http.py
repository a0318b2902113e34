"""One HTTP/1.1 request and its reply, as bytes (RFC 9112); and what can be said of a try that failed."""

from __future__ import annotations

from sriov_fast import __version__
from sriov_fast.ipamd_api import JSON, MAX_BODY, PROBLEM, TRY_AGAIN, UNEXPECTED
from sriov_fast.values import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_MAX_HEAD = 64 << 10  # bytes of status lines, header fields, sizes of chunks


class TryError(Exception):
    """A try that came to nothing.

    ``what`` goes on a sentence whose subject is the remote. ``again``: another try may do better. ``sent``:
    the service may have carried the request out.
    """

    def __init__(
        self, what: str, advice: str, code: int = TRY_AGAIN, *, again: bool = True, sent: bool = False
    ) -> None:
        super().__init__(what)
        self.what = what
        self.advice = advice
        self.code = code
        self.again = again
        self.sent = sent


class Remote(Value):
    """Where a service is: ``url`` as it was given, and what is in it. ``prefix`` has no slash at its end."""

    url: str
    host: str
    port: int
    prefix: str = ""

    @property
    def authority(self) -> bytes:
        """The value of the header field Host (RFC 9110, 7.2)."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}".encode()


class Asked(Value):
    """One request; ``fields`` are header fields besides those that every request has."""

    method: str
    path: str
    body: bytes = b""
    fields: dict[str, str] = {}  # noqa: RUF012 (Value takes it out of the class; nobody writes to it)

    def octets(self, remote: Remote) -> bytes:
        """Return the request as it is sent to ``remote``."""
        lines = [
            f"{self.method} {remote.prefix}{self.path} HTTP/1.1".encode(),
            b"Host: " + remote.authority,
            f"User-Agent: sriov-fast/{__version__}".encode(),
            f"Accept: {JSON}, {PROBLEM}".encode(),
        ]
        if self.body or self.method == "POST":
            lines += [f"Content-Type: {JSON}".encode(), f"Content-Length: {len(self.body)}".encode()]
        lines += [f"{name}: {value}".encode() for name, value in self.fields.items()]
        return b"\r\n".join([*lines, b"", self.body])


class Reply(Value):
    """What came back; names of header fields are in lower case."""

    status: int
    fields: dict[str, str]
    body: bytes = b""
    kept: bool = False

    @property
    def media_type(self) -> str:
        """The content's type without its parameters."""
        return self.fields.get("content-type", "").partition(";")[0].strip().lower()


class Reader:
    """Reads one reply from ``receive``, which returns b"" at the end."""

    def __init__(self, receive: Callable[[], bytes]) -> None:
        self._receive = receive
        self._buffer = bytearray()
        self._lines = 0  # bytes of everything but bodies

    def reply(self, method: str) -> Reply:
        """Return the next reply that is final (RFC 9112). Raises TryError, or what ``receive`` raises."""
        head = self._head()
        while 100 <= head.status < 200:
            head = self._head()
        if method == "HEAD" or head.status in (204, 304):
            return self._done(head, b"", True)
        coding = head.fields.get("transfer-encoding", "").lower()
        if coding:
            if coding != "chunked":
                raise _garbage(f"the transfer coding {coding[:40]!r}")
            return self._done(head, self._chunks(), True)
        if "content-length" in head.fields:
            length = _number(head.fields["content-length"], 10, "its length")
            return self._done(head, self._exactly(length), True)
        return self._done(head, self._rest(), False)

    def _done(self, head: Reply, body: bytes, framed: bool) -> Reply:
        # What follows a reply that nobody asked for would be taken for the next one's.
        return head.replace(body=body, kept=framed and head.kept and not self._buffer)

    def _head(self) -> Reply:
        first = self._line()
        version, _, rest = first.partition(" ")
        code = rest[:3]
        if version not in ("HTTP/1.1", "HTTP/1.0") or not _digits(code) or rest[3:4] not in ("", " "):
            raise _garbage(f"{first[:60]!r}")
        fields: dict[str, str] = {}
        while line := self._line():
            name, colon, value = line.partition(":")
            if not colon or not name or name != name.strip():
                raise _garbage(f"the header field {line[:60]!r}")
            _put(fields, name.lower(), value.strip())
        options = [word.strip().lower() for word in fields.get("connection", "").split(",")]
        return Reply(status=int(code), fields=fields, kept=version == "HTTP/1.1" and "close" not in options)

    def _line(self) -> str:
        while (end := self._buffer.find(b"\n")) < 0:
            if len(self._buffer) > _MAX_HEAD:
                raise _too_large(_MAX_HEAD)
            self._more()
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        self._lines += end + 1
        if self._lines > _MAX_HEAD:
            raise _too_large(_MAX_HEAD)
        return line.removesuffix(b"\r").decode("latin-1")

    def _chunks(self) -> bytes:
        body = bytearray()
        while size := _number(self._line().partition(";")[0].strip(), 16, "a chunk's size"):
            body += self._exactly(size, len(body))
            if self._line():
                raise _garbage("a chunk that is longer than its size")
        while self._line():
            pass  # trailer fields
        return bytes(body)

    def _exactly(self, size: int, before: int = 0) -> bytes:
        if before + size > MAX_BODY:
            raise _too_large(MAX_BODY)
        while len(self._buffer) < size:
            self._more()
        body = bytes(self._buffer[:size])
        del self._buffer[:size]
        return body

    def _rest(self) -> bytes:
        """Return everything up to the end of the connection."""
        while chunk := self._receive():
            self._buffer += chunk
            if len(self._buffer) > MAX_BODY:
                raise _too_large(MAX_BODY)
        body = bytes(self._buffer)
        self._buffer.clear()
        return body

    def _more(self) -> None:
        chunk = self._receive()
        if not chunk:
            raise cut_off()
        self._buffer += chunk


def _put(fields: dict[str, str], name: str, value: str) -> None:
    """Add a header field. One that frames the body must not be there twice, differently."""
    if name in fields and name in ("content-length", "transfer-encoding") and fields[name] != value:
        raise _garbage(f"two different header fields {name}")
    fields[name] = value


def _digits(text: str) -> bool:
    return text.isascii() and text.isdigit()


def _number(text: str, base: int, what: str) -> int:
    alphabet = "0123456789abcdefABCDEF" if base == 16 else "0123456789"
    if not text or len(text) > 15 or not set(text) <= set(alphabet):
        raise _garbage(f"{what} = {text[:40]!r}")
    return int(text, base)


def _garbage(found: str) -> TryError:
    return TryError(
        f"answered with what is no HTTP: {found}",
        "see that the remote is the address service, and not something else on that port",
        UNEXPECTED,
        again=False,
        sent=True,
    )


def _too_large(limit: int) -> TryError:
    return TryError(
        f"answered with more than {limit} bytes",
        "an answer of the address service is much smaller; see what is at the remote",
        UNEXPECTED,
        again=False,
        sent=True,
    )


def cut_off() -> TryError:
    """Return the error for a connection that ended too early."""
    return TryError(
        "closed the connection before its answer was complete",
        "try again; the service's log may say why",
        sent=True,
    )
