"""Authentication and authorization: tokens, client certificates, open access, and TLS."""

from __future__ import annotations

import json
import signal
import ssl
import stat
import time
import warnings
from pathlib import Path

import httpx
import pytest
from ipam_server import (
    ADMIN,
    ASK,
    HOST,
    OTHER_HOST,
    PATIENCE,
    AddressService,
    Authority,
    World,
    address,
    ask,
    problem,
    run,
)
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from sriov_fast.ipamd import auth
from sriov_fast.ipamd.auth import Authenticator, Tokens

STATUS = "/v1/networks/mynet/status"
ADMINS = ("/v1/config", "/v1/allocations", "/v1/export", "/v1/usage")
OPEN = ("/healthz", "/readyz", "/metrics", "/v1/openapi.json")


@pytest.fixture(scope="module")
def server(world: World) -> AddressService:
    """Start a service that accepts tokens and the client certificates of two CAs."""
    run("ca", world.directory / "own", "--admin", "ipam-admin")
    both = world.directory / "clients.crt"
    both.write_bytes(world.authority.ca.read_bytes() + (world.directory / "own/ca.crt").read_bytes())
    return world.serve("s", auth=["token", "certificate"], client_ca=str(both), admins=["CN=other", ADMIN])


def every_ask_for(client: httpx.Client, host: str) -> list[httpx.Response]:
    """Send every kind of request with a HostIP; return the replies."""
    owner = f"{ASK}/c1/eth0"
    return [
        ask(client, "c1", host=host),
        client.get(owner, params={"host_ip": host}),
        client.get(STATUS, params={"host_ip": host}),
        client.delete(owner, params={"host_ip": host}),
        client.get("/v1/allocations", params={"host_ip": host}),
        client.get("/v1/networks/mynet/owners", params={"host_ip": host}),
    ]


def check_a_host(client: httpx.Client) -> None:
    """Assert that a host may act only for its own HostIP, and not as an administrator."""
    statuses = [response.status_code for response in every_ask_for(client, HOST)]
    assert statuses == [201, 200, 200, 204, 200, 200]
    for response in every_ask_for(client, OTHER_HOST):
        assert OTHER_HOST in problem(response, 403, "forbidden")
    for path in ADMINS:
        problem(client.get(path), 403, "forbidden")
    problem(client.put("/v1/config", json={}), 403, "forbidden")
    problem(client.post("/v1/import", json={}), 403, "forbidden")
    problem(client.delete("/v1/config/networks/mynet"), 403, "forbidden")


def check_an_administrator(client: httpx.Client) -> None:
    for path in ADMINS:
        assert client.get(path).status_code == 200
    address(ask(client, "c2", host=OTHER_HOST))
    assert client.delete(f"{ASK}/c2/eth0", params={"host_ip": OTHER_HOST}).status_code == 204


def check_a_stranger(client: httpx.Client) -> None:
    for path in OPEN:
        assert client.get(path).status_code == 200
    for path in (*ADMINS, f"{STATUS}?host_ip={HOST}", "/no/such/path"):
        response = client.get(path)
        problem(response, 401, "unauthorized")
        assert response.headers["www-authenticate"].startswith("Bearer")
    problem(ask(client, "c1"), 401, "unauthorized")


# --------------------------------------------------------------------------------------------- tokens


def test_a_hosts_token(world: World, server: AddressService) -> None:
    with world.host(server) as client:
        check_a_host(client)


def test_an_administrators_token(world: World, server: AddressService) -> None:
    with world.admin(server) as client:
        check_an_administrator(client)


def test_no_credentials(world: World, server: AddressService) -> None:
    with server.client(world.authority) as client:
        check_a_stranger(client)


@pytest.mark.parametrize("header", ["Bearer wrong", "Bearer", "Basic dTpw", "Bearer \u00e9"])
def test_wrong_credentials(world: World, server: AddressService, header: str) -> None:
    with server.client(world.authority) as client:
        response = client.get("/v1/config", headers={"authorization": header.encode("latin-1")})
    detail = problem(response, 401, "unauthorized")
    assert "wrong" not in detail


def test_a_token_for_several_hosts(world: World, server: AddressService) -> None:
    token = world.tokens.make("host", "10.55.206.128/25", OTHER_HOST)
    with server.client(world.authority, token) as client:
        for host in ("10.55.206.130", OTHER_HOST):
            assert client.get(STATUS, params={"host_ip": host}).status_code == 200
        problem(client.get(STATUS, params={"host_ip": HOST}), 403, "forbidden")


