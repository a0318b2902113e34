"""Configurations that were written for the Kubernetes project's plugin, which is in Go."""

import itertools
import json
from typing import Any

import pytest

from sriov_fast.cni import config, request, result
from sriov_fast.cni.config import NetConf
from sriov_fast.common.errors import ConfigError
from sriov_fast.common.record import VfSettings
from sriov_fast.ipam.kinds import may_choose_vf

ENVIRON = {
    "CNI_COMMAND": "ADD",
    "CNI_CONTAINERID": "1234",
    "CNI_NETNS": "/run/netns/1234",
    "CNI_IFNAME": "net1",
    "CNI_PATH": "/opt/cni/bin",
}
BASE = {"cniVersion": "1.0.0", "name": "n", "type": "sriov", "deviceID": "0000:03:10.1"}


def parsed(conf: dict[str, Any] | str, command: str = "ADD") -> NetConf:
    """Return the settings of an ADD, as the plugin reads them."""
    text = conf if isinstance(conf, str) else json.dumps(conf)
    return config.parse(request.read(ENVIRON | {"CNI_COMMAND": command}, text.encode()), may_choose_vf)


EVERY = {
    "cniVersion": "1.0.0",
    "name": "n",
    "type": "sriov",
    "deviceID": "0000:03:10.1",
    "vlan": 100,
    "vlanQoS": 3,
    "vlanProto": "802.1ad",
    "mac": "02:00:00:00:00:01",
    "min_tx_rate": 1,
    "max_tx_rate": 2,
    "spoofchk": "on",
    "trust": "off",
    "link_state": "auto",
    "logLevel": "debug",
    "logFile": "/var/log/x",
    "dns": {"domain": "d"},
    "ipam": {"type": "whereabouts", "range": "10.0.0.0/24"},
    "runtimeConfig": {"mac": "02:00:00:00:00:02", "ips": ["10.0.0.9/24"]},
    "args": {"cni": {"vlan": 101}},
    "prevResult": {"cniVersion": "1.0.0", "ips": [{"address": "10.0.0.5/24"}]},
}


def spelled(value: Any, spell: Any) -> Any:
    """Return a document with other keys."""
    if isinstance(value, dict):
        return {spell(key): spelled(item, spell) for key, item in value.items()}
    return [spelled(item, spell) for item in value] if isinstance(value, list) else value


@pytest.mark.parametrize("spell", [str.upper, str.lower, str.title])
def test_911_keys_in_any_case(spell: Any) -> None:
    """VLAN, Trust and deviceId were ignored, and the pod came up untagged and untrusted."""
    got, plain = parsed(spelled(EVERY, spell)), parsed(EVERY)
    assert got.warnings == plain.warnings == ()
    assert got.replace(raw={}, ipam=None) == plain.replace(raw={}, ipam=None)
    assert (got.settings.vlan, got.settings.trust, got.device_id) == (101, False, "0000:03:10.1")
    assert got.raw["name"] == "n"  # the delegate of any language finds it
    assert got.ipam is not None
    assert set(got.ipam) == {spell("type"), spell("range")}  # the keys of the IPAM plugin stay its own


def test_911_of_keys_that_differ_in_case_the_last_counts() -> None:
    """Go's decoder writes each of them into the same field, one after the other."""
    assert parsed('{"name": "n", "type": "sriov", "master": "a", "vlan": 1, "VLAN": 2}').settings.vlan == 2
    assert parsed('{"name": "n", "type": "sriov", "master": "a", "VLAN": 2, "vlan": 1}').settings.vlan == 1


def test_911_a_gc_reads_its_list_in_any_case() -> None:
    """A list that is not recognised would release every attachment of the network."""
    listed = {
        "cniVersion": "1.1.0",
        "name": "n",
        "CNI.dev/Valid-Attachments": [{"containerid": "a", "IfName": "b"}],
    }
    assert parsed(BASE | listed, "GC").valid_attachments == (("a", "b"),)


def test_911_an_ipam_result_in_any_case() -> None:
    """An IPAM plugin's answer is read as Go reads it."""
    plain = {"cniVersion": "1.0.0", "ips": [{"address": "10.0.0.2/24", "gateway": "10.0.0.1"}]}
    assert result.from_json(spelled(plain, str.title), "1.0.0") == result.from_json(plain, "1.0.0")


