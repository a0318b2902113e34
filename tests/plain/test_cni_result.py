"""cni.result: the form of every version, read and written, and the merge of two chained results."""

import json
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sriov_fast.cni import result
from sriov_fast.cni.result import Interface, IpConfig, Result
from sriov_fast.common import json as codec
from sriov_fast.common.errors import DecodeError, IpamError
from sriov_fast.common.record import Route

FULL = Result(
    interfaces=(
        Interface(name="eth1"),
        Interface(
            name="net1",
            mac="02:00:00:00:00:01",
            mtu=9000,
            sandbox="/run/netns/pod",
            pci_id="0000:03:10.1",
            socket_path="/run/x.sock",
        ),
    ),
    ips=(
        IpConfig(address="10.55.206.46/26", gateway="10.55.206.1", interface=1),
        IpConfig(address="fd00::2/64", gateway="fd00::1", interface=0),
        IpConfig(address="10.0.0.2/8"),
    ),
    routes=(
        Route(dst="0.0.0.0/0", gw="10.55.206.1", mtu=1400, advmss=1360, priority=10, table=100, scope=0),
        Route(dst="fd01::/64", gw="fd00::1"),
        Route(dst="10.0.0.0/8"),
    ),
    dns={"nameservers": ["10.1.0.1"], "domain": "example.org", "search": ["a", "b"], "options": ["ndots:2"]},
)
DNS = {"nameservers": ["10.1.0.1"], "domain": "example.org", "search": ["a", "b"], "options": ["ndots:2"]}

INTERFACES = [{"name": "eth1"}, {"name": "net1", "mac": "02:00:00:00:00:01", "sandbox": "/run/netns/pod"}]
MORE_OF_AN_INTERFACE = {
    "mtu": 9000,
    "sandbox": "/run/netns/pod",
    "socketPath": "/run/x.sock",
    "pciID": "0000:03:10.1",
}
IPS = [
    {"address": "10.55.206.46/26", "gateway": "10.55.206.1", "interface": 1},
    {"address": "fd00::2/64", "gateway": "fd00::1", "interface": 0},
    {"address": "10.0.0.2/8"},
]
DEFAULT = {"dst": "0.0.0.0/0", "gw": "10.55.206.1"}
MORE_OF_A_ROUTE = {"mtu": 1400, "advmss": 1360, "priority": 10, "table": 100, "scope": 0}
OTHERS = [{"dst": "fd01::/64", "gw": "fd00::1"}, {"dst": "10.0.0.0/8"}]
FORMS: dict[str, dict[str, object]] = {
    "0.2.0": {
        "cniVersion": "0.2.0",
        "ip4": {"ip": "10.55.206.46/26", "gateway": "10.55.206.1", "routes": [DEFAULT, OTHERS[1]]},
        "ip6": {"ip": "fd00::2/64", "gateway": "fd00::1", "routes": [OTHERS[0]]},
        "dns": DNS,
    },
    "0.4.0": {
        "cniVersion": "0.4.0",
        "interfaces": INTERFACES,
        "ips": [{"version": version} | ip for version, ip in zip("464", IPS, strict=True)],
        "routes": [DEFAULT, *OTHERS],
        "dns": DNS,
    },
    "1.0.0": {
        "cniVersion": "1.0.0",
        "interfaces": INTERFACES,
        "ips": IPS,
        "routes": [DEFAULT, *OTHERS],
        "dns": DNS,
    },
    "1.1.0": {
        "cniVersion": "1.1.0",
        "interfaces": [
            {"name": "eth1"},
            {"name": "net1", "mac": "02:00:00:00:00:01"} | MORE_OF_AN_INTERFACE,
        ],
        "ips": IPS,
        "routes": [DEFAULT | MORE_OF_A_ROUTE, *OTHERS],
        "dns": DNS,
    },
}
SAME_FORM = {"0.1.0": "0.2.0", "0.3.0": "0.4.0", "0.3.1": "0.4.0"}


@pytest.mark.parametrize("version", result.VERSIONS)
def test_forms(version: str) -> None:
    """The keys are in the order of the specification."""
    expected = FORMS[SAME_FORM.get(version, version)] | {"cniVersion": version}
    assert json.dumps(result.to_json(FULL, version)) == json.dumps(expected)


@pytest.mark.parametrize("version", result.VERSIONS)
def test_empty(version: str) -> None:
    assert result.to_json(Result(), version) == {"cniVersion": version, "dns": {}}
    assert result.from_json({}, version) == Result()
    assert result.from_json({"cniVersion": version, "dns": None, "ips": None}, "1.1.0") == Result()


