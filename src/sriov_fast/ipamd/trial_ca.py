"""A CA and certificates for a trial, valid for browsers, OpenSSL and Python."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from sriov_fast.common.replace import replace_file

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
            _write(self._certificate, self.certificate_path, self._key, key_path)

    def server(self, names: Sequence[str], days: int) -> list[Path]:
        """Make ``server.crt`` and ``server.key`` for host names and addresses."""
        return self._issue("server", names[0], list(map(_general, names)), days)

    def host(self, address: str, days: int) -> list[Path]:
        """Make the client certificate of a node for its HostIP."""
        canonical = str(ipaddress.ip_address(address))
        return self._issue(f"host-{canonical}", canonical, [_general(canonical)], days)

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
        _write(certificate, paths[0], key, paths[1])
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


def _general(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _write(certificate: x509.Certificate, certificate_path: Path, key: _Key, key_path: Path) -> None:
    pem = serialization.Encoding.PEM
    secret = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    replace_file(key_path, secret, 0o600)
    replace_file(certificate_path, certificate.public_bytes(pem), 0o644)


def _load_key(path: Path) -> _Key:
    key = serialization.load_pem_private_key(path.read_bytes(), None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ValueError(f"{path}: is no key that this command made")
    return key
