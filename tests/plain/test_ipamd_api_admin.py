"""Operators' requests to the address service: the configuration, its items, allocations, backups."""

from __future__ import annotations

import signal
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from ipam_server import ASK, DOMAIN, HOST, World, address, ask, problem, roomy

from harness.waiting import wait_for

CONFIG = "/v1/config"


def changed(**sections: Any) -> dict[str, Any]:
    return DOMAIN | sections


# ------------------------------------------------------------------------------------- whole configuration


def test_a_configuration_that_changed_meanwhile_is_not_overwritten(admin: httpx.Client) -> None:
    etag = admin.get(CONFIG).headers["etag"]
    other = admin.put(CONFIG, json=changed(networks=[{"name": "mynet", "grace": 5}]))
    assert other.headers["etag"] != etag
    late = admin.put(CONFIG, json=DOMAIN, headers={"if-match": etag})
    detail = problem(late, 412, "conflict")
    assert etag in detail
    assert other.headers["etag"] in detail
    assert admin.get(CONFIG).json()["networks"] == [{"name": "mynet", "grace": 5}]
    good = admin.put(CONFIG, json=DOMAIN, headers={"if-match": other.headers["etag"]})
    assert good.json() == DOMAIN
    assert admin.put(CONFIG, json=DOMAIN, headers={"if-match": "*"}).status_code == 200


def test_a_wrong_configuration_is_refused_whole(admin: httpx.Client) -> None:
    before = admin.get(CONFIG)
    wrong = changed(networks=[{"name": "mynet", "grace": -1}])
    assert "networks[0].grace: -1" in problem(admin.put(CONFIG, json=wrong), 422, "invalid")
    after = admin.get(CONFIG)
    assert (after.json(), after.headers["etag"]) == (before.json(), before.headers["etag"])


# ------------------------------------------------------------------------------------------- single items


def test_a_network_comes_and_goes(admin: httpx.Client) -> None:
    path = f"{CONFIG}/networks/second"
    problem(admin.get(path), 404, "not-found")
    made = admin.put(path, json={"grace": 7})
    assert made.json() == {"name": "second", "grace": 7}
    assert admin.get(path).json() == made.json()
    assert admin.get(CONFIG).headers["etag"] == made.headers["etag"]
    assert admin.put(path, json={}).json() == {"name": "second"}
    gone = admin.delete(path)
    assert (gone.status_code, gone.content) == (204, b"")
    assert "second" in problem(admin.delete(path), 404, "not-found")
    assert admin.get(CONFIG).json() == DOMAIN


def test_pools_hosts_and_assignments(admin: httpx.Client) -> None:
    pool = {"subnet": "fd00:55::/120", "mac_prefix": "02:5a:00"}
    assert admin.put(f"{CONFIG}/pools/mynet/a6", json=pool).status_code == 200
    rule = admin.put(f"{CONFIG}/hosts/mynet/{HOST}", json={"pools": ["a", "a6"]})
    assert rule.json() == {"network": "mynet", "hosts": [f"{HOST}/32"], "pools": ["a", "a6"]}
    fixed = {"ips": ["10.55.206.50"], "mac": "02:00:00:00:00:50", "vf": 3}
    assert admin.put(f"{CONFIG}/assignments/mynet/ns%2Fpod-1", json=fixed).json()["pod_id"] == "ns/pod-1"
    given = ask(admin, "i1", pod="ns/pod-1").json()
    assert given["ips"][0]["address"] == "10.55.206.50/26"
    assert given["ips"][1]["address"].startswith("fd00:55::")
    assert given["extra"]["mac"] == "02:00:00:00:00:50"
    assert given["extra"]["vf"] == 3
    total = admin.get("/v1/usage").json()["pools"]
    assert {each["name"]: each["used"] for each in total} == {"a": 1, "a6": 1}
    admin.delete(f"{ASK}/i1/eth0", params={"host_ip": HOST})
    for path in ("assignments/mynet/ns%2Fpod-1", f"hosts/mynet/{HOST}", "pools/mynet/a6"):
        assert admin.delete(f"{CONFIG}/{path}").status_code == 204
    assert admin.get(CONFIG).json() == DOMAIN


def test_one_host_leaves_a_rule_for_several(admin: httpx.Client) -> None:
    rules = [{"network": "mynet", "hosts": ["10.1.0.0/16", f"{HOST}/32"], "pools": ["a"]}]
    assert admin.put(CONFIG, json=changed(hosts=rules)).status_code == 200
    found = admin.get(f"{CONFIG}/hosts/mynet/10.1.0.0/16").json()
    assert found == {"network": "mynet", "hosts": ["10.1.0.0/16"], "pools": ["a"]}
    assert admin.delete(f"{CONFIG}/hosts/mynet/10.1.0.0%2F16").status_code == 204
    assert admin.get(CONFIG).json()["hosts"] == [
        {"network": "mynet", "hosts": [f"{HOST}/32"], "pools": ["a"]}
    ]


