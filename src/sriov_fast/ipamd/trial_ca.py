"""A CA and certificates for a trial, valid for browsers, OpenSSL and Python."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

_CA_DAYS = 3650
_SKEW = timedelta(minutes=5)  # clocks differ
_Key = ec.EllipticCurvePrivateKey


class TrialCa:
    """The CA of a directory, ``ca.crt`` and ``ca.key``; created if missing."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        self.certificate_path = directory / "ca.crt"
        key_path = directory / "ca.key"
        if key_path.exists():
            self._key = _load_key(key_path)
            self._certificate = x509.load_pem_x509_certificate(self.certificate_path.read_bytes())
        else:
            self._key = ec.generate_private_key(ec.SECP256R1())
            self._certificate = _authority(self._key)
            _write(key_path, _pem(self._key), 0o600)
            _write(self.certificate_path, self._certificate.public_bytes(serialization.Encoding.PEM), 0o644)

    def server(self, names: Sequence[str], days: int) -> list[Path]:
        """Make ``server.crt`` and ``server.key`` for host names and addresses."""
        return self._issue("server", names[0], _names(names), days)

    def host(self, address: str, days: int) -> list[Path]:
        """Make the client certificate of a node for its HostIP."""
        canonical = str(ipaddress.ip_address(address))
        return self._issue(f"host-{canonical}", canonical, _names([canonical]), days)

    def admin(self, name: str, days: int) -> list[Path]:
        """Make a certificate with the subject ``CN=name``."""
        if not name or "/" in name:
            raise ValueError(f"admin: {name!r}: must be a name without a slash")
        return self._issue(f"admin-{name}", name, [], days)

    def _issue(self, stem: str, common_name: str, names: list[x509.GeneralName], days: int) -> list[Path]:
        key = ec.generate_private_key(ec.SECP256R1())
        usage = ExtendedKeyUsageOID.SERVER_AUTH if stem == "server" else ExtendedKeyUsageOID.CLIENT_AUTH
        authority_key = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        builder = (
            _builder(_name(common_name), key, days)
            .issuer_name(self._certificate.subject)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(signs_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
            .add_extension(authority_key, critical=False)
        )
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        certificate = builder.sign(self._key, hashes.SHA256())
        paths = [self._directory / f"{stem}.crt", self._directory / f"{stem}.key"]
        _write(paths[1], _pem(key), 0o600)
        _write(paths[0], certificate.public_bytes(serialization.Encoding.PEM), 0o644)
        return paths


def _authority(key: _Key) -> x509.Certificate:
    name = _name("sriov-fast trial CA")
    return (
        _builder(name, key, _CA_DAYS)
        .issuer_name(name)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .sign(key, hashes.SHA256())
    )


def _builder(name: x509.Name, key: _Key, days: int) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _SKEW)
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _names(names: Sequence[str]) -> list[x509.GeneralName]:
    return [_general(name) for name in names]


def _general(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _pem(key: _Key) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _load_key(path: Path) -> _Key:
    key = serialization.load_pem_private_key(path.read_bytes(), None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ValueError(f"{path}: is no key that this command made")
    return key


def _write(path: Path, content: bytes, mode: int) -> None:
    """Write a file with its final mode from the start."""
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        file.write(content)
