"""The address service as a client sees it: where it is, what can be asked of it, what its answers mean."""

from __future__ import annotations

import time

from sriov_fast import codec, files, ipamd_api
from sriov_fast.errors import ConfigError, DecodeError, IpamError, RefusedError
from sriov_fast.ipam.http import Remote, Request
from sriov_fast.ipam.https import AllFailedError, Client
from sriov_fast.ipam.keys import Keys, as_ip, wrong
from sriov_fast.ipam.tls import Trust
from sriov_fast.values import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any, TypeVar

    from sriov_fast.ipam.http import Reply

    T = TypeVar("T")

_TIMEOUT, _LONGEST = 10.0, 50.0  # seconds; the main plugin waits for 60
_RETRIES, _MOST_RETRIES = 3, 20
_MAX_TOKEN = 8192
_MAX_LEASE = 64
_LEASE = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-")
_HOST = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._")
_EXAMPLE = "give the service's address, such as https://10.0.0.1:10000"

_ADVICE = {
    ipamd_api.INVALID: "correct what the service names",
    ipamd_api.UNAUTHORIZED: "give ipam.tokenFile, or ipam.cert and ipam.key, as the service wants them",
    ipamd_api.FORBIDDEN: "let the service's settings allow this node to act for that HostIP",
    ipamd_api.UNKNOWN_NETWORK: "add the network to the service's configuration, or correct name",
    ipamd_api.UNKNOWN_HOST: "add a pool for this HostIP to the service's configuration, or correct HostIP",
    ipamd_api.NOT_FOUND: "it was never given, or was freed since; delete the pod and start it anew",
    ipamd_api.EXHAUSTED: "add addresses to the pool, or delete pods that are not needed",
    ipamd_api.CONFLICT: "delete the pod that has it first",
    ipamd_api.UNAVAILABLE: "try again; the service's log says why",
}
# Kinds that a later try meets again: what they answer has nothing to release.
_FINAL = (
    *(
        ipamd_api.INVALID,
        ipamd_api.UNKNOWN_NETWORK,
        ipamd_api.UNKNOWN_HOST,
        ipamd_api.NOT_FOUND,
        ipamd_api.CONFLICT,
    ),
    ipamd_api.EXHAUSTED,
)
# Who is answered otherwise got the answer to somebody else's question.
_DONE = {"GET": (200,), "POST": (200, 201), "DELETE": (200, 204)}
# What a proxy before the service may answer in its place.
_CODES = {
    401: ipamd_api.BAD_CONFIG,
    403: ipamd_api.BAD_CONFIG,
    408: ipamd_api.TRY_AGAIN,
    429: ipamd_api.TRY_AGAIN,
}


class ServiceError(IpamError):
    """The service refused, or gave no answer that could be used.

    ``kind`` is its own word for it, "" where it had none. ``uncertain``: what was asked for may have been
    carried out. ``final``: it was not, and will not be when it is asked for again.
    """

    kind = ""
    uncertain = False

    @property
    def final(self) -> bool:
        """Whether the service itself, and nothing on the way to it, said no for good."""
        return self.kind in _FINAL


# --- configuration


class Settings(Value):
    """What ``ipam`` says about the service. ``timeout`` is in seconds, for a whole verb with its retries."""

    remotes: tuple[str, ...]
    trust: Trust = Trust()
    token_file: str = ""
    timeout: float = _TIMEOUT
    retries: int = _RETRIES


def read_settings(ipam: Keys) -> Settings:
    """Return the settings in an ``ipam`` object, or raise ConfigError."""
    for where, text in _remotes(ipam):
        parse_remote(text, where)
    trust = Trust(ca=_path(ipam, "ca"), cert=_path(ipam, "cert"), key=_path(ipam, "key"))
    if trust.key and not trust.cert:
        raise ConfigError(
            f"ipam.key = {trust.key!r}: there is no ipam.cert", "give the certificate that it belongs to"
        )
    retries = ipam.number("retries", _MOST_RETRIES)
    return Settings(
        remotes=tuple(text for _, text in _remotes(ipam)),
        trust=trust,
        token_file=_path(ipam, "tokenFile"),
        timeout=_timeout(ipam),
        retries=_RETRIES if retries is None else retries,
    )


