"""One TLS connection to a service, within a time limit.

What the standard library imports for this (``http.client``, ``ssl``, ``socket``) takes 30 to 40 ms, as long
as all of an ADD. So this uses what lies below, ``_ssl`` and ``_socket``; certificate, host name and protocol
version are checked by OpenSSL all the same. Every wait ends with its deadline, a ``time.monotonic()``, also
where single bytes arrive now and then.
"""

from __future__ import annotations

import _socket
import _ssl
import _thread
import os
import select
import time

from sriov_fast import files
from sriov_fast.errors import ConfigError
from sriov_fast.ipam.http import Reader, TryError, cut_off
from sriov_fast.ipamd_api import BAD_CONFIG, UNTRUSTED
from sriov_fast.values import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from sriov_fast.ipam.http import Asked, Remote, Reply

# OpenSSL's words for a server that refuses us for our certificate or the lack of it (RFC 8446, 6.2).
_ALERTS = (
    *("BAD_CERTIFICATE", "CERTIFICATE_REQUIRED", "CERTIFICATE_EXPIRED", "CERTIFICATE_REVOKED"),
    *("CERTIFICATE_UNKNOWN", "UNSUPPORTED_CERTIFICATE", "UNKNOWN_CA", "ACCESS_DENIED", "HANDSHAKE_FAILURE"),
)
_NO_TLS = ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "PACKET_LENGTH_TOO_LONG", "RECORD_LAYER_FAILURE")
_OLD_TLS = ("UNSUPPORTED_PROTOCOL", "ALERT_PROTOCOL_VERSION", "VERSION_TOO_LOW")
_CUT = ("UNEXPECTED_EOF_WHILE_READING",)

# X509_V_ERR_*, openssl/x509_vfy.h
_NOT_YET_VALID, _EXPIRED = 9, 10
_SELF_SIGNED = (18, 19)
_NO_ISSUER = (2, 20, 21)
_WRONG_NAME = (62, 64)


class Trust(Value):
    """Files: the certificates of those we trust ("" for the system's), ours, and its key. All are PEM."""

    ca: str = ""
    cert: str = ""
    key: str = ""


def stamp_of(trust: Trust) -> object:
    """Return what changes when one of the files does."""
    found: list[tuple[int, ...]] = []
    for path in filter(None, (trust.ca, trust.cert, trust.key)):
        try:
            stat = os.stat(path)
        except OSError:
            found.append((0,))  # reading it will say what is wrong
        else:
            found.append((stat.st_ino, stat.st_size, stat.st_mtime_ns))
    return tuple(found)


def make_context(trust: Trust) -> Any:
    """Return a TLS context that trusts ``ca`` alone and demands the remote's name and TLS 1.2."""
    context: Any = _ssl._SSLContext(_ssl.PROTOCOL_TLS_CLIENT)
    context.verify_mode = _ssl.CERT_REQUIRED
    context.check_hostname = True
    context.minimum_version = _ssl.PROTO_TLSv1_2
    context._set_alpn_protocols(b"\x08http/1.1")
    if trust.ca:
        with files.Opened("ipam.ca", trust.ca) as ca:
            _load("ipam.ca", trust.ca, lambda: context.load_verify_locations(_by(ca), None, None))
    else:
        context.set_default_verify_paths()
    if trust.cert:
        _load_own(context, trust)
    return context


def _load_own(context: Any, trust: Trust) -> None:
    """Load our certificate and its key, which may be in one file."""
    with files.Opened("ipam.cert", trust.cert) as cert:
        if not trust.key:
            _load("ipam.cert", trust.cert, lambda: context.load_cert_chain(_by(cert), None, _no_password))
            return
        with files.Opened("ipam.key", trust.key) as key:
            _load("ipam.key", trust.key, lambda: context.load_cert_chain(_by(cert), _by(key), _no_password))


def _by(fd: int) -> str:
    """Return a path of an open file, since OpenSSL takes paths alone; it leads to the very file."""
    return f"/proc/self/fd/{fd}"


def _no_password() -> str:
    """Stand in for the question on the terminal that OpenSSL would ask."""
    raise ValueError("it is encrypted")


