"""cni.config: every key, invalid values, and the precedence of the sources."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sriov_fast.cni import config, request, response
from sriov_fast.cni.config import NetConf, parse, with_extra
from sriov_fast.common.errors import ConfigError, DecodeError, EnvError, IpamError, SriovError, VersionError
from sriov_fast.common.record import VfSettings
from sriov_fast.ipam.kinds import may_choose_vf

BASE: dict[str, Any] = {"cniVersion": "1.1.0", "name": "mynet", "type": "sriov", "master": "eth1"}
NO = object()  # removes a key


def configuration(**changes: Any) -> dict[str, Any]:
    """Return the base configuration with changes; NO removes a key."""
    return {key: value for key, value in (BASE | changes).items() if value is not NO}


def asked(conf: object, command: str = "ADD", args: str = "") -> request.Request:
    """Return a runtime's request with a configuration."""
    environ = {
        "CNI_COMMAND": command,
        "CNI_CONTAINERID": "1234",
        "CNI_NETNS": "/run/netns/1234",
        "CNI_IFNAME": "eth1",
        "CNI_PATH": "/opt/cni/bin",
        "CNI_ARGS": args,
    }
    stdin = conf if isinstance(conf, bytes) else json.dumps(conf).encode()
    return request.read(environ, stdin)


def parsed(command: str = "ADD", args: str = "", **changes: Any) -> NetConf:
    """Parse the base configuration with changes."""
    return parse(asked(configuration(**changes), command, args))


# --- valid configurations ---------------------------------------------------------------------------------


def test_the_seed() -> None:
    conf = {
        "name": "mynet",
        "type": "sriov",
        "master": "eth1",
        "ipam": {"type": "txipam", "remote": "https://127.0.0.1:10000", "ca": "/etc/pki/ca.crt"},
    }
    args = "IgnoreUnknown=1;PodID=1234;HostIP=10.55.206.20;CORES=1,2,3,4"
    assert parse(asked(conf, args=args)) == NetConf(
        name="mynet",
        masters=("eth1",),
        cores=(1, 2, 3, 4),
        ipam=conf["ipam"],
        ipam_type="txipam",
        raw=conf,
    )
    got = parse(asked(conf, "DEL", "PodID=1234;HostIP=10.55.206.20"))
    assert (got.version, got.cni_version, got.warnings) == ("0.1.0", "", ())


EVERY = configuration(
    master=["eth1", "eth2"],
    deviceID="0000:3B:02.1",
    vf=0,
    mac="02-00-00-00-00-AB",
    vlan=100,
    vlanQoS=3,
    vlanProto="802.1AD",
    min_tx_rate=10,
    max_tx_rate=100,
    spoofchk="on",
    trust="off",
    link_state="enable",
    mtu=9000,
    cores="4,1-3",
    ipam={"type": "host-local", "subnet": "10.0.0.0/8"},
    dns={"nameservers": ["10.1.0.1", "FD00::1"], "domain": "d", "search": ["s"], "options": ["o"]},
    logLevel="debug",
    logFile="/var/log/sriov.log",
    prevResult={"cniVersion": "1.1.0", "ips": [{"address": "10.0.0.2/24"}]},
    capabilities={"mac": True},
)


def test_every_key() -> None:
    got = parse(asked(EVERY))
    assert got.prev_result is not None
    assert got.prev_result.ips[0].address == "10.0.0.2/24"
    assert got.replace(prev_result=None) == NetConf(
        name="mynet",
        cni_version="1.1.0",
        version="1.1.0",
        masters=("eth1", "eth2"),
        device_id="0000:3b:02.1",
        vf=0,
        settings=VfSettings(
            mac="02:00:00:00:00:ab",
            vlan=100,
            qos=3,
            proto="802.1ad",
            min_tx_rate=10,
            max_tx_rate=100,
            spoofchk=True,
            trust=False,
            link_state="enable",
        ),
        mtu=9000,
        cores=(4, 1, 2, 3),
        ipam={"type": "host-local", "subnet": "10.0.0.0/8"},
        ipam_type="host-local",
        dns={"nameservers": ["10.1.0.1", "fd00::1"], "domain": "d", "search": ["s"], "options": ["o"]},
        log_level="debug",
        log_file="/var/log/sriov.log",
        raw=EVERY,
    )


def test_the_longest_name() -> None:
    """Multus passes the name of a NetworkAttachmentDefinition, which may have 253 characters."""
    assert parsed(name="n" * 253).name == "n" * 253