def _remotes(ipam: Keys) -> list[tuple[str, str]]:
    value = ipam.obj.get("remote")
    if value is None or value == []:
        raise ConfigError(f"{ipam.place('remote')} is missing", _EXAMPLE)
    items = list(ipam.array("remote")) if isinstance(value, list) else [(ipam.place("remote"), value)]
    for where, item in items:
        if not isinstance(item, str):
            raise wrong(where, item, "not a string", _EXAMPLE)
    return [(where, str(item)) for where, item in items]


def parse_remote(text: str, where: str = "ipam.remote") -> Remote:
    """Return what is in a URL, or raise ConfigError; HTTPS alone, as tokens and addresses go through it."""
    scheme, _, rest = text.partition("://")
    if scheme.lower() == "http":
        raise wrong(
            where, text, "http:// is refused", "use https://, and give the authority's file in ipam.ca"
        )
    if scheme.lower() != "https" or not text.isascii() or not text.isprintable() or set(rest) & set(" ?#@\\"):
        raise wrong(where, text, "not an https:// URL of host, port and path alone", _EXAMPLE)
    authority, _, path = rest.partition("/")
    host, port = _host_and_port(authority)
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else ""
    if bare:
        try:
            as_ip(bare if ":" in bare else None, where)
        except ConfigError:
            raise wrong(where, text, "no IPv6 address in brackets", _EXAMPLE) from None
    elif not host or not set(host) <= _HOST:
        raise wrong(where, text, "no host's name or address", _EXAMPLE)
    if not port.isdigit() or not 0 < int(port) < 65536:
        raise wrong(where, text, "no port from 1 to 65535", _EXAMPLE)
    prefix = f"/{path}".rstrip("/")
    return Remote(url=text, host=bare or host, port=int(port), prefix=prefix)


def _host_and_port(authority: str) -> tuple[str, str]:
    host, colon, port = authority.rpartition(":")
    if not colon or "]" in port:
        return authority, "443"
    return host, port


def _path(ipam: Keys, key: str) -> str:
    path = ipam.text(key)
    if path and not path.startswith("/"):
        raise wrong(ipam.place(key), path, "not an absolute path", "give a path that starts with '/'")
    return path


def _timeout(ipam: Keys) -> float:
    value = ipam.obj.get("timeout")
    if value is None:
        return _TIMEOUT
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= _LONGEST:
        raise wrong(ipam.place("timeout"), value, "no number of seconds", f"give one up to {_LONGEST:g}")
    return float(value)


# --- requests


class Owner(Value):
    """Whose an allocation is, and for whom it is asked; "" where that is not known."""

    network: str
    container_id: str
    ifname: str
    pod_id: str = ""
    host_ip: str = ""

    @property
    def path(self) -> str:
        """Where the allocation is."""
        return ipamd_api.allocation(self.network, self.container_id, self.ifname)

    @property
    def key(self) -> str:
        """The idempotency key: the same for whatever is repeated."""
        parts = (self.network, self.container_id, self.ifname, self.pod_id)
        key = "/".join(map(ipamd_api.quote, parts))
        if len(key) <= ipamd_api.MAX_KEY:
            return key
        from _blake2 import blake2b  # late: identifiers are rarely so long

        return f"blake2b:{blake2b(key.encode(), digest_size=32).hexdigest()}"


def read_lease(item: Keys) -> str:
    """Return a lease, "" where there is none; it goes into URLs and names of files."""
    lease = item.text(ipamd_api.LEASE)
    if len(lease) > _MAX_LEASE or not _LEASE.issuperset(lease):
        raise wrong(item.place(ipamd_api.LEASE), lease, "no lease", "")
    return lease


