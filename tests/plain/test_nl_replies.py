"""The kernel's replies, verified and decoded by both backends. The tests build them as the kernel does."""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sriov_fast import _nl
from sriov_fast.common.errors import NetlinkError
from sriov_fast.common.record import Link, LinkSettings, Route, VfSettings
from sriov_fast.kernel import _nl_py

PORT = 4711
NEWLINK, NEWADDR, NEWROUTE = 16, 20, 24
ACK_TLVS, CAPPED, DUMP_INTR, MULTI = 0x200, 0x100, 0x10, 0x2


def message(kind: int, body: bytes, *, seq: int = 1, flags: int = 0, port: int = PORT) -> bytes:
    data = struct.pack("=IHHII", 16 + len(body), kind, flags, seq, port) + body
    return data + bytes(-len(data) % 4)


def attr(kind: int, payload: bytes) -> bytes:
    return struct.pack("=HH", (4 + len(payload)) & 0xFFFF, kind) + payload + bytes(-len(payload) % 4)


def u32(*values: int) -> bytes:
    return struct.pack(f"={len(values)}I", *values)


def verdict(error: int, *, seq: int = 1, text: str = "", capped: bool = True, port: int = PORT) -> bytes:
    """Return an NLMSG_ERROR: the errno, the request or only its header, and the kernel's message ``text``."""
    request = b"" if capped else bytes(20)
    body = struct.pack("=i", -error) + struct.pack("=IHHII", 16 + len(request), 19, 5, seq, PORT) + request
    flags = CAPPED if capped else 0
    if text:
        flags |= ACK_TLVS
        body += attr(2, u32(8)) + attr(1, text.encode() + b"\0")  # NLMSGERR_ATTR_OFFS, NLMSGERR_ATTR_MSG
    return message(2, body, seq=seq, flags=flags, port=port)


def done(*, flags: int = MULTI, error: int = 0) -> bytes:
    return message(3, struct.pack("=i", -error), flags=flags)


def link_body(index: int, name: str, *extra: bytes, flags: int = 0x10001) -> bytes:
    return struct.pack("=BxHiII", 0, 1, index, flags, 0) + b"".join(
        (attr(3, name.encode() + b"\0"), attr(4, u32(1500)), attr(1, bytes.fromhex("02000000000a")), *extra)
    )


def vf_info(
    vf: int, *, vlan: int = 0, qos: int = 0, proto: int = 0x8100, spoofchk: int = 1, trust: int = 0
) -> bytes:
    """Return an IFLA_VF_INFO as of rtnl_fill_vfinfo() (net/core/rtnetlink.c), without statistics."""
    mac = bytes((2, 0, 0, 0, vf >> 8, vf & 255))
    return attr(
        1,
        attr(1, u32(vf) + mac + bytes(26))
        + attr(13, b"\xff" * 32)  # IFLA_VF_BROADCAST
        + attr(2, u32(vf, vlan, qos))
        + attr(6, u32(vf, 10, 1000))
        + attr(3, u32(vf, 1000))
        + attr(4, u32(vf, spoofchk))
        + attr(5, u32(vf, 0))
        + attr(7, u32(vf, 0))
        + attr(9, u32(vf, trust))
        + attr(12, attr(1, u32(vf, vlan, qos) + struct.pack(">H", proto) + bytes(2))),
    )


def ask(nl: ModuleType, *, first: int = 1, **wanted: Any) -> Any:
    batch = nl.Batch()
    batch.get_link(**wanted)
    return nl.Replies(batch, first, PORT)


def acked(nl: ModuleType, count: int) -> Any:
    batch = nl.Batch()
    for index in range(1, count + 1):
        batch.set_link(index, up=True)
    return nl.Replies(batch, 1, PORT)


def the_link(nl: ModuleType, body: bytes, **wanted: Any) -> Link:
    replies = ask(nl, **(wanted or {"index": 4}))
    replies.feed(message(NEWLINK, body))
    assert replies.pending == 0
    (link,) = replies.results
    assert isinstance(link, Link)
    return link


def test_a_link_with_others_around_it(nl: ModuleType) -> None:
    altnames = attr(53, b"enp3s16v1\0") + attr(53, b"\xff\0")
    body = link_body(4, "eth0", attr(5, u32(9)), attr(10, u32(7)), attr(0x8000 | 52, altnames))
    link = the_link(nl, body)
    assert (link.lower, link.master, link.altnames) == (9, 7, ("enp3s16v1", "\udcff"))
    elsewhere = the_link(nl, link_body(4, "eth0", attr(37, u32(0)), attr(5, u32(9))))
    assert (elsewhere.lower, elsewhere.outer_lower) == (0, 9)


