"""Parts that all endpoints of the HTTP API share: replies, callers and the service."""

from __future__ import annotations

from typing import Any

import pydantic_core
from fastapi import Request
from starlette.responses import Response

from sriov_fast import ipamd_api
from sriov_fast.ipamd import middleware
from sriov_fast.ipamd.auth import Caller
from sriov_fast.ipamd.errors import Forbidden
from sriov_fast.ipamd.metrics import Metrics
from sriov_fast.ipamd.model import Allocation, Document, PoolUse, Some
from sriov_fast.ipamd.service import Service

SCHEMAS = "#/components/schemas/"
PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {
        "description": text,
        "content": {ipamd_api.PROBLEM: {"schema": {"$ref": f"{SCHEMAS}Problem"}}},
    }
    for status, text in (("4XX", "Refused"), ("5XX", "Failed; try again"))
}


class Pools(Document):
    """The use of pools."""

    pools: Some[PoolUse]


class Allocations(Document):
    """Allocations."""

    allocations: Some[Allocation]


def reply(content: object, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """Return a JSON response; counts of IPv6 addresses exceed the 64 bits of orjson."""
    return Response(pydantic_core.to_json(content), status, headers, ipamd_api.JSON)


def service_of(request: Request) -> Service:
    """Return the address service of the application."""
    service: Service = request.app.state.service
    return service


def metrics_of(request: Request) -> Metrics:
    """Return the metrics of the application."""
    metrics: Metrics = request.app.state.metrics
    return metrics


def caller_of(request: Request) -> Caller:
    """Return the caller of a request."""
    caller: Caller = request.state.caller
    return caller


def act_for(request: Request, host_ip: str) -> None:
    """Refuse a caller that may not act for this host."""
    caller = caller_of(request)
    middleware.note(host_ip=host_ip)
    if not caller.may_act_for(host_ip):
        raise Forbidden(f"host_ip: {host_ip!r}: {caller.name} may not act for it")


async def administrate(request: Request) -> None:
    """Refuse a caller that is no administrator."""
    caller = caller_of(request)
    if not caller.admin:
        raise Forbidden(f"{caller.name} is no administrator")