@pytest.mark.parametrize("absent", [None, ""])
def test_null_and_the_empty_string_are_absent(absent: str | None) -> None:
    """null and "" count as absent: Go programs and templates write them in place of absent keys."""
    required = {"cniVersion", "name", "type", "master", "capabilities", "plugins", "args", "cniVersions"}
    found = parsed(**dict.fromkeys(set(config.KEYS) - required, absent))
    wanted = NetConf(name="mynet", cni_version="1.1.0", version="1.1.0", masters=("eth1",))
    assert found.replace(raw={}) == wanted
    own = {"mac": "02:00:00:00:00:01"}
    inner = {"runtimeConfig": {"mac": absent, "deviceID": absent}, "ipam": {"type": absent}}
    assert parsed(**own, **inner, dns={"domain": absent}).settings.mac == own["mac"]


@pytest.mark.parametrize("version", ["", *config.VERSIONS, None, NO])
def test_versions(version: Any) -> None:
    got = parsed(cniVersion=version)
    declared = version if version in config.VERSIONS else ""
    assert (got.cni_version, got.version) == (declared, declared or "0.1.0")


@pytest.mark.parametrize("command", ["CHECK", "GC", "STATUS"])
def test_verbs_and_versions(command: str) -> None:
    since = {"CHECK": "0.4.0", "GC": "1.1.0", "STATUS": "1.1.0"}[command]
    extra = {"cni.dev/valid-attachments": []}
    first = config.VERSIONS.index(since)
    for version in config.VERSIONS[first:]:
        assert parsed(command, cniVersion=version, **extra).version == version
    for version in (*config.VERSIONS[:first], NO):
        with pytest.raises(VersionError) as caught:
            parsed(command, cniVersion=version, **extra)
        assert caught.value.code == 1
        assert command in caught.value.msg
        assert since in caught.value.msg
        assert "1.1.0" in caught.value.details


@pytest.mark.parametrize("command", ["ADD", "DEL", "CHECK", "GC", "STATUS"])
@pytest.mark.parametrize("version", ["9.9.9", "1.1", "v1.0.0", "0.3.2", " 1.0.0"])
def test_unsupported_version(command: str, version: str) -> None:
    with pytest.raises(VersionError) as caught:
        parsed(command, cniVersion=version)
    assert f'cniVersion = "{version}"' in caught.value.msg
    assert all(known in caught.value.details for known in config.VERSIONS)


@pytest.mark.parametrize(
    ("cores", "expected"),
    [
        ("1-4,8", (1, 2, 3, 4, 8)),
        ([3, 1], (3, 1)),
        ("", ()),
        ([], ()),
        ("0", (0,)),
        ("8191", (8191,)),
        (" 1 , 2", (1, 2)),
    ],
)
def test_cores(cores: Any, expected: tuple[int, ...]) -> None:
    assert parsed(cores=cores).cores == expected


def test_sources_go_one_before_the_other() -> None:
    own = {"mac": "02:00:00:00:00:01", "vlan": 1, "vf": 1, "cores": "1"}
    got = parsed(**own)
    assert (got.settings.mac, got.settings.vlan, got.vf, got.cores) == ("02:00:00:00:00:01", 1, 1, (1,))
    args = "vf=0;VLAN=0;mac=02:00:00:00:00:02;CORES=2;IP=10.0.0.2/24,fd00::2"
    got = parsed(args=args, **own)
    assert (got.settings.mac, got.settings.vlan, got.vf, got.cores) == ("02:00:00:00:00:02", 0, 0, (2,))
    runtime = {"mac": "02:00:00:00:00:03", "ips": ["10.0.0.3/24"], "deviceID": "0000:03:10.1"}
    got = parsed(args=args, runtimeConfig=runtime, deviceID="0000:03:10.7", **own)
    assert (got.settings.mac, got.device_id) == ("02:00:00:00:00:03", "0000:03:10.1")
    assert (got.settings.vlan, got.vf) == (0, 0)


@pytest.mark.parametrize(
    "where",
    [
        {"deviceID": "0000:03:10.1"},
        {"pciBusID": "0000:03:10.1"},
        {"runtimeConfig": {"deviceID": "0000:03:10.1"}},
    ],
)
@pytest.mark.parametrize("command", ["ADD", "CHECK"])
def test_device_id_stands_for_the_master(where: dict[str, Any], command: str) -> None:
    got = parsed(command, master=NO, **where)
    assert (got.masters, got.device_id) == ((), "0000:03:10.1")


