"""The endpoints of operators: the configuration and its items, allocations, export and import."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Annotated, Any, NamedTuple

from fastapi import APIRouter, Body, Depends, Header, Query, Request
from fastapi import Path as InPath
from pydantic import Field, create_model
from starlette.responses import Response

from sriov_fast import ipamd_api
from sriov_fast.ipamd import middleware, model
from sriov_fast.ipamd.config import Config
from sriov_fast.ipamd.endpoint import (
    PROBLEMS,
    Allocations,
    Pools,
    act_for,
    administrate,
    caller_of,
    reply,
    service_of,
)
from sriov_fast.ipamd.errors import Conflict, NotFound
from sriov_fast.ipamd.model import Address, Document, HostCidr, Name, PodId

ETAG = {"ETag": {"description": "the configuration's revision", "schema": {"type": "string"}}}
Json = dict[str, Any]

_IfMatch = Annotated[
    str | None,
    Header(alias="If-Match", max_length=200, description="the ETag of the configuration that this replaces"),
]

router = APIRouter(prefix=ipamd_api.ROOT, tags=["operators"], responses=PROBLEMS)
_operators = APIRouter(dependencies=[Depends(administrate)])


class Imported(Document):
    """The number of allocations after an import."""

    allocations: Annotated[int, Field(ge=0)]


# ------------------------------------------------------------------------------------ the configuration


@_operators.get("/config", responses={200: {"model": Config, "headers": ETAG}})
async def get_config(request: Request) -> Response:
    """Return the configuration with its revision as ETag."""
    config, revision = await service_of(request).config()
    return reply(config.document(), headers=_etag(revision))


@_operators.put("/config", responses={200: {"model": Config, "headers": ETAG}})
async def put_config(request: Request, config: Config, if_match: _IfMatch = None) -> Response:
    """Replace the configuration of the revision that If-Match names."""
    _refuse_managed(request)
    revision = await service_of(request).configure(config, _revision(if_match))
    middleware.note(revision=revision)
    return reply(config.document(), headers=_etag(revision))


def _etag(revision: str) -> dict[str, str]:
    return {"etag": f'"{revision}"'}


def _revision(if_match: str | None) -> str | None:
    """Return the revision that a header If-Match names; None for any revision."""
    if if_match is None or if_match.strip() == "*":
        return None
    return if_match.strip().removeprefix("W/").strip('"')


def _refuse_managed(request: Request) -> None:
    managed_by = request.app.state.managed_by
    if managed_by is not None:
        raise Conflict(f'managed = "file": the configuration comes from {managed_by}; change it there')


# -------------------------------------------------------------------------- items of the configuration


class Key(NamedTuple):
    """The key of an item: its section of the configuration, and the values in the path."""

    section: str
    values: Mapping[str, str]

    def __str__(self) -> str:
        return " ".join(f"{key} {value!r}" for key, value in self.values.items())


async def network_key(name: Annotated[Name, InPath()]) -> Key:
    """Return the key of a network."""
    return Key("networks", {"name": name})


async def pool_key(network: Annotated[Name, InPath()], name: Annotated[Name, InPath()]) -> Key:
    """Return the key of a pool."""
    return Key("pools", {"network": network, "name": name})


async def hosts_key(network: Annotated[Name, InPath()], host: Annotated[HostCidr, InPath()]) -> Key:
    """Return the key of one HostIP, or of one CIDR of HostIPs."""
    return Key("hosts", {"network": network, "host": host})


async def assignment_key(
    network: Annotated[Name, InPath()], pod_id: Annotated[PodId, InPath(min_length=1)]
) -> Key:
    """Return the key of a pod's assignment."""
    return Key("assignments", {"network": network, "pod_id": pod_id})


def _matches(item: Mapping[str, Any], key: Key) -> bool:
    if "host" in key.values:
        return item["network"] == key.values["network"] and key.values["host"] in item["hosts"]
    return all(item.get(name) == value for name, value in key.values.items())


def _found(document: Json, key: Key) -> Json:
    """Return an item; a rule for several hosts is returned for the one host of the key."""
    for item in document.get(key.section, ()):
        if _matches(item, key):
            return item | {"hosts": [key.values["host"]]} if "host" in key.values else dict(item)
    raise NotFound(f"{key.section}: there is no {key}")


def _without(document: Json, key: Key) -> list[Json]:
    """Return a section without an item; a rule for several hosts only loses the host of the key."""
    rest = []
    for item in document.get(key.section, ()):
        if not _matches(item, key):
            rest.append(item)
            continue
        hosts = (
            [host for host in item["hosts"] if host != key.values["host"]] if key.section == "hosts" else []
        )
        if hosts:
            rest.append(item | {"hosts": hosts})
    return rest