@pytest.mark.parametrize(("values", "meant"), [([0] * 27, False), ([0] * 26 + [1], True), ([1] * 26, None)])
def test_disable_ipv6(nl: ModuleType, values: list[int], meant: bool | None) -> None:
    conf = b"".join(map(u32, values))
    link = the_link(nl, link_body(4, "eth0", attr(26, attr(10, attr(2, conf)))))
    assert link.disable_ipv6 is meant


def test_the_settings_of_a_link(nl: ModuleType) -> None:
    body = link_body(
        4,
        "eth0",
        attr(13, u32(7)),
        attr(17, b"\x01"),
        attr(27, u32(5)),
        attr(2, bytes.fromhex("02ffffffffff")),
        attr(20, b"caf\xe9\0"),
        attr(40, u32(40)),
        attr(41, u32(41)),
        attr(58, u32(58)),
        attr(63, u32(63)),
        attr(64, u32(64)),
        attr(26, attr(2, b"1234") + attr(10, attr(1, u32(9)) + attr(8, b"\x01"))),
        attr(0x8000 | 52, attr(53, b"one\0") + attr(53, b"two\0")),
        attr(43, attr(2, b"\x04") + attr(5, u32(11)) + attr(6, u32(12)) + attr(7, u32(13))),
        flags=0x11383,
    )
    link = the_link(nl, body)
    assert link.settings == LinkSettings(
        flags=0x1380,
        broadcast="02:ff:ff:ff:ff:ff",
        txqlen=7,
        mode=1,
        alias="caf\udce9",
        group=5,
        gso_max_segs=40,
        gso_max_size=41,
        gro_max_size=58,
        gso_ipv4_max_size=63,
        gro_ipv4_max_size=64,
        addrgenmode=1,
    )
    assert link.altnames == ("one", "two")
    assert link.xdp == (12, 11, 13)


def test_a_link_that_is_down_and_has_next_to_nothing(nl: ModuleType) -> None:
    body = struct.pack("=BxHiII", 0, 1, 9, 0, 0)
    assert the_link(nl, body) == Link(
        index=9, name="", mac="", mtu=0, up=False, settings=LinkSettings(flags=0, alias="")
    )


def test_only_the_vf_that_was_asked_for_is_decoded(nl: ModuleType) -> None:
    vfs = b"".join(vf_info(vf, vlan=vf, qos=vf & 7) for vf in range(8))
    link = the_link(
        nl, link_body(4, "pf", attr(21, u32(8)), attr(22, vfs), attr(56, b"pci\0")), index=4, vf=6
    )
    assert (link.num_vf, link.parent) == (8, "pci")
    assert link.vf == VfSettings(
        mac="02:00:00:00:00:06",
        vlan=6,
        qos=6,
        proto="802.1Q",
        min_tx_rate=10,
        max_tx_rate=1000,
        spoofchk=True,
        link_state="auto",
        trust=False,
    )


def test_what_the_driver_does_not_report_is_none(nl: ModuleType) -> None:
    info = vf_info(0, vlan=5, proto=0x88A8, spoofchk=0xFFFFFFFF, trust=0xFFFFFFFF)
    link = the_link(nl, link_body(4, "pf", attr(21, u32(1)), attr(22, info)), index=4, vf=0)
    assert link.vf is not None
    assert (link.vf.spoofchk, link.vf.trust, link.vf.proto) == (None, None, "802.1ad")


def test_an_old_kernel_reports_less(nl: ModuleType) -> None:
    info = attr(1, attr(1, u32(0) + bytes(32)) + attr(2, u32(0, 7, 1)))
    link = the_link(nl, link_body(4, "pf", attr(21, u32(1)), attr(22, info)), index=4, vf=0)
    assert link.vf == VfSettings(mac="00:00:00:00:00:00", vlan=7, qos=1)


@pytest.mark.parametrize(("present", "asked"), [([0, 1], 2), ([0, 2], 1), ([], 0)])
def test_a_vf_that_is_missing_is_none(nl: ModuleType, present: list[int], asked: int) -> None:
    vfs = b"".join(map(vf_info, present))
    link = the_link(
        nl, link_body(4, "pf", attr(21, u32(3)), attr(22, vfs), attr(56, b"p\0")), index=4, vf=asked
    )
    assert (link.vf, link.num_vf, link.parent) == (None, 3, "p")


