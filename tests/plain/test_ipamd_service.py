"""The rules of the address service, over both stores."""

from __future__ import annotations

import asyncio
from ipaddress import ip_interface, ip_network
from pathlib import Path
from typing import Any

import pytest
from ipamd_kit import HOST, Clock, address, ask, config, configure, made, opened, release

from sriov_fast.ipamd.config import Config
from sriov_fast.ipamd.errors import (
    Conflict,
    Exhausted,
    Forbidden,
    Invalid,
    NotFound,
    OtherRevision,
    ServiceError,
    UnknownHost,
    UnknownNetwork,
)
from sriov_fast.ipamd.model import Allocation, Leased
from sriov_fast.ipamd.service import Service, open_service

OWNER = ("n", "c1", "eth0")

pytestmark = pytest.mark.anyio


def refused(kind: type[ServiceError], *words: str) -> Any:
    """Expect an error of ``kind`` with all of ``words`` in its message."""
    pattern = "".join(f"(?=.*{word})" for word in words)
    return pytest.raises(kind, match=f"(?s){pattern}")


async def test_an_allocation_says_everything(service: Service) -> None:
    pools = [
        {
            "name": "a",
            "network": "n",
            "subnet": "10.55.206.0/26",
            "gateway": "10.55.206.1",
            "vlan": 100,
            "routes": [{"dst": "0.0.0.0/0"}, {"dst": "10.0.0.0/8", "gw": "10.55.206.2"}],
            "dns": {"nameservers": ["10.0.0.53"], "domain": "x", "search": ["x", "y"]},
            "mac_prefix": "02:5a:00",
        },
        {"name": "a6", "network": "n", "subnet": "fd00:5::/64", "dns": {"nameservers": ["fd00::53"]}},
    ]
    document = config(pools=pools)
    document["hosts"][0]["pools"] = ["a6", "a"]
    await configure(service, document)
    allocation, created = await service.allocate(ask(1))
    assert created
    four, six = (ip_interface(ip.address) for ip in allocation.ips)
    assert four.network == ip_network("10.55.206.0/26")
    assert six.network == ip_network("fd00:5::/64")
    assert allocation.document() == {
        "network": "n",
        "container_id": "c1",
        "ifname": "eth0",
        "pod_id": "ns/c1",
        "host_ip": HOST,
        "lease": allocation.lease,
        "ips": [{"address": str(four), "gateway": "10.55.206.1"}, {"address": str(six)}],
        "routes": [{"dst": "0.0.0.0/0", "gw": "10.55.206.1"}, {"dst": "10.0.0.0/8", "gw": "10.55.206.2"}],
        "dns": {"nameservers": ["10.0.0.53", "fd00::53"], "domain": "x", "search": ["x", "y"]},
        "extra": {"vlan": 100, "mac": f"02:5a:00:00:00:{int(four.ip) & 0x3F:02x}"},
    }
    assert allocation.lease
    assert Allocation.model_validate(allocation.document()) == allocation
    assert await service.find("n", "c1", "eth0") == allocation


async def test_the_same_owner_gets_the_same_answer(service: Service) -> None:
    await configure(service, config())
    first, created = await service.allocate(ask(1))
    again, anew = await service.allocate(ask(1))
    assert (created, anew) == (True, False)
    assert again == first
    changed = config(pool={"gateway": "10.1.0.1"})
    await configure(service, changed)
    assert (await service.allocate(ask(1)))[0] == first
    assert await address(service, 1, ifname="eth1") != first.ips[0].address.partition("/")[0]


async def test_another_pod_or_host_is_a_conflict(service: Service) -> None:
    await configure(service, config())
    await service.allocate(ask(1))
    with refused(Conflict, "pod_id", "ns/other", "ns/c1"):
        await service.allocate(ask(1, "ns/other"))
    with refused(Conflict, "host_ip", "10.9.0.2", "10.9.0.1"):
        await service.allocate(ask(1, host="10.9.0.2"))


