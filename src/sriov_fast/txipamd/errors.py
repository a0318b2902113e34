"""What the address service refuses, each with the kind and the HTTP status that its clients see."""

# ruff: noqa: N818 - the names are the kinds of the wire
from __future__ import annotations


class ServiceError(Exception):
    """A refusal: `kind` is for programs, `status` is HTTP's, `detail` names the key and the value."""

    kind = "unavailable"
    status = 503
    title = "Service error"

    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.detail = detail


class Invalid(ServiceError):
    """A request or a configuration that cannot be right."""

    kind = "invalid"
    status = 422
    title = "Invalid"


class Unauthorized(ServiceError):
    """The caller did not say who it is."""

    kind = "unauthorized"
    status = 401
    title = "Unauthorized"


class Forbidden(ServiceError):
    """The caller may not do this, or not for this host."""

    kind = "forbidden"
    status = 403
    title = "Forbidden"


class UnknownNetwork(ServiceError):
    """No network has this name."""

    kind = "unknown-network"
    status = 404
    title = "Unknown network"


class UnknownHost(ServiceError):
    """No pool of the network serves this HostIP."""

    kind = "unknown-host"
    status = 404
    title = "Unknown host"


class NotFound(ServiceError):
    """No such allocation."""

    kind = "not-found"
    status = 404
    title = "Not found"


class Exhausted(ServiceError):
    """No address is left."""

    kind = "exhausted"
    status = 409
    title = "Exhausted"


class Conflict(ServiceError):
    """The request contradicts what is held: another owner, another pod or host, or a stale revision."""

    kind = "conflict"
    status = 409
    title = "Conflict"


class Unavailable(ServiceError):
    """The store cannot be reached, cannot write, or is too busy: to be tried again."""

    kind = "unavailable"
    status = 503
    title = "Unavailable"
