"""The built-in static: configured addresses, and those that add to or replace them."""

from __future__ import annotations

from typing import Any

import pytest

from sriov_fast.common.errors import CheckError, ConfigError
from sriov_fast.ipam.keys import Keys
from sriov_fast.ipam.static import Static

FOUR = {"address": "10.1.0.5/24", "gateway": "10.1.0.254"}
SIX = {"address": "fd00::5/64"}
ADDRESSES = {"addresses": [FOUR, SIX]}


def static(ipam: dict[str, Any], version: str = "1.1.0", cni_args: str = "", **more: Any) -> Static:
    conf = {"cniVersion": version, "name": "n", "ipam": {"type": "static"} | ipam} | more
    return Static(keys=Keys(conf), container_id="a", ifname="eth0", args=cni_args)


def add(ipam: dict[str, Any], version: str = "1.1.0", cni_args: str = "", **more: Any) -> dict[str, Any]:
    found = static(ipam, version, cni_args, **more).start("ADD").finish(1.0)
    assert found
    return found


def test_what_is_configured() -> None:
    routes = [{"dst": "0.0.0.0/0"}, {"dst": "10.9.0.7/16", "gw": "10.1.0.9", "priority": 7, "mtu": 0}]
    dns = {"nameservers": ["10.0.0.1"], "domain": "d", "search": ["a", "b"], "options": []}
    assert add(ADDRESSES | {"routes": routes, "dns": dns}) == {
        "ips": [FOUR, SIX],
        "routes": [{"dst": "0.0.0.0/0"}, {"dst": "10.9.0.7/16", "gw": "10.1.0.9", "priority": 7}],
        "dns": {"nameservers": ["10.0.0.1"], "domain": "d", "search": ["a", "b"]},
    }


@pytest.mark.parametrize("version", ["0.2.0", "0.4.0", "1.0.0"])
def test_the_result_is_the_same_in_every_version(version: str) -> None:
    assert add(ADDRESSES, version) == {"ips": [FOUR, SIX], "dns": {}}


def test_no_addresses() -> None:
    assert add({}) == {"dns": {}}


@pytest.mark.parametrize(
    ("cni_args", "wanted"),
    [
        ("IP=10.2.0.1/24", [FOUR, SIX, {"address": "10.2.0.1/24"}]),
        (
            "IgnoreUnknown=1;IP=10.2.0.1/24, fd02::1/64;GATEWAY=10.2.0.9,fd02::9,10.2.0.8,192.0.2.1",
            [
                FOUR,
                SIX,
                {"address": "10.2.0.1/24", "gateway": "10.2.0.8"},
                {"address": "fd02::1/64", "gateway": "fd02::9"},
            ],
        ),
        ("GATEWAY=10.1.0.1", [FOUR, SIX]),  # a gateway of CNI_ARGS needs an IP of CNI_ARGS
        ("IP=", [FOUR, SIX]),
    ],
)
def test_cni_args_come_on_top(cni_args: str, wanted: list[dict[str, str]]) -> None:
    assert add(ADDRESSES, cni_args=cni_args)["ips"] == wanted


def test_what_is_asked_for_at_run_time_replaces() -> None:
    args = {"cni": {"ips": ["10.3.0.1/24"]}}
    runtime = {"ips": ["10.4.0.1/24", "fd04::1/64"]}
    assert add(ADDRESSES, args=args)["ips"] == [{"address": "10.3.0.1/24"}]
    replaced = add(ADDRESSES, "1.0.0", "IP=10.2.0.1/24", args=args, runtimeConfig=runtime)
    assert replaced["ips"] == [{"address": "10.4.0.1/24"}, {"address": "fd04::1/64"}]
    assert add(ADDRESSES, args={"cni": {"ips": []}}, runtimeConfig={"ips": None})["ips"] == [FOUR, SIX]


@pytest.mark.parametrize(
    ("ipam", "more", "words"),
    [
        ({"addresses": 3}, {}, "ipam.addresses = 3: not a list"),
        ({"addresses": ["10.1.0.5/24"]}, {}, 'ipam.addresses[0] = "10.1.0.5/24": not an object'),
        ({"addresses": [{}]}, {}, "ipam.addresses[0].address is missing"),
        ({"addresses": [{"address": "10.1.0.5"}]}, {}, 'ipam.addresses[0].address = "10.1.0.5"'),
        ({"addresses": [FOUR | {"gateway": "x"}]}, {}, 'ipam.addresses[0].gateway = "x"'),
        ({"addresses": [FOUR | {"gateway": "fd00::1"}]}, {}, "of another IP version than 10.1.0.5"),
        ({"dns": {"nameservers": "10.0.0.1"}}, {}, 'ipam.dns.nameservers = "10.0.0.1": not a list'),
        ({"dns": {"search": [1]}}, {}, "ipam.dns.search[0] = 1"),
        ({"dns": {"domain": 1}}, {}, "ipam.dns.domain = 1"),
        ({}, {"cni_args": "IP=10.1.0.5"}, 'CNI_ARGS IP = "10.1.0.5"'),
        ({}, {"cni_args": "IP=10.1.0.5/24,"}, 'CNI_ARGS IP = ""'),
        ({}, {"cni_args": "IP=10.1.0.5/24;GATEWAY=x"}, 'CNI_ARGS GATEWAY = "x"'),
        ({}, {"args": {"cni": {"ips": ["10.1.0.5"]}}}, 'args.cni.ips[0] = "10.1.0.5"'),
        ({}, {"runtimeConfig": {"ips": ["x"]}}, 'runtimeConfig.ips[0] = "x"'),
        ({"addresses": [FOUR, FOUR]}, {"version": "0.2.0"}, "no more than one address"),
    ],
)
def test_bad_values(ipam: dict[str, Any], more: dict[str, Any], words: str) -> None:
    for verb in ("ADD", "STATUS"):
        with pytest.raises(ConfigError) as caught:
            static(ipam, **more).run(verb)
        assert words in caught.value.msg
        assert caught.value.details


def test_there_is_nothing_to_take_back() -> None:
    for verb in ("DEL", "GC"):
        assert static({"addresses": "what"}).run(verb) is None
    assert static(ADDRESSES).run("STATUS") is None


def test_check() -> None:
    with pytest.raises(ConfigError, match="prevResult is missing"):
        static(ADDRESSES).run("CHECK")
    static(ADDRESSES, prevResult={"ips": [FOUR, SIX]}).run("CHECK")
    static(ADDRESSES, prevResult={"ips": [SIX | {"gateway": "fd00::1"}]}).run("CHECK")  # SIX has no gateway
    static(ADDRESSES, prevResult={"ips": [{"address": "192.0.2.1/24"}]}).run("CHECK")  # as in CNI's static
    for gateway in ({"gateway": "10.1.0.1"}, {"gateway": None}):
        with pytest.raises(CheckError, match=r"10\.1\.0\.5 was given 10\.1\.0\.254"):
            static(ADDRESSES, prevResult={"ips": [FOUR | gateway]}).run("CHECK")