def test_status_where_the_runtime_names_the_device() -> None:
    """A STATUS, which has no pod, needs no master if the runtime names the device of each pod."""
    assert parsed("STATUS", master=NO, capabilities={"deviceID": True}).masters == ()
    for capabilities in ({"deviceID": False}, {}, [], NO):
        with pytest.raises(ConfigError, match="master is missing"):
            parsed("STATUS", master=NO, capabilities=capabilities)
    with pytest.raises(ConfigError, match="master is missing"):
        parsed("ADD", master=NO, capabilities={"deviceID": True})


@pytest.mark.parametrize("ipam", [NO, None, {}])
def test_no_ipam(ipam: Any) -> None:
    got = parsed(ipam=ipam)
    assert (got.ipam, got.ipam_type) == (None, "")


def test_warnings() -> None:
    change = {
        "colour": "red",
        "disableCheck": False,
        "cniVersions": ["1.1.0"],
        "args": {"cni": {}},
        "dns": {"server": "x"},
        "runtimeConfig": {"portMappings": []},
        "cni.dev/x": 1,
    }
    got = parse(asked(BASE | change))
    assert got.warnings == (
        'unknown key "dns.server" is ignored',
        'unknown key "colour" is ignored',
        'unknown key "runtimeConfig.portMappings" is ignored',
    )


@pytest.mark.parametrize("mtu", [0, 68, 65535])
def test_mtu(mtu: int) -> None:
    assert parsed(mtu=mtu).mtu == mtu


# --- invalid configurations -------------------------------------------------------------------------------

