"""Hosts' requests to a process of the address service over TLS: replies, refusals, limits, metrics."""

from __future__ import annotations

import json
import ssl
import time
from collections.abc import Iterator
from typing import Any

import httpx
import ipam_server
import pytest
from ipam_server import (
    ASK,
    HOST,
    OTHER_HOST,
    AddressService,
    World,
    address,
    ask,
    problem,
    wanted,
)
from prometheus_client.parser import text_string_to_metric_families


@pytest.fixture(scope="module")
def server(world: World) -> AddressService:
    return world.serve("s", receive_timeout=1.0, max_body=8192)


@pytest.fixture
def client(world: World, server: AddressService) -> Iterator[httpx.Client]:
    with world.host(server) as client:
        yield client


@pytest.fixture
def admin(world: World, server: AddressService) -> Iterator[httpx.Client]:
    with world.admin(server) as client:
        yield client


def owned(container: str) -> str:
    return f"{ASK}/{container}/eth0"


# --------------------------------------------------------------------------------- allocation and release


def test_a_pod_comes_and_goes(client: httpx.Client) -> None:
    first = client.post(ASK, json=wanted("p1"), headers={"Idempotency-Key": "mynet/p1/eth0/pod-p1"})
    assert first.status_code == 201
    given = first.json()
    assert given["ips"][0]["gateway"] == "10.55.206.1"
    assert given["ips"][0]["address"].endswith("/26")
    assert given["routes"] == [{"dst": "0.0.0.0/0", "gw": "10.55.206.1"}]
    assert given["extra"] == {"vlan": 100}
    again = ask(client, "p1")
    assert (again.status_code, again.json()) == (200, given)
    assert client.get(owned("p1"), params={"host_ip": HOST}).json() == given
    for _ in range(2):
        gone = client.delete(owned("p1"), params={"host_ip": HOST, "pod_id": "pod-p1"})
        assert (gone.status_code, gone.content) == (204, b"")
    detail = problem(client.get(owned("p1"), params={"host_ip": HOST}), 404, "not-found")
    assert "p1" in detail


def test_a_release_says_whether_its_lease_was_the_current_one(
    client: httpx.Client, server: AddressService
) -> None:
    def drop(lease: str) -> Any:
        response = client.delete(owned("q"), params={"host_ip": HOST, "lease": lease})
        assert response.status_code == 200
        return response.json()

    old = ask(client, "q").json()["lease"]
    assert drop(old) == {"released": 1}
    new = ask(client, "q").json()["lease"]
    assert new != old
    assert drop(old) == {"released": 0}
    listed = client.get("/v1/networks/mynet/owners", params={"host_ip": HOST}).json()["owners"]
    assert {"container_id": "q", "ifname": "eth0", "lease": new} in listed
    behind = {"host_ip": HOST, "after": "q/eth0"}
    assert client.get("/v1/networks/mynet/owners", params=behind).json() == {"owners": []}
    assert drop(new) == {"released": 1}
    logged = [event for event in server.events() if event.get("lease") == old and "released" in event]
    assert [event["released"] for event in logged] == [1, 0]


def test_another_hosts_allocation_is_not_found(admin: httpx.Client) -> None:
    address(ask(admin, "p3", host=OTHER_HOST))
    assert HOST in problem(admin.get(owned("p3"), params={"host_ip": HOST}), 404, "not-found")
    admin.delete(owned("p3"), params={"host_ip": OTHER_HOST})


# ------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"host_ip": 7}, ("body.host_ip", "7")),
        ({"pod_id": "x" * 600}, ("body.pod_id", "xxx")),
        ({"surprise": True}, ("body.surprise", "True")),
        ({"pod_id": "\ud800"}, ("body.pod_id",)),
    ],
)
def test_a_wrong_value_is_named(client: httpx.Client, change: dict[str, Any], named: tuple[str, ...]) -> None:
    body = json.dumps(wanted("w") | change)
    response = client.post(ASK, content=body, headers={"content-type": "application/json"})
    detail = problem(response, 422, "invalid")
    assert all(word in detail for word in named)
    assert response.json()["errors"][0]["key"] == named[0]


