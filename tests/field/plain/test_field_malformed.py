"""Both decoders of rtnetlink on malformed messages: a driver, a new kernel or a bug may send any bytes."""

from __future__ import annotations

import struct
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parents[2] / "plain"))

import test_nl_replies as replies

from sriov_fast import _nl
from sriov_fast.common.errors import NetlinkError
from sriov_fast.kernel import _nl_py

LINK = replies.link_body(
    4,
    "pf",
    replies.attr(13, replies.u32(1000)),
    replies.attr(17, b"\1"),
    replies.attr(20, b"an alias\0"),
    replies.attr(26, replies.attr(10, replies.attr(8, b"\1"))),
    replies.attr(43, replies.attr(2, b"\2") + replies.attr(4, replies.u32(7))),
    replies.attr(52, replies.attr(53, b"other\0")),
    replies.attr(54, bytes(6)),
    replies.attr(56, b"0000:03:10.1\0"),
    replies.attr(21, replies.u32(3)),
    replies.attr(22, b"".join(replies.vf_info(vf, vlan=vf) for vf in range(3))),
    replies.attr(5, replies.u32(9)),
)
ADDRESS = replies.address_body(4, "10.0.0.9/32", replies.attr(2, replies.ip("10.0.0.2")))
ROUTE = replies.route_body(
    16,
    replies.attr(15, replies.u32(1000)),
    replies.attr(1, replies.ip("10.1.0.0")),
    replies.attr(5, replies.ip("10.0.0.1")),
    replies.attr(4, replies.u32(4)),
    replies.attr(8, replies.attr(2, replies.u32(1400)) + replies.attr(8, replies.u32(1360))),
)
HOPS = b"".join(
    struct.pack("=HBBi", 8 + len(gateway), 0, 0, oif) + gateway
    for oif, gateway in (
        (4, replies.attr(5, replies.ip("10.0.0.1"))),
        (5, b""),
        (4, replies.attr(18, struct.pack("=H", 10) + replies.ip("fd00::1"))),
    )
)
MULTIPATH = replies.route_body(16, replies.attr(1, replies.ip("10.1.0.0")), replies.attr(9, HOPS))
REFUSED = replies.message(
    2,
    struct.pack("=i", -1) + struct.pack("=IHHII", 16, 19, 5, 1, replies.PORT) + replies.attr(1, b"no\0"),
    flags=0x300,
)

Ask = Callable[[ModuleType], object]
CASES: dict[str, tuple[bytes, Ask]] = {
    "link": (replies.message(16, LINK), lambda nl: replies.ask(nl, index=4, vf=1, mac="02:00:00:00:00:02")),
    "links": (replies.message(16, LINK), lambda nl: replies.dump_of(nl, "links")),
    "address": (replies.message(20, ADDRESS), lambda nl: replies.dump_of(nl, "addresses", 4)),
    "route": (replies.message(24, ROUTE), lambda nl: replies.dump_of(nl, "routes", 2, 4)),
    "multipath": (replies.message(24, MULTIPATH), lambda nl: replies.dump_of(nl, "routes", 2, 4)),
    "refusal": (REFUSED, lambda nl: replies.acked(nl, 1)),
}
# An offset, of 16 bits each, and the value that is written there; lengths and types are 16 bits wide.
CHANGES = st.lists(
    st.tuples(st.integers(0, 400), st.integers(0, 40) | st.integers(0, 0xFFFF)), min_size=1, max_size=4
)


def changed(datagram: bytes, changes: list[tuple[int, int]], cut: int) -> bytes:
    """Overwrite 16 bits at each place, and leave ``cut`` bytes out at the end; the header still fits."""
    data = bytearray(datagram)
    for place, value in changes:
        at = 16 + place * 2 % max(len(data) - 17, 1)
        struct.pack_into("=H", data, min(at, len(data) - 2), value)
    del data[max(16, len(data) - cut) :]
    struct.pack_into("=I", data, 0, len(data))
    return bytes(data)


def outcome(nl: ModuleType, ask: Ask, datagram: bytes) -> object:
    """Everything a caller can see: the results, or the error."""
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
def test_901_both_decoders_agree_on_malformed_messages(
    name: str, changes: list[tuple[int, int]], cut: int
) -> None:
    """The plain decoder raised TypeError on malformed lists of VFs, where the compiled one read on."""
    datagram, ask = CASES[name]
    broken = changed(datagram, changes, cut)
    assert outcome(_nl, ask, broken) == outcome(_nl_py, ask, broken)


@pytest.mark.parametrize("name", CASES)
def test_901_both_decoders_agree_on_well_formed_messages(name: str) -> None:
    datagram, ask = CASES[name]
    found = outcome(_nl, ask, datagram)
    assert found == outcome(_nl_py, ask, datagram)
    assert found not in ([None], [[]])