# The key in the message, the change, and the value in the message.
WRONG: list[tuple[str, dict[str, Any], str]] = [
    ("name", {"name": NO}, "missing"),
    ("name", {"name": ""}, "missing"),
    ("name", {"name": 5}, "5"),
    ("name", {"name": "../x"}, '"../x"'),
    ("name", {"name": "a b"}, '"a b"'),
    ("name", {"name": "n" * 254}, "longer than 253"),
    ("type", {"type": NO}, "missing"),
    ("type", {"type": ""}, "missing"),
    ("type", {"type": "../sriov"}, '"../sriov"'),
    ("master", {"master": NO}, "missing"),
    ("master", {"master": ""}, "missing"),
    ("master", {"master": []}, "[]"),
    ("master", {"master": 1}, "1"),
    ("master", {"master": "a/b"}, '"a/b"'),
    ("master", {"master": ".."}, '".."'),
    ("master", {"master": "m" * 128}, "longer than 127 bytes"),
    ("master", {"master": "eth1\0"}, "eth1"),
    ("master", {"master": ["eth1", ""]}, '["eth1",""]'),
    ("master", {"master": ["eth1", 2]}, '["eth1",2]'),
    ("master", {"master": ["eth1", "eth1"]}, '["eth1","eth1"]'),
    ("vf", {"vf": -1}, "-1"),
    ("vf", {"vf": 65536}, "65536"),
    ("vf", {"vf": True}, "true"),
    ("vf", {"vf": 1.0}, "1.0"),
    ("vlan", {"vlan": 4095}, "4095"),
    ("vlan", {"vlan": "100"}, '"100"'),
    ("vlanQoS", {"vlan": 1, "vlanQoS": 8}, "8"),
    ("vlanQoS", {"vlanQoS": 3}, "3"),
    ("vlanProto", {"vlan": 1, "vlanProto": "802.1x"}, '"802.1x"'),
    ("vlanProto", {"vlanProto": "802.1q"}, '"802.1Q"'),
    ("mac", {"mac": "02:00:00:00:00"}, '"02:00:00:00:00"'),
    ("mac", {"mac": "01:00:5e:00:00:01"}, '"01:00:5e:00:00:01"'),
    ("mac", {"mac": "00:00:00:00:00:00"}, '"00:00:00:00:00:00"'),
    ("mac", {"mac": "0g:00:00:00:00:01"}, '"0g:00:00:00:00:01"'),
    ("mac", {"mac": "2:0:0:0:0:1"}, '"2:0:0:0:0:1"'),
    ("mac", {"mac": "020000000001"}, '"020000000001"'),
    ("mac", {"mac": "02:00-00:00:00:01"}, '"02:00-00:00:00:01"'),
    ("mac", {"mac": "02:00:00:00:00:0\u0661"}, "02:00:00:00:00:0\u0661"),
    ("mac", {"mac": 2}, "2"),
    ("deviceID", {"deviceID": "03:10.1"}, '"03:10.1"'),
    ("deviceID", {"deviceID": "0000:03:10.8"}, '"0000:03:10.8"'),
    ("deviceID", {"deviceID": "0000:03:10.1/.."}, '"0000:03:10.1/.."'),
    ("deviceID", {"deviceID": "mlx5_core.sf"}, '"mlx5_core.sf"'),
    ("deviceID", {"deviceID": 3}, "3"),
    ("pciBusID", {"pciBusID": "x"}, '"x"'),
    ("deviceID", {"deviceID": "0000:03:10.1", "pciBusID": "0000:03:10.2"}, '"0000:03:10.2"'),
    ("min_tx_rate", {"min_tx_rate": -1}, "-1"),
    ("min_tx_rate", {"min_tx_rate": 200, "max_tx_rate": 100}, "200"),
    ("max_tx_rate", {"max_tx_rate": 2**32}, "4294967296"),
    ("spoofchk", {"spoofchk": True}, "true"),
    ("spoofchk", {"spoofchk": "yes"}, '"yes"'),
    ("trust", {"trust": 1}, "1"),
    ("trust", {"trust": "ON"}, '"ON"'),
    ("link_state", {"link_state": "up"}, '"up"'),
    ("mtu", {"mtu": 67}, "67"),
    ("mtu", {"mtu": 65536}, "65536"),
    ("mtu", {"mtu": 0.0}, "0.0"),
    ("cores", {"cores": 3}, "3"),
    ("cores", {"cores": "a"}, '"a"'),
    ("cores", {"cores": "1,,2"}, '"1,,2"'),
    ("cores", {"cores": "4-1"}, '"4-1"'),
    ("cores", {"cores": "1-2-3"}, '"1-2-3"'),
    ("cores", {"cores": "8192"}, '"8192"'),
    ("cores", {"cores": "0-8191,0"}, '"0-8191,0"'),
    ("cores", {"cores": "٣"}, '"٣"'),
    ("cores", {"cores": [1, "2"]}, '[1,"2"]'),
    ("cores", {"cores": [True]}, "[true]"),
    ("cores", {"cores": [0] * 8193}, "[0,0,"),
    ("ipam", {"ipam": "host-local"}, '"host-local"'),
    ("ipam.type", {"ipam": {"subnet": "10.0.0.0/8"}}, "missing"),
    ("ipam.type", {"ipam": {"type": "", "subnet": "10.0.0.0/24"}}, "missing"),
    ("ipam.type", {"ipam": {"type": 5}}, "5"),
    ("ipam.type", {"ipam": {"type": "../../bin/sh"}}, '"../../bin/sh"'),
    ("ipam.type", {"ipam": {"type": "a\0b"}}, "a"),
    ("dns", {"dns": []}, "[]"),
    ("dns.nameservers", {"dns": {"nameservers": "10.0.0.1"}}, '"10.0.0.1"'),
    ("dns.nameservers", {"dns": {"nameservers": ["x"]}}, '["x"]'),
    ("dns.domain", {"dns": {"domain": 5}}, "5"),
    ("dns.search", {"dns": {"search": "x"}}, '"x"'),
    ("dns.options", {"dns": {"options": [1]}}, "[1]"),
    ("runtimeConfig", {"runtimeConfig": []}, "[]"),
    ("runtimeConfig.mac", {"runtimeConfig": {"mac": "x"}}, '"x"'),
    ("runtimeConfig.deviceID", {"runtimeConfig": {"deviceID": "x"}}, '"x"'),
    ("runtimeConfig.ips", {"runtimeConfig": {"ips": "10.0.0.1"}}, '"10.0.0.1"'),
    ("runtimeConfig.ips", {"runtimeConfig": {"ips": ["10.0.0.1/40"]}}, '["10.0.0.1/40"]'),
    ("mac", {"mac": "x", "runtimeConfig": {"mac": "02:00:00:00:00:01"}}, '"x"'),
    ("logLevel", {"logLevel": "verbose"}, '"verbose"'),
    ("logFile", {"logFile": "sriov.log"}, '"sriov.log"'),
]


