"""The errors of the address service, each with its kind and its HTTP status."""

# ruff: noqa: N818 - the names are the API's kinds of errors
from __future__ import annotations

from sriov_fast import ipamd_api


def owner_text(container_id: str, ifname: str) -> str:
    """Name an owner within its network, for an error."""
    return f"container {container_id!r} interface {ifname!r}"


class ServiceError(Exception):
    """An error of the API: `kind` is for programs, the text names the key and the value."""

    kind = ipamd_api.UNAVAILABLE

    @property
    def status(self) -> int:
        """The status of HTTP."""
        return ipamd_api.STATUS[self.kind]


class Invalid(ServiceError):
    """An invalid request or configuration."""

    kind = ipamd_api.INVALID


class Forbidden(ServiceError):
    """The caller lacks the right, or has it for other hosts."""

    kind = ipamd_api.FORBIDDEN


class UnknownNetwork(ServiceError):
    """No network has this name."""

    kind = ipamd_api.UNKNOWN_NETWORK


class UnknownHost(ServiceError):
    """No pool of the network serves this HostIP."""

    kind = ipamd_api.UNKNOWN_HOST


class NotFound(ServiceError):
    """No such allocation."""

    kind = ipamd_api.NOT_FOUND


class Exhausted(ServiceError):
    """No address is left."""

    kind = ipamd_api.EXHAUSTED


class Conflict(ServiceError):
    """The request contradicts the allocations or the revision of the configuration."""

    kind = ipamd_api.CONFLICT


class OtherRevision(Conflict):
    """If-Match names another revision than the current one."""

    status = 412


class Unavailable(ServiceError):
    """Temporary failure of the store; the client should retry."""

    kind = ipamd_api.UNAVAILABLE
