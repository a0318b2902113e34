"""Authentication and authorization: bearer tokens, TLS client certificates, or ``open`` (no credentials).

Any of the methods may be enabled. Each returns a ``Caller``, which knows the hosts that it may act for.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import os
import secrets
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from pathlib import Path
from typing import Annotated, Literal, NamedTuple, Self

import orjson
from cryptography import x509
from pydantic import Field, model_validator

from sriov_fast.common.replace import KEPT, replace_file
from sriov_fast.ipamd.errors import Invalid
from sriov_fast.ipamd.logs import LOGGER
from sriov_fast.ipamd.model import Document, HostCidr, Some, canonical_ip, parse
from sriov_fast.ipamd.problems import shown

Network = IPv4Network | IPv6Network
_EVERYWHERE = (ip_network("0.0.0.0/0"), ip_network("::/0"))
_PREFIX = "sfi_"  # makes a leaked token recognizable
_BYTES = 32

log = logging.getLogger(LOGGER)


class AuthError(Exception):
    """Missing or unknown credentials (401)."""


class Caller(NamedTuple):
    """The sender of a request: its name in the log, and its rights."""

    name: str
    admin: bool
    hosts: tuple[Network, ...]

    def may_act_for(self, host_ip: str) -> bool:
        """Say whether this caller may act for a HostIP."""
        return self.admin or any(ip_address(host_ip) in network for network in self.hosts)


# ------------------------------------------------------------------------------------------------ tokens


class Token(Document):
    """A token as stored: its hash, not its secret."""

    id: str
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    role: Literal["admin", "host"]
    hosts: Some[HostCidr] = ()
    created: str
    note: str = ""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if (self.role == "host") != bool(self.hosts):
            raise ValueError("a token of role host has hosts, and one of role admin has none")
        return self


class _TokenFile(Document):
    tokens: Some[Token]


def new_token(role: Literal["admin", "host"], hosts: Sequence[str], note: str = "") -> tuple[str, Token]:
    """Make a token of 256 random bits; return the secret, which is not stored, and the token."""
    secret = _PREFIX + secrets.token_urlsafe(_BYTES)
    created = datetime.now(UTC).isoformat(timespec="seconds")
    kept = {"id": secrets.token_hex(4), "sha256": _hash(secret), "role": role, "hosts": hosts}
    return secret, Token.model_validate(kept | {"created": created, "note": note})


def _hash(secret: str) -> str:
    # The secret has 256 random bits: salt or a slow hash would add nothing.
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).hexdigest()


def read_tokens(path: Path) -> list[Token]:
    """Read the file of tokens; a ValueError names file and key."""
    try:
        return list(parse(_TokenFile, orjson.loads(path.read_bytes())).tokens)
    except Invalid as error:
        raise ValueError(f"{path}: {error}") from error
    except orjson.JSONDecodeError as error:
        raise ValueError(f"{path}: is no JSON: {error}") from error


def write_tokens(path: Path, tokens: Sequence[Token]) -> None:
    """Replace the file of tokens atomically, with the owner and mode of the old one (0600 for a new one)."""
    text = orjson.dumps({"tokens": [each.model_dump() for each in tokens]}, option=orjson.OPT_INDENT_2)
    mode, owner = 0o600, KEPT
    with contextlib.suppress(FileNotFoundError):
        old = path.stat()
        mode = old.st_mode & 0o777
        owner = (old.st_uid, old.st_gid) if os.geteuid() == 0 else KEPT
    replace_file(path, text + b"\n", mode, owner)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Lock the file of tokens against other commands."""
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(directory, fcntl.LOCK_EX)
        yield
    finally:
        os.close(directory)


class Tokens:
    """The tokens of a file, which is read again after a change."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: tuple[int, ...] = ()
        self._callers: dict[str, Caller] = {}
        self._load(self._stamp())

    def find(self, secret: str) -> Caller | None:
        """Return the caller with this token."""
        self._refresh()
        return self._callers.get(_hash(secret))

    def _refresh(self) -> None:
        try:
            stamp = self._stamp()
            if stamp != self._seen:
                self._load(stamp)
        except (OSError, ValueError) as error:
            if self._seen != (-1,):
                log.error("cannot read the tokens, those read before stay valid", extra={"error": str(error)})
            self._seen = (-1,)

    def _stamp(self) -> tuple[int, ...]:
        found = self._path.stat()
        return (found.st_ino, found.st_mtime_ns, found.st_size)

    def _load(self, stamp: tuple[int, ...]) -> None:
        tokens = read_tokens(self._path)
        self._callers = {
            each.sha256: Caller(f"token:{each.id}", each.role == "admin", tuple(map(ip_network, each.hosts)))
            for each in tokens
        }
        self._seen = stamp


# ------------------------------------------------------------------------------------------ certificates


def caller_of_certificate(der: bytes, admins: Sequence[str]) -> Caller:
    """Return the caller of a verified client certificate.

    Its IP SANs are the hosts; a subject in ``admins`` is an administrator.
    """
    certificate = x509.load_der_x509_certificate(der)
    subject = certificate.subject.rfc4514_string()
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        addresses = names.get_values_for_type(x509.IPAddress)
    except x509.ExtensionNotFound:
        addresses = []
    return Caller(f"certificate:{subject}", subject in admins, tuple(map(ip_network, addresses)))


# ---------------------------------------------------------------------------------------- authenticator


class Authenticator:
    """Authenticates callers by the enabled methods."""

    def __init__(self, methods: Sequence[str], tokens: Tokens | None, admins: Sequence[str]) -> None:
        self._methods = frozenset(methods)
        self._tokens = tokens
        self._admins = tuple(admins)

    def admit(self, authorization: str | None, certificate: bytes | None, peer: str | None) -> Caller:
        """Return the caller; raise AuthError without valid credentials.

        A wrong token is an error even if ``open`` is enabled.
        """
        if authorization is not None and self._tokens is not None:
            return self._by_token(authorization, self._tokens)
        if certificate is not None and "certificate" in self._methods:
            return caller_of_certificate(certificate, self._admins)
        if "open" in self._methods:
            return Caller("anyone", _is_loopback(peer), _EVERYWHERE)
        raise AuthError(f"no credentials; accepted here: {', '.join(sorted(self._methods))}")

    def _by_token(self, authorization: str, tokens: Tokens) -> Caller:
        scheme, _, secret = authorization.partition(" ")
        if scheme.lower() != "bearer" or not secret:
            raise AuthError(f"authorization: {shown(scheme)} is no scheme of ours: Bearer is")
        caller = tokens.find(secret.strip())
        if caller is None:
            raise AuthError("authorization: unknown token")
        return caller


def _is_loopback(peer: str | None) -> bool:
    """Say whether a peer is this machine; without credentials only that is an administrator."""
    return peer is not None and ip_address(canonical_ip(peer)).is_loopback