class Service:
    """The service for one verb, which ends ``settings.timeout`` seconds after this was made.

    ``verb`` goes into the errors. RefusedError: root does not allow the files that the settings name, or
    the token to go to these remotes.
    """

    def __init__(self, settings: Settings, verb: str, retries: int | None = None) -> None:
        _demand_allowed(settings)
        self.settings = settings
        self.verb = verb
        self.deadline = time.monotonic() + settings.timeout
        self._retries = settings.retries if retries is None else retries
        self._remotes = tuple(map(parse_remote, settings.remotes))
        self.uncertain = False  # whether a request may yet be carried out that had no reply

    def allocate(self, owner: Owner) -> Answer:
        """Ask for the owner's addresses; the same again where it has some."""
        body = {
            ipamd_api.CONTAINER_ID: owner.container_id,
            ipamd_api.IFNAME: owner.ifname,
            ipamd_api.POD_ID: owner.pod_id,
            ipamd_api.HOST_IP: owner.host_ip,
        }
        return self._ask("POST", ipamd_api.allocations(owner.network), body, owner.key)

    def find(self, owner: Owner) -> Answer:
        """Return what the owner has."""
        return self._ask("GET", ipamd_api.query(owner.path, host_ip=owner.host_ip), key=owner.key)

    def release(self, owner: Owner, lease: str) -> bool:
        """Free what has this lease; return False where the owner has nothing of that name.

        Without a lease, which no allocation of an earlier export has, it is whatever the owner has.
        """
        named = {"host_ip": owner.host_ip, "pod_id": owner.pod_id, "lease": lease}
        answer = self._ask("DELETE", ipamd_api.query(owner.path, **named), key=owner.key)
        return not lease or answer.number(ipamd_api.RELEASED) > 0

    def give_back(self, owner: Owner) -> None:
        """Free what the owner has; nothing is no fault.

        Its lease is asked for first, since a release that is late must not take what the owner gets later.
        """
        try:
            found = self.find(owner)
        except ServiceError as error:
            if error.kind != ipamd_api.NOT_FOUND:
                raise
            return
        self.release(owner, found.lease())

    def held(self, network: str, host_ip: str) -> Iterator[tuple[Owner, str]]:
        """Go through what a host's owners have in a network, with the leases."""
        after = ""
        while page := self._owners(network, host_ip, after):
            yield from page
            last = page[-1][0]
            after = f"{last.container_id}/{last.ifname}"

    def _owners(self, network: str, host_ip: str, after: str) -> list[tuple[Owner, str]]:
        answer = self._ask("GET", ipamd_api.query(ipamd_api.owners(network), host_ip=host_ip, after=after))
        owner = Owner(network=network, container_id="", ifname="", host_ip=host_ip)
        return [
            (owner.replace(container_id=container, ifname=ifname), lease)
            for container, ifname, lease in answer.owners(ipamd_api.OWNERS)
        ]

    def status(self, network: str, host_ip: str) -> Answer:
        """Ask whether a host's pools have a free address."""
        return self._ask("GET", ipamd_api.query(ipamd_api.status(network), host_ip=host_ip))

    def ready(self) -> None:
        """Ask whether the service is ready."""
        self._ask("GET", ipamd_api.READY)

    def left(self) -> float:
        """Return how many seconds are left."""
        return self.deadline - time.monotonic()

    def _ask(self, method: str, path: str, body: dict[str, Any] | None = None, key: str = "") -> Answer:
        fields = {ipamd_api.IDEMPOTENCY_KEY: key} if key else {}
        if self.settings.token_file:
            fields["Authorization"] = f"Bearer {_token(self.settings.token_file)}"
        octets = b"" if body is None else codec.dumps(body)
        asked = Request(method=method, path=path, body=octets, fields=fields)
        client = Client(self._remotes, self.settings.trust, self._retries, self.deadline)
        try:
            remote, reply = client.ask(asked)
        except AllFailedError as error:
            raise self._failed(error, client) from error
        finally:
            self.uncertain = self.uncertain or client.uncertain
        answer = Answer(self.verb, remote.url, reply)
        if reply.status not in _DONE[method]:
            raise answer.refusal(client.uncertain)
        return answer

    def _failed(self, error: AllFailedError, client: Client) -> ServiceError:
        """Make one error of all that was tried."""
        reply = getattr(error.fault, "reply", None)
        if reply is not None:
            return Answer(self.verb, error.remote.url, reply).refusal(True)
        facts = [error.fault.advice]
        if error.tries > 1:
            facts.append(f"tried {error.tries} times")
        others = {remote.url: fault.outcome for remote, fault in error.failed if remote != error.remote}
        facts += [f"{url} {what}" for url, what in others.items()]
        found = _error(self.verb, f"{error}", "; ".join(facts), error.fault.code)
        found.uncertain = client.uncertain
        return found


def _error(verb: str, msg: str, details: str, code: int) -> ServiceError:
    return ServiceError(f"IPAM txipam, {verb}: {msg}", details, code=code)