async def test_unknown_networks_and_hosts(service: Service) -> None:
    document = config()
    document["hosts"][0]["hosts"] = ["10.9.0.0/24"]
    await configure(service, document)
    with refused(UnknownNetwork, "network", "'m'"):
        await service.allocate(ask(1, network="m"))
    with refused(UnknownHost, "host_ip", "10.8.0.1"):
        await service.allocate(ask(1, host="10.8.0.1"))
    with refused(UnknownHost, "host_ip", "10.8.0.1"):
        await service.status("n", "10.8.0.1")
    with refused(UnknownNetwork, "'m'"):
        await service.find("m", "c1", "eth0")
    with refused(NotFound, "c1"):
        await service.find("n", "c1", "eth0")
    assert await address(service, 1, host="::ffff:10.9.0.7")


async def test_an_empty_service_knows_nothing(service: Service) -> None:
    assert await service.config() == (Config(), "0")
    with refused(UnknownNetwork, "'n'"):
        await service.allocate(ask(1))
    assert not await release(service, 1)
    assert await service.usage() == []
    await service.ready()


async def test_the_longest_prefix_wins(service: Service) -> None:
    names = {"wide": "0.0.0.0/0", "rack": "10.9.0.0/16", "host": "10.9.9.9"}
    document = config(
        pools=[{"name": name, "network": "n", "subnet": f"10.{at}.0.0/24"} for at, name in enumerate(names)],
        hosts=[{"network": "n", "hosts": [cidr], "pools": [name]} for name, cidr in names.items()],
    )
    await configure(service, document)
    for at, host in enumerate(["192.168.0.1", "10.9.8.8", "10.9.9.9"]):
        found = await address(service, at, host=host)
        assert found.startswith(f"10.{at}.0.")
        assert [use.name for use in await service.status("n", host)] == [list(names)[at]]


async def test_a_fixed_assignment_wins(service: Service) -> None:
    fixed = {"pod_id": "ns/db", "ips": ["10.1.0.3"], "mac": "aa:bb:cc:00:00:01", "vlan": 7, "vf": 0}
    document = config("10.1.0.0/29", assignments=[fixed], pool={"vlan": 5})
    await configure(service, document)
    others = [await address(service, at) for at in range(5)]
    assert sorted(others) == [f"10.1.0.{at}" for at in (1, 2, 4, 5, 6)]
    with refused(Exhausted, "'a'"):
        await service.allocate(ask(5))
    allocation, _ = await service.allocate(ask("db", "ns/db"))
    assert allocation.ips[0].address == "10.1.0.3/29"
    assert allocation.extra.model_dump() == {"vf": 0, "vlan": 7, "mac": "aa:bb:cc:00:00:01"}
    with refused(Conflict, "10.1.0.3", "'cnew'", "'cdb'", "ns/db"):
        await service.allocate(ask("new", "ns/db"))
    assert await release(service, "db")
    with refused(Exhausted, "'a'"):
        await service.allocate(ask(5))
    assert await address(service, "new", "ns/db") == "10.1.0.3"
    assert [(use.total, use.used) for use in await service.usage()] == [(6, 6)]


async def test_an_assignment_may_leave_the_address_to_the_pool(service: Service) -> None:
    await configure(service, config(assignments=[{"pod_id": "ns/db", "vf": 3}], pool={"vlan": 5}))
    allocation, _ = await service.allocate(ask(1, "ns/db"))
    assert allocation.extra.model_dump() == {"vf": 3, "vlan": 5, "mac": None}
    assert allocation.ips[0].address.startswith("10.1.0.")


@pytest.mark.parametrize("hosts", [["10.9.0.1"], ["10.9.0.0/30", "fd00::/64"]])
async def test_an_assignment_for_some_hosts(service: Service, hosts: list[str]) -> None:
    await configure(service, config(assignments=[{"pod_id": "db", "ips": ["10.1.0.3"], "hosts": hosts}]))
    with refused(Forbidden, "10.9.0.9", "assignment of pod 'db' is for hosts 10.9.0."):
        await service.allocate(ask(1, "db", host="10.9.0.9"))
    assert await address(service, 2, "db", host="10.9.0.1") == "10.1.0.3"
    assert await address(service, 3, host="10.9.0.9") != "10.1.0.3"


