"""The address service over etcd as it is run: replicas, failover, kills, TLS, passwords, compaction."""

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
from ipamd_kit import Etcd, address, ask, config, free_port, served

from sriov_fast.ipamd.errors import Exhausted, ServiceError, Unavailable
from sriov_fast.ipamd.service import Service, open_service
from sriov_fast.ipamd.store_etcd import read_settings


@pytest.fixture
def url(etcd: Etcd) -> str:
    return f"{etcd.url}?prefix={uuid4().hex}"


def test_two_replicas_share_a_pool_to_its_last_address(url: str) -> None:
    async def work(one: Service) -> None:
        two = await open_service(url)
        try:
            outcomes = await asyncio.gather(
                *((one, two)[at % 2].allocate(ask(at)) for at in range(80)), return_exceptions=True
            )
        finally:
            await two.close()
        found = [it[0].ips[0].address for it in outcomes if isinstance(it, tuple)]
        assert len(found) == len(set(found)) == 62
        assert {type(it) for it in outcomes if not isinstance(it, tuple)} == {Exhausted}

    served(url, work, config("10.1.0.0/26"))


def test_the_next_endpoint_is_asked_when_one_is_gone(etcd: Etcd) -> None:
    prefix = uuid4().hex
    second = f"etcd://127.0.0.1:{free_port()},{etcd.address},127.0.0.1:{free_port()}?prefix={prefix}"

    async def work(service: Service) -> None:
        for at in range(10):
            await service.allocate(ask(at))
        await service.ready()

    served(second, work, config())


def test_without_etcd_the_service_is_unavailable_and_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sriov_fast.ipamd.store_etcd.PATIENCE", 0.5)
    with Etcd(sync=True) as own:

        async def work(service: Service) -> None:
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

        served(f"etcd://{own.address}", work, config())


def test_etcd_killed_under_load_loses_nothing() -> None:
    """What was acknowledged is there after etcd was killed, and clients only wait for it to come back."""
    found: dict[str, str] = {}
    with Etcd(sync=True) as own:

        async def client(service: Service, number: int) -> None:
            for turn in range(6):
                name = f"{number}-{turn}"
                found[name] = await address(service, name)

        async def work(service: Service) -> None:
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

        served(f"etcd://{own.address}", work, config())


def post(etcd: Etcd, path: str, body: dict[str, Any]) -> dict[str, Any]:
    request = urllib.request.Request(f"http://{etcd.address}{path}", json.dumps(body).encode())
    with urllib.request.urlopen(request, timeout=5) as answer:
        found: dict[str, Any] = json.load(answer)
        return found


def test_compaction_does_no_harm(etcd: Etcd, url: str) -> None:
    async def work(service: Service) -> None:
        async def compact() -> None:
            for _ in range(20):
                answer = await asyncio.to_thread(post, etcd, "/v3/kv/range", {"key": "AA=="})
                body = {"revision": answer["header"]["revision"]}
                try:
                    await asyncio.to_thread(post, etcd, "/v3/kv/compaction", body)
                except OSError:
                    pass  # compacted up to there already

        found, _ = await asyncio.gather(
            asyncio.gather(*(address(service, at) for at in range(150))), compact()
        )
        assert len(set(found)) == 150
        assert len((await service.export())["allocations"]) == 150

    served(url, work, config())


def test_passwords_are_used_and_never_told() -> None:
    with Etcd("--auth-token-ttl", "1") as own:
        b64 = {"key": "AA==", "range_end": "AA=="}
        post(own, "/v3/auth/user/add", {"name": "root", "password": "Sesame"})
        post(own, "/v3/auth/role/add", {"name": "root"})
        post(own, "/v3/auth/role/grant", {"name": "root", "perm": {"permType": "READWRITE", **b64}})
        post(own, "/v3/auth/user/grant", {"user": "root", "role": "root"})
        post(own, "/v3/auth/enable", {})

        async def work(service: Service) -> None:
            assert await address(service, 1)
            await asyncio.sleep(2.5)  # the token expires, and is asked for anew
            assert await address(service, 2)

        served(f"etcd://root:Sesame@{own.address}", work, config())
        served(f"etcd://{own.address}?user=root&password=Sesame", work)
        for login in ("root:wrong7@", ""):
            with pytest.raises(Unavailable) as caught:
                served(f"etcd://{login}{own.address}", work, config())
            assert own.address in caught.value.detail
            assert "wrong7" not in caught.value.detail


def test_tls_with_certificates_on_both_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sriov_fast.ipamd.store_etcd.PATIENCE", 2.0)
    authority = Authority(tmp_path)
    cert, key = authority.server
    files = ("--cert-file", str(cert), "--key-file", str(key), "--trusted-ca-file", str(authority.ca))

    async def work(service: Service) -> None:
        assert await address(service, 1)

    with Etcd(*files, "--client-cert-auth", scheme="https") as own:
        served(f"etcd://{own.address}?ca={authority.ca}&cert={cert}&key={key}", work, config())
        for query in (f"ca={authority.ca}", "tls=1"):  # without a certificate; without trust in the CA
            with pytest.raises(Unavailable, match=own.address):
                served(f"etcd://{own.address}?{query}", work, config())


def test_the_url_says_it_all() -> None:
    found = read_settings("etcd://u:p%40@h1:1,[fd00::1]:2,h3?prefix=/x/y/")
    assert found.endpoints == ("http://h1:1", "http://[fd00::1]:2", "http://h3:2379")
    assert (found.prefix, found.user, found.password, found.tls) == ("x/y/", "u", "p@", None)


def test_a_refusal_is_no_reason_to_try_again(url: str) -> None:
    """A request that etcd can never take fails at once, with etcd's words."""

    async def work(service: Service) -> None:
        with pytest.raises(ServiceError, match="too large"):
            await service._store.write([("big", os.urandom(1_800_000))])

    served(url, work)