def test_a_list_longer_than_its_16_bit_length(nl: ModuleType) -> None:
    count = 500
    vfs = b"".join(vf_info(vf, vlan=vf) for vf in range(count))
    assert len(vfs) > 0xFFFF
    body = link_body(4, "pf", attr(21, u32(count)), attr(22, vfs), attr(56, b"0000:03:00.0\0"))
    for vf in (0, 100, 499):
        link = the_link(nl, body, index=4, vf=vf)
        assert link.vf is not None
        assert (link.vf.vlan, link.parent) == (vf, "0000:03:00.0")


def test_ack_error_and_words_of_the_kernel(nl: ModuleType) -> None:
    replies = acked(nl, 3)
    replies.feed(verdict(0, seq=2))
    assert replies.pending == 2
    replies.feed(verdict(errno.EINVAL, seq=1, text="mtu greater than device maximum") + verdict(0, seq=3))
    assert replies.pending == 0
    refused, *others = replies.results
    assert others == [None, None]
    assert isinstance(refused, NetlinkError)
    assert (refused.errno, refused.extack, refused.position) == (
        errno.EINVAL,
        "mtu greater than device maximum",
        0,
    )
    assert str(refused) == "set link of ifindex 1: mtu greater than device maximum"


@pytest.mark.parametrize(
    ("refusal", "said"),
    [
        (verdict(errno.EPERM, text="not you", capped=False), "not you"),  # after the whole request
        (verdict(errno.ENODEV), "No such device"),
    ],
)
def test_the_text_of_an_error(nl: ModuleType, refusal: bytes, said: str) -> None:
    replies = acked(nl, 1)
    replies.feed(refusal)
    assert str(replies.results[0]) == f"set link of ifindex 1: {said}"


@pytest.mark.parametrize(
    ("settings", "vf"),
    [
        (VfSettings(mac="02:00:00:00:00:01"), 3),
        (VfSettings(vlan=5, proto="802.1ad"), 0),
        (VfSettings(trust=True), 300),
    ],
)
def test_an_error_of_a_vf_names_it(nl: ModuleType, settings: VfSettings, vf: int) -> None:
    batch = nl.Batch()
    batch.set_vf(4, vf, settings)
    replies = nl.Replies(batch, 1, PORT)
    replies.feed(verdict(errno.EOPNOTSUPP))
    (error,) = replies.results
    assert (error.operation, error.vf) == (f"set vf {vf} of ifindex 4", vf)


def test_operations_in_words(nl: ModuleType) -> None:
    batch = nl.Batch()
    batch.get_link(index=4)
    batch.get_link(name="eth0", vf=2)
    batch.add_address(4, "10.0.0.2/24")
    batch.add_address(4, "FD00:0::2/64")
    batch.add_route(4, Route(dst="0.0.0.0/0", gw="10.0.0.1"))
    batch.add_route(4, Route(dst="::/0"))
    batch.add_route(4, Route(dst="10.1.0.0/16"))
    batch.del_link(4)
    batch.add_altname(4, "enp3s16v1")
    batch.del_altname(4, "enp3s16v1")
    replies = nl.Replies(batch, 1, PORT)
    for seq in range(1, 11):
        replies.feed(verdict(errno.EPERM, seq=seq))
    assert [error.operation for error in replies.results] == [
        "get link ifindex 4",
        "get vf 2 of eth0",
        "add address 10.0.0.2/24 to ifindex 4",
        "add address FD00:0::2/64 to ifindex 4",
        "add route 0.0.0.0/0 via 10.0.0.1 to ifindex 4",
        "add route ::/0 to ifindex 4",
        "add route 10.1.0.0/16 to ifindex 4",
        "delete link of ifindex 4",
        "add altname enp3s16v1 to ifindex 4",
        "delete altname enp3s16v1 of ifindex 4",
    ]
    assert [error.position for error in replies.results] == list(range(10))


def test_another_senders_datagram_is_no_answer(nl: ModuleType) -> None:
    replies = acked(nl, 1)
    replies.feed(verdict(errno.EPERM), sender=99)
    assert replies.pending == 1
    assert replies.results == [None]