async def test_an_address_taken_before_it_was_assigned_names_both(service: Service) -> None:
    await configure(service, config())
    taken = await address(service, 1)
    fixed = {"pod_id": "ns/db", "ips": [taken]}
    await configure(service, config(assignments=[fixed]))
    with refused(Conflict, taken, "'c2'", "ns/db", "'c1'", "ns/c1"):
        await service.allocate(ask(2, "ns/db"))
    await release(service, 1)
    assert await address(service, 2, "ns/db") == taken


async def test_a_freed_address_can_be_assigned(service: Service) -> None:
    await configure(service, config("10.1.0.0/29"))
    found = [await address(service, at) for at in range(6)]
    for at in range(6):
        await release(service, at)
    fixed = [{"pod_id": "ns/db", "ips": [found[2]]}, {"pod_id": "ns/c4", "ips": [found[5]]}]
    await configure(service, config("10.1.0.0/29", assignments=fixed))
    assert await address(service, "db", "ns/db") == found[2]
    assert await address(service, 4) == found[5]
    others = {await address(service, f"x{at}") for at in range(4)}
    assert others == set(found) - {found[2], found[5]}
    with refused(Exhausted):
        await service.allocate(ask(9))


async def test_an_address_that_is_assigned_no_more_comes_back(service: Service) -> None:
    fixed = [{"pod_id": "ns/db", "ips": ["10.1.0.1"]}, {"pod_id": "ns/web", "ips": ["10.1.0.2"]}]
    await configure(service, config("10.1.0.0/29", assignments=fixed))
    await service.allocate(ask("db", "ns/db"))
    found = {await address(service, at) for at in range(4)}
    await configure(service, config("10.1.0.0/29"))
    found.add(await address(service, 4))
    assert found == {f"10.1.0.{at}" for at in (2, 3, 4, 5, 6)}
    with refused(Exhausted):
        await service.allocate(ask(5))
    assert await release(service, "db")
    assert await address(service, 5) == "10.1.0.1"


async def test_a_full_pool_says_so_and_has_room_after_a_release(service: Service) -> None:
    await configure(service, config("10.1.0.0/28", pool={"gateway": "10.1.0.1"}))
    found = [await address(service, at) for at in range(13)]
    assert sorted(map(ip_interface, found)) == [ip_interface(f"10.1.0.{at}") for at in range(2, 15)]
    with refused(Exhausted, "pool", "'a'", "13"):
        await service.allocate(ask(13))
    with refused(Exhausted, "'a'"):
        await service.status("n", HOST)
    assert await address(service, 4) == found[4]
    await release(service, 7)
    assert [(use.total, use.used) for use in await service.status("n", HOST)] == [(13, 12)]
    assert await address(service, 13) == found[7]


async def test_the_status_of_a_host_with_two_pools_is_what_an_ask_meets(service: Service) -> None:
    """One full pool refuses both status and allocation, since a pod needs an address of each IP version."""
    ranges = [{"start": "10.1.0.5", "end": "10.1.0.6"}]
    pools = [
        {"name": "a", "network": "n", "subnet": "10.1.0.0/24", "ranges": ranges},
        {"name": "six", "network": "n", "subnet": "fd00::/64"},
    ]
    document = config(pools=pools)
    document["hosts"][0]["pools"] = ["six", "a"]
    await configure(service, document)
    for at in range(2):
        assert [use.used for use in await service.status("n", HOST)] == [at, at]
        await service.allocate(ask(at))
    with refused(Exhausted, "'a'"):
        await service.status("n", HOST)
    with refused(Exhausted, "'a'"):
        await service.allocate(ask(2))
    assert [use.used for use in await service.usage()] == [2, 2]