def test_a_broken_file_of_tokens_leaves_those_that_were_read(world: World, server: AddressService) -> None:
    good = world.tokens.path.read_bytes()
    with world.admin(server) as client:
        world.tokens.path.write_bytes(b"{")
        assert client.get("/v1/config").status_code == 200
        world.tokens.path.write_bytes(good)
        assert client.get("/v1/config").status_code == 200
    assert any("tokens" in event["msg"] for event in server.events() if event["level"] == "error")


def test_the_file_holds_hashes_only(world: World) -> None:
    text = world.tokens.path.read_text()
    assert world.tokens.host.removeprefix("sfi_") not in text
    assert stat.S_IMODE(world.tokens.path.stat().st_mode) == 0o600
    assert [len(each["sha256"]) for each in json.loads(text)["tokens"]][:2] == [64, 64]


def test_no_secret_is_logged(world: World, server: AddressService) -> None:
    with world.host(server) as client:
        address(ask(client, "secret"))
        client.delete(f"{ASK}/secret/eth0", params={"host_ip": HOST})
    assert world.tokens.host not in server.log.read_text()


# ---------------------------------------------------------------------------------------- certificates


def test_a_hosts_certificate(world: World, server: AddressService) -> None:
    mine = world.authority.issue("host", HOST, "fd00::20")
    with server.client(world.authority, certificate=mine) as client:
        check_a_host(client)
        assert ask(client, "six", host="fd00:0:0::20").status_code == 404  # authorized, but without a pool


def test_an_administrators_certificate(world: World, server: AddressService) -> None:
    name = world.directory / "own/admin-ipam-admin"
    mine = (name.with_suffix(".crt"), name.with_suffix(".key"))
    with server.client(world.authority, certificate=mine) as client:
        check_an_administrator(client)


def test_a_certificate_without_addresses_may_do_nothing(world: World, server: AddressService) -> None:
    mine = world.authority.issue("nobody", "node7.example")
    with server.client(world.authority, certificate=mine) as client:
        problem(ask(client, "c1"), 403, "forbidden")
        problem(client.get("/v1/config"), 403, "forbidden")


def test_another_cas_certificate_does_not_get_through_the_handshake(
    world: World, server: AddressService
) -> None:
    directory = world.directory / "foreign"
    directory.mkdir()
    foreign = Authority(directory).issue("host", HOST)
    with (
        server.client(world.authority, certificate=foreign) as client,
        pytest.raises(httpx.TransportError),
    ):
        client.get("/healthz")


def test_a_token_counts_before_a_certificate(world: World, server: AddressService) -> None:
    mine = world.authority.issue("host2", HOST)
    with server.client(world.authority, world.tokens.admin, mine) as client:
        check_an_administrator(client)
    with server.client(world.authority, "wrong", mine) as client:
        problem(ask(client, "c1"), 401, "unauthorized")


def test_a_certificate_means_nothing_where_it_is_not_asked_for(world: World) -> None:
    server = world.serve("tokens-only")
    mine = world.authority.issue("host3", HOST)
    with server.client(world.authority, certificate=mine) as client:
        problem(ask(client, "c1"), 401, "unauthorized")
    assert server.stop() == 0


# ----------------------------------------------------------------------------------------- auth = open


def test_an_open_service_believes_everyone(world: World) -> None:
    server = world.serve("open", insecure=True, auth="open")
    with server.client() as client:
        for host in (HOST, OTHER_HOST):
            address(ask(client, f"o-{host}", host=host))
        assert client.get("/v1/config").status_code == 200  # a loopback peer is an administrator
    warned = [event["msg"] for event in server.events() if event["level"] == "warning"]
    assert any("plain HTTP" in text for text in warned)
    assert any("auth = open" in text for text in warned)
    assert server.stop() == 0


def test_open_beside_tokens_admits_hosts_and_refuses_wrong_tokens(world: World) -> None:
    server = world.serve("both", auth=["open", "token"])
    with server.client(world.authority) as client:
        address(ask(client, "o1", host=OTHER_HOST))
    with server.client(world.authority, "wrong") as client:
        problem(ask(client, "o1", host=OTHER_HOST), 401, "unauthorized")
    assert server.stop() == 0


@pytest.mark.parametrize(
    ("peer", "admin"),
    [("127.0.0.1", True), ("::1", True), ("::ffff:127.0.0.1", True), ("10.0.0.1", False), (None, False)],
)
def test_without_credentials_only_this_machine_administrates(peer: str | None, admin: bool) -> None:
    caller = Authenticator(["open"], None, []).admit(None, None, peer)
    assert caller.admin is admin
    assert caller.may_act_for("10.0.0.9")
    assert caller.may_act_for("fd00::9")


# ------------------------------------------------------------------------------------------------- TLS