def test_a_stale_answer_is_passed_over(nl: ModuleType) -> None:
    replies = ask(nl, index=4, first=10)
    replies.feed(verdict(errno.EPERM, seq=9) + message(NEWLINK, link_body(4, "old"), seq=8))
    assert replies.pending == 1
    replies.feed(message(NEWLINK, link_body(4, "new"), seq=10))
    assert replies.results[0].name == "new"


def test_sequence_numbers_wrap(nl: ModuleType) -> None:
    batch = nl.Batch()
    batch.set_link(1, up=True)
    batch.set_link(2, up=True)
    replies = nl.Replies(batch, 0xFFFFFFFF, PORT)
    replies.feed(verdict(0, seq=0xFFFFFFFE))
    replies.feed(verdict(0, seq=0) + verdict(errno.EPERM, seq=0xFFFFFFFF))
    assert replies.pending == 0
    assert replies.results[0].errno == errno.EPERM


ONE, LINK_4 = (lambda nl: acked(nl, 1)), (lambda nl: ask(nl, index=4))
REFUSED_ANSWERS = [
    (ONE, verdict(0, port=PORT + 1), errno.EPROTO, "port 4712"),
    (ONE, verdict(0, seq=2), errno.EPROTO, "request 2, never sent"),
    (ONE, message(4, b""), errno.ENOBUFS, "lost"),
    (LINK_4, message(NEWLINK, bytes(12)), errno.EPROTO, "body of 12 bytes"),
    *[
        (LINK_4, message(kind, bytes(16)), errno.EPROTO, f"unexpected type {kind}")
        for kind in (3, NEWADDR, 17)
    ],
    *[(ONE, verdict(0)[:cut], errno.EPROTO, "broken header") for cut in range(1, 36)],
]


@pytest.mark.parametrize(("asked", "datagram", "number", "said"), REFUSED_ANSWERS)
def test_what_the_kernel_cannot_have_sent_is_refused(
    nl: ModuleType, asked: Callable[[ModuleType], Any], datagram: bytes, number: int, said: str
) -> None:
    with pytest.raises(NetlinkError, match=said) as caught:
        asked(nl).feed(datagram)
    assert caught.value.errno == number


def test_a_truncated_datagram_is_refused(nl: ModuleType) -> None:
    with pytest.raises(NetlinkError, match="truncated") as caught:
        acked(nl, 1).feed(verdict(0), truncated=True)
    assert caught.value.errno == errno.EMSGSIZE


def test_nothing_is_read_beyond_an_attribute_that_does_not_fit(nl: ModuleType) -> None:
    body = link_body(4, "eth0") + struct.pack("=HH", 400, 56) + b"abcd"
    assert the_link(nl, body).parent == ""
    body = link_body(4, "eth0") + struct.pack("=HH", 3, 56) + b"abcd"
    assert the_link(nl, body).parent == ""


@given(st.binary(max_size=200))
def test_any_datagram_is_taken_or_refused(noise: bytes) -> None:
    for nl in (_nl, _nl_py):
        replies = acked(nl, 1)
        try:
            replies.feed(noise)
        except NetlinkError as error:
            assert error.errno in (errno.EPROTO, errno.ENOBUFS)  # noqa: PT017


# --- dumps ----------------------------------------------------------------------------------------------


def ip(text: str) -> bytes:
    return socket.inet_pton(socket.AF_INET6 if ":" in text else socket.AF_INET, text)


def address_body(index: int, cidr: str, *extra: bytes) -> bytes:
    text, _, prefix = cidr.partition("/")
    family = socket.AF_INET6 if ":" in text else socket.AF_INET
    return struct.pack("=BBBBI", family, int(prefix), 0, 0, index) + attr(1, ip(text)) + b"".join(extra)


def dump_of(nl: ModuleType, what: str, *args: int) -> Any:
    """Return the pending replies of a dump, as ``Socket.links`` and the other dumps request it."""
    batch = nl.Batch()
    getattr(batch, f"_dump_{what}")(*args)
    return nl.Replies(batch, 1, PORT)


@pytest.mark.parametrize("where", ["data", "done"])
def test_an_interrupted_dump(nl: ModuleType, where: str) -> None:
    replies = dump_of(nl, "links")
    replies.feed(message(NEWLINK, link_body(1, "lo"), flags=MULTI | (DUMP_INTR if where == "data" else 0)))
    replies.feed(done(flags=MULTI | (DUMP_INTR if where == "done" else 0)))
    assert replies.interrupted


