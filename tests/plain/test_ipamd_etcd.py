"""The address service over an etcd process: replicas, failover, kills, TLS, passwords, compaction."""

from __future__ import annotations

import asyncio
import json
import os
import urllib.request
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from ipam_server import Authority
from ipamd_kit import Etcd, address, ask, config, configure, free_port, opened

from sriov_fast.ipamd.errors import Exhausted, ServiceError, Unavailable
from sriov_fast.ipamd.service import Service, open_store
from sriov_fast.ipamd.store_etcd import read_settings

pytestmark = pytest.mark.anyio


@pytest.fixture
def url(etcd: Etcd) -> str:
    return f"{etcd.url}?prefix={uuid4().hex}"


async def test_two_replicas_share_a_pool_to_its_last_address(service: Service, replica: Service) -> None:
    await configure(service, config("10.1.0.0/26"))
    outcomes = await asyncio.gather(
        *((service, replica)[at % 2].allocate(ask(at)) for at in range(80)), return_exceptions=True
    )
    found = [it[0].ips[0].address for it in outcomes if isinstance(it, tuple)]
    assert len(found) == len(set(found)) == 62
    assert {type(it) for it in outcomes if not isinstance(it, tuple)} == {Exhausted}


async def test_the_next_endpoint_is_asked_when_one_is_gone(etcd: Etcd) -> None:
    gone = [f"127.0.0.1:{free_port()}" for _ in range(2)]
    async with opened(f"etcd://{gone[0]},{etcd.address},{gone[1]}?prefix={uuid4().hex}") as service:
        await configure(service, config())
        for at in range(10):
            await service.allocate(ask(at))
        await service.ready()


async def test_without_etcd_the_service_is_unavailable_and_comes_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sriov_fast.ipamd.store_etcd.PATIENCE", 0.5)
    with Etcd(sync=True) as own:
        async with opened(own.url) as service:
            await configure(service, config())
            found = await address(service, 1)
            own.kill()
            with pytest.raises(Unavailable, match=own.address):
                await service.allocate(ask(2))
            with pytest.raises(Unavailable, match=own.address):
                await service.ready()
            own.start()
            await service.ready()
            assert await address(service, 1) == found
            assert await address(service, 2) != found


async def test_etcd_killed_under_load_loses_nothing() -> None:
    """Acknowledged allocations survive a kill of etcd; pending requests succeed after its restart."""
    found: dict[str, str] = {}

    async def client(service: Service, number: int) -> None:
        for turn in range(6):
            name = f"{number}-{turn}"
            found[name] = await address(service, name)

    with Etcd(sync=True) as own:
        async with opened(own.url) as service:
            await configure(service, config())
            clients = [asyncio.create_task(client(service, number)) for number in range(16)]
            while len(found) < 20:
                await asyncio.sleep(0.01)
            own.kill()
            before = dict(found)
            assert len(before) < 96
            await asyncio.to_thread(own.start)
            await asyncio.gather(*clients)
            assert before.items() <= found.items()
            held = {it.container_id[1:]: it.ips[0].address[:-3] for it in await service.allocations()}
            assert held == found
            assert len(set(found.values())) == 96


def post(etcd: Etcd, path: str, body: dict[str, Any]) -> dict[str, Any]:
    request = urllib.request.Request(f"http://{etcd.address}{path}", json.dumps(body).encode())
    with urllib.request.urlopen(request, timeout=5) as answer:
        found: dict[str, Any] = json.load(answer)
        return found


async def test_compaction_does_no_harm(etcd: Etcd, service: Service) -> None:
    async def compact() -> None:
        for _ in range(20):
            answer = await asyncio.to_thread(post, etcd, "/v3/kv/range", {"key": "AA=="})
            body = {"revision": answer["header"]["revision"]}
            try:
                await asyncio.to_thread(post, etcd, "/v3/kv/compaction", body)
            except OSError:
                pass  # already compacted to this revision

    await configure(service, config())
    found, _ = await asyncio.gather(asyncio.gather(*(address(service, at) for at in range(150))), compact())
    assert len(set(found)) == 150
    assert len((await service.export())["allocations"]) == 150


async def test_passwords_are_used_and_never_told() -> None:
    with Etcd("--auth-token-ttl", "1") as own:
        b64 = {"key": "AA==", "range_end": "AA=="}
        post(own, "/v3/auth/user/add", {"name": "root", "password": "Sesame"})
        post(own, "/v3/auth/role/add", {"name": "root"})
        post(own, "/v3/auth/role/grant", {"name": "root", "perm": {"permType": "READWRITE", **b64}})
        post(own, "/v3/auth/user/grant", {"user": "root", "role": "root"})
        post(own, "/v3/auth/enable", {})
        async with opened(f"etcd://root:Sesame@{own.address}") as service:
            await configure(service, config())
            assert await address(service, 1)
            await asyncio.sleep(2.5)  # the token expires; the service requests a new one
            assert await address(service, 2)
        async with opened(f"{own.url}?user=root&password=Sesame") as service:
            assert await address(service, 3)
        for login in ("root:wrong7@", ""):
            async with opened(f"etcd://{login}{own.address}") as service:
                with pytest.raises(Unavailable) as caught:
                    await service.config()
                assert own.address in str(caught.value)
                assert "wrong7" not in str(caught.value)


async def test_tls_with_certificates_on_both_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sriov_fast.ipamd.store_etcd.PATIENCE", 2.0)
    authority = Authority(tmp_path)
    cert, key = authority.server
    files = ("--cert-file", str(cert), "--key-file", str(key), "--trusted-ca-file", str(authority.ca))
    with Etcd(*files, "--client-cert-auth", scheme="https") as own:
        async with opened(f"{own.url}?ca={authority.ca}&cert={cert}&key={key}") as service:
            await configure(service, config())
            assert await address(service, 1)
        for query in (f"ca={authority.ca}", "tls=1"):  # no client certificate; the CA is not trusted
            async with opened(f"{own.url}?{query}") as service:
                with pytest.raises(Unavailable, match=own.address):
                    await service.config()


def test_the_url_says_it_all() -> None:
    found = read_settings("etcd://u:p%40@h1:1,[fd00::1]:2,h3?prefix=/x/y/")
    assert found.endpoints == ("http://h1:1", "http://[fd00::1]:2", "http://h3:2379")
    assert (found.prefix, found.user, found.password, found.tls) == ("x/y/", "u", "p@", None)


async def test_a_refusal_is_no_reason_to_try_again(url: str) -> None:
    """A request that is too large for etcd fails with etcd's error message."""
    store = await open_store(url)
    with pytest.raises(ServiceError, match="too large"):
        await store.write([("big", os.urandom(1_800_000))])
    await store.close()