def test_all_wrong_values_are_told_at_once(client: httpx.Client) -> None:
    response = client.post(ASK, json={"ifname": "/", "host_ip": "x"})
    keys = [fault["key"] for fault in response.json()["errors"]]
    assert keys == ["body.container_id", "body.ifname", "body.host_ip"]


@pytest.mark.parametrize(
    ("method", "path", "status", "kind", "named"),
    [
        ("GET", "/", 404, "invalid", "/"),
        ("GET", "/v2/config", 404, "invalid", "/v2/config"),
        ("GET", "/v1/networks/mynet/status/", 404, "invalid", "/status/"),
        ("DELETE", "/v1/networks/mynet/status", 405, "invalid", "DELETE"),
        ("GET", "/v1/networks/mynet/status", 422, "invalid", "query.host_ip"),
        ("GET", "/v1/networks/mynet/status?host_ip=x", 422, "invalid", "'x'"),
        ("GET", f"/v1/networks/mynet/owners?host_ip={HOST}&after=x", 422, "invalid", "query.after"),
        ("GET", f"/v1/networks/nonet/status?host_ip={HOST}", 404, "unknown-network", "nonet"),
        ("GET", f"/v1/networks/a%2Fb/status?host_ip={HOST}", 404, "invalid", "a/b"),
        ("GET", "/v1/networks/mynet/status?host_ip=9.9.9.9", 404, "unknown-host", "9.9.9.9"),
        ("PROPFIND", "/healthz", 405, "invalid", "PROPFIND"),
    ],
)
def test_what_is_not_there(
    admin: httpx.Client, method: str, path: str, status: int, kind: str, named: str
) -> None:
    response = admin.request(method, path)
    assert named in problem(response, status, kind)


@pytest.mark.parametrize(
    ("path", "allow"),
    [
        ("/healthz", "GET"),
        ("/v1/config", "GET, PUT"),
        ("/v1/config/hosts/mynet/10.0.0.0/8", "GET, PUT, DELETE"),
        (f"{ASK}/c/eth0", "GET, DELETE"),
        (ASK, "POST"),
    ],
)
def test_a_method_that_is_not_for_this_path(admin: httpx.Client, path: str, allow: str) -> None:
    response = admin.request("OPTIONS", path)
    assert path in problem(response, 405, "invalid")
    assert response.headers["allow"] == allow


@pytest.mark.parametrize(
    ("content", "type_", "named"),
    [
        (b"{x", "application/json", "is no JSON"),
        (b"[]", "application/json", "body"),
        (b"", "application/json", "body"),
        (b"{}", "text/plain", "content-type"),
        (b"\xff\xfe{", "application/json", "body"),
    ],
)
def test_a_body_that_is_none(client: httpx.Client, content: bytes, type_: str, named: str) -> None:
    response = client.post(ASK, content=content, headers={"content-type": type_})
    assert named in problem(response, response.status_code, "invalid")
    assert response.status_code in (400, 422)


def test_a_long_idempotency_key_is_refused(client: httpx.Client) -> None:
    response = client.post(ASK, json=wanted("k"), headers={"Idempotency-Key": "k" * 201})
    assert "Idempotency-Key" in problem(response, 422, "invalid")


# ------------------------------------------------------------------------------------------------ limits


def answer(connection: ssl.SSLSocket) -> bytes:
    pieces = []
    try:
        while piece := connection.recv(65536):
            pieces.append(piece)
    except (ConnectionError, ssl.SSLError):
        pass
    return b"".join(pieces)