@pytest.mark.parametrize("command", ["ADD", "CHECK", "STATUS"])
@pytest.mark.parametrize(("key", "change", "value"), WRONG)
def test_wrong(key: str, change: dict[str, Any], value: str, command: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parsed(command, **change)
    error = caught.value
    assert error.code == 7
    assert error.msg.startswith(key)
    assert value in error.msg
    assert error.details
    printed = json.loads(response.error(error, "1.1.0"))
    assert (printed["code"], printed["msg"], printed["details"]) == (7, error.msg, error.details)


@pytest.mark.parametrize(("key", "change", "value"), WRONG)
def test_del_and_gc_pass_over_what_is_wrong_but_a_gcs_name(
    key: str, change: dict[str, Any], value: str
) -> None:
    got = parsed("DEL", **change)
    if key != "master" or value != "missing":  # a DEL finds the PF in its own records
        assert any(key in warning and value in warning for warning in got.warnings)
    change = change | {"cni.dev/valid-attachments": []}
    if key == "name":
        with pytest.raises(ConfigError, match=key):
            parsed("GC", **change)
    else:
        assert parsed("GC", **change).name == "mynet"


WRONG_ARGS = [
    ("VF", "VF=x", '"x"'),
    ("VF", "vf=65536", '"65536"'),
    ("VF", "VF=0x1", '"0x1"'),
    ("VF", "VF= 1", '" 1"'),
    ("VF", "VF=99999999999999999999", '"99999999999999999999"'),
    ("VF", "VF=٣", '"٣"'),
    ("VLAN", "VLAN=4095", '"4095"'),
    ("MAC", "MAC=01:00:5e:00:00:01", '"01:00:5e:00:00:01"'),
    ("IP", "IP=x", '"x"'),
    ("CORES", "CORES=a-b", '"a-b"'),
    ("IP", "IP=10.0.0.1,", '"10.0.0.1,"'),
    ("HostIP", "HostIP=here", '"here"'),
    ("PodID", "PodID=a\nb", '"a\\nb"'),
]


@pytest.mark.parametrize(("key", "args", "value"), WRONG_ARGS)
def test_wrong_args(key: str, args: str, value: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parsed(args=args)
    assert caught.value.msg.startswith(f"CNI_ARGS {key} = ")
    assert value in caught.value.msg
    assert caught.value.details
    assert any(value in warning for warning in parsed("DEL", args=args).warnings)
    # An invalid argument is an error even if another source overrides it.
    runtime = {"mac": "02:00:00:00:00:01", "ips": ["10.0.0.1"]}
    with pytest.raises(ConfigError):
        parsed(args=args, runtimeConfig=runtime)


@pytest.mark.parametrize("command", ["ADD", "DEL", "CHECK", "STATUS", "GC"])
@pytest.mark.parametrize(
    ("stdin", "words"),
    [
        (b"", "empty"),
        (b'{"name": "x"', "line 1"),
        (b"[]", "not a JSON object: []"),
        (b"null", "not a JSON object: null"),
        (b'"sriov"', 'not a JSON object: "sriov"'),
        (b'{"cniVersion": 1}', "cniVersion = 1"),
        (b'{"cniVersion": ["1.0.0"]}', 'cniVersion = ["1.0.0"]'),
        (b" " * (10 << 20), "larger than"),
        (b'{"vlan": NaN}', "column 10"),
        (b"\xff\xfe", "UTF-8"),
    ],
)
def test_no_configuration(command: str, stdin: bytes, words: str) -> None:
    with pytest.raises(DecodeError) as caught:
        parse(asked(stdin, command))
    assert caught.value.code == 6
    assert words in caught.value.msg
    assert caught.value.details


def test_wrong_prev_result() -> None:
    wrong = {"ips": [{"address": "10.0.0.300/24"}]}
    with pytest.raises(DecodeError, match=r'prevResult\.ips\[0\]\.address = "10\.0\.0\.300/24"'):
        parsed(prevResult=wrong)
    got = parsed("DEL", prevResult=wrong)
    assert got.prev_result is None
    assert "10.0.0.300/24" in got.warnings[0]


def test_long_values_are_cut() -> None:
    with pytest.raises(ConfigError) as caught:
        parsed(mac="x" * 100_000)
    assert len(caught.value.msg) < 300
    with pytest.raises(EnvError) as refused:
        parsed(args="a" * 100_000)
    assert len(refused.value.msg) < 300


def test_many_unknown_keys_are_not_all_named() -> None:
    got = parsed(**{f"x{number}{'y' * 1000}": 1 for number in range(200)})
    assert len(got.warnings) == 21
    assert got.warnings[-1] == "180 more unknown keys are ignored"
    assert max(map(len, got.warnings)) < 120


# --- keys and values in the forms of other plugins and operators -------------------------------------------


def spelled(value: Any, spell: Callable[[str], str]) -> Any:
    """Return a document with ``spell`` applied to every key."""
    if isinstance(value, dict):
        return {spell(key): spelled(item, spell) for key, item in value.items()}
    return [spelled(item, spell) for item in value] if isinstance(value, list) else value


@pytest.mark.parametrize("spell", [str.upper, str.lower, str.title])
def test_keys_in_any_case(spell: Callable[[str], str]) -> None:
    conf = EVERY | {"args": {"cni": {"vlan": 101}}}
    got, plain = parse(asked(spelled(conf, spell))), parse(asked(conf))
    assert got.warnings == plain.warnings == ()
    assert got.replace(raw={}, ipam=None) == plain.replace(raw={}, ipam=None)
    assert (got.settings.vlan, got.raw["name"]) == (101, "mynet")  # delegates get the documented key
    assert set(got.ipam or ()) == {spell("type"), spell("subnet")}  # keys inside of ``ipam`` are unchanged
    listed = {"cniVersion": "1.1.0", "CNI.dev/Valid-Attachments": [{"containerid": "a", "IfName": "b"}]}
    assert parse(asked(BASE | listed, "GC")).valid_attachments == (("a", "b"),)


@pytest.mark.parametrize(("first", "second"), [("vlan", "VLAN"), ("VLAN", "vlan")])
def test_of_keys_that_differ_in_case_the_last_counts(first: str, second: str) -> None:
    """The last one of equal keys is used, as in Go's decoder, which ignores case."""
    assert parsed(**{first: 1, second: 2}).settings.vlan == 2


@pytest.mark.parametrize(("level", "expected"), [("Debug", "debug"), ("PANIC", "error"), ("panic", "error")])
def test_log_levels_of_other_loggers(level: str, expected: str) -> None:
    assert parsed(logLevel=level).log_level == expected


@pytest.mark.parametrize(
    ("key", "value"), [("vlanQoS", 3), ("vlanProto", "802.1ad"), ("vlanProto", "802.1AD")]
)
def test_vlan_0_has_no_tag_for_a_priority_or_protocol(key: str, value: Any) -> None:
    """VLAN 0 excludes a priority and a protocol, unless the IPAM plugin may still choose a VLAN."""
    wrong = {"vlan": 0, key: value}
    with pytest.raises(ConfigError, match=key):
        parse(asked(configuration(**wrong)), may_choose_vf)
    assert any(key in warning for warning in parsed("DEL", **wrong).warnings)
    with pytest.raises(ConfigError, match=key):
        parse(
            asked(configuration(**wrong, ipam={"type": "host-local", "subnet": "10.0.0.0/24"})), may_choose_vf
        )
    late = parse(asked(configuration(**wrong, ipam={"type": "txipam"})), may_choose_vf)
    assert with_extra(late, {"vlan": 7}).settings.vlan == 7
    for extra in (None, {}, {"vlan": 0}):
        with pytest.raises(ConfigError, match=key):
            with_extra(late, extra)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, {}),
        ({"vlan": 1, "vlanQoS": 7, "vlanProto": "802.1q"}, {"vlan": 1, "qos": 7}),
        ({"vlan": 4094, "vlanProto": "802.1AD"}, {"vlan": 4094, "proto": "802.1ad"}),
        ({"vlanProto": "802.1Q"}, {}),
        ({"spoofchk": "on", "trust": "off"}, {"spoofchk": True, "trust": False}),
        ({"link_state": "disable"}, {"link_state": "disable"}),
        ({"min_tx_rate": 0, "max_tx_rate": 0}, {"min_tx_rate": 0, "max_tx_rate": 0}),
        ({"min_tx_rate": 100, "max_tx_rate": 0}, {"min_tx_rate": 100, "max_tx_rate": 0}),
        ({"min_tx_rate": 10, "max_tx_rate": 10}, {"min_tx_rate": 10, "max_tx_rate": 10}),
        ({"min_tx_rate": 10}, {"min_tx_rate": 10}),
    ],
)
def test_a_network_of_the_sriov_operator(fields: dict[str, Any], expected: dict[str, Any]) -> None:
    """The operator's default vlan, vlanQoS and ipam are accepted, as are the device keys that Multus adds."""
    device = {"deviceID": "0000:03:10.1", "pciBusID": "0000:03:10.1"}
    written = {"vlan": 0, "vlanQoS": 0, "ipam": {}, "capabilities": {"mac": True, "ips": True}} | fields
    got = parsed(master=NO, **device, **written)
    proto = fields.get("vlanProto") and "802.1Q"
    assert got.settings == VfSettings(**{"vlan": 0, "qos": 0, "proto": proto} | expected)
    assert (got.warnings, got.ipam_type) == ((), "")


