"""``args.cni`` in the configuration, where Multus puts the ``cni-args`` of a pod's annotation."""

from __future__ import annotations

import json
from typing import Any

import pytest

from sriov_fast.cni import config, request
from sriov_fast.cni.config import NetConf
from sriov_fast.common.errors import ConfigError

MAC, OTHER = "02:00:00:00:00:0a", "02:00:00:00:00:0b"
BASE = {"cniVersion": "1.0.0", "name": "net1", "type": "sriov", "master": "eth1"}


def parsed(pod: object, cni_args: str = "", command: str = "ADD", **more: Any) -> NetConf:
    environ = {
        "CNI_COMMAND": command,
        "CNI_CONTAINERID": "a",
        "CNI_NETNS": "/run/netns/a",
        "CNI_IFNAME": "net1",
        "CNI_ARGS": cni_args,
    }
    conf = BASE | {"args": {"cni": pod}} | more
    return config.parse(request.read(environ, json.dumps(conf).encode()))


def chosen(conf: NetConf) -> tuple[object, ...]:
    return conf.vf, conf.settings.vlan, conf.settings.mac, conf.cores


@pytest.mark.parametrize(
    "pod",
    [
        {"vf": 3, "vlan": 100, "mac": MAC, "cores": [1, 2]},
        {"vf": "3", "vlan": "100", "mac": MAC.upper(), "cores": "1-2"},
        {"VF": 3, "Vlan": "100", "MAC": MAC, "CORES": ["1", 2][1:], "cores": "1,2"},
    ],
)
def test_603_what_an_annotation_asks_for(pod: dict[str, Any]) -> None:
    """VF, VLAN, MAC and cores of the annotation count, as numbers or as strings."""
    assert chosen(parsed(pod)) == (3, 100, MAC, (1, 2))


def test_603_a_single_core() -> None:
    """One core may be a number."""
    assert parsed({"cores": 5}).cores == (5,)
    assert parsed({"cores": "5"}).cores == (5,)


def test_603_which_source_goes_first() -> None:
    """CNI_ARGS go before the annotation, and that before the configuration."""
    pod = {"vf": 3, "vlan": 100, "mac": MAC, "cores": [1]}
    given = {"vf": 1, "vlan": 10, "mac": OTHER, "cores": [7]}
    assert chosen(parsed(pod, **given)) == (3, 100, MAC, (1,))
    assert chosen(parsed(pod, "VF=4;VLAN=5;CORES=6;MAC=" + OTHER, **given)) == (4, 5, OTHER, (6,))
    assert parsed(pod, runtimeConfig={"mac": OTHER}).settings.mac == OTHER
    assert chosen(config.with_extra(parsed(pod), {"vf": 0, "vlan": 0})) == (0, 0, MAC, (1,))


@pytest.mark.parametrize(
    "pod", [None, {}, {"vf": None, "vlan": "", "mac": "", "cores": ""}, {"ips": ["10.0.0.2"]}]
)
def test_603_what_is_not_given_overrides_nothing(pod: object) -> None:
    """Null and the empty string are not given; other plugins' keys are theirs, and no warning."""
    conf = parsed(pod, vf=1, vlan=10, mac=OTHER, cores="7")
    assert chosen(conf) == (1, 10, OTHER, (7,))
    assert conf.warnings == ()


@pytest.mark.parametrize(
    ("pod", "words"),
    [
        ({"vf": -1}, "args.cni.vf = -1"),
        ({"vf": "0x1"}, 'args.cni.vf = "0x1"'),
        ({"vf": 1.5}, "args.cni.vf = 1.5"),
        ({"vf": True}, "args.cni.vf = true"),
        ({"vlan": 4095}, "args.cni.vlan = 4095"),
        ({"vlan": "many"}, 'args.cni.vlan = "many"'),
        ({"mac": "01:00:00:00:00:00"}, "args.cni.mac"),
        ({"mac": 1}, "args.cni.mac = 1"),
        ({"cores": "x"}, "args.cni.cores"),
        ([], "args.cni = []"),
    ],
)
def test_603_a_wrong_value_is_named(pod: object, words: str) -> None:
    """A wrong value is refused by name, and passed over by a DEL."""
    with pytest.raises(ConfigError) as caught:
        parsed(pod)
    assert words in caught.value.msg
    assert caught.value.details
    released = parsed(pod, command="DEL", vf=1)
    assert released.vf == 1
    assert any(words in warning for warning in released.warnings)