async def test_only_the_ranges_are_used(service: Service) -> None:
    ranges = [{"start": "10.1.0.200", "end": "10.1.0.201"}, {"start": "10.1.0.5", "end": "10.1.0.6"}]
    await configure(service, config(pool={"ranges": ranges, "gateway": "10.1.0.200"}))
    found = {await address(service, at) for at in range(3)}
    assert found == {"10.1.0.5", "10.1.0.6", "10.1.0.201"}
    with refused(Exhausted):
        await service.allocate(ask(3))


async def test_a_pod_returns_to_its_address_within_the_grace(service: Service, clock: Clock) -> None:
    await configure(service, config(grace=60, pool={"mac_prefix": "02:5a:00"}))
    first, _ = await service.allocate(ask(1, "ns/web"))
    await release(service, 1)
    clock.now += 59
    for at in range(10, 40):
        assert await address(service, at) != first.ips[0].address.partition("/")[0]
    again, created = await service.allocate(ask(2, "ns/web"))
    assert created
    assert (again.ips, again.extra) == (first.ips, first.extra)


async def test_the_grace_is_of_the_pods_interface(service: Service) -> None:
    await configure(service, config())
    first = await address(service, 1, "ns/web")
    second = await address(service, 1, "ns/web", ifname="eth1")
    await release(service, 1)
    await release(service, 1, ifname="eth1")
    assert await address(service, 2, "ns/web", ifname="eth1") == second
    assert await address(service, 2, "ns/web") == first


async def test_waiting_addresses_go_to_others_only_when_nothing_else_is_free(
    service: Service, clock: Clock
) -> None:
    await configure(service, config("10.1.0.0/29", grace=300))
    found = [await address(service, at, f"ns/{at}") for at in range(6)]
    await release(service, 0)
    clock.now += 10
    await release(service, 1)
    clock.now += 10
    assert await address(service, 7) == found[0]  # released first
    await release(service, 5)
    assert await address(service, 8) == found[1]
    assert await address(service, "5b", "ns/5") == found[5]
    with refused(Exhausted):
        await service.allocate(ask(9))


async def test_after_the_grace_an_address_is_like_any_other(service: Service, clock: Clock) -> None:
    await configure(service, config("10.1.0.0/29", grace=10))
    found = [await address(service, at, f"ns/{at}") for at in range(6)]
    await release(service, 3)
    clock.now += 5
    await release(service, 2)
    clock.now += 6
    assert await address(service, 7) == found[3]  # only this address's grace is over
    await release(service, 7)
    clock.now += 100
    assert {await address(service, 8), await address(service, 9)} == {found[2], found[3]}


async def test_without_a_pod_nothing_waits(service: Service) -> None:
    await configure(service, config())
    await service.allocate(ask(1, ""))
    await service.allocate(ask(2, "%"))
    await release(service, 1)
    await release(service, 2)
    exported = await service.export()
    assert [(it["pod_id"], it["ifname"]) for it in exported["sticky"]] == [("%", "eth0")]


async def test_release_is_idempotent_and_only_by_the_owners_host_and_pod(service: Service) -> None:
    await configure(service, config())
    await service.allocate(ask(1))
    with refused(Conflict, "host_ip", "10.9.0.2", HOST):
        await service.release(("n", "c1", "eth0"), "10.9.0.2")
    with refused(Conflict, "pod_id", "ns/other", "ns/c1"):
        await service.release(("n", "c1", "eth0"), HOST, "ns/other")
    assert await service.release(("n", "c1", "eth0"), HOST, "ns/c1")
    assert not await service.release(("n", "c1", "eth0"), HOST, "ns/c1")
    assert not await service.release(("gone", "c1", "eth0"), HOST)
    assert await service.allocations() == []


async def test_a_release_that_names_a_lease_frees_that_and_nothing_else(service: Service) -> None:
    await configure(service, config())
    first, _ = await service.allocate(ask(1))
    assert (await service.allocate(ask(1)))[0].lease == first.lease
    assert await service.release(OWNER, HOST, lease=first.lease)
    second, _ = await service.allocate(ask(1))
    assert second.ips == first.ips  # within the grace; only the lease differs
    assert not await service.release(OWNER, HOST, "ns/c1", first.lease)
    assert not await service.release(OWNER, "10.9.9.9", "ns/other", first.lease)
    assert await service.find(*OWNER) == second
    with refused(Conflict, "host_ip"):
        await service.release(OWNER, "10.9.9.9", lease=second.lease)
    assert await service.release(OWNER, HOST, "ns/c1", second.lease)
    assert not await service.release(OWNER, HOST, "ns/c1", second.lease)


