"""The bytes of a batch: equal from both backends, and decoded by pyroute2.

pyroute2's message classes are the reference: they decode every message, and the plain backend encodes
addresses, routes and alternative names with them. They leave out the tail padding of ``struct
ifla_vf_vlan_info``.
"""

from __future__ import annotations

import ipaddress
import re
import socket
import struct
from typing import TYPE_CHECKING, Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
from pyroute2.netlink.rtnl.rtmsg import rtmsg

from sriov_fast import _nl
from sriov_fast.common.record import LinkSettings, Route, VfSettings
from sriov_fast.kernel import _nl_py

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import ModuleType

BACKENDS = [pytest.param(_nl, id="cython"), pytest.param(_nl_py, id="python")]

indexes = st.integers(1, 2**31 - 1)
vf_numbers = st.integers(0, 65535)
macs = st.binary(min_size=6, max_size=6).map(lambda raw: raw.hex(":"))
names = st.text(
    st.characters(categories=("L", "N", "P"), exclude_characters="/:"), min_size=1, max_size=15
).filter(lambda name: len(name.encode()) < 16 and name not in (".", "..") and b"\xa0" not in name.encode())
u32 = st.integers(0, 2**31 - 1)
MAC = re.compile("[0-9a-f]{2}(:[0-9a-f]{2}){5}", re.IGNORECASE)


