"""The configuration file ``/etc/sriov-fast/ipam.toml``.

The table ``[server]`` is read here. The other tables are the configuration of pools (``config``).
"""

from __future__ import annotations

import ipaddress
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from sriov_fast.ipamd.config import Config
from sriov_fast.ipamd.errors import ServiceError
from sriov_fast.ipamd.model import parse

CONFIG = "/etc/sriov-fast/ipam.toml"
TOKENS = "/etc/sriov-fast/ipam-tokens.json"
STORAGE = "sqlite:///var/lib/sriov-fast/ipam.db"
PORT = 10000

AuthMethod = Literal["open", "token", "certificate"]


class StartError(ValueError):
    """The service cannot start; the text names the reason: a file and its key, or a setting."""


class Listen(NamedTuple):
    """An address and port to listen on."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_listen(text: object) -> Listen:
    """Parse ``127.0.0.1:10000`` or ``[::1]:10000``; ValueError for a host name or a bad port."""
    if isinstance(text, Listen):
        return text
    host, colon, port = str(text).rpartition(":")
    if not colon or not (port.isascii() and port.isdecimal()) or int(port) > 65535:
        raise ValueError("must be ADDRESS:PORT, such as 0.0.0.0:10000 or [::]:10000")
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if (":" in bare) != host.startswith("["):
        raise ValueError("an IPv6 address is written in brackets: [::1]:10000")
    try:
        return Listen(str(ipaddress.ip_address(bare)), int(port))
    except ValueError as error:
        raise ValueError("must be an IP address and a port, such as 0.0.0.0:10000") from error


def _one_or_more(value: object) -> object:
    return [value] if isinstance(value, str) else value


_Seconds = Annotated[float, Field(gt=0, le=3600)]
_Listen = Annotated[Listen, BeforeValidator(parse_listen)]
_Listens = Annotated[tuple[_Listen, ...], Field(min_length=1), BeforeValidator(_one_or_more)]
_Methods = Annotated[tuple[AuthMethod, ...], Field(min_length=1), BeforeValidator(_one_or_more)]


class TlsFiles(NamedTuple):
    """PEM files of the server's certificate and its client CA."""

    cert: Path
    key: Path
    client_ca: Path | None


class ServerSettings(BaseModel):
    """The table ``[server]``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    listen: _Listens = (Listen("127.0.0.1", PORT),)
    cert: Path | None = None
    key: Path | None = None
    client_ca: Path | None = None
    insecure: bool = False

    auth: _Methods = ("token",)
    tokens: Path = Path(TOKENS)
    admins: tuple[str, ...] = ()

    storage: str = STORAGE
    managed: Literal["api", "file"] = "api"

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["json", "logfmt"] = "json"

    max_connections: Annotated[int, Field(ge=1, le=100_000)] = 2048
    max_connections_per_address: Annotated[int, Field(ge=1, le=100_000)] = 256
    max_requests: Annotated[int, Field(ge=1, le=100_000)] = 512
    max_body: Annotated[int, Field(ge=4096)] = 1 << 20
    max_document: Annotated[int, Field(ge=4096)] = 64 << 20
    receive_timeout: _Seconds = 10.0
    request_timeout: _Seconds = 30.0
    keep_alive: _Seconds = 75.0
    stop_timeout: _Seconds = 20.0

    @model_validator(mode="after")
    def _fits(self) -> Self:
        self._check_tls()
        self._check_auth()
        return self

    @property
    def tls(self) -> TlsFiles | None:
        """Return the files for TLS; None for plain HTTP."""
        return TlsFiles(self.cert, self.key, self.client_ca) if self.cert and self.key else None

    def _check_tls(self) -> None:
        if bool(self.cert) != bool(self.key):
            raise ValueError("cert and key belong together: one of them is missing")
        if self.cert and self.insecure:
            raise ValueError("insecure = true means plain HTTP, and does not go with cert and key")
        if not self.cert and not self.insecure:
            raise ValueError("cert and key are missing (plain HTTP needs an explicit insecure = true)")
        if self.client_ca and not self.cert:
            raise ValueError("client_ca needs TLS: set cert and key")

    def _check_auth(self) -> None:
        if "certificate" in self.auth and not self.client_ca:
            raise ValueError('auth = "certificate" needs client_ca, the CA of the clients\' certificates')
        if self.admins and "certificate" not in self.auth:
            raise ValueError('admins lists certificates\' subjects, and needs auth = "certificate"')


class Settings(NamedTuple):
    """The whole file: the table ``[server]``, and all other tables as written."""

    server: ServerSettings
    document: dict[str, Any]
    path: Path


def read(path: Path) -> Settings:
    """Read and check the file. Relative paths in it are relative to its directory."""
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
        server = parse(ServerSettings, content.pop("server", {}), "server")
    except OSError as error:
        raise StartError(f"{path}: {error.strerror}") from error
    except (ValueError, ServiceError) as error:
        raise StartError(f"{path}: {error}") from error
    return Settings(_anchored(server, path.resolve().parent), content, path)


def parse_config(found: Settings) -> Config | None:
    """Return the configuration of networks and pools; None if the file has none."""
    if not found.document:
        return None
    try:
        return parse(Config, found.document)
    except ServiceError as error:
        raise StartError(f"{found.path}: {error}") from error


def _anchored(server: ServerSettings, directory: Path) -> ServerSettings:
    names = ("cert", "key", "client_ca", "tokens")
    found = {name: directory / value for name in names if (value := getattr(server, name)) is not None}
    return server.model_copy(update=found)