macs = st.sampled_from(["", "02:00:00:00:00:01"])
interfaces = st.builds(
    Interface,
    name=st.text("abc012", min_size=1, max_size=15),
    mac=macs,
    mtu=st.integers(0, 65535),
    sandbox=st.sampled_from(["", "/run/netns/a"]),
    pci_id=st.sampled_from(["", "0000:03:10.1"]),
    socket_path=st.sampled_from(["", "/run/s"]),
)


@st.composite
def cidrs(draw: st.DrawFn) -> tuple[str, str]:
    """Draw an address in canonical text, and a gateway of its family or none."""
    version = draw(st.sampled_from([4, 6]))
    address = draw(st.ip_addresses(v=version))
    gateway = draw(st.none() | st.ip_addresses(v=version))
    length = draw(st.integers(0, address.max_prefixlen))
    texts = [codec_ip(str(address)), "" if gateway is None else codec_ip(str(gateway))]
    return f"{texts[0]}/{length}", texts[1]


def codec_ip(text: str) -> str:
    """Return an address as the C library writes it; ipaddress differs for addresses that embed IPv4."""
    family = socket.AF_INET6 if ":" in text else socket.AF_INET
    return socket.inet_ntop(family, socket.inet_pton(family, text))


@st.composite
def results(draw: st.DrawFn) -> Result:
    """Draw a result."""
    ifaces = tuple(draw(st.lists(interfaces, max_size=3)))
    index = st.none() | st.integers(0, len(ifaces) - 1) if ifaces else st.none()
    ips = tuple(
        IpConfig(address=address, gateway=gateway, interface=draw(index))
        for address, gateway in draw(st.lists(cidrs(), max_size=4))
    )
    number = st.integers(0, 2**32 - 1)
    routes = tuple(
        Route(
            dst=dst,
            gw=gw,
            mtu=draw(number),
            advmss=draw(number),
            priority=draw(number),
            table=draw(number),
            scope=draw(st.none() | st.integers(0, 255)),
        )
        for dst, gw in draw(st.lists(cidrs(), max_size=3))
    )
    dns = draw(st.sampled_from([{}, {"domain": "a"}, {"nameservers": ["10.0.0.1"], "search": ["b"]}]))
    return Result(interfaces=ifaces, ips=ips, routes=routes, dns=dns)


@given(results(), st.sampled_from(result.VERSIONS))
def test_round_trip(given_result: Result, version: str) -> None:
    written = result.to_json(given_result, version)
    again = result.from_json(codec.loads(codec.dumps(written)), "1.1.0")
    assert result.to_json(again, version) == written
    if version == "1.1.0":
        assert again == given_result


@pytest.mark.parametrize(
    ("address", "canonical"),
    [
        ("10.0.0.2/24", "10.0.0.2/24"),
        ("10.0.0.2/024", "10.0.0.2/24"),
        ("FD00:0:0:0:0:0:0:2/64", "fd00::2/64"),
        ("::ffff:10.0.0.1/128", "::ffff:10.0.0.1/128"),
        ("0.0.0.0/0", "0.0.0.0/0"),
    ],
)
def test_canonical(address: str, canonical: str) -> None:
    assert result.from_json({"ips": [{"address": address}]}, "1.0.0").ips[0].address == canonical