def optional(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.none() | strategy


@st.composite
def vf_settings(draw: st.DrawFn) -> VfSettings:
    vlan = draw(optional(st.integers(0, 4094)))
    settings = VfSettings(
        mac=draw(optional(macs)),
        vlan=vlan,
        qos=None if vlan is None else draw(optional(st.integers(0, 7))),
        proto=None if vlan is None else draw(optional(st.sampled_from(["802.1Q", "802.1ad"]))),
        min_tx_rate=draw(optional(u32)),
        max_tx_rate=draw(optional(u32)),
        spoofchk=draw(optional(st.booleans())),
        link_state=draw(optional(st.sampled_from(["auto", "enable", "disable"]))),
        trust=draw(optional(st.booleans())),
    )
    return settings if settings != VfSettings() else VfSettings(trust=True)


@st.composite
def link_settings(draw: st.DrawFn) -> LinkSettings:
    sizes = ("txqlen", "group", "gso_max_segs", "gso_max_size")
    sizes += ("gro_max_size", "gso_ipv4_max_size", "gro_ipv4_max_size")
    return LinkSettings(
        flags=draw(optional(st.integers(0, 0xFFFF))),
        broadcast=draw(optional(macs)),
        mode=draw(optional(st.integers(0, 1))),
        alias=draw(optional(st.text(st.characters(codec="ascii", exclude_characters="\0"), max_size=255))),
        addrgenmode=draw(optional(st.integers(0, 3))),
        **{name: draw(optional(u32)) for name in sizes},
    )


@st.composite
def link_changes(draw: st.DrawFn) -> dict[str, Any]:
    changes = draw(
        st.fixed_dictionaries(
            {},
            optional={
                "netns_fd": st.integers(0, 2**31 - 1),
                "name": names,
                "mac": macs,
                "mtu": st.integers(1, 2**31 - 1),
                "up": st.booleans(),
                "master": st.integers(0, 2**31 - 1),
                "settings": link_settings(),
            },
        )
    )
    if changes.get("settings") == LinkSettings():
        del changes["settings"]
    return changes or {"up": True}


interfaces = st.ip_addresses().flatmap(
    lambda ip: st.integers(0, ip.max_prefixlen).map(lambda prefix: f"{ip}/{prefix}")
)


@st.composite
def routes(draw: st.DrawFn) -> Route:
    version: Literal[4, 6] = draw(st.sampled_from((4, 6)))
    network = draw(
        st.ip_addresses(v=version).flatmap(
            lambda ip: st.integers(0, ip.max_prefixlen).map(lambda prefix: f"{ip}/{prefix}")
        )
    )
    return Route(
        dst=network,
        gw=draw(st.just("") | st.ip_addresses(v=version).map(str)),
        mtu=draw(u32),
        advmss=draw(u32),
        priority=draw(st.integers(0, 2**32 - 1)),
        table=draw(st.integers(0, 2**32 - 1)),
        scope=draw(optional(st.integers(0, 255))),
        onlink=draw(st.booleans()),
    )


def encoded(backend: ModuleType, *steps: Callable[[Any], None]) -> bytes:
    batch = backend.Batch()
    for step in steps:
        step(batch)
    assert len(batch) == len(steps)
    data = batch.tobytes()
    assert isinstance(data, bytes)
    return data


def same(*steps: Callable[[Any], None]) -> bytes:
    """Encode with both backends, assert that the bytes are equal, and return them."""
    fast, plain = encoded(_nl, *steps), encoded(_nl_py, *steps)
    assert fast.hex(" ", 4) == plain.hex(" ", 4)
    return fast


def messages(data: bytes) -> Iterator[bytes]:
    while data:
        (size,) = struct.unpack_from("=I", data)
        assert size % 4 == 0
        yield data[:size]
        data = data[size:]


def header(data: bytes) -> tuple[int, int, int, int]:
    size, kind, flags, seq, port = struct.unpack_from("=IHHII", data)
    assert size == len(data)
    return kind, flags, seq, port


def decoded(cls: Any, data: bytes) -> Any:
    message = cls(data)
    message.decode()
    return message


@given(indexes, vf_numbers, vf_settings())
def test_set_vf_has_the_same_bytes_and_says_what_was_meant(index: int, vf: int, wish: VfSettings) -> None:
    data = same(lambda batch: batch.set_vf(index, vf, wish))
    assert header(data) == (19, 0x5, 1, 0)  # RTM_SETLINK, REQUEST | ACK
    message = decoded(ifinfmsg, data)
    assert message["index"] == index
    (info,) = message.get_attr("IFLA_VFINFO_LIST").get_attrs("IFLA_VF_INFO")
    assert all(value["vf"] == vf for name, value in info["attrs"] if name != "IFLA_VF_VLAN_LIST")
    assert settings_of(info) == wish.replace(
        mac=wish.mac and wish.mac.lower(),
        qos=None if wish.vlan is None else wish.qos or 0,
        proto=None if wish.vlan is None else wish.proto or "802.1Q",
        max_tx_rate=wish.max_tx_rate or 0 if wish.min_tx_rate is not None else wish.max_tx_rate,
    )


def settings_of(info: Any) -> VfSettings:
    """Decode one IFLA_VF_INFO of a request."""
    found: dict[str, Any] = {}
    for name, value in info["attrs"]:
        if name == "IFLA_VF_MAC":
            found["mac"] = value["mac"]
        elif name == "IFLA_VF_VLAN":
            found.update(vlan=value["vlan"], qos=value["qos"], proto="802.1Q")
        elif name == "IFLA_VF_VLAN_LIST":
            (vlan,) = value.get_attrs("IFLA_VF_VLAN_INFO")
            assert vlan["proto"] == 0x88A8
            found.update(vlan=vlan["vlan"], qos=vlan["qos"], proto="802.1ad")
        elif name == "IFLA_VF_RATE":
            found.update(min_tx_rate=value["min_tx_rate"], max_tx_rate=value["max_tx_rate"])
        elif name == "IFLA_VF_TX_RATE":
            found["max_tx_rate"] = value["tx_rate"]
        elif name == "IFLA_VF_LINK_STATE":
            found["link_state"] = ["auto", "enable", "disable"][value["link_state"]]
        else:
            key = name.removeprefix("IFLA_VF_").lower()
            found[key] = {0: False, 1: True}[value[key]]
    return VfSettings(**found)


@given(indexes, link_changes())
def test_set_link_has_the_same_bytes_and_says_what_was_meant(index: int, changes: dict[str, Any]) -> None:
    data = same(lambda batch: batch.set_link(index, **changes))
    assert header(data) == (19, 0x5, 1, 0)
    message = decoded(ifinfmsg, data)
    assert message["index"] == index
    assert message.get_attr("IFLA_IFNAME") == changes.get("name")
    assert message.get_attr("IFLA_ADDRESS") == changes.get("mac")
    assert message.get_attr("IFLA_MTU") == changes.get("mtu")
    assert message.get_attr("IFLA_NET_NS_FD") == changes.get("netns_fd")
    assert message.get_attr("IFLA_MASTER") == changes.get("master")
    given = changes.get("settings") or LinkSettings()
    assert message["change"] == ("up" in changes) | (0 if given.flags is None else 0xF3A4)
    assert message["flags"] == changes.get("up", False) | (given.flags or 0) & 0xF3A4
    for kind, value in ((2, given.broadcast), (13, given.txqlen), (17, given.mode), (27, given.group)):
        assert top_level(data).get(kind) == on_the_wire(value, "=B" if kind == 17 else "=I")
    sizes = (given.gso_max_segs, given.gso_max_size, given.gro_max_size)
    sizes += (given.gso_ipv4_max_size, given.gro_ipv4_max_size)
    for kind, value in zip((40, 41, 58, 63, 64), sizes, strict=True):
        assert top_level(data).get(kind) == on_the_wire(value)
    assert top_level(data).get(20) == on_the_wire(given.alias)
    nest = None if given.addrgenmode is None else struct.pack("=HHHHBxxx", 12, 10, 5, 8, given.addrgenmode)
    assert top_level(data).get(26) == nest


def top_level(data: bytes) -> dict[int, bytes]:
    """Return the attributes of a link's request by number; they follow two headers of 16 bytes each."""
    found, at = {}, 32
    while at < len(data):
        size, kind = struct.unpack_from("=HH", data, at)
        found[kind] = data[at + 4 : at + size]
        at += (size + 3) & ~3
    return found


def on_the_wire(value: str | int | None, form: str = "=I") -> bytes | None:
    """Return the bytes of a packed number, of a MAC, or of any other text."""
    if isinstance(value, str):
        return bytes.fromhex(value.replace(":", "")) if MAC.fullmatch(value) else value.encode()
    return None if value is None else struct.pack(form, value)


@given(indexes, st.integers(0, 2))
def test_drop_xdp_has_the_same_bytes_and_says_what_was_meant(index: int, mode: int) -> None:
    data = same(lambda batch: batch.drop_xdp(index, mode))
    assert header(data) == (19, 0x5, 1, 0)
    xdp = decoded(ifinfmsg, data).get_attr("IFLA_XDP")
    assert xdp.get_attr("IFLA_XDP_FD") == -1
    assert top_level(data)[43][12:] == struct.pack("=I", 2 << mode)


@given(indexes)
def test_del_link_has_the_same_bytes_and_says_what_was_meant(index: int) -> None:
    data = same(lambda batch: batch.del_link(index))
    assert header(data) == (17, 0x5, 1, 0)  # RTM_DELLINK, REQUEST | ACK
    assert decoded(ifinfmsg, data)["index"] == index


@given(indexes, st.integers(0, 2**31 - 1), names, st.booleans())
def test_new_macvlan_has_the_same_bytes_and_says_what_was_meant(
    index: int, netns_fd: int, name: str, up: bool
) -> None:
    data = same(lambda batch: batch.new_macvlan(index, netns_fd, name, up=up))
    assert header(data) == (16, 0x605, 1, 0)  # RTM_NEWLINK, REQUEST | ACK | CREATE | EXCL
    message = ifinfmsg(data)
    message.decode()
    assert (message["flags"], message["change"]) == ((1, 1) if up else (0, 0))
    assert message.get_attr("IFLA_LINK") == index
    assert message.get_attr("IFLA_NET_NS_FD") == netns_fd
    assert message.get_attr("IFLA_IFNAME") == name
    info = message.get_attr("IFLA_LINKINFO")
    assert info.get_attr("IFLA_INFO_KIND") == "macvlan"
    assert info.get_attr("IFLA_INFO_DATA").get_attr("IFLA_MACVLAN_MODE") == "passthru"
    assert info.get_attr("IFLA_INFO_DATA").get_attr("IFLA_MACVLAN_FLAGS") == "nopromisc"


def test_several_altnames_are_one_message() -> None:
    data = same(lambda batch: batch.del_altname(7, "one", "two"))
    listed = decoded(ifinfmsg, data).get_attr("IFLA_PROP_LIST").get_attrs("IFLA_ALT_IFNAME")
    assert [text if isinstance(text, str) else text.decode() for text in listed] == ["one", "two"]


@pytest.mark.parametrize("name", ["pf0v0", "a" * 127, "é" * 63, "\udcff"])
def test_altnames_have_the_same_bytes_and_say_what_was_meant(name: str) -> None:
    data = same(lambda batch: batch.add_altname(7, name), lambda batch: batch.del_altname(7, name))
    # RTM_NEWLINKPROP with CREATE | EXCL, RTM_DELLINKPROP, each REQUEST | ACK
    assert [header(message)[:3] for message in messages(data)] == [(108, 0x605, 1), (109, 0x5, 2)]
    for message in messages(data):
        assert decoded(ifinfmsg, message)["index"] == 7
        assert struct.unpack_from("=H", message, 34) == (0x8000 | 52,)  # NLA_F_NESTED | IFLA_PROP_LIST
        assert message[40:].rstrip(b"\0") == name.encode("utf-8", "surrogateescape")


@given(indexes, names, optional(vf_numbers))
def test_get_link_has_the_same_bytes_and_says_what_was_meant(index: int, name: str, vf: int | None) -> None:
    wanted = {} if vf is None else {"vf": vf}
    data = same(lambda b: b.get_link(index=index, **wanted), lambda b: b.get_link(name=name, **wanted))
    by_index, by_name = (decoded(ifinfmsg, message) for message in messages(data))
    assert by_index["index"] == index
    assert by_index.get_attr("IFLA_IFNAME") is None
    assert by_name["index"] == 0
    assert by_name.get_attr("IFLA_IFNAME") == name
    # RTEXT_FILTER_SKIP_STATS always; RTEXT_FILTER_VF, which is slow, only for a request with a VF.
    assert by_name.get_attr("IFLA_EXT_MASK") == (8 if vf is None else 9)
    assert [header(message)[:3] for message in messages(data)] == [(18, 0x1, 1), (18, 0x1, 2)]


@given(indexes, interfaces, st.booleans())
def test_add_address_has_the_same_bytes_and_says_what_was_meant(index: int, cidr: str, dad: bool) -> None:
    data = same(lambda batch: batch.add_address(index, cidr, dad=dad))
    assert header(data) == (20, 0x605, 1, 0)  # RTM_NEWADDR, REQUEST | ACK | CREATE | EXCL
    message = decoded(ifaddrmsg, data)
    ip = ipaddress.ip_interface(cidr)
    assert (message["index"], message["prefixlen"]) == (index, ip.network.prefixlen)
    local, peer = message.get_attr("IFA_LOCAL"), message.get_attr("IFA_ADDRESS")
    assert local == peer
    assert ipaddress.ip_address(local) == ip.ip
    if ip.version == 6:
        assert message["flags"] == (0 if dad else 0x02)  # IFA_F_NODAD
    broadcast = message.get_attr("IFA_BROADCAST")
    if ip.version == 4 and ip.network.prefixlen < 31:
        assert broadcast == str(ip.network.broadcast_address)
    else:
        assert broadcast is None


@given(indexes, routes())
def test_add_route_has_the_same_bytes_and_says_what_was_meant(index: int, route: Route) -> None:
    data = same(lambda batch: batch.add_route(index, route))
    assert header(data) == (24, 0x405, 1, 0)  # RTM_NEWROUTE, REQUEST | ACK | CREATE
    message = decoded(rtmsg, data)
    dst, _, prefix = route.dst.partition("/")
    assert message["dst_len"] == int(prefix)
    assert message["family"] == (socket.AF_INET6 if ":" in dst else socket.AF_INET)
    assert (message["type"], message["proto"]) == (1, 3)  # RTN_UNICAST, RTPROT_BOOT
    assert message.get_attr("RTA_OIF") == index
    assert same_ip(message.get_attr("RTA_DST"), dst if int(prefix) else None)
    assert same_ip(message.get_attr("RTA_GATEWAY"), route.gw or None)
    assert (message.get_attr("RTA_PRIORITY") or 0) == route.priority
    assert (message.get_attr("RTA_TABLE") or message["table"]) == (route.table or 254)
    assert message["scope"] == (route.scope if route.scope is not None else 0 if route.gw else 253)
    metrics = message.get_attr("RTA_METRICS")
    assert ((metrics and metrics.get_attr("RTAX_MTU")) or 0) == route.mtu
    assert ((metrics and metrics.get_attr("RTAX_ADVMSS")) or 0) == route.advmss


def same_ip(got: str | None, wanted: str | None) -> bool:
    if got is None or wanted is None:
        return got is wanted
    return ipaddress.ip_address(got) == ipaddress.ip_address(wanted)


def test_bytes_laid_out_by_hand() -> None:
    """The bytes of ``ip link set $pf vf 3 mac 02:00:00:00:00:03 vlan 100 qos 2``, after linux/if_link.h."""
    data = same(lambda b: b.set_vf(7, 3, VfSettings(mac="02:00:00:00:00:03", vlan=100, qos=2)))
    if struct.pack("=H", 1) != struct.pack("<H", 1):
        pytest.skip("the bytes below are little endian")
    assert data == bytes.fromhex(
        "60000000 13000500 01000000 00000000"  # nlmsghdr
        "00000000 07000000 00000000 00000000"  # ifinfomsg
        "40001600 3c000100"  # IFLA_VFINFO_LIST, IFLA_VF_INFO
        "28000100 03000000 02000000 0003"
        + "00" * 26  # IFLA_VF_MAC
        + "10000200 03000000 64000000 02000000"  # IFLA_VF_VLAN
    )


def test_vlan_list_entry_has_its_tail_padding() -> None:
    data = same(lambda b: b.set_vf(7, 3, VfSettings(vlan=100, proto="802.1ad")))
    assert data[-24:].hex() == struct.pack("=HHHHIII", 24, 12, 20, 1, 3, 100, 0).hex() + "88a80000"


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_batch_numbers_its_messages_and_grows(backend: ModuleType) -> None:
    batch = backend.Batch()
    for index in range(1, 500):
        batch.set_link(index, mtu=index)
    assert len(batch) == 499
    assert [header(message)[2] for message in messages(batch.tobytes())] == list(range(1, 500))


WRONG: list[tuple[str, Callable[[Any], None]]] = [
    ("index 0", lambda b: b.set_link(0, mtu=1)),
    ("index -1", lambda b: b.add_address(-1, "10.0.0.1/8")),
    ("index 2147483648", lambda b: b.add_route(2**31, Route(dst="10.0.0.0/8"))),
    ("index '4'", lambda b: b.set_link("4", mtu=1)),
    ("pf_index 0", lambda b: b.set_vf(0, 0, VfSettings(vlan=1))),
    ("vf -1", lambda b: b.set_vf(1, -1, VfSettings(vlan=1))),
    ("vf 65536", lambda b: b.get_link(index=1, vf=65536)),
    ("vlan 4095", lambda b: b.set_vf(1, 1, VfSettings(vlan=4095))),
    ("vlan 1.5", lambda b: b.set_vf(1, 1, VfSettings(vlan=1.5))),  # type: ignore[arg-type]
    ("qos 8", lambda b: b.set_vf(1, 1, VfSettings(vlan=1, qos=8))),
    ("proto '802.1x'", lambda b: b.set_vf(1, 1, VfSettings(vlan=1, proto="802.1x"))),
    ("qos 3, proto None", lambda b: b.set_vf(1, 1, VfSettings(qos=3))),
    ("min_tx_rate -1", lambda b: b.set_vf(1, 1, VfSettings(min_tx_rate=-1))),
    ("max_tx_rate 4294967296", lambda b: b.set_vf(1, 1, VfSettings(max_tx_rate=2**32))),
    ("link_state 'up'", lambda b: b.set_vf(1, 1, VfSettings(link_state="up"))),
    ("asks for nothing", lambda b: b.set_vf(1, 1, VfSettings())),
    ("asks for nothing", lambda b: b.set_link(1)),
    ("mac '02:00:00:00:00'", lambda b: b.set_link(1, mac="02:00:00:00:00")),
    ("mac '02-00-00-00-00-01'", lambda b: b.set_link(1, mac="02-00-00-00-00-01")),
    ("mac '02:00:00:00:00:0g'", lambda b: b.set_vf(1, 1, VfSettings(mac="02:00:00:00:00:0g"))),
    ("mac 5", lambda b: b.set_link(1, mac=5)),
    ("mac '²2:00:00:00:00:01'", lambda b: b.set_link(1, mac="²2:00:00:00:00:01")),
    ("mtu -1", lambda b: b.set_link(1, mtu=-1)),
    ("txqlen -1", lambda b: b.set_link(1, settings=LinkSettings(txqlen=-1))),
    ("asks for nothing", lambda b: b.set_link(1, settings=LinkSettings())),
    ("mode 3", lambda b: b.drop_xdp(1, 3)),
    ("netns_fd -2", lambda b: b.set_link(1, netns_fd=-2)),
    ("interface name 'abcdefghijklmnop'", lambda b: b.set_link(1, name="abcdefghijklmnop")),
    ("interface name 'éééééééé'", lambda b: b.set_link(1, name="é" * 8)),
    ("interface name 'a/b'", lambda b: b.set_link(1, name="a/b")),
    ("interface name 'a b'", lambda b: b.get_link(name="a b")),
    ("interface name 'a:b'", lambda b: b.get_link(name="a:b")),
    ("interface name '..'", lambda b: b.get_link(name="..")),
    ("interface name 'a\\x00b'", lambda b: b.get_link(name="a\0b")),
    ("interface name '\\udcff'", lambda b: b.get_link(name="\udcff")),
    ("index 0, name ''", lambda b: b.get_link()),
    ("master -2", lambda b: b.set_link(1, master=-2)),
    ("index 0", lambda b: b.del_link(0)),
    ("index 0", lambda b: b.new_macvlan(0, 3, "eth0")),
    ("netns_fd -1", lambda b: b.new_macvlan(1, -1, "eth0")),
    ("interface name 'a/b'", lambda b: b.new_macvlan(1, 3, "a/b")),
    ("alternative name ''", lambda b: b.add_altname(1, "")),
    ("alternative name 'a\\x00b'", lambda b: b.del_altname(1, "a\0b")),
    (f"alternative name '{'a' * 128}'", lambda b: b.add_altname(1, "a" * 128)),
    ("index 1, name 'eth0'", lambda b: b.get_link(index=1, name="eth0")),
    ("address '10.0.0.1'", lambda b: b.add_address(1, "10.0.0.1")),
    ("address '10.0.0.1/33': prefix length beyond 32", lambda b: b.add_address(1, "10.0.0.1/33")),
    ("address '::1/129': prefix length beyond 128", lambda b: b.add_address(1, "::1/129")),
    ("address '10.0.0/8'", lambda b: b.add_address(1, "10.0.0/8")),
    ("address '10.0.0.1/+8'", lambda b: b.add_address(1, "10.0.0.1/+8")),
    ("address '10.0.0.1/²'", lambda b: b.add_address(1, "10.0.0.1/²")),
    ("address '10.0.0.1\\x00/8'", lambda b: b.add_address(1, "10.0.0.1\0/8")),
    ("address 'fe80::1%1/64'", lambda b: b.add_address(1, "fe80::1%1/64")),
    ("address None", lambda b: b.add_address(1, None)),
    ("address 'default'", lambda b: b.add_route(1, Route(dst="default"))),
    ("gateway '::1': not an IPv4", lambda b: b.add_route(1, Route(dst="0.0.0.0/0", gw="::1"))),
    ("gateway '10.0.0.1': not an IPv6", lambda b: b.add_route(1, Route(dst="::/0", gw="10.0.0.1"))),
    ("scope 256", lambda b: b.add_route(1, Route(dst="::/0", scope=256))),
    ("table -1", lambda b: b.add_route(1, Route(dst="::/0", table=-1))),
    ("priority 4294967296", lambda b: b.add_route(1, Route(dst="::/0", priority=2**32))),
]


@pytest.mark.parametrize(("said", "step"), WRONG, ids=[said for said, _ in WRONG])
def test_a_wrong_value_is_named_and_nothing_is_appended(said: str, step: Callable[[Any], None]) -> None:
    """Both backends raise the same message, which names the value."""
    texts = set()
    for backend in (_nl, _nl_py):
        batch = backend.Batch()
        batch.set_link(1, up=True)
        before = batch.tobytes()
        with pytest.raises(ValueError) as caught:  # noqa: PT011
            step(batch)
        texts.add(str(caught.value))
        assert batch.tobytes() == before
        batch.set_link(2, up=True)
        assert batch.tobytes()[: len(before)] == before
    (text,) = texts
    assert said in text


@given(st.text(max_size=20))
def test_both_backends_take_the_same_names_and_addresses(text: str) -> None:
    steps: list[Callable[[Any], None]] = [
        lambda b: b.set_link(1, name=text, mtu=1),
        lambda b: b.set_link(1, mac=text, mtu=1),
        lambda b: b.add_address(1, text),
        lambda b: b.add_route(1, Route(dst="10.0.0.0/8", gw=text)),
    ]
    for step in steps:
        assert outcome(_nl, step) == outcome(_nl_py, step)


def outcome(backend: ModuleType, step: Callable[[Any], None]) -> bytes | str:
    try:
        return encoded(backend, step)
    except ValueError as error:
        return str(error)