# --- args.cni, where Multus puts the "cni-args" of a pod's annotation ---------------------------------------

MAC, OTHER = "02:00:00:00:00:0a", "02:00:00:00:00:0b"


def chosen(conf: NetConf) -> tuple[object, ...]:
    return conf.vf, conf.settings.vlan, conf.settings.mac, conf.cores


def annotated(pod: object, command: str = "ADD", args: str = "", **more: Any) -> NetConf:
    return parse(asked(configuration(**more) | {"args": {"cni": pod}}, command, args))


@pytest.mark.parametrize(
    "pod",
    [
        {"vf": 3, "vlan": 100, "mac": MAC, "cores": [1, 2]},
        {"vf": "3", "vlan": "100", "mac": MAC.upper(), "cores": "1-2"},
        {"VF": 3, "Vlan": "100", "MAC": MAC, "cores": "1,2"},
    ],
)
def test_what_an_annotation_asks_for(pod: dict[str, Any]) -> None:
    """The annotation overrides the configuration, CNI_ARGS override both; numbers may be strings."""
    own = {"vf": 1, "vlan": 10, "mac": OTHER, "cores": [7]}
    assert chosen(annotated(pod, **own)) == (3, 100, MAC, (1, 2))
    assert chosen(annotated(pod, "ADD", f"VF=4;VLAN=5;CORES=6;MAC={OTHER}", **own)) == (4, 5, OTHER, (6,))
    assert annotated(pod, runtimeConfig={"mac": OTHER}).settings.mac == OTHER
    assert chosen(with_extra(annotated(pod), {"vf": 0, "vlan": 0})) == (0, 0, MAC, (1, 2))


