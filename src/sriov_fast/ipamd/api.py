"""The HTTP API of the address service: endpoints of hosts, of operators, and for monitoring.

Every error is a problem document (RFC 9457). A request needs a bearer token or a client certificate.
"""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, FastAPI, Header, Query, Request
from fastapi import Path as InPath
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from pydantic import Field
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Match

from sriov_fast import __version__, ipamd_api
from sriov_fast.ipamd import admin, middleware, problems
from sriov_fast.ipamd.endpoint import PROBLEMS, SCHEMAS, Pools, act_for, metrics_of, reply, service_of
from sriov_fast.ipamd.errors import NotFound, ServiceError, Unavailable
from sriov_fast.ipamd.logs import LOGGER
from sriov_fast.ipamd.metrics import Metrics
from sriov_fast.ipamd.model import (
    Address,
    Allocation,
    Ask,
    ContainerId,
    Document,
    Ifname,
    Lease,
    Leased,
    Name,
    PodId,
    Some,
)
from sriov_fast.ipamd.service import Service

READY_TIMEOUT = 2.0  # seconds

log = logging.getLogger(LOGGER)


# ---------------------------------------------------------------------------------------------- documents


_NETWORK, _CONTAINER, _IFNAME = (["mynet"], ["1234"], ["eth1"])


class Wanted(Document):
    """A request for addresses: the owner within the network, its pod and its host."""

    container_id: Annotated[ContainerId, Field(examples=_CONTAINER)]
    ifname: Annotated[Ifname, Field(examples=_IFNAME)]
    pod_id: PodId = ""
    host_ip: Address


class Released(Document):
    """How many allocations were released."""

    released: Annotated[int, Field(ge=0)]


class Owners(Document):
    """A page of the owners of a host; the last page is empty."""

    owners: Some[Leased]


class Health(Document):
    """The state of the service."""

    status: str


NetworkName = Annotated[Name, InPath(description="name of the CNI configuration", examples=_NETWORK)]
HostIp = Annotated[Address, Query(description="the HostIP of the node that asks")]
_Container = Annotated[ContainerId, InPath(description="CNI_CONTAINERID", examples=_CONTAINER)]
_Ifname = Annotated[Ifname, InPath(description="CNI_IFNAME", examples=_IFNAME)]
_PodId = Annotated[PodId | None, Query(description="the pod's PodID; nothing is released if it differs")]
_Lease = Annotated[
    Lease | None,
    Query(description="the allocation's lease; what the owner got since is not released", examples=["5f1d"]),
]
_After = Annotated[
    str | None,
    Query(
        max_length=272,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9_.\-]*/[^/:\x00-\x20\x7f-\xa0]+$",
        description="container ID and ifname of the last owner of the page before",
        examples=["1234/eth1"],
    ),
]
_Key = Annotated[
    str | None,
    Header(alias=ipamd_api.IDEMPOTENCY_KEY, max_length=ipamd_api.MAX_KEY, description="opaque, for the log"),
]


# -------------------------------------------------------------------------------------- endpoints of hosts

hosts = APIRouter(prefix=f"{ipamd_api.ROOT}/networks/{{network}}", tags=["hosts"], responses=PROBLEMS)


@hosts.post(
    "/allocations", status_code=201, responses={200: {"model": Allocation}, 201: {"model": Allocation}}
)
async def allocate(request: Request, network: NetworkName, wanted: Wanted, key: _Key = None) -> Response:
    """Allocate addresses: 201 for a new allocation, 200 for the one that the owner already has."""
    act_for(request, wanted.host_ip)
    middleware.note(network=network, container_id=wanted.container_id, ifname=wanted.ifname, key=key)
    ask = Ask(network=network, **wanted.model_dump())
    allocation, created = await service_of(request).allocate(ask)
    metrics_of(request).allocations.labels(network, "new" if created else "same").inc()
    middleware.note(ips=",".join(ip.address for ip in allocation.ips))
    return reply(allocation.document(), 201 if created else 200)


@hosts.get("/allocations/{container_id}/{ifname}", responses={200: {"model": Allocation}})
async def find(
    request: Request, network: NetworkName, container_id: _Container, ifname: _Ifname, host_ip: HostIp
) -> Response:
    """Return the owner's allocation."""
    act_for(request, host_ip)
    allocation = await service_of(request).find(network, container_id, ifname)
    if allocation.host_ip != host_ip:
        raise NotFound(f"host_ip: {host_ip!r}: {container_id}/{ifname} in {network} is not this host's")
    return reply(allocation.document())


@hosts.delete("/allocations/{container_id}/{ifname}", status_code=204, responses={200: {"model": Released}})
async def release(  # noqa: PLR0913, PLR0917 - each is a part of the path or the query
    request: Request,
    network: NetworkName,
    container_id: _Container,
    ifname: _Ifname,
    host_ip: HostIp,
    pod_id: _PodId = None,
    lease: _Lease = None,
    key: _Key = None,
) -> Response:
    """Release the owner's allocation; a missing one is no error.

    The status is 204. With a lease it is 200, and the body says how many allocations were released: none if
    the current allocation has another lease.
    """
    act_for(request, host_ip)
    middleware.note(network=network, container_id=container_id, ifname=ifname, lease=lease, key=key)
    owner = (network, container_id, ifname)
    released = int(await service_of(request).release(owner, host_ip, pod_id or None, lease or None))
    middleware.note(released=released)
    if released:
        metrics_of(request).releases.labels(network).inc(released)
    return reply({ipamd_api.RELEASED: released}) if lease else Response(status_code=204)


