"""The client of the address service: its requests and the meaning of its answers."""

from __future__ import annotations

import time

from sriov_fast import ipamd_api
from sriov_fast.common import json
from sriov_fast.common.errors import ConfigError, DecodeError, IpamError
from sriov_fast.common.record import Record
from sriov_fast.ipam.keys import Keys, wrong
from sriov_fast.ipam.txipam.connection import HttpRequest
from sriov_fast.ipam.txipam.retry import AllFailedError, Remotes, UnreadyError
from sriov_fast.ipam.txipam.settings import Settings, demand_allowed, parse_remote, read_token

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any, TypeVar

    from sriov_fast.ipam.txipam.connection import HttpResponse

    T = TypeVar("T")

_MAX_LEASE = 64
_LEASE = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-")

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
# Kinds that a later try meets again; a request that they answer has nothing to release.
_FINAL = (
    *(ipamd_api.INVALID, ipamd_api.UNKNOWN_NETWORK, ipamd_api.UNKNOWN_HOST, ipamd_api.NOT_FOUND),
    *(ipamd_api.CONFLICT, ipamd_api.EXHAUSTED),
)
# The statuses of success, by method; any other status of success is not an answer to the request.
_DONE = {"GET": (200,), "POST": (200, 201), "DELETE": (200, 204)}
# Statuses of a proxy in front of the service, and their CNI codes.
_CODES = {
    401: ipamd_api.BAD_CONFIG,
    403: ipamd_api.BAD_CONFIG,
    408: ipamd_api.TRY_AGAIN,
    429: ipamd_api.TRY_AGAIN,
}


class ServiceError(IpamError):
    """The service refused, or gave no usable answer.

    ``kind`` is the service's kind of error, "" if it gave none. ``uncertain``: the request may have been
    carried out in spite of the answer. ``final``: it was not, and a repeated request will not be either.
    """

    kind = ""
    uncertain = False

    @property
    def final(self) -> bool:
        """Whether the service itself, not a proxy in front of it, refused permanently."""
        return self.kind in _FINAL


# --- requests


class Owner(Record):
    """The owner of an allocation, with its pod and its host; "" for an unknown value."""

    network: str
    container_id: str
    ifname: str
    pod_id: str = ""
    host_ip: str = ""

    @property
    def path(self) -> str:
        """The path of the owner's allocation."""
        return ipamd_api.allocation(self.network, self.container_id, self.ifname)

    @property
    def key(self) -> str:
        """The idempotency key, the same in each repeated request."""
        parts = (self.network, self.container_id, self.ifname, self.pod_id)
        key = "/".join(map(ipamd_api.quote, parts))
        if len(key) <= ipamd_api.MAX_KEY:
            return key
        from _blake2 import blake2b  # late: identifiers are rarely so long

        return f"blake2b:{blake2b(key.encode(), digest_size=32).hexdigest()}"


def read_lease(item: Keys) -> str:
    """Return a valid lease, "" if there is none; leases become parts of URLs and names of files."""
    lease = item.text(ipamd_api.LEASE)
    if len(lease) > _MAX_LEASE or not _LEASE.issuperset(lease):
        raise wrong(item.place(ipamd_api.LEASE), lease, "no lease", "")
    return lease