@pytest.mark.parametrize("cores", [5, "5"])
def test_a_single_core_of_an_annotation(cores: object) -> None:
    assert annotated({"cores": cores}).cores == (5,)


@pytest.mark.parametrize(
    "pod", [None, {}, {"vf": None, "vlan": "", "mac": "", "cores": ""}, {"ips": ["10.0.0.2"]}]
)
def test_what_an_annotation_does_not_give_overrides_nothing(pod: object) -> None:
    conf = annotated(pod, vf=1, vlan=10, mac=OTHER, cores="7")
    assert (chosen(conf), conf.warnings) == ((1, 10, OTHER, (7,)), ())


@pytest.mark.parametrize(
    ("pod", "words"),
    [
        ({"vf": -1}, "args.cni.vf = -1"),
        ({"vf": "0x1"}, 'args.cni.vf = "0x1"'),
        ({"vf": 1.5}, "args.cni.vf = 1.5"),
        ({"vf": True}, "args.cni.vf = true"),
        ({"vlan": 4095}, "args.cni.vlan = 4095"),
        ({"mac": "01:00:00:00:00:00"}, "args.cni.mac"),
        ({"mac": 1}, "args.cni.mac = 1"),
        ({"cores": "x"}, "args.cni.cores"),
        ([], "args.cni = []"),
    ],
)
def test_a_wrong_value_of_an_annotation(pod: object, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        annotated(pod)
    assert words in caught.value.msg
    released = annotated(pod, "DEL", vf=1)
    assert released.vf == 1
    assert any(words in warning for warning in released.warnings)


# --- GC ---------------------------------------------------------------------------------------------------

ONE = {"containerID": "a", "ifname": "eth0"}
TWO = {"containerID": "b", "ifname": "eth0"}
KEYS = ("cni.dev/valid-attachments", "cni.dev/attachments")


@pytest.mark.parametrize("key", KEYS)
def test_valid_attachments(key: str) -> None:
    assert parsed("GC", **{key: [ONE, TWO, ONE]}).valid_attachments == (("a", "eth0"), ("b", "eth0"))
    assert parsed("GC", **{key: []}).valid_attachments == ()
    assert parsed("GC", **{key: None}).valid_attachments == ()  # an empty list, as Go writes it
    assert parsed("ADD", **{key: [ONE]}).valid_attachments is None


def test_both_spellings_spare_what_either_lists() -> None:
    got = parsed("GC", **{KEYS[0]: [ONE], KEYS[1]: [TWO, ONE]})
    assert got.valid_attachments == (("a", "eth0"), ("b", "eth0"))


@pytest.mark.parametrize(
    "value",
    ["x", {}, [1], [{}], [{"containerID": "a"}], [{"ifname": "a"}], [ONE, {"containerID": 1, "ifname": "a"}]],
)
@pytest.mark.parametrize("key", KEYS)
def test_wrong_attachments(key: str, value: object) -> None:
    with pytest.raises(ConfigError) as caught:
        parsed("GC", **{key: value})
    assert key in caught.value.msg
    assert caught.value.details


def test_a_gc_without_a_list_releases_nothing() -> None:
    with pytest.raises(ConfigError, match="valid-attachments is missing"):
        parsed("GC")


# --- IPAM's extra -----------------------------------------------------------------------------------------

CONF = NetConf(vf=1, settings=VfSettings(vlan=10, mac="02:00:00:00:00:01", trust=True))


@pytest.mark.parametrize("extra", [None, {}, {"vf": None}, {"other": 5}])
def test_extra_that_changes_nothing(extra: object) -> None:
    assert with_extra(CONF, extra) == CONF


def test_extra_goes_before_everything() -> None:
    got = with_extra(CONF, {"vf": 0, "vlan": 0, "mac": "02-00-00-00-00-0A"})
    assert (got.vf, got.settings) == (0, VfSettings(vlan=0, mac="02:00:00:00:00:0a", trust=True))
    assert with_extra(CONF, {"vlan": 7}) == CONF.replace(settings=CONF.settings.replace(vlan=7))


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        ([], "extra = []"),
        ("x", 'extra = "x"'),
        ({"vf": "3"}, 'extra.vf = "3"'),
        ({"vf": True}, "extra.vf = true"),
        ({"vf": -1}, "extra.vf = -1"),
        ({"vlan": 4095}, "extra.vlan = 4095"),
        ({"vlan": 1.5}, "extra.vlan = 1.5"),
        ({"mac": "01:00:5e:00:00:01"}, 'extra.mac = "01:00:5e:00:00:01"'),
        ({"mac": 5}, "extra.mac = 5"),
    ],
)
def test_wrong_extra(extra: object, words: str) -> None:
    with pytest.raises(IpamError) as caught:
        with_extra(CONF, extra)
    assert words in caught.value.msg
    assert caught.value.details
    assert caught.value.code == 102