def test_tls_older_than_1_2_is_refused(world: World, server: AddressService) -> None:
    context = world.authority.trust()
    context.set_ciphers("DEFAULT:@SECLEVEL=0")
    with warnings.catch_warnings(action="ignore"):
        context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    with (
        httpx.Client(base_url=server.url, verify=context, trust_env=False) as client,
        pytest.raises(httpx.TransportError),
    ):
        client.get("/healthz")


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_certificates_work_in_each_version_of_tls(
    world: World, server: AddressService, version: ssl.TLSVersion
) -> None:
    context = world.authority.trust(world.authority.issue("v", HOST))
    context.minimum_version = context.maximum_version = version
    with httpx.Client(base_url=server.url, verify=context, trust_env=False, timeout=PATIENCE) as client:
        assert client.get(STATUS, params={"host_ip": HOST}).status_code == 200


def test_certificates_are_read_anew_on_sighup(world: World) -> None:
    directories = world.directory / "first", world.directory / "second"
    for directory in directories:
        directory.mkdir()
    first, second = map(Authority, directories)
    server = world.serve(
        "reload",
        cert=str(first.server[0]),
        key=str(first.server[1]),
        client_ca=str(first.ca),
        auth=["certificate"],
    )
    mine = first.issue("host", HOST)
    with server.client(first, certificate=mine) as client:
        assert client.get(STATUS, params={"host_ip": HOST}).status_code == 200
        first.server[0].write_text("no certificate")
        server.signal(signal.SIGHUP)
        server.wait("reload failed, all stays as it was")
        assert client.get("/healthz").status_code == 200
    for old, new in zip((*first.server, first.ca), (*second.server, second.ca), strict=True):
        old.write_bytes(new.read_bytes())
    server.signal(signal.SIGHUP)
    server.wait("reloaded")
    theirs = second.issue("host", HOST)
    with server.client(second, certificate=theirs) as client:
        assert client.get(STATUS, params={"host_ip": HOST}).status_code == 200
    # certificates of the former CA are refused
    with server.client(second, certificate=mine) as client, pytest.raises(httpx.TransportError):
        client.get("/healthz")
    assert server.stop() == 0


@pytest.mark.parametrize("parser", [HttpToolsProtocol, H11Protocol])
def test_the_peers_certificate_arrives_with_each_parser(
    world: World, monkeypatch: pytest.MonkeyPatch, parser: type
) -> None:
    """A client certificate authenticates with both HTTP parsers of uvicorn.

    Uvicorn selects the parser by the installed packages.
    """
    monkeypatch.setattr("uvicorn.protocols.http.auto.AutoHTTPProtocol", parser)
    server = world.serve(
        parser.__name__, client_ca=str(world.authority.ca), auth=["certificate"], receive_timeout=1.0
    )
    mine = world.authority.issue("host4", HOST)
    with server.client(world.authority, certificate=mine) as client:
        assert client.get(STATUS, params={"host_ip": HOST}).status_code == 200
        time.sleep(1.5)  # above receive_timeout, which does not apply to idle connections
        assert client.get(STATUS, params={"host_ip": HOST}).status_code == 200
    with server.client(world.authority) as client:
        problem(client.get(STATUS, params={"host_ip": HOST}), 401, "unauthorized")
    assert server.stop() == 0


# -------------------------------------------------------------------------------------------- token file


@pytest.mark.parametrize(
    ("entry", "named"),
    [
        ({"role": "host", "hosts": []}, "role host"),
        ({"role": "admin", "hosts": ["10.0.0.1"]}, "role admin"),
        ({"role": "king"}, "tokens[0].role"),
        ({"role": "host", "hosts": ["10.0.0.1/8"]}, "10.0.0.1/8"),
        ({"role": "admin", "sha256": "short"}, "tokens[0].sha256"),
    ],
)
def test_a_wrong_entry_of_the_file_is_named(tmp_path: Path, entry: dict[str, object], named: str) -> None:
    good = {"id": "1", "sha256": "0" * 64, "created": "2026-01-01T00:00:00+00:00"}
    path = tmp_path / "tokens.json"
    path.write_text(json.dumps({"tokens": [good | entry]}))
    with pytest.raises(ValueError, match=r"tokens\.json") as caught:
        Tokens(path)
    assert named in str(caught.value)


def test_rewriting_the_file_keeps_who_may_read_it(tmp_path: Path) -> None:
    path = tmp_path / "tokens.json"
    auth.write_tokens(path, [])
    path.chmod(0o640)
    _, kept = auth.new_token("admin", [])
    auth.write_tokens(path, [kept])
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert auth.read_tokens(path) == [kept]