def _put(document: Json, key: Key, content: Json) -> list[Json]:
    """Return a section with an item added or replaced."""
    names = {name: value for name, value in key.values.items() if name != "host"}
    item = names | content | ({"hosts": [key.values["host"]]} if "host" in key.values else {})
    items = document.get(key.section, [])
    place = next((index for index, each in enumerate(items) if _matches(each, key)), len(items))
    if "host" in key.values:
        return [*_without(document, key), item]
    return [*items[:place], item, *items[place + 1 :]]


async def _edit(
    request: Request, key: Key, if_match: str | None, change: Callable[[Json], list[Json]]
) -> tuple[Json, str]:
    """Change the section of a key; return the whole configuration and its revision."""
    _refuse_managed(request)

    def changed(config: Config) -> Config:
        document = config.document()
        return model.parse(Config, document | {key.section: change(document)})

    config, revision = await service_of(request).edit(changed, _revision(if_match))
    middleware.note(item=f"{key.section}: {key}", revision=revision)
    return config.document(), revision


def _body_of(item: type[Document], keys: set[str]) -> type[Document]:
    """Return an item's model without the keys of the path."""
    fields: Any = {
        name: (field.annotation, field) for name, field in item.model_fields.items() if name not in keys
    }
    made: type[Document] = create_model(f"{item.__name__}Body", __base__=Document, **fields)
    made.__doc__ = item.__doc__
    return made


def _serve_items(path: str, key_of: Callable[..., Awaitable[Key]], item: type[Document], *keys: str) -> None:
    """Register GET, PUT and DELETE of one kind of item; the path has the values of ``keys``."""
    key_given = Depends(key_of)

    async def get(request: Request, key: Key = key_given) -> Response:
        config, revision = await service_of(request).config()
        return reply(_found(config.document(), key), headers=_etag(revision))

    async def put(
        request: Request, content: Document, key: Key = key_given, if_match: _IfMatch = None
    ) -> Response:
        plain = content.document()
        document, revision = await _edit(request, key, if_match, lambda old: _put(old, key, plain))
        return reply(_found(document, key), headers=_etag(revision))

    async def delete(request: Request, key: Key = key_given, if_match: _IfMatch = None) -> Response:
        def change(document: Json) -> list[Json]:
            _found(document, key)
            return _without(document, key)

        _, revision = await _edit(request, key, if_match, change)
        return Response(status_code=204, headers=_etag(revision))

    put.__annotations__["content"] = Annotated[_body_of(item, {*keys}), Body()]  # differs from kind to kind
    singular = path.split("/")[2].removesuffix("s")
    done: dict[int | str, Json] = {200: {"model": item, "headers": ETAG}}
    gone: dict[int | str, Json] = {204: {"headers": ETAG}}
    _operators.add_api_route(path, get, methods=["GET"], responses=done, name=f"get_{singular}")
    _operators.add_api_route(path, put, methods=["PUT"], responses=done, name=f"put_{singular}")
    _operators.add_api_route(
        path, delete, methods=["DELETE"], status_code=204, responses=gone, name=f"delete_{singular}"
    )


_serve_items("/config/networks/{name}", network_key, model.Network, "name")
_serve_items("/config/pools/{network}/{name}", pool_key, model.Pool, "network", "name")
_serve_items("/config/hosts/{network}/{host:path}", hosts_key, model.Hosts, "network", "hosts")
_serve_items(
    "/config/assignments/{network}/{pod_id:path}", assignment_key, model.Assignment, "network", "pod_id"
)


# ---------------------------------------------------------------------------------------- allocations


@router.get("/allocations", responses={200: {"model": Allocations}})
async def allocations(
    request: Request,
    network: Annotated[Name | None, Query()] = None,
    host_ip: Annotated[Address | None, Query()] = None,
) -> Response:
    """Return the allocations, of one network or host if given. A host may list its own."""
    if host_ip is not None and not caller_of(request).admin:
        act_for(request, host_ip)
    else:
        await administrate(request)
    held = await service_of(request).allocations(network, host_ip)
    return reply({"allocations": [each.document() for each in held]})


@_operators.get("/usage", responses={200: {"model": Pools}})
async def usage(request: Request) -> Response:
    """Return the use of all pools."""
    return reply({"pools": [use.document() for use in await service_of(request).usage()]})


@_operators.get("/export", responses={200: {"content": {ipamd_api.JSON: {"schema": {"type": "object"}}}}})
async def export(request: Request) -> Response:
    """Return a consistent backup of the whole store."""
    return reply(await service_of(request).export())


@_operators.post("/import", responses={200: {"model": Imported}})
async def load(
    request: Request,
    document: Annotated[dict[str, Any], Body()],
    replace: Annotated[bool, Query(description="drop allocations that the document does not have")] = False,
) -> Response:
    """Import an exported document completely, or not at all."""
    service = service_of(request)
    await service.load(document, replace=replace)
    if request.app.state.managed_by is not None:
        await request.app.state.apply_file()
    held = len(await service.allocations())
    middleware.note(allocations=held)
    return reply({"allocations": held})


router.include_router(_operators)
