"""What the address service refuses, each with the kind and the HTTP status that its clients see."""

# ruff: noqa: N818 - the names are the kinds of the wire
from __future__ import annotations

from sriov_fast import wire


class ServiceError(Exception):
    """A refusal: `kind` is for programs, `status` is HTTP's, `detail` names the key and the value."""

    kind = wire.UNAVAILABLE
    status = wire.STATUS[kind]
    title = "Service error"

    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.detail = detail


class Invalid(ServiceError):
    """A request or a configuration that cannot be right."""

    kind = wire.INVALID
    status = wire.STATUS[kind]
    title = "Invalid"


class Unauthorized(ServiceError):
    """The caller did not say who it is."""

    kind = wire.UNAUTHORIZED
    status = wire.STATUS[kind]
    title = "Unauthorized"


class Forbidden(ServiceError):
    """The caller may not do this, or not for this host."""

    kind = wire.FORBIDDEN
    status = wire.STATUS[kind]
    title = "Forbidden"


class UnknownNetwork(ServiceError):
    """No network has this name."""

    kind = wire.UNKNOWN_NETWORK
    status = wire.STATUS[kind]
    title = "Unknown network"


class UnknownHost(ServiceError):
    """No pool of the network serves this HostIP."""

    kind = wire.UNKNOWN_HOST
    status = wire.STATUS[kind]
    title = "Unknown host"


class NotFound(ServiceError):
    """No such allocation."""

    kind = wire.NOT_FOUND
    status = wire.STATUS[kind]
    title = "Not found"


class Exhausted(ServiceError):
    """No address is left."""

    kind = wire.EXHAUSTED
    status = wire.STATUS[kind]
    title = "Exhausted"


class Conflict(ServiceError):
    """The request contradicts what is held: another owner, another pod or host, or a stale revision."""

    kind = wire.CONFLICT
    status = wire.STATUS[kind]
    title = "Conflict"


class Unavailable(ServiceError):
    """The store cannot be reached, cannot write, or is too busy: to be tried again."""

    kind = wire.UNAVAILABLE
    status = wire.STATUS[kind]
    title = "Unavailable"