WRONG = [
    ([], "prevResult = []", "not an object"),
    ({"cniVersion": 1}, "prevResult.cniVersion = 1", "not a string"),
    ({"cniVersion": "3.0.0"}, '"3.0.0"', "not supported"),
    ({"ips": {}}, "prevResult.ips = {}", "not a list"),
    ({"ips": [1]}, "prevResult.ips[0] = 1", "not an object"),
    ({"ips": [{}]}, "prevResult.ips[0].address", "missing"),
    ({"ips": [{"address": "10.0.0.2"}]}, '"10.0.0.2"', "prefix length"),
    ({"ips": [{"address": "10.0.0.2/-1"}]}, '"10.0.0.2/-1"', "prefix length"),
    ({"ips": [{"address": "010.0.0.1/24"}]}, '"010.0.0.1/24"', "not an address"),
    ({"ips": [{"address": "fe80::1%eth0/64"}]}, "fe80::1%eth0", "not an address"),
    ({"ips": [{"address": "fd00::1/129"}]}, '"fd00::1/129"', "not an address"),
    ({"ips": [{"address": "٣.0.0.1/8"}]}, "٣.0.0.1/8", "not an address"),
    ({"ips": [{"address": "10.0.0.1/٣"}]}, "10.0.0.1/٣", "not an address"),
    ({"ips": [{"address": 5}]}, "prevResult.ips[0].address = 5", "not a string"),
    ({"ips": [{"address": "10.0.0.2/24", "gateway": "x"}]}, 'ips[0].gateway = "x"', "not an IP address"),
    ({"ips": [{"address": "10.0.0.2/24", "gateway": "fd00::1"}]}, '"fd00::1"', "another IP version"),
    ({"ips": [{"address": "10.0.0.2/24", "version": "6"}]}, 'version = "6"', "10.0.0.2/24"),
    ({"ips": [{"address": "10.0.0.2/24", "version": 4}]}, "version = 4", "not one of"),
    ({"ips": [{"address": "10.0.0.2/24", "interface": -1}]}, "interface = -1", "not from 0"),
    (
        {"interfaces": [{"name": "a"}], "ips": [{"address": "10.0.0.2/24", "interface": 1}]},
        "ips[0].interface = 1",
        "1 interfaces",
    ),
    ({"interfaces": [{}]}, "interfaces[0].name", "missing"),
    ({"interfaces": [{"name": "a", "mtu": -1}]}, "mtu = -1", "not from 0"),
    ({"routes": [{}]}, "routes[0].dst", "missing"),
    ({"routes": [{"dst": "10.0.0.0/8", "gw": "x"}]}, 'routes[0].gw = "x"', "not an IP address"),
    ({"routes": [{"dst": "10.0.0.0/8", "table": 2**32}]}, "table = 4294967296", "not from 0"),
    ({"routes": [{"dst": "10.0.0.0/8", "scope": 256}]}, "scope = 256", "not from 0"),
    ({"ip4": {"gateway": "10.0.0.1"}}, "ip4.ip", "missing"),
    ({"ip4": {"ip": "fd00::2/64"}}, 'ip4.ip = "fd00::2/64"', "other IP version"),
    ({"ip4": []}, "ip4 = []", "not an object"),
    ({"dns": []}, "dns = []", "not an object"),
    ({"dns": {"nameservers": "x"}}, 'dns.nameservers = "x"', "not a list"),
    ({"dns": {"search": [1]}}, "dns.search = [1]", "not a string"),
]


@pytest.mark.parametrize(("obj", "place", "reason"), WRONG)
def test_wrong(obj: object, place: str, reason: str) -> None:
    with pytest.raises(DecodeError) as caught:
        result.from_json(obj, "1.1.0")
    assert place in caught.value.msg
    assert reason in caught.value.msg
    assert caught.value.details


def test_wrong_in_an_ipam_result() -> None:
    with pytest.raises(IpamError) as caught:
        result.from_json(
            {"ips": [{"address": "x"}]}, "1.1.0", error=IpamError, where="the result of host-local"
        )
    assert caught.value.msg.startswith('the result of host-local.ips[0].address = "x"')
    assert caught.value.code == 102


def test_the_form_shows_itself() -> None:
    """A result in the form of another version than its ``cniVersion`` is read as well."""
    old = {"ip4": {"ip": "10.0.0.2/24"}}
    new = {"ips": [{"address": "10.0.0.3/24"}]}
    for version in result.VERSIONS:
        assert result.from_json(old, version).ips[0].address == "10.0.0.2/24"
        assert result.from_json(new, version).ips[0].address == "10.0.0.3/24"
        both = "10.0.0.2/24" if version in result.LEGACY else "10.0.0.3/24"
        assert result.from_json(old | new, version).ips[0].address == both


def test_an_index_without_interfaces_points_nowhere() -> None:
    assert (
        result.from_json({"ips": [{"address": "10.0.0.2/24", "interface": 0}]}, "1.0.0").ips[0].interface
        is None
    )


def test_merge() -> None:
    ours = Result(
        interfaces=(Interface(name="net2"),),
        ips=(IpConfig(address="10.9.0.2/24", interface=0), IpConfig(address="10.9.0.3/24")),
        routes=(Route(dst="10.9.0.0/16"),),
        dns={"domain": "other"},
    )
    merged = result.merge(FULL, ours)
    assert merged.interfaces == FULL.interfaces + ours.interfaces
    assert merged.ips == (
        *FULL.ips,
        IpConfig(address="10.9.0.2/24", interface=2),
        IpConfig(address="10.9.0.3/24"),
    )
    assert merged.routes == FULL.routes + ours.routes
    assert merged.dns == FULL.dns | {"domain": "other"}
    assert result.merge(None, ours) is ours
    assert result.merge(FULL, Result()) == FULL


@given(results(), results())
def test_merge_keeps_every_index_on_its_interface(first: Result, second: Result) -> None:
    merged = result.merge(first, second)

    def owners(of: Result) -> list[Interface | None]:
        return [None if item.interface is None else of.interfaces[item.interface] for item in of.ips]

    assert owners(merged) == owners(first) + owners(second)