async def test_leases_survive_a_backup_and_one_without_them_is_understood(service: Service) -> None:
    await configure(service, config())
    first, second = [(await service.allocate(ask(at)))[0] for at in (1, 2)]
    document = await service.export()
    await service.load(document, replace=True)
    assert await service.find(*OWNER) == first
    assert not await service.release(OWNER, HOST, lease=second.lease)
    assert await service.release(OWNER, HOST, lease=first.lease)
    for it in document["allocations"]:
        del it["lease"]
    await service.load(document, replace=True)
    assert (await service.find(*OWNER)).lease == ""
    assert await service.release(OWNER, HOST, lease=first.lease)
    assert await service.release(("n", "c2", "eth0"), HOST, lease=second.lease)


async def test_the_owners_of_a_host_come_in_pages(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sriov_fast.ipamd.service.PAGE", 4)
    await configure(service, config())
    leases = {}
    for at in range(10):
        for ifname in ("eth0", "eth.1") if at == 5 else ("eth0",):
            allocation, _ = await service.allocate(ask(at, ifname=ifname))
            leases[f"c{at}", ifname] = allocation.lease
    await service.allocate(ask(1, host="10.9.0.2", network="n", ifname="far"))
    found: list[Leased] = []
    after = None
    while page := await service.owners("n", HOST, after):
        assert len(page) <= 4
        found += page
        after = page[-1].container_id, page[-1].ifname
    assert {(it.container_id, it.ifname): it.lease for it in found} == leases
    assert len(found) == 11
    with refused(UnknownNetwork, "'m'"):
        await service.owners("m", HOST)


async def test_macs_are_unique_in_the_pool(service: Service) -> None:
    await configure(service, config(pool={"mac_prefix": "06:5a"}))
    found = [(await service.allocate(ask(at)))[0].extra.mac or "" for at in range(60)]
    assert len(set(found)) == 60
    assert all(mac.startswith("06:5a:") for mac in found)


async def test_many_at_once_get_all_addresses_once(service: Service) -> None:
    await configure(service, config("10.1.0.0/26"))
    results = await asyncio.gather(*(service.allocate(ask(at)) for at in range(100)), return_exceptions=True)
    found = [it[0].ips[0].address for it in results if not isinstance(it, BaseException)]
    failed = [it for it in results if isinstance(it, BaseException)]
    assert len(found) == len(set(found)) == 62
    assert {type(it) for it in failed} == {Exhausted}


async def test_the_same_owner_at_once_gets_one_address(service: Service) -> None:
    await configure(service, config())
    results = await asyncio.gather(*(service.allocate(ask(1)) for _ in range(20)))
    assert len({it.ips[0].address for it, _ in results}) == 1
    assert sum(created for _, created in results) == 1
    assert [use.used for use in await service.usage()] == [1]


async def test_configure_compares_and_swaps(service: Service) -> None:
    await configure(service, config())
    _, revision = await service.config()
    changed = made(config(grace=1))
    newer = await service.configure(changed, revision)
    assert await service.config() == (changed, newer)
    with refused(OtherRevision, f'If-Match: "{revision}"', f'revision "{newer}"'):
        await service.configure(made(config(grace=2)), revision)
    assert (await service.config())[0] == changed
    outcomes = await asyncio.gather(
        *(service.configure(made(config(grace=at)), newer) for at in range(2, 6)), return_exceptions=True
    )
    assert sorted(type(it).__name__ for it in outcomes) == ["OtherRevision"] * 3 + ["str"]


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"pools": [], "hosts": []}, id="pool gone"),
        pytest.param({"networks": [], "pools": [], "hosts": []}, id="network gone"),
        pytest.param(
            {"pools": [{"name": "a", "network": "n", "subnet": "10.2.0.0/24"}]}, id="another subnet"
        ),
    ],
)
async def test_what_is_held_is_not_orphaned(service: Service, change: dict[str, Any]) -> None:
    await configure(service, config())
    await service.allocate(ask(1))
    with refused(Conflict, "'a'", "'c1'", "'eth0'", "'n'"):
        await configure(service, config() | change)
    assert (await service.config())[0] == made(config())
    await release(service, 1)
    await configure(service, config() | change)
    await configure(service, config())
    assert await address(service, 1, "ns/c1")


