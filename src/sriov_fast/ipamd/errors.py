"""What the address service refuses, each with the kind and the HTTP status that its clients see."""

# ruff: noqa: N818 - the names are the API's kinds of errors
from __future__ import annotations

from sriov_fast import ipamd_api


class ServiceError(Exception):
    """A refusal: `kind` is for programs, `status` is HTTP's, `detail` names the key and the value."""

    kind = ipamd_api.UNAVAILABLE
    status = ipamd_api.STATUS[kind]

    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.detail = detail


class Invalid(ServiceError):
    """A request or a configuration that cannot be right."""

    kind = ipamd_api.INVALID
    status = ipamd_api.STATUS[kind]


class Forbidden(ServiceError):
    """The caller may not do this, or not for this host."""

    kind = ipamd_api.FORBIDDEN
    status = ipamd_api.STATUS[kind]


class UnknownNetwork(ServiceError):
    """No network has this name."""

    kind = ipamd_api.UNKNOWN_NETWORK
    status = ipamd_api.STATUS[kind]


class UnknownHost(ServiceError):
    """No pool of the network serves this HostIP."""

    kind = ipamd_api.UNKNOWN_HOST
    status = ipamd_api.STATUS[kind]


class NotFound(ServiceError):
    """No such allocation."""

    kind = ipamd_api.NOT_FOUND
    status = ipamd_api.STATUS[kind]


class Exhausted(ServiceError):
    """No address is left."""

    kind = ipamd_api.EXHAUSTED
    status = ipamd_api.STATUS[kind]


class Conflict(ServiceError):
    """The request contradicts what is held: another owner, another pod or host, or a stale revision."""

    kind = ipamd_api.CONFLICT
    status = ipamd_api.STATUS[kind]


class Unavailable(ServiceError):
    """The store cannot be reached, cannot write, or is too busy: to be tried again."""

    kind = ipamd_api.UNAVAILABLE
    status = ipamd_api.STATUS[kind]
