"""The ``ipam`` object's settings of the address service, and root's rules for them."""

from __future__ import annotations

from sriov_fast.common import files
from sriov_fast.common.errors import ConfigError, RefusedError
from sriov_fast.common.json_object import FieldError, absolute_path, string, whole
from sriov_fast.common.record import Record
from sriov_fast.ipam.keys import Keys, as_value, parse_ip
from sriov_fast.ipam.txipam.connection import Remote
from sriov_fast.ipam.txipam.tls import Trust

_TIMEOUT, _LONGEST = 10.0, 50.0  # seconds; the main plugin waits for 60
_RETRIES, _MOST_RETRIES = 3, 20
_MAX_TOKEN = 8192
_HOST = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._")
_EXAMPLE = "give the service's address, such as https://10.0.0.1:10000"


class Settings(Record):
    """The service's part of ``ipam``. ``timeout`` is in seconds, for a whole verb with its retries."""

    remotes: tuple[str, ...]
    trust: Trust = Trust()
    token_file: str = ""
    timeout: float = _TIMEOUT
    retries: int = _RETRIES


def read_settings(ipam: Keys) -> Settings:
    """Return the settings in an ``ipam`` object, or raise ConfigError."""
    remotes = _remotes(ipam)
    trust = Trust(
        ca=ipam.take("ca", absolute_path, ""),
        cert=ipam.take("cert", absolute_path, ""),
        key=ipam.take("key", absolute_path, ""),
    )
    if trust.key and not trust.cert:
        raise ConfigError(
            f"ipam.key = {trust.key!r}: there is no ipam.cert", "give the certificate that it belongs to"
        )
    return Settings(
        remotes=remotes,
        trust=trust,
        token_file=ipam.take("tokenFile", absolute_path, ""),
        timeout=ipam.take("timeout", _seconds, _TIMEOUT),
        retries=ipam.take("retries", whole(0, _MOST_RETRIES), _RETRIES),
    )


def _remotes(ipam: Keys) -> tuple[str, ...]:
    value = ipam.get("remote")
    if value is None or value == []:
        raise ConfigError(f"{ipam.place('remote')} is missing", _EXAMPLE)
    items = ipam.items("remote") if isinstance(value, list) else [(ipam.place("remote"), value)]
    return tuple(as_value(_remote, item, where).url for where, item in items)


def parse_remote(text: str) -> Remote:
    """Return the parts of an https:// URL, or raise ConfigError."""
    return as_value(_remote, text, "ipam.remote")


def _remote(value: object) -> Remote:
    """Accept an https:// URL of host, port and path alone."""
    text = string(value)
    scheme, _, rest = text.partition("://")
    if scheme.lower() == "http":
        raise FieldError("http:// is refused", "use https://, and give the authority's file in ipam.ca")
    if scheme.lower() != "https" or not text.isascii() or not text.isprintable() or set(rest) & set(" ?#@\\"):
        raise FieldError("not an https:// URL of host, port and path alone", _EXAMPLE)
    authority, _, path = rest.partition("/")
    host, port = _host_and_port(authority)
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else ""
    if bare:
        try:
            parse_ip(bare if ":" in bare else "")
        except ValueError:
            raise FieldError("no IPv6 address in brackets", _EXAMPLE) from None
    elif not host or not set(host) <= _HOST:
        raise FieldError("no host's name or address", _EXAMPLE)
    if not port.isdigit() or not 0 < int(port) < 65536:
        raise FieldError("no port from 1 to 65535", _EXAMPLE)
    return Remote(url=text, host=bare or host, port=int(port), prefix=f"/{path}".rstrip("/"))


def _host_and_port(authority: str) -> tuple[str, str]:
    host, colon, port = authority.rpartition(":")
    if not colon or "]" in port:
        return authority, "443"
    return host, port


def _seconds(value: object) -> float:
    """Accept a time limit."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= _LONGEST:
        raise FieldError("no number of seconds", f"give one up to {_LONGEST:g}")
    return float(value)


# --- root's rules


def demand_allowed(settings: Settings) -> None:
    """Raise RefusedError unless root allows the files that the settings name, and the token's remotes."""
    trust = settings.trust
    named = {"ca": trust.ca, "cert": trust.cert, "key": trust.key, "tokenFile": settings.token_file}
    for key, path in named.items():
        if path:
            files.demand(f"ipam.{key}", path)
    if settings.token_file:
        _demand_destination(settings)


def _demand_destination(settings: Settings) -> None:
    """Raise RefusedError unless the token may be sent to all remotes.

    Without a rule of root for the token, the file of the authority must be in the token's directory, where
    only root can put a file.
    """
    token, ca = settings.token_file, settings.trust.ca
    listed = files.remotes_of(token)
    if listed is None:
        if ca and files.shares_directory(ca, token):
            return
        strangers = list(settings.remotes)
    else:
        known = [_origin(each) for each in listed]
        strangers = [each for each in settings.remotes if _origin(each) not in known]
    if strangers:
        raise RefusedError(
            f"ipam.tokenFile = {token!r}: root does not allow this token to be sent to {strangers[0]}",
            "name the service's authority in ipam.ca and keep its file in the token's directory; or list the "
            f"remote for the token in [tokens] of {files.rules_path()}",
        )


def _origin(url: str) -> tuple[str, int]:
    remote = parse_remote(url)
    return remote.host.lower(), remote.port


def read_token(path: str) -> str:
    """Return the token in a file, or raise ConfigError."""
    try:
        token = files.read("ipam.tokenFile", path, _MAX_TOKEN).strip().decode("ascii")
    except ValueError:
        token = ""
    if not token or not token.isprintable() or " " in token:
        raise ConfigError(
            f"ipam.tokenFile = {path!r}: holds no token", "put the token into it, and nothing else"
        )
    return token