@hosts.get("/owners", responses={200: {"model": Owners}})
async def owners(request: Request, network: NetworkName, host_ip: HostIp, after: _After = None) -> Response:
    """Return a page of the owners of a host with their leases, after a given owner."""
    act_for(request, host_ip)
    container_id, _, ifname = (after or "").partition("/")
    found = await service_of(request).owners(network, host_ip, (container_id, ifname) if after else None)
    return reply({ipamd_api.OWNERS: [each.document() for each in found]})


@hosts.get("/status", responses={200: {"model": Pools}})
async def status(request: Request, network: NetworkName, host_ip: HostIp) -> Response:
    """Return the use of a host's pools; an error if one is full: a pod needs an address of each."""
    act_for(request, host_ip)
    uses = await service_of(request).status(network, host_ip)
    return reply({"pools": [use.document() for use in uses]})


# ------------------------------------------------------------------------------ endpoints for monitoring

watch = APIRouter(tags=["probes"], responses={"5XX": PROBLEMS["5XX"]})


@watch.get(ipamd_api.HEALTH, responses={200: {"model": Health}})
async def health() -> Response:
    """Report that the process is alive; the store is not asked."""
    return reply({"status": "ok"})


@watch.get(ipamd_api.READY, responses={200: {"model": Health}})
async def ready(request: Request) -> Response:
    """Report whether the store answers and can be written."""
    await within(READY_TIMEOUT, service_of(request).ready())
    return reply({"status": "ready"})


@watch.get(ipamd_api.METRICS, responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}})
async def metrics(request: Request) -> Response:
    """Return the metrics in Prometheus' text format."""
    try:
        await within(READY_TIMEOUT, service_of(request).ready())
        usage = await within(READY_TIMEOUT, service_of(request).usage())
    except ServiceError as error:
        log.warning("the store does not answer, or cannot write", extra={"detail": str(error)})
        usage = None
    return Response(metrics_of(request).render(usage), media_type=CONTENT_TYPE_LATEST)


async def within(seconds: float, call: Any) -> Any:
    """Wait for an answer of the store, at most for so many seconds."""
    try:
        async with asyncio.timeout(seconds):
            return await call
    except TimeoutError:
        raise Unavailable(f"the store did not answer within {seconds:g} s") from None


# --------------------------------------------------------------------------------------- the application


def create_app(service: Service, metrics: Metrics, managed_by: Path | None = None) -> FastAPI:
    """Return the application; ``managed_by`` is the file that manages the configuration, if any."""
    app = FastAPI(
        title="sriov-fast address service",
        version=__version__,
        description=__doc__,
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.service = service
    app.state.metrics = metrics
    app.state.managed_by = managed_by
    app.exception_handler(ServiceError)(_refused)
    app.exception_handler(RequestValidationError)(_invalid)
    app.exception_handler(HTTPException)(_framework)
    app.exception_handler(Exception)(_internal)
    for router in (hosts, watch, admin.router):
        app.include_router(router)
    app.add_route(ipamd_api.OPENAPI, _openapi, include_in_schema=False)
    return app


async def _refused(request: Request, error: ServiceError) -> Response:
    headers = {"retry-after": "1"} if error.status == 503 else None
    return middleware.refuse(error.status, error.kind, str(error), headers=headers)


async def _invalid(request: Request, error: RequestValidationError) -> Response:
    found = [problems.fault(each) for each in error.errors()[:100]]
    detail = "; ".join(map(str, found[:10]))
    return middleware.refuse(422, ipamd_api.INVALID, detail, errors=found)


async def _framework(request: Request, error: HTTPException) -> Response:
    """Answer an error of the framework: an unknown path, a wrong method, a bad body."""
    kind = getattr(error, "kind", ipamd_api.INVALID)
    detail, headers = str(error.detail), error.headers
    if error.status_code == 404:
        detail = f"path: {problems.shown(request.url.path)}: there is no such path"
    elif error.status_code == 405:
        detail = f"method: {problems.shown(request.method)}: not for {problems.shown(request.url.path)}"
        headers = {"allow": ", ".join(_allowed(request))}
    return middleware.refuse(error.status_code, kind, detail, headers=headers)


def _allowed(request: Request) -> list[str]:
    """Return all methods of a path; the framework knows those of one route, and each route has one method."""
    routes = request.app.routes

    def serves(method: str) -> bool:
        return any(route.matches({**request.scope, "method": method})[0] is Match.FULL for route in routes)

    return [method for method in ("GET", "POST", "PUT", "DELETE") if serves(method)]


async def _internal(request: Request, error: Exception) -> Response:
    # Starlette raises the error again after this answer, and the traceback is logged.
    return middleware.refuse(500, "internal", "internal error; the service's log has more")


async def _openapi(request: Request) -> Response:
    return reply(describe(request.app))


def describe(app: FastAPI) -> dict[str, Any]:
    """Return the OpenAPI document."""
    if app.openapi_schema is None:
        document = get_openapi(
            title=app.title, version=app.version, description=app.description, routes=app.routes
        )
        components = document.setdefault("components", {})
        schema = problems.Problem.model_json_schema(ref_template=SCHEMAS + "{model}")
        components["schemas"] |= schema.pop("$defs", {}) | {"Problem": schema}
        components["securitySchemes"] = {
            "token": {"type": "http", "scheme": "bearer"},
            "certificate": {"type": "mutualTLS"},
        }
        for path, operations in document["paths"].items():
            if path not in middleware.PUBLIC:
                for operation in operations.values():
                    operation["security"] = [{"token": []}, {"certificate": []}]
        app.openapi_schema = document
    return app.openapi_schema