def _load(where: str, path: str, load: Callable[[], object]) -> None:
    try:
        load()
    except (OSError, ValueError) as error:  # SSLError is an OSError
        reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or str(error)
        raise ConfigError(
            f"{where} = {path!r}: {str(reason).replace('_', ' ').lower()}",
            "give a file in PEM form that root can read, whose key is not encrypted and fits its certificate",
        ) from error


class _Socket(_socket.socket):
    """A socket that a TLS session can refer to."""

    __slots__ = ("__weakref__",)


def _tls_fault(error: Any, remote: Remote, *, sent: bool) -> TryError:
    """Say what an SSLError means."""
    reason = getattr(error, "reason", None) or ""
    if isinstance(error, _ssl.SSLCertVerificationError):
        return _untrusted(error, remote)
    if isinstance(error, _ssl.SSLEOFError | _ssl.SSLZeroReturnError) or reason in _CUT:
        return cut_off() if sent else _broken("closed the connection during the TLS handshake")
    if reason.endswith(_OLD_TLS):
        return TryError("speaks no TLS 1.2 or newer", "configure the service for it", UNTRUSTED, again=False)
    if reason.endswith(_ALERTS):
        return TryError(
            f"refused our certificate ({reason.lower().replace('_', ' ')})",
            "give ipam.cert and ipam.key as the service wants them",
            BAD_CONFIG,
            again=False,
        )
    if not sent and (reason in _NO_TLS or not reason):
        return TryError(
            "does not speak TLS",
            "see that the remote is where the service speaks HTTPS",
            UNTRUSTED,
            again=False,
        )
    what = f"broke TLS off ({(reason or str(error)).lower().replace('_', ' ')})"
    return TryError(what, "see what is between this host and the service", UNTRUSTED, again=sent, sent=sent)


def _untrusted(error: Any, remote: Remote) -> TryError:
    code, words = error.verify_code, error.verify_message or "it cannot be verified"
    advice = "ipam.ca must hold the certificate of the authority that signed the service's"
    what = f"showed a certificate that ipam.ca does not vouch for ({words})"
    if code == _EXPIRED:
        what, advice = (
            "showed a certificate that has expired",
            "renew it, or correct this host's clock",
        )
    elif code == _NOT_YET_VALID:
        what, advice = (
            "showed a certificate that is not valid yet",
            "correct the clock of one of the hosts",
        )
    elif code in _WRONG_NAME:
        what = f"showed a certificate that is not for {remote.host}"
        advice = "the certificate must name it as a subject alternative name; or correct ipam.remote"
    elif code in _SELF_SIGNED:
        what = f"showed a certificate signed by itself, or by an authority not in ipam.ca ({words})"
    return TryError(what, advice, UNTRUSTED, again=False)


def _late(seconds: float, what: str, *, sent: bool = False) -> TryError:
    advice = "see whether the service is overloaded, or a firewall drops what is sent to it"
    return TryError(f"{what} within {seconds:.2g} s", advice, sent=sent)


def _broken(what: str) -> TryError:
    return TryError(what, "see that the service runs and listens there")


# --- the connection