def test_a_long_body_is_refused_unread(client: httpx.Client, admin: httpx.Client) -> None:
    body = wanted("b") | {"surprise": "x" * 10_000}
    response = client.post(ASK, json=body)
    assert "8192" in problem(response, 413, "invalid")
    # an administrator may send longer bodies, such as a configuration
    assert problem(admin.post(ASK, json=body), 422, "invalid")


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"NONSENSE\r\n\r\n", b"400"),
        (b"GET /healthz HTTP/1.1\r\nhost: x\r\nx: " + b"y" * 70_000, b"431"),
        (b"GET /healthz HTTP/1.1\r\nhost: x\r\n", b"408"),
        (b"", b"408"),
    ],
    ids=["no HTTP", "an endless head", "a slow head", "nothing"],
)
def test_a_head_that_is_none(world: World, server: AddressService, head: bytes, status: bytes) -> None:
    with world.connect(server) as connection:
        connection.sendall(head)
        found = answer(connection)
    assert found.split()[1:2] == [status], found[:200]
    assert b"application/problem+json" in found


def test_a_slow_body_does_not_wait_for_ever(world: World, server: AddressService) -> None:
    begin = time.monotonic()
    with world.connect(server) as connection:
        connection.sendall(world.head(100) + b"{")
        found = answer(connection)
    assert found.split()[1] == b"408", found[:200]
    assert b'"kind":"unavailable"' in found
    assert time.monotonic() - begin < ipam_server.PATIENCE


def test_too_many_connections_are_refused(world: World) -> None:
    server = world.serve("few", max_connections=3)
    held = [world.connect(server) for _ in range(3)]
    with world.connect(server) as connection:
        assert b" 503 " in answer(connection).split(b"\r\n")[0]
    for each in held:
        each.close()
    with world.host(server) as client:
        ipam_server.wait_for(lambda: _succeeds(client), "a free place")
    assert server.stop() == 0


def _succeeds(client: httpx.Client) -> bool:
    try:
        return client.get("/healthz").is_success
    except httpx.HTTPError:
        return False


# -------------------------------------------------------------------------------------------- metrics


def samples(client: httpx.Client) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    text = client.get("/metrics").text
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def key(name: str, **labels: str) -> tuple[str, frozenset[tuple[str, str]]]:
    return name, frozenset(labels.items())


def test_metrics_count_what_happened(client: httpx.Client, admin: httpx.Client) -> None:
    route = "/v1/networks/{network}/allocations"
    new = key("sriov_ipam_allocations_total", network="mynet", result="new")
    asked = key("sriov_ipam_requests_total", method="POST", route=route, status="201")
    released = key("sriov_ipam_releases_total", network="mynet")
    forbidden = key("sriov_ipam_errors_total", kind="forbidden")
    before = samples(client)
    address(ask(client, "m1"))
    problem(ask(client, "m2", host=OTHER_HOST), 403, "forbidden")
    used = samples(client)[key("sriov_ipam_pool_addresses_used", network="mynet", pool="a")]
    client.delete(owned("m1"), params={"host_ip": HOST})
    after = samples(client)
    for name in (new, asked, released, forbidden):
        assert after[name] - before.get(name, 0) == 1, name
    assert used == 1
    assert after[key("sriov_ipam_pool_addresses", network="mynet", pool="a")] == 21
    assert after[key("sriov_ipam_store_up")] == 1
    count = key("sriov_ipam_request_seconds_count", method="POST", route=route)
    assert after[count] > before.get(count, 0)
    assert after[key("sriov_ipam_certificate_expiry_timestamp_seconds")] > time.time()


def test_paths_that_are_none_make_no_series_of_their_own(client: httpx.Client) -> None:
    for number in range(3):
        client.get(f"/random/{number}")
    routes = {dict(labels).get("route") for _, labels in samples(client)}
    assert "unmatched" in routes
    assert not any(route and "random" in route for route in routes)


def test_the_log_says_who_asked_and_what_came_of_it(client: httpx.Client, server: AddressService) -> None:
    address(ask(client, "log1"))
    client.delete(owned("log1"), params={"host_ip": HOST})

    def lines() -> list[dict[str, Any]]:
        found = [each for each in server.events() if each.get("container_id") == "log1"]
        return found if len(found) == 2 else []

    made, gone = ipam_server.wait_for(lines, "two lines in the log")
    assert made["status"] == 201
    assert made["caller"].startswith("token:")
    assert made["host_ip"] == HOST
    assert made["ips"].startswith("10.55.206.")
    assert gone["released"] == 1