KEYS = (
    "spoofchk",
    "trust",
    "link_state",
    "mac",
    "logLevel",
    "logFile",
    "master",
    "pciBusID",
    "vlanProto",
    "cores",
)


@pytest.mark.parametrize("key", KEYS)
def test_912_an_empty_string_is_not_given(key: str) -> None:
    """Go's omitempty and templates leave empty strings in place of absent keys."""
    assert parsed(BASE | {key: ""}).replace(raw={}) == parsed(BASE).replace(raw={})


def test_912_empty_strings_in_inner_objects() -> None:
    """An empty MAC of the runtime was an error; an IPAM without a type was one as well."""
    runtime = {"runtimeConfig": {"mac": "", "deviceID": ""}, "ipam": {"type": ""}, "dns": {"domain": ""}}
    own = BASE | {"mac": "02:00:00:00:00:01"}
    assert parsed(own | runtime).replace(raw={}) == parsed(own).replace(raw={})
    with pytest.raises(ConfigError, match="master is missing"):
        parsed({"name": "n", "type": "sriov", "master": ""})
    with pytest.raises(ConfigError, match=r"ipam\.type is missing"):
        parsed(BASE | {"ipam": {"type": "", "subnet": "10.0.0.0/24"}})


@pytest.mark.parametrize(("level", "expected"), [("Debug", "debug"), ("PANIC", "error"), ("panic", "error")])
def test_913_log_levels_in_any_case(level: str, expected: str) -> None:
    """A level in capitals kept every pod of the network from starting."""
    assert parsed(BASE | {"logLevel": level}).log_level == expected


@pytest.mark.parametrize(
    ("key", "value"), [("vlanQoS", 3), ("vlanProto", "802.1ad"), ("vlanProto", "802.1AD")]
)
def test_914_a_priority_or_protocol_without_a_tag(key: str, value: Any) -> None:
    """With VLAN 0 there is no tag to carry them; the kernel or the driver drops them without a word."""
    wrong = BASE | {"vlan": 0, key: value}
    with pytest.raises(ConfigError, match=key):
        parsed(wrong)
    assert any(key in warning for warning in parsed(wrong, "DEL").warnings)
    with pytest.raises(ConfigError, match=key):
        parsed(wrong | {"ipam": {"type": "host-local", "subnet": "10.0.0.0/24"}})
    late = parsed(wrong | {"ipam": {"type": "txipam"}})
    assert config.with_extra(late, {"vlan": 7}).settings.vlan == 7
    for extra in (None, {}, {"vlan": 0}):
        with pytest.raises(ConfigError, match=key):
            config.with_extra(late, extra)


def test_914_the_defaults_go_with_vlan_0() -> None:
    """The operator writes "vlan": 0 and "vlanQoS": 0 into every network."""
    got = parsed(BASE | {"vlan": 0, "vlanQoS": 0, "vlanProto": "802.1Q"})
    assert got.settings == VfSettings(vlan=0, qos=0, proto="802.1Q")


# --- the operator's SriovNetwork (api/v1/sriovnetwork_types.go), as its template renders it (915) ---------

# The values of each field: absent, and those that the CRD's validation lets through.
SPOOFCHK = TRUST = ("", "on", "off")
LINK_STATE = ("", "auto", "enable", "disable")
VLAN = (0, 1, 4094)
QOS = (0, 7)
PROTO = ("", "802.1q", "802.1Q", "802.1ad", "802.1AD")
RATES: tuple[tuple[int | None, int | None], ...] = (
    *((None, None), (0, 0), (None, 100), (10, None), (10, 100)),
    *((100, 10), (100, 0)),  # the first is an error, in the second no limit is above the guaranteed rate
)
LOGS = (
    ("", ""),
    ("info", ""),
    ("panic", "/var/log/sriov.log"),
    ("error", ""),
    ("warning", ""),
    ("debug", ""),
)
CAPABILITIES = ("", '{"mac": true}', '{ "mac": true, "ips": true }')
IPAM = ("", '{"type":"host-local","subnet":"10.56.217.0/24","rangeStart":"10.56.217.171"}', "{}")
META = ("", '{"type": "tuning", "sysctl": {"net.core.somaxconn": "500"}}, {"type": "vrf", "vrfname": "red"}')


