"""TLS to a service: the files that it is set up with, and the errors of a failed try."""

from __future__ import annotations

import os
import ssl

from sriov_fast.common import files
from sriov_fast.common.errors import ConfigError
from sriov_fast.common.record import Record
from sriov_fast.ipamd_api import BAD_CONFIG, TRY_AGAIN, UNTRUSTED

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Self

# OpenSSL's reasons for a server that refuses our certificate or the lack of one (RFC 8446, 6.2).
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
_WRONG_NAME = (62, 64)


class TryError(Exception):
    """A failed try.

    ``outcome`` is a predicate; its subject is the remote. ``again``: another try may succeed. ``sent``: the
    service may have carried the request out.
    """

    def __init__(
        self, outcome: str, advice: str, code: int = TRY_AGAIN, *, again: bool = True, sent: bool = False
    ) -> None:
        super().__init__(outcome)
        self.outcome = outcome
        self.advice = advice
        self.code = code
        self.again = again
        self.sent = sent

    @classmethod
    def no_connection(cls, outcome: str) -> Self:
        """Return the error for a connection that was not established."""
        return cls(outcome, "see that the service runs and listens there")

    @classmethod
    def cut_off(cls, *, sent: bool) -> Self:
        """Return the error for a connection that ended too early."""
        if not sent:
            return cls.no_connection("closed the connection during the TLS handshake")
        what = "closed the connection before its answer was complete"
        return cls(what, "try again; the service's log may say why", sent=True)


class Trust(Record):
    """PEM files: the trusted authorities ("" for the system's), our certificate, and its key."""

    ca: str = ""
    cert: str = ""
    key: str = ""


def stamp_of(trust: Trust) -> object:
    """Return a value that changes when one of the files does."""
    found: list[tuple[int, ...]] = []
    for path in filter(None, (trust.ca, trust.cert, trust.key)):
        try:
            stat = os.stat(path)
        except OSError:
            found.append((0,))  # make_context raises the error
        else:
            found.append((stat.st_ino, stat.st_size, stat.st_mtime_ns))
    return tuple(found)


def make_context(trust: Trust) -> ssl.SSLContext:
    """Return a TLS context that trusts ``ca`` alone and demands the remote's name and TLS 1.2.

    ConfigError names the key and the path of an unusable file.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # verifies certificate and host name
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    if trust.ca:
        with files.Opened("ipam.ca", trust.ca) as ca:
            _load("ipam.ca", trust.ca, lambda: context.load_verify_locations(_by(ca)))
    else:
        context.set_default_verify_paths()
    if trust.cert:
        _load_own(context, trust)
    return context


def _load_own(context: ssl.SSLContext, trust: Trust) -> None:
    """Load our certificate and its key, which may be in one file."""
    with files.Opened("ipam.cert", trust.cert) as cert:
        if not trust.key:
            _load("ipam.cert", trust.cert, lambda: context.load_cert_chain(_by(cert), None, _no_password))
            return
        with files.Opened("ipam.key", trust.key) as key:
            _load("ipam.key", trust.key, lambda: context.load_cert_chain(_by(cert), _by(key), _no_password))


def _by(fd: int) -> str:
    """Return a path of an open file, since OpenSSL takes paths alone; the path leads to the very file."""
    return f"/proc/self/fd/{fd}"


def _no_password() -> str:
    """Refuse to ask for a password, which OpenSSL would do on the terminal."""
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


# --- errors


def tls_error(error: ssl.SSLError, host: str, *, sent: bool) -> TryError:
    """Return the TryError for an SSLError; ``sent``: the handshake was over and a request was sent."""
    reason = error.reason or ""
    if isinstance(error, ssl.SSLCertVerificationError):
        return _untrusted(error, host)
    if isinstance(error, ssl.SSLEOFError | ssl.SSLZeroReturnError) or reason in _CUT:
        return TryError.cut_off(sent=sent)
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


def _untrusted(error: ssl.SSLCertVerificationError, host: str) -> TryError:
    code, why = error.verify_code, error.verify_message or "it cannot be verified"
    advice = "ipam.ca must hold the certificate of the authority that signed the service's"
    what = f"showed a certificate that ipam.ca does not vouch for ({why})"
    if code == _EXPIRED:
        what = "showed a certificate that has expired"
        advice = "renew it, or correct this host's clock"
    elif code == _NOT_YET_VALID:
        what = "showed a certificate that is not valid yet"
        advice = "correct the clock of one of the hosts"
    elif code in _WRONG_NAME:
        what = f"showed a certificate that is not for {host}"
        advice = "the certificate must name it as a subject alternative name; or correct ipam.remote"
    elif code in _SELF_SIGNED:
        what = f"showed a certificate signed by itself, or by an authority not in ipam.ca ({why})"
    return TryError(what, advice, UNTRUSTED, again=False)