# --- anything ---------------------------------------------------------------------------------------------

values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


def outcome(conf: dict[str, Any], command: str) -> NetConf | SriovError:
    """Parse a configuration; return the result or the SriovError. Other exceptions are raised."""
    try:
        return parse(asked(conf, command))
    except SriovError as error:
        return error


@given(
    st.dictionaries(st.sampled_from([*config.KEYS, *KEYS]), values, max_size=5),
    st.sampled_from(["ADD", "DEL", "CHECK", "STATUS", "GC"]),
)
def test_anything_is_a_configuration_or_a_clear_error(change: dict[str, Any], command: str) -> None:
    got = outcome(BASE | change, command)
    if isinstance(got, NetConf):
        assert got.version in config.VERSIONS
        return
    assert got.code in ((1, 6) if command == "DEL" else (1, 6, 7))
    assert got.msg
    assert got.details
    assert json.loads(response.error(got, "1.1.0"))["code"] == got.code


@given(values)
def test_any_extra_is_taken_or_a_clear_error(extra: object) -> None:
    try:
        assert isinstance(with_extra(CONF, extra), NetConf)
    except IpamError as error:
        assert error.details  # noqa: PT017


# --- the cache of parsed configurations -------------------------------------------------------------------


def test_one_pods_arguments_are_not_the_next_ones() -> None:
    """A cached configuration does not carry CNI_ARGS from one call to the next."""
    with_all = "VF=3;VLAN=7;MAC=02:00:00:00:00:07;CORES=2;IP=10.0.0.7;PodID=a;HostIP=10.0.0.1"
    own = {"vf": 1, "vlan": 5, "cores": [1], "mac": "02:00:00:00:00:05"}
    plain = parsed(**own)
    changed = parsed(args=with_all, **own)
    assert (changed.vf, changed.settings.vlan, changed.cores) == (3, 7, (2,))
    assert changed.settings.mac == "02:00:00:00:00:07"
    assert parsed(**own) == plain
    assert (plain.vf, plain.settings.vlan, plain.cores) == (1, 5, (1,))


def test_a_verb_is_not_told_what_another_was() -> None:
    """A DEL only warns of a value that an ADD refuses, in any order of the calls."""
    for command in ("DEL", "ADD", "DEL", "ADD"):
        if command == "DEL":
            assert any("vlan" in warning for warning in parsed("DEL", vlan="many").warnings)
        else:
            with pytest.raises(ConfigError):
                parsed("ADD", vlan="many")


def test_what_is_remembered_is_bounded() -> None:
    for number in range(config._MOST_KNOWN + 10):
        parsed(vf=number)
    assert 0 < len(config._known) <= config._MOST_KNOWN
    before = len(config._known)
    parsed(stranger="x" * config._LARGEST_KNOWN)
    assert len(config._known) == before