def _demand_allowed(settings: Settings) -> None:
    """Raise RefusedError where root does not allow what the settings name, before any of it is used."""
    trust = settings.trust
    named = {"ca": trust.ca, "cert": trust.cert, "key": trust.key, "tokenFile": settings.token_file}
    for key, path in named.items():
        if path:
            files.demand(f"ipam.{key}", path)
    if settings.token_file:
        _demand_destination(settings)


def _demand_destination(settings: Settings) -> None:
    """Raise RefusedError where the token may not go to all of the remotes.

    Without a word of root a token goes only to servers whose authority is kept with it: nobody but root can
    put a file there.
    """
    token, ca = settings.token_file, settings.trust.ca
    listed = files.remotes_of(token)
    if listed is None:
        if ca and files.is_beside(ca, token):
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


def _token(path: str) -> str:
    try:
        token = files.read("ipam.tokenFile", path, _MAX_TOKEN).strip().decode("ascii")
    except ValueError:
        token = ""
    if not token or not token.isprintable() or " " in token:
        raise ConfigError(
            f"ipam.tokenFile = {path!r}: holds no token", "put the token into it, and nothing else"
        )
    return token


# --- answers


class Answer:
    """A reply of the service; what is wrong with it names the remote."""

    def __init__(self, verb: str, url: str, reply: Reply) -> None:
        self._verb = verb
        self._reply = reply
        self.url = url

    def body(self) -> Keys:
        """Return the JSON object that it is, or raise ServiceError."""
        kind = self._reply.media_type
        if kind != ipamd_api.JSON:
            raise self.unexpected(f"answered with {kind or 'no'} content where JSON belongs")
        try:
            return Keys(codec.loads(self._reply.body, "its answer"), "its answer")
        except (DecodeError, ConfigError) as error:
            raise self.unexpected(f"cannot be understood: {error.msg}") from error

    def number(self, key: str) -> int:
        """Return a whole number of the answer, 0 where it is absent."""
        return self._checked(lambda body: body.number(key) or 0)

    def lease(self) -> str:
        """Return the lease in an allocation."""
        return self._checked(read_lease)

    def owners(self, key: str) -> list[tuple[str, str, str]]:
        """Return the owners (container ID, ifname) in a list, with their leases."""
        return self._checked(
            lambda body: [
                (item.text(ipamd_api.CONTAINER_ID), item.text(ipamd_api.IFNAME), read_lease(item))
                for item in body.objects(key)
            ]
        )

    def _checked(self, read: Callable[[Keys], T]) -> T:
        try:
            return read(self.body())
        except ConfigError as error:
            raise self.unexpected(f"cannot be understood: {error.msg}") from error

    def unexpected(self, what: str) -> ServiceError:
        """Return the error for an answer that the service cannot have given."""
        advice = f"see that the remote is the address service; the answer began with {self._shown()}"
        error = _error(self._verb, f"{self.url} {what}", advice, ipamd_api.UNEXPECTED)
        error.uncertain = True
        return error

    def refusal(self, uncertain: bool) -> ServiceError:
        """Return the error that the service answered with.

        ``uncertain``: an earlier try may have been carried out.
        """
        status = self._reply.status
        kind, detail = self._problem()
        code = ipamd_api.CODES.get(kind) or _CODES.get(status) or ipamd_api.UNEXPECTED
        code = ipamd_api.TRY_AGAIN if status >= 500 else code
        advice = _ADVICE.get(kind) or f"the answer began with {self._shown()}"
        said = f": {detail}" if detail else ""
        error = _error(
            self._verb, f"{self.url} answered {kind or 'with status'} ({status}){said}", advice, code
        )
        error.kind = kind
        error.uncertain = uncertain or status >= 500 or status < 400
        return error

    def _problem(self) -> tuple[str, str]:
        """Return kind and detail of a problem document, "" for a kind that is not ours."""
        if self._reply.media_type != ipamd_api.PROBLEM:
            return "", ""
        try:
            body = codec.loads(self._reply.body, "its answer")
        except DecodeError:
            return "", ""
        if not isinstance(body, dict):
            return "", ""
        kind, detail = body.get("kind"), body.get("detail") or body.get("title")
        known = kind if isinstance(kind, str) and ipamd_api.STATUS.get(kind) == self._reply.status else ""
        return known, detail[:500] if isinstance(detail, str) else ""

    def _shown(self) -> str:
        text = self._reply.body[:120].decode("utf-8", "replace")
        return codec.text(text) if text else "nothing"