class Connection:
    """A TLS connection to a remote."""

    def __init__(self, remote: Remote, context: Any, deadline: float, connect_by: float) -> None:
        """Connect. TCP must be there by ``connect_by``, TLS by ``deadline``; raises TryError."""
        self.remote = remote
        self.since = time.monotonic()
        self._socket = _connected(remote, connect_by)
        try:
            self._tls = context._wrap_socket(self._socket, False, server_hostname=remote.host)
            self._bounded(deadline)
            self._tls.do_handshake()
        except BaseException as error:
            self._socket.close()
            raise self._explained(error, sent=False) from error

    def exchange(self, asked: Asked, deadline: float) -> Reply:
        """Send a request and return the reply; raises TryError."""
        self.since = time.monotonic()
        try:
            self._send(asked.octets(self.remote), deadline)
            return Reader(lambda: self._receive(deadline)).reply(asked.method)
        except Exception as error:
            raise self._explained(error, sent=True) from error

    def is_alive(self) -> bool:
        """Say whether the peer has neither closed the connection nor sent what nobody asked for."""
        poller = select.poll()
        poller.register(self._socket.fileno(), select.POLLIN)
        if not poller.poll(0):
            return True
        self._socket.settimeout(0.0)
        try:
            self._tls.read(1)
        except _ssl.SSLWantReadError:
            return True  # TLS spoke for itself: a session ticket
        except OSError:
            pass
        return False

    def close(self) -> None:
        """Close without a word: the reply was framed, so nothing can be missing."""
        self._socket.close()

    def _send(self, octets: bytes, deadline: float) -> None:
        rest = memoryview(octets)
        try:
            while rest:
                self._bounded(deadline)
                rest = rest[self._tls.write(rest) :]
        except (BrokenPipeError, ConnectionResetError, _ssl.SSLEOFError):
            pass  # the service may have answered before it had read all: the reply says why

    def _receive(self, deadline: float) -> bytes:
        self._bounded(deadline)
        try:
            return self._tls.read(65536)  # type: ignore[no-any-return]
        except _ssl.SSLZeroReturnError:
            return b""

    def _bounded(self, deadline: float) -> None:
        """Let the next operation, however many packets it takes, end with the deadline."""
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self._socket.settimeout(left)

    def _explained(self, error: BaseException, *, sent: bool) -> BaseException:
        if isinstance(error, TimeoutError):
            what = "has not answered" if sent else "has not finished the TLS handshake"
            return _late(time.monotonic() - self.since, what, sent=sent)
        if isinstance(error, _ssl.SSLError):
            return _tls_fault(error, self.remote, sent=sent)
        if isinstance(error, OSError):
            return cut_off() if sent else _broken("closed the connection during the TLS handshake")
        return error


def _connected(remote: Remote, connect_by: float) -> _Socket:
    """Return a TCP connection to the first of the remote's addresses that answers."""
    start = time.monotonic()
    fault = _broken("has no address")
    for family, address in _addresses(remote, connect_by):
        connection = _Socket(family, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
        try:
            connection.settimeout(max(0.001, connect_by - time.monotonic()))
            connection.connect(address)
            connection.setsockopt(_socket.IPPROTO_TCP, _socket.TCP_NODELAY, 1)
        except BaseException as error:
            connection.close()
            if not isinstance(error, OSError):
                raise
            fault = _unreachable(error, time.monotonic() - start)
        else:
            return connection
    raise fault


def _unreachable(error: OSError, seconds: float) -> TryError:
    if isinstance(error, TimeoutError):
        return _late(seconds, "could not be reached")
    if isinstance(error, ConnectionRefusedError):
        return _broken("refuses connections")
    return _broken(f"cannot be reached: {error.strerror or error}")


def _addresses(remote: Remote, deadline: float) -> list[tuple[int, Any]]:
    """Return (family, address) of a remote."""
    if ":" in remote.host:
        return [(_socket.AF_INET6, (remote.host, remote.port))]
    if _is_ipv4(remote.host):
        return [(_socket.AF_INET, (remote.host, remote.port))]
    return _looked_up(remote, deadline)


def _is_ipv4(host: str) -> bool:
    try:
        _socket.inet_pton(_socket.AF_INET, host)
    except OSError:
        return False
    return True


def _looked_up(remote: Remote, deadline: float) -> list[tuple[int, Any]]:
    """Look a name up, in a thread: the resolver has its own time limit, which may be minutes."""
    found: list[Any] = []
    done = _thread.allocate_lock()
    done.acquire()

    def look_up() -> None:
        try:
            name = remote.host.encode()  # as bytes: a str goes through a codec that is slow to import
            found.append(_socket.getaddrinfo(name, remote.port, 0, _socket.SOCK_STREAM))
        except OSError as error:
            found.append(error)
        finally:
            done.release()

    start = time.monotonic()
    try:
        _thread.start_new_thread(look_up, ())
    except (RuntimeError, MemoryError):  # no more threads (TasksMax=): with the resolver's own limit
        look_up()
    if not done.acquire(timeout=max(0.0, deadline - start)):
        raise _late(time.monotonic() - start, f"could not be looked up ({remote.host})")
    if isinstance(found[0], OSError):
        words = found[0].strerror or found[0]
        raise TryError(
            f"could not be looked up: {remote.host}: {words}", "correct ipam.remote, or see this host's DNS"
        )
    return [(family, address) for family, _, _, _, address in found[0]]