@pytest.mark.parametrize(
    ("path", "body", "named"),
    [
        ("networks/bad%20name", {}, "path.name"),
        ("hosts/mynet/10.0.0.1/8", {"pools": ["a"]}, "10.0.0.1/8"),
        ("pools/mynet/b", {"subnet": "10.55.206.0/27"}, "10.55.206.0/27"),
        ("pools/nonet/b", {"subnet": "10.7.0.0/24"}, "nonet"),
        ("pools/mynet/b", {"subnet": "10.7.0.0/24", "name": "c"}, "body.name"),
        ("assignments/mynet/p", {"ips": ["10.9.9.9"]}, "10.9.9.9"),
    ],
)
def test_a_wrong_item_changes_nothing(
    admin: httpx.Client, path: str, body: dict[str, Any], named: str
) -> None:
    assert named in problem(admin.put(f"{CONFIG}/{path}", json=body), 422, "invalid")
    assert admin.get(CONFIG).json() == DOMAIN


def test_items_put_at_once_are_all_there(admin: httpx.Client) -> None:
    names = [f"n{number}" for number in range(4)]

    def put(name: str) -> int:
        return admin.put(f"{CONFIG}/networks/{name}", json={}).status_code

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(put, names)) == [200] * 4
    assert {each["name"] for each in admin.get(CONFIG).json()["networks"]} == {"mynet", *names}


def test_an_items_revision_may_be_asked_for(admin: httpx.Client) -> None:
    etag = admin.put(f"{CONFIG}/networks/n", json={}).headers["etag"]
    again = admin.put(f"{CONFIG}/networks/n", json={"grace": 1}, headers={"if-match": etag})
    assert again.status_code == 200
    problem(admin.delete(f"{CONFIG}/networks/n", headers={"if-match": etag}), 412, "conflict")


# -------------------------------------------------------------------------------------------- allocations


def test_allocations_of_a_network_or_a_host(admin: httpx.Client) -> None:
    for number, host in enumerate((HOST, HOST, "10.55.206.30")):
        address(ask(admin, f"l{number}", host=host))

    def held(**query: str) -> set[str]:
        response = admin.get("/v1/allocations", params=query)
        return {each["container_id"] for each in response.json()["allocations"]}

    assert held() == held(network="mynet") == {"l0", "l1", "l2"}
    assert held(host_ip=HOST) == {"l0", "l1"}
    problem(admin.get("/v1/allocations", params={"network": "nonet"}), 404, "unknown-network")
    admin.delete(f"{ASK}/l2/eth0", params={"host_ip": "10.55.206.30"})


# ---------------------------------------------------------------------- configuration file and store


def test_a_file_fills_an_empty_store_and_leaves_one_that_is_not(world: World) -> None:
    server = world.serve("api-managed")
    with world.admin(server) as client:
        assert client.get(CONFIG).json() == DOMAIN
        assert client.put(f"{CONFIG}/networks/added", json={}).status_code == 200
    assert server.stop() == 0
    server.restart()
    with world.admin(server) as client:
        assert [each["name"] for each in client.get(CONFIG).json()["networks"]] == ["mynet", "added"]
    warned = [event["msg"] for event in server.events() if event["level"] == "warning"]
    assert any("differs" in text for text in warned)
    assert server.stop() == 0


def test_a_file_that_manages_wins_and_is_read_anew(world: World) -> None:
    server = world.serve("file-managed", managed="file")
    with world.admin(server) as client:
        for response in (
            client.put(CONFIG, json={}),
            client.put(f"{CONFIG}/networks/x", json={}),
            client.delete(f"{CONFIG}/networks/mynet"),
        ):
            assert str(server.config) in problem(response, 409, "conflict")
        server.write(server.table, roomy(grace=9))
        server.signal(signal.SIGHUP)
        wait_for(lambda: client.get(CONFIG).json() == roomy(grace=9), "the new file")
        server.write(server.table, roomy() | {"pools": []})
        server.signal(signal.SIGHUP)
        server.wait("reload failed, all stays as it was")
        assert client.get(CONFIG).json() == roomy(grace=9)
        server.write(server.table, DOMAIN)
        backup = client.get("/v1/export").json()
    assert server.stop() == 0
    server.restart()
    with world.admin(server) as client:
        assert client.get(CONFIG).json() == DOMAIN
        # the backup has another configuration; that of the file stays in force
        assert client.post("/v1/import", json=backup).status_code == 200
        assert client.get(CONFIG).json() == DOMAIN
    assert server.stop() == 0
