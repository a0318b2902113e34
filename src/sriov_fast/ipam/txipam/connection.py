"""HTTPS requests and replies: ``http.client`` and ``ssl`` with limits on time and size.

Redirects are not followed and the proxies of the environment are not used.
"""

from __future__ import annotations

import http.client
import socket
import ssl
import threading
import time

from sriov_fast import __version__
from sriov_fast.common.record import Record
from sriov_fast.ipam.txipam.tls import TryError, tls_error
from sriov_fast.ipamd_api import JSON, MAX_BODY, PROBLEM, UNEXPECTED

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_MAX_HEAD = 64 << 10  # bytes of status lines, header fields and sizes of chunks
_MAX_LENGTH_DIGITS = 15  # of Content-Length
_SHOWN = 60  # characters of a malformed reply that an error quotes


class Remote(Record):
    """The place of a service: ``url`` as configured, and its parts. ``prefix`` has no slash at its end."""

    url: str
    host: str
    port: int
    prefix: str


class HttpRequest(Record):
    """One request; ``fields`` are header fields in addition to those that every request has."""

    method: str
    path: str
    body: bytes
    fields: dict[str, str]


class HttpResponse(Record):
    """One reply; ``media_type`` is the type of its content without parameters, in lower case."""

    status: int
    media_type: str
    body: bytes


class BoundedSocket(ssl.SSLSocket):
    """A TLS socket with a deadline and a size limit for a whole request with its reply.

    A plain timeout bounds each operation alone: a peer that sends a byte now and then would never time out.
    """

    deadline = 0.0  # time.monotonic()
    room = 0  # bytes that may still be received
    may_end = False  # whether the peer may close the connection now

    def limit(self, deadline: float) -> None:
        """Start a request that ends at ``deadline``."""
        self.deadline = deadline
        self.room = MAX_BODY + _MAX_HEAD
        self.may_end = False

    def send(self, data: Any, flags: int = 0) -> int:
        """Send some of ``data``; TimeoutError at the deadline."""
        self.settimeout(_left(self.deadline))
        return super().send(data, flags)

    def recv_into(self, buffer: Any, nbytes: int | None = None, flags: int = 0) -> int:
        """Receive some bytes; TimeoutError at the deadline.

        ConnectionResetError: the connection ended within a reply.
        """
        self.settimeout(_left(self.deadline))
        size = super().recv_into(buffer, nbytes, flags)
        if not size and not self.may_end:
            raise ConnectionResetError
        self.room -= size
        if self.room < 0:
            raise _too_large()
        return size


class Connection(http.client.HTTPConnection):
    """A TLS connection to a remote."""

    default_port = 443
    auto_open = 0  # a connection that was closed stays closed
    sock: BoundedSocket | None

    def __init__(self, remote: Remote, context: ssl.SSLContext, deadline: float, connect_by: float) -> None:
        """Connect: TCP by ``connect_by``, TLS by ``deadline``. Raises TryError."""
        super().__init__(remote.host, remote.port)
        self.remote = remote
        self.since = time.monotonic()
        context.sslsocket_class = BoundedSocket
        with _dial(remote, connect_by) as plain:  # the TLS socket takes over its descriptor
            try:
                plain.settimeout(_left(deadline))
                self.sock = context.wrap_socket(  # type: ignore[assignment]
                    plain, server_hostname=remote.host, suppress_ragged_eofs=False
                )
            except (OSError, ValueError) as error:
                raise self._explained(error, sent=False) from error

    def exchange(self, asked: HttpRequest, deadline: float) -> HttpResponse:
        """Send a request and return the final reply. Raises TryError."""
        self.since = time.monotonic()
        try:
            return self._exchange(asked, deadline)
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise self._explained(error, sent=True) from error

    def is_alive(self) -> bool:
        """Return whether the peer has neither closed the connection nor sent data without a request."""
        if self.sock is None:
            return False
        self.sock.settimeout(0.0)
        try:
            self.sock.recv(1)
        except ssl.SSLWantReadError:
            return True
        except OSError:
            pass
        return False

    def _exchange(self, asked: HttpRequest, deadline: float) -> HttpResponse:
        sock = self.sock
        if sock is None:
            raise http.client.NotConnected
        sock.limit(deadline)
        self._send(asked)
        with self.getresponse() as response:
            _check_framing(response)
            sock.may_end = response.length is None and not response.chunked
            body = response.read(MAX_BODY + 1)
        if len(body) > MAX_BODY:
            raise _too_large()
        kind = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
        return HttpResponse(status=response.status, media_type=kind, body=body)

    def _send(self, asked: HttpRequest) -> None:
        fields = {"User-Agent": f"sriov-fast/{__version__}", "Accept": f"{JSON}, {PROBLEM}"}
        body = None
        if asked.body or asked.method == "POST":
            fields["Content-Type"] = JSON
            body = asked.body
        try:
            self.request(asked.method, self.remote.prefix + asked.path, body, fields | asked.fields)
        except (BrokenPipeError, ConnectionResetError, ssl.SSLEOFError):
            pass  # the service may have answered before it had read all

    def _explained(self, error: Exception, *, sent: bool) -> TryError:
        """Return the TryError for an exception of the standard library."""
        if isinstance(error, TimeoutError):
            what = "has not answered" if sent else "has not finished the TLS handshake"
            return _late(time.monotonic() - self.since, what, sent=sent)
        if isinstance(error, ssl.SSLError):
            return tls_error(error, self.remote.host, sent=sent)
        if isinstance(error, OSError):
            return TryError.cut_off(sent=sent)
        if isinstance(error, http.client.IncompleteRead):
            return _garbage("a chunk's size")
        return _garbage(repr(str(error).strip()[:_SHOWN]))