def test_a_dump_that_ends_with_an_error(nl: ModuleType) -> None:
    replies = dump_of(nl, "routes", socket.AF_INET, 4)
    body = struct.pack("=i", -errno.EINVAL) + attr(1, b"no such table\0")
    replies.feed(message(3, body, flags=MULTI | ACK_TLVS))
    assert str(replies.results[0]) == "list routes of ifindex 4: no such table"


def test_addresses(nl: ModuleType) -> None:
    replies = dump_of(nl, "addresses", 4)
    for body in (
        address_body(4, "10.0.0.9/32", attr(2, ip("10.0.0.2"))),  # point to point: own address in IFA_LOCAL
        address_body(4, "fd00::2/64"),
        address_body(5, "10.0.0.5/24"),  # older kernels send all devices' addresses
        struct.pack("=BBBBI", 35, 8, 0, 0, 4),  # AF_PHONET
    ):
        replies.feed(message(NEWADDR, body, flags=MULTI))
    replies.feed(done())
    assert replies.results == [["10.0.0.2/32", "fd00::2/64"]]


def route_body(
    prefix: int, *extra: bytes, family: int = 2, table: int = 254, kind: int = 1, flags: int = 0
) -> bytes:
    return struct.pack("=BBBBBBBBI", family, prefix, 0, 0, table, 3, 253, kind, flags) + b"".join(extra)


def the_routes(nl: ModuleType, *bodies: bytes, family: int = socket.AF_INET) -> list[Route]:
    replies = dump_of(nl, "routes", family, 4)
    for body in bodies:
        replies.feed(message(NEWROUTE, body, flags=MULTI))
    replies.feed(done())
    (found,) = replies.results
    assert isinstance(found, list)
    return found


def test_routes_that_are_not_meant(nl: ModuleType) -> None:
    dst, oif = attr(1, ip("10.1.0.0")), attr(4, u32(4))
    bodies = [
        route_body(16, dst, attr(4, u32(5))),  # another device's
        route_body(16, dst),  # no device's
        route_body(16, dst, oif, table=255),  # local
        route_body(16, dst, oif, attr(15, u32(255)), table=0),
        route_body(16, dst, oif, kind=3),  # broadcast
        route_body(16, dst, oif, flags=0x200),  # RTM_F_CLONED, a cached copy
        route_body(16, attr(1, ip("fd00::")), oif, family=socket.AF_INET6),  # the family was not asked for
    ]
    assert the_routes(nl, *bodies) == []


def test_a_multipath_route_counts_once_for_each_hop_of_the_device(nl: ModuleType) -> None:
    def hop(index: int, gateway: str) -> bytes:
        return struct.pack("=HBBi", 16, 0, 0, index) + attr(5, ip(gateway))

    hops = attr(9, hop(4, "10.0.0.1") + hop(5, "10.0.1.1") + hop(4, "10.0.0.3"))
    found = the_routes(nl, route_body(16, attr(1, ip("10.1.0.0")), hops, attr(6, u32(7))))
    assert [(route.gw, route.priority) for route in found] == [("10.0.0.1", 7), ("10.0.0.3", 7)]


def test_an_ipv4_route_through_an_ipv6_gateway(nl: ModuleType) -> None:
    via = attr(18, struct.pack("=H", socket.AF_INET6) + ip("fd00::1"))
    (route,) = the_routes(nl, route_body(0, via, attr(4, u32(4))))
    assert (route.dst, route.gw) == ("0.0.0.0/0", "fd00::1")


@pytest.mark.parametrize(("vf", "mac", "holder"), [(1, 2, 2), (2, 2, -1), (2, 9, -1), (0, 299, 299)])
def test_who_else_has_a_mac(nl: ModuleType, vf: int, mac: int, holder: int) -> None:
    count = 300 if mac > 9 else 4
    body = link_body(4, "eth0", attr(21, u32(count)), attr(22, b"".join(map(vf_info, range(count)))))
    text = f"02:00:00:00:{mac >> 8:02x}:{mac & 255:02x}"
    link = the_link(nl, body, index=4, vf=vf, mac=text)
    assert link.holder == holder
    assert link.vf is not None
    assert the_link(nl, body, index=4, vf=vf).holder == -1


# --- malformed messages: a driver, a new kernel or a bug may send any bytes --------------------------------