async def test_ranges_may_shrink_and_grow_under_what_is_held(service: Service) -> None:
    def ranged(start: int, end: int) -> Config:
        return made(config(pool={"ranges": [{"start": f"10.1.0.{start}", "end": f"10.1.0.{end}"}]}))

    await configure(service, config())
    await service.configure(ranged(10, 13), None)
    held = [await address(service, at, "") for at in range(4)]
    await service.configure(ranged(12, 14), None)
    assert await address(service, 4, "") == "10.1.0.14"
    for at in range(4):
        await release(service, at)
    found = {await address(service, f"x{at}", "") for at in range(2)}
    assert found == {"10.1.0.12", "10.1.0.13"}
    with refused(Exhausted):
        await service.allocate(ask(9))
    await service.configure(ranged(8, 14), None)
    found = {await address(service, f"y{at}", "") for at in range(4)}
    assert found == {"10.1.0.8", "10.1.0.9", "10.1.0.10", "10.1.0.11"}
    assert len(held) == len(set(held))
    with refused(Exhausted):
        await service.allocate(ask(9))


async def test_what_was_given_back_outside_the_ranges_is_not_lost(service: Service) -> None:
    """Addresses released while outside the ranges or assigned are free in the restored configuration."""
    narrow = config("10.1.0.0/29", pool={"ranges": [{"start": "10.1.0.1", "end": "10.1.0.2"}]})
    assigned = config("10.1.0.0/29", assignments=[{"pod_id": "ns/c5", "ips": ["10.1.0.5"]}])
    await configure(service, config("10.1.0.0/29"))
    for meanwhile in (narrow, assigned):
        found = {await address(service, at) for at in range(6)}
        await configure(service, meanwhile)
        for at in range(6):
            await release(service, at)
        if meanwhile is assigned:
            await service.allocate(ask(5))
            await release(service, 5)
        await configure(service, config("10.1.0.0/29"))
        assert {await address(service, f"x{at}", "") for at in range(6)} == found
        for at in range(6):
            await release(service, f"x{at}")


async def test_a_backup_is_everything(service: Service, url: str, clock: Clock, tmp_path: Path) -> None:
    document = config("10.1.0.0/28", assignments=[{"pod_id": "ns/db", "ips": ["10.1.0.3"]}])
    await configure(service, document)
    for at in range(6):
        await service.allocate(ask(at))
    await service.allocate(ask("db", "ns/db"))
    await release(service, 2)
    await release(service, 4)
    exported = await service.export()
    assert len(exported["allocations"]) == 5
    was = {it["pod_id"]: it["address"] for it in exported["sticky"]}
    assert list(was) == ["ns/c2", "ns/c4"]
    for another in (f"sqlite://{tmp_path}/other.db", f"{url}-b"):
        async with opened(another, clock) as other:
            await other.load(exported)
            assert await other.export() == exported
            assert (await other.config())[0] == made(document)
            assert await address(other, "2b", "ns/c2") == was["ns/c2"]
            taken = {it["ips"][0]["address"].partition("/")[0] for it in exported["allocations"]}
            for at in range(7):
                new = await address(other, f"x{at}")
                assert new not in taken
                taken.add(new)
            assert was["ns/c4"] not in taken
            with refused(Conflict, "10.1.0.3", "'cdb'"):
                await other.allocate(ask("db2", "ns/db"))
            assert await release(other, "db")