def _check_framing(response: http.client.HTTPResponse) -> None:
    """Raise TryError for a head that ``http.client`` accepts though the end of the body is ambiguous."""
    headers = response.headers
    if headers.defects:
        raise _garbage("the header fields")
    coding = headers.get("Transfer-Encoding", "chunked")
    if coding.lower() != "chunked":
        raise _garbage(f"the transfer coding {coding[:_SHOWN]!r}")
    lengths = set(headers.get_all("Content-Length", ()))
    if len(lengths) > 1:
        raise _garbage("two different header fields Content-Length")
    for length in lengths:
        if not (length.isascii() and length.isdigit() and len(length) <= _MAX_LENGTH_DIGITS):
            raise _garbage(f"its length = {length[:_SHOWN]!r}")
    if (response.length or 0) > MAX_BODY:
        raise _too_large()


def _garbage(found: str) -> TryError:
    return TryError(
        f"answered with what is no HTTP: {found}",
        "see that the remote is the address service, and not something else on that port",
        UNEXPECTED,
        again=False,
        sent=True,
    )


def _too_large() -> TryError:
    return TryError(
        f"answered with more than {MAX_BODY} bytes",
        "an answer of the address service is much smaller; see what is at the remote",
        UNEXPECTED,
        again=False,
        sent=True,
    )


def _late(seconds: float, what: str, *, sent: bool = False) -> TryError:
    advice = "see whether the service is overloaded, or a firewall drops what is sent to it"
    return TryError(f"{what} within {seconds:.2g} s", advice, sent=sent)


def _left(deadline: float) -> float:
    """Return the seconds until ``deadline``; raises TimeoutError."""
    seconds = deadline - time.monotonic()
    if seconds <= 0:
        raise TimeoutError
    return seconds


# --- TCP


def _dial(remote: Remote, connect_by: float) -> socket.socket:
    """Return a TCP connection to the first address of the remote that accepts one. Raises TryError."""
    start = time.monotonic()
    fault = TryError.no_connection("has no address")
    for *_, address in _addresses(remote, connect_by):
        try:
            left = max(0.001, connect_by - time.monotonic())
            plain = socket.create_connection(address[:2], left)
        except OSError as error:
            fault = _unreachable(error, time.monotonic() - start)
        else:
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return plain
    raise fault


def _unreachable(error: OSError, seconds: float) -> TryError:
    if isinstance(error, TimeoutError):
        return _late(seconds, "could not be reached")
    if isinstance(error, ConnectionRefusedError):
        return TryError.no_connection("refuses connections")
    return TryError.no_connection(f"cannot be reached: {error.strerror or error}")


def _addresses(remote: Remote, deadline: float) -> list[Any]:
    """Return the socket addresses of a remote as ``getaddrinfo`` does. Raises TryError."""
    try:
        return _resolve(remote, socket.AI_NUMERICHOST)
    except socket.gaierror:
        return _looked_up(remote, deadline)


def _resolve(remote: Remote, flags: int = 0) -> list[Any]:
    # As bytes the name is passed on unchanged, without IDNA.
    return socket.getaddrinfo(remote.host.encode(), remote.port, type=socket.SOCK_STREAM, flags=flags)


def _looked_up(remote: Remote, deadline: float) -> list[Any]:
    """Look a name up in a thread, since the resolver has its own time limit, which may be minutes."""
    found: list[Any] = []

    def look_up() -> None:
        try:
            found.append(_resolve(remote))
        except OSError as error:
            found.append(error)

    start = time.monotonic()
    thread = threading.Thread(target=look_up, daemon=True)
    try:
        thread.start()
    except (RuntimeError, MemoryError):  # no more threads (TasksMax=): with the resolver's own limit
        look_up()
    else:
        thread.join(max(0.0, deadline - start))
    if not found:
        raise _late(time.monotonic() - start, f"could not be looked up ({remote.host})")
    if isinstance(found[0], OSError):
        why = found[0].strerror or found[0]
        raise TryError(
            f"could not be looked up: {remote.host}: {why}", "correct ipam.remote, or see this host's DNS"
        )
    return found[0]  # type: ignore[no-any-return]