LINK = link_body(
    4,
    "pf",
    attr(13, u32(1000)),
    attr(17, b"\1"),
    attr(20, b"an alias\0"),
    attr(26, attr(10, attr(8, b"\1"))),
    attr(43, attr(2, b"\2") + attr(4, u32(7))),
    attr(52, attr(53, b"other\0")),
    attr(54, bytes(6)),
    attr(56, b"0000:03:10.1\0"),
    attr(21, u32(3)),
    attr(22, b"".join(vf_info(vf, vlan=vf) for vf in range(3))),
    attr(5, u32(9)),
)
ADDRESS = address_body(4, "10.0.0.9/32", attr(2, ip("10.0.0.2")))
ROUTE = route_body(
    16,
    attr(15, u32(1000)),
    attr(1, ip("10.1.0.0")),
    attr(5, ip("10.0.0.1")),
    attr(4, u32(4)),
    attr(8, attr(2, u32(1400)) + attr(8, u32(1360))),
)
HOPS = b"".join(
    struct.pack("=HBBi", 8 + len(gateway), 0, 0, oif) + gateway
    for oif, gateway in (
        (4, attr(5, ip("10.0.0.1"))),
        (5, b""),
        (4, attr(18, struct.pack("=H", 10) + ip("fd00::1"))),
    )
)
MULTIPATH = route_body(16, attr(1, ip("10.1.0.0")), attr(9, HOPS))
REFUSED = message(
    2,
    struct.pack("=i", -1) + struct.pack("=IHHII", 16, 19, 5, 1, PORT) + attr(1, b"no\0"),
    flags=0x300,
)

Ask = Callable[[ModuleType], object]
CASES: dict[str, tuple[bytes, Ask]] = {
    "link": (message(16, LINK), lambda nl: ask(nl, index=4, vf=1, mac="02:00:00:00:00:02")),
    "links": (message(16, LINK), lambda nl: dump_of(nl, "links")),
    "address": (message(20, ADDRESS), lambda nl: dump_of(nl, "addresses", 4)),
    "route": (message(24, ROUTE), lambda nl: dump_of(nl, "routes", 2, 4)),
    "multipath": (message(24, MULTIPATH), lambda nl: dump_of(nl, "routes", 2, 4)),
    "refusal": (REFUSED, lambda nl: acked(nl, 1)),
}
# Offsets in units of 16 bits, and the values to write there; lengths and types are 16 bits wide.
CHANGES = st.lists(
    st.tuples(st.integers(0, 400), st.integers(0, 40) | st.integers(0, 0xFFFF)), min_size=1, max_size=4
)


def changed(datagram: bytes, changes: list[tuple[int, int]], cut: int) -> bytes:
    """Overwrite 16 bits at each offset, cut ``cut`` bytes off the end, and correct the header's length."""
    data = bytearray(datagram)
    for place, value in changes:
        at = 16 + place * 2 % max(len(data) - 17, 1)
        struct.pack_into("=H", data, min(at, len(data) - 2), value)
    del data[max(16, len(data) - cut) :]
    struct.pack_into("=I", data, 0, len(data))
    return bytes(data)


def outcome(nl: ModuleType, ask: Ask, datagram: bytes) -> object:
    """Return everything that a caller can see: the results, or the error."""
    asked: object = ask(nl)
    try:
        asked.feed(datagram)  # type: ignore[attr-defined]
    except NetlinkError as error:
        return error.errno, error.msg
    results = asked.results  # type: ignore[attr-defined]
    return [(item.errno, item.msg) if isinstance(item, NetlinkError) else item for item in results]


@pytest.mark.parametrize("name", CASES)
@settings(max_examples=max(60, settings().max_examples))
@given(changes=CHANGES, cut=st.just(0) | st.integers(0, 80))
def test_both_decoders_agree_on_malformed_messages(
    name: str, changes: list[tuple[int, int]], cut: int
) -> None:
    datagram, ask = CASES[name]
    broken = changed(datagram, changes, cut)
    assert outcome(_nl, ask, broken) == outcome(_nl_py, ask, broken)


@pytest.mark.parametrize("name", CASES)
def test_both_decoders_agree_on_well_formed_messages(name: str) -> None:
    datagram, ask = CASES[name]
    found = outcome(_nl, ask, datagram)
    assert found == outcome(_nl_py, ask, datagram)
    assert found not in ([None], [[]])