async def test_an_import_is_all_or_nothing(service: Service) -> None:
    await configure(service, config())
    for at in range(3):
        await service.allocate(ask(at))
    before = await service.export()
    first, second = before["allocations"][:2]
    bad = [
        ({**before, "version": 2}, "version"),
        ({**before, "more": 1}, "more"),
        (
            {**before, "allocations": [first, {**second, "ips": first["ips"]}]},
            first["ips"][0]["address"][:-3],
        ),
        ({**before, "allocations": [first, first]}, "allocations.1.*twice"),
        ({**before, "allocations": [{**first, "ips": [{"address": "10.2.0.1/24"}]}]}, "10.2.0.1"),
        ({**before, "allocations": [{**first, "network": "m"}]}, "'m'"),
        ({**before, "config": {**before["config"], "pools": []}}, "pools: 'a'"),
        (
            {
                **before,
                "sticky": [{"pool": "b", "pod_id": "p", "ifname": "e", "address": "10.1.0.1", "released": 1}],
            },
            "'b'",
        ),
    ]
    for document, words in bad:
        with refused(Invalid, words):
            await service.load(document)
    fewer = {**before, "allocations": before["allocations"][1:]}
    with refused(Conflict, repr(first["container_id"]), "'eth0'"):
        await service.load(fewer)
    assert await service.export() == before
    await service.load(fewer, replace=True)
    assert await service.export() == fewer
    assert await release(service, second["container_id"][1:])


async def test_replicas_see_each_others_changes(service: Service, replica: Service) -> None:
    await configure(service, config())
    await service.allocate(ask(1))
    assert (await replica.find("n", "c1", "eth0")).container_id == "c1"
    assert not (await replica.allocate(ask(1)))[1]
    wider = config()
    wider["networks"].append({"name": "m"})
    wider["pools"].append({"name": "b", "network": "m", "subnet": "10.3.0.0/24"})
    wider["hosts"].append({"network": "m", "hosts": [HOST], "pools": ["b"]})
    with refused(UnknownNetwork):
        await replica.allocate(ask(1, network="m"))
    await configure(service, wider)
    assert (await address(replica, 1, network="m")).startswith("10.3.")
    assert {use.name: use.used for use in await replica.status("m", HOST)} == {"b": 1}
    await replica.release(("m", "c1", "eth0"), HOST)
    await configure(replica, config())
    with refused(UnknownNetwork):
        await service.allocate(ask(1, network="m"))
    with refused(UnknownNetwork):
        await service.status("m", HOST)
    await service.load(await replica.export())
    assert await release(replica, 1)


async def test_a_replica_that_knew_no_pools_sees_those_of_another(service: Service, replica: Service) -> None:
    assert await replica.usage() == []
    await configure(service, config())
    assert [use.name for use in await replica.usage()] == ["a"]


async def test_ipv6_pools_have_no_end(service: Service) -> None:
    document = config("fd00::/48", pool={"gateway": "fe80::1"})
    await configure(service, document)
    found = {await address(service, at, host="fd99::1") for at in range(100)}
    assert len(found) == 100
    use = (await service.usage())[0]
    assert (use.total, use.used) == (2**63 - 1, 100)


async def test_nothing_works_once_closed(tmp_path: Path) -> None:
    async with opened(f"sqlite://{tmp_path}/a.db") as service:
        await configure(service, config())
        await service.close()
        with pytest.raises(ServiceError, match="closed"):
            await service.allocate(ask(1))


@pytest.mark.parametrize(
    ("url", "named"),
    [
        ("redis://x", "'redis'"),
        ("sqlite://", "sqlite:///"),
        ("etcd://", "host:port"),
        ("etcd://h:x", "'h:x'"),
        ("etcd://h?x=1", "'x'"),
        ("etcd://h?ca=/no/file", "/no/file"),
    ],
)
async def test_a_wrong_url_is_refused(url: str, named: str) -> None:
    with refused(ServiceError, "store", named):
        await open_service(url)