def rendered(
    *,
    vlan: int = 0,
    qos: int = 0,
    proto: str = "",
    spoofchk: str = "",
    trust: str = "",
    link_state: str = "",
    rates: tuple[int | None, int | None] = (None, None),
    logs: tuple[str, str] = ("", ""),
    capabilities: str = "",
    ipam: str = "",
    meta: str = "",
) -> dict[str, Any]:
    """Return ``spec.config`` of the NetworkAttachmentDefinition for a SriovNetwork."""
    words = [f'"vlan":{vlan}']
    words += [f'"{key}":"{value}"' for key, value in (("spoofchk", spoofchk), ("trust", trust)) if value]
    words += [f'"vlanQoS":{qos}'] + ([f'"vlanProto":"{proto}"'] if proto else [])
    words += [
        f'"{key}":{value}'
        for key, value in zip(("min_tx_rate", "max_tx_rate"), rates, strict=True)
        if value is not None
    ]
    words += [f'"capabilities":{capabilities}'] if capabilities else []
    named = (("link_state", link_state), ("logLevel", logs[0]), ("logFile", logs[1]))
    words += [f'"{key}":"{value}"' for key, value in named if value]
    plugin = ",".join(['"type":"sriov"', *words, f'"ipam":{"".join((ipam or "{}").split())}'])
    head = '"cniVersion":"1.0.0","name":"net"'
    inner = f'{head},"plugins":[{{{plugin}}},{meta}]' if meta else f"{head},{plugin}"
    document: dict[str, Any] = json.loads(f"{{{inner}}}")
    return document


def handed_over(document: dict[str, Any]) -> dict[str, Any]:
    """Return what Multus hands to the plugin: one plugin of the list, with the device plugin's VF."""
    first = document.get("plugins", [document])[0]
    head = {key: document[key] for key in ("cniVersion", "name")}
    return first | head | {"deviceID": "0000:03:10.1", "pciBusID": "0000:03:10.1"}


def check(**fields: Any) -> None:
    conf = handed_over(rendered(**fields))
    vlan, qos, proto = fields.get("vlan", 0), fields.get("qos", 0), fields.get("proto", "")
    if not vlan and (qos or proto.lower() == "802.1ad"):
        with pytest.raises(ConfigError, match="vlan is 0"):  # the original refuses it as well
            parsed(conf)
        return
    low, high = fields.get("rates", (None, None))
    if low and high and low > high:
        with pytest.raises(ConfigError, match="above max_tx_rate"):
            parsed(conf)
        return
    got = parsed(conf)
    assert got.warnings == ()
    assert got.settings == VfSettings(
        vlan=vlan,
        qos=qos,
        proto={"802.1q": "802.1Q", "802.1ad": "802.1ad"}.get(proto.lower()),
        min_tx_rate=low,
        max_tx_rate=high,
        spoofchk={"on": True, "off": False}.get(fields.get("spoofchk", "")),
        trust={"on": True, "off": False}.get(fields.get("trust", "")),
        link_state=fields.get("link_state") or None,
    )
    level, file = fields.get("logs", ("", ""))
    assert (got.log_level, got.log_file) == ("error" if level == "panic" else level or "info", file)
    assert got.ipam_type == ("host-local" if fields.get("ipam", "") not in ("", "{}") else "")


def test_915_every_network_of_the_operator() -> None:
    """Every combination of the fields that the plugin reads."""
    for vlan, qos, proto, spoofchk, trust, state, rates in itertools.product(
        VLAN, QOS, PROTO, SPOOFCHK, TRUST, LINK_STATE, RATES
    ):
        check(vlan=vlan, qos=qos, proto=proto, spoofchk=spoofchk, trust=trust, link_state=state, rates=rates)


def test_915_the_operators_other_fields() -> None:
    """Every combination of the fields that do not concern the PF."""
    for logs, capabilities, ipam, meta in itertools.product(LOGS, CAPABILITIES, IPAM, META):
        check(logs=logs, capabilities=capabilities, ipam=ipam, meta=meta)