class Client:
    """A client for one verb, which ends ``settings.timeout`` seconds after the construction.

    ``verb`` is named in the errors. RefusedError: root does not allow the files that the settings name, or
    the token to be sent to these remotes.
    """

    def __init__(self, settings: Settings, verb: str) -> None:
        demand_allowed(settings)
        self.settings = settings
        self.verb = verb
        self.deadline = time.monotonic() + settings.timeout
        self._remotes = Remotes(
            tuple(map(parse_remote, settings.remotes)),
            settings.trust,
            settings.retries,
            self.deadline,
        )

    @property
    def uncertain(self) -> bool:
        """Whether a request without a reply may still be carried out."""
        return self._remotes.uncertain

    def allocate(self, owner: Owner) -> ServiceReply:
        """Allocate addresses for the owner, or return those that it has."""
        body = {
            ipamd_api.CONTAINER_ID: owner.container_id,
            ipamd_api.IFNAME: owner.ifname,
            ipamd_api.POD_ID: owner.pod_id,
            ipamd_api.HOST_IP: owner.host_ip,
        }
        return self._ask("POST", ipamd_api.allocations(owner.network), body, owner.key)

    def find(self, owner: Owner) -> ServiceReply:
        """Return the owner's allocation."""
        return self._ask("GET", ipamd_api.query(owner.path, host_ip=owner.host_ip), key=owner.key)

    def release(self, owner: Owner, lease: str) -> bool:
        """Release the owner's allocation if it has this lease; return False if it has not.

        Without a lease, release the current allocation; those of an earlier export have none.
        """
        named = {"host_ip": owner.host_ip, "pod_id": owner.pod_id, "lease": lease}
        answer = self._ask("DELETE", ipamd_api.query(owner.path, **named), key=owner.key)
        return not lease or bool(answer.read(lambda body: body.number(ipamd_api.RELEASED)))

    def release_current(self, owner: Owner) -> None:
        """Release the owner's current allocation, if it has one.

        The release names the lease, which is asked for first: a release that arrives late must not free a
        later allocation.
        """
        try:
            found = self.find(owner)
        except ServiceError as error:
            if error.kind != ipamd_api.NOT_FOUND:
                raise
            return
        self.release(owner, found.read(read_lease))

    def held(self, network: str, host_ip: str) -> Iterator[tuple[Owner, str]]:
        """Iterate over the owners of a host in a network, with their leases."""
        after = ""
        while page := self._owners(network, host_ip, after):
            yield from page
            last = page[-1][0]
            after = f"{last.container_id}/{last.ifname}"

    def _owners(self, network: str, host_ip: str, after: str) -> list[tuple[Owner, str]]:
        answer = self._ask("GET", ipamd_api.query(ipamd_api.owners(network), host_ip=host_ip, after=after))

        def owner(item: Keys) -> Owner:
            container_id, ifname = item.text(ipamd_api.CONTAINER_ID), item.text(ipamd_api.IFNAME)
            return Owner(network=network, container_id=container_id, ifname=ifname, host_ip=host_ip)

        return answer.read(
            lambda body: [(owner(item), read_lease(item)) for item in body.objects(ipamd_api.OWNERS)]
        )

    def status(self, network: str, host_ip: str) -> None:
        """Raise ServiceError unless a host's pools have a free address."""
        self._ask("GET", ipamd_api.query(ipamd_api.status(network), host_ip=host_ip))

    def ready(self) -> None:
        """Raise ServiceError unless the service is ready."""
        self._ask("GET", ipamd_api.READY)

    def left(self) -> float:
        """Return the seconds that are left."""
        return self.deadline - time.monotonic()

    def _ask(self, method: str, path: str, body: dict[str, Any] | None = None, key: str = "") -> ServiceReply:
        fields = {ipamd_api.IDEMPOTENCY_KEY: key} if key else {}
        if self.settings.token_file:
            fields["Authorization"] = f"Bearer {read_token(self.settings.token_file)}"
        octets = b"" if body is None else json.dumps(body)
        asked = HttpRequest(method=method, path=path, body=octets, fields=fields)
        try:
            remote, reply = self._remotes.ask(asked)
        except AllFailedError as error:
            raise self._failed(error) from error
        answer = ServiceReply(self.verb, remote.url, reply)
        if reply.status not in _DONE[method]:
            raise answer.refusal()
        return answer

    def _failed(self, error: AllFailedError) -> ServiceError:
        """Return one error for all tries."""
        if isinstance(error.fault, UnreadyError):
            return ServiceReply(self.verb, error.remote.url, error.fault.reply).refusal()
        facts = [error.fault.advice]
        if len(error.failed) > 1:
            facts.append(f"tried {len(error.failed)} times")
        others = {remote.url: fault.outcome for remote, fault in error.failed if remote != error.remote}
        facts += [f"{url} {what}" for url, what in others.items()]
        return _error(self.verb, str(error), "; ".join(facts), error.fault.code)


def _error(verb: str, msg: str, details: str, code: int) -> ServiceError:
    return ServiceError(f"IPAM txipam, {verb}: {msg}", details, code=code)


# --- answers


class ServiceReply:
    """A reply of the service; errors name the remote."""

    def __init__(self, verb: str, url: str, reply: HttpResponse) -> None:
        self._verb = verb
        self._reply = reply
        self.url = url

    def read(self, read: Callable[[Keys], T]) -> T:
        """Return the result of ``read`` for the JSON object in the reply; ServiceError if it is invalid."""
        kind = self._reply.media_type
        if kind != ipamd_api.JSON:
            raise self._unexpected(f"answered with {kind or 'no'} content where JSON belongs")
        try:
            return read(Keys(json.loads(self._reply.body, "its answer"), "its answer."))
        except (DecodeError, ConfigError) as error:
            raise self._unexpected(f"cannot be understood: {error.msg}") from error

    def _unexpected(self, what: str) -> ServiceError:
        """Return the error for an answer that the service cannot have given."""
        advice = f"see that the remote is the address service; the answer began with {self._shown()}"
        error = _error(self._verb, f"{self.url} {what}", advice, ipamd_api.UNEXPECTED)
        error.uncertain = True
        return error

    def refusal(self) -> ServiceError:
        """Return the error that the service answered with."""
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
        error.uncertain = status >= 500 or status < 400
        return error

    def _problem(self) -> tuple[str, str]:
        """Return kind and detail of a problem document, "" for an unknown kind."""
        if self._reply.media_type != ipamd_api.PROBLEM:
            return "", ""
        try:
            body = json.loads(self._reply.body, "its answer")
        except DecodeError:
            return "", ""
        if not isinstance(body, dict):
            return "", ""
        kind, detail = body.get("kind"), body.get("detail") or body.get("title")
        known = kind if isinstance(kind, str) and ipamd_api.STATUS.get(kind) == self._reply.status else ""
        return known, detail[:500] if isinstance(detail, str) else ""

    def _shown(self) -> str:
        text = self._reply.body[:120].decode("utf-8", "replace")
        return json.text(text) if text else "nothing"
