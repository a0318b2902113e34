"""The PF's counters of its VFs: from the kernel's reply to the series of a scrape."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from harness.sysfs_tree import build_tree
from sriov_fast.common.errors import NetlinkError
from sriov_fast.common.paths import Roots
from sriov_fast.server import vf_counters
from sriov_fast.server.counts import Counts
from sriov_fast.server.metrics import Metrics
from sriov_fast.server.vf_counters import Counters
from sriov_fast.vf import state


def attribute(kind: int, content: bytes) -> bytes:
    return struct.pack("=HH", len(content) + 4, kind) + content + bytes(-len(content) % 4)


def reply(vfs: dict[int, bytes]) -> bytes:
    """Return a reply to RTM_GETLINK as of rtnl_fill_ifinfo(), with attributes before and after the VFs."""
    infos = b"".join(
        attribute(1, attribute(1, struct.pack("=I32s", number, b"")) + attribute(8, stats))
        for number, stats in vfs.items()
    )
    body = struct.pack("=BxHiII", 0, 1, 2, 0, 0) + attribute(3, b"pf0\0")
    body += attribute(21, struct.pack("=I", len(vfs))) + attribute(22, infos)
    body += attribute(23, bytes(4))
    return struct.pack("=IHHII", len(body) + 16, 16, 0, 1, 0) + body


def counted(*values: int) -> bytes:
    """Return IFLA_VF_STATS: packets, bytes, broadcast, multicast, and the drops after the padding."""
    kinds = (0, 1, 2, 3, 4, 5, 7, 8)
    return b"".join(
        attribute(kind, struct.pack("=Q", value)) for kind, value in zip(kinds, values, strict=True)
    )


def test_the_counters_of_a_reply() -> None:
    message = reply({0: counted(1, 2, 3, 4, 5, 6, 7, 8), 2: counted(1 << 63, 0, 0, 0, 0, 0, 0, 0)})
    assert vf_counters.parse(message) == {0: Counters(1, 2, 3, 4, 7, 8), 2: Counters(1 << 63)}


def test_a_reply_without_counters() -> None:
    assert vf_counters.parse(reply({})) == {}


def test_an_error_of_the_kernel() -> None:
    body = struct.pack("=i", -90)
    with pytest.raises(NetlinkError, match="counters") as caught:
        vf_counters.parse(struct.pack("=IHHII", len(body) + 16, 2, 0, 1, 0) + body)
    assert caught.value.errno == 90


@pytest.mark.parametrize("shown", [0, 3, 20_000])
def test_a_list_that_is_longer_than_its_length_can_say(shown: int) -> None:
    """A list of VFs of more than 64 KiB is read to its end: kernels wrap its length to 16 bits."""
    whole = bytearray(reply({number: counted(*[number] * 8) for number in range(1, 301)}))
    at = whole.index(attribute(3, b"pf0\0")) + 16
    struct.pack_into("=H", whole, at, shown)
    found = vf_counters.parse(bytes(whole))
    assert found == {number: Counters(*[number] * 6) for number in range(1, 301)}


@pytest.fixture
def roots(tmp_path: Path) -> Roots:
    """A node with one PF that has the name of the loopback device, so that requests reach the kernel."""
    (tmp_path / "class/net/lo/device/virtfn0").mkdir(parents=True)
    (tmp_path / "run").mkdir()
    return Roots(sys=str(tmp_path), proc=str(tmp_path), run=str(tmp_path / "run"))


def series(metrics: Metrics) -> dict[tuple[str, ...], float]:
    families = text_string_to_metric_families(metrics.render().decode())
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items(), reverse=True))): sample.value
        for family in families
        for sample in family.samples
        if "sriov_fast_vf_" in sample.name or sample.labels.get("what") == "vf_counters"
    }


def test_the_series(roots: Roots, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vf_counters, "read", lambda pf: {3: Counters(1, 2, 3, 4, 5, 6)})
    assert series(Metrics(roots, Counts(), lambda: 0)) == {}
    found = series(Metrics(roots, Counts(), lambda: 0, vf_counters=True))
    assert found.pop(("sriov_fast_scrape_errors_total", "vf_counters")) == 0
    assert {key[1:3] for key in found} == {("3", "lo")}
    assert {key[0] for key in found} == {
        f"sriov_fast_vf_{kind}_total" for kind in ("packets", "bytes", "dropped")
    }
    assert sorted(found.values()) == [1, 2, 3, 4, 5, 6]
    assert found["sriov_fast_vf_dropped_total", "3", "lo", "tx"] == 6


class Addresses:
    """A socket that can only read addresses."""

    def __enter__(self) -> Addresses:
        return self

    def __exit__(self, *_: object) -> None: ...

    def addresses_by_index(self) -> dict[int, list[str]]:
        return {}


@pytest.mark.parametrize("with_counters", [False, True])
def test_a_scrape_reads_the_list_of_a_pf_once_at_most(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, with_counters: bool
) -> None:
    """The list of VFs, which may take the driver long, is read only for the counters, and once per PF."""
    tree, read = build_tree(tmp_path, "pf0", vfs=2), list[str]()
    roots = Roots(sys=str(tree.sys), proc=str(tree.proc), run=str(tmp_path / "run"))
    monkeypatch.setattr(vf_counters, "read", lambda pf: read.append(pf) or {})
    monkeypatch.setattr(state.nl, "Socket", Addresses)
    text = Metrics(roots, Counts(), lambda: 0, vf_counters=with_counters).render().decode()
    assert read == ["pf0"] * with_counters
    assert 'sriov_fast_vfs{pf="pf0",state="free"} 2.0' in text


def test_a_device_without_counters_has_no_series(roots: Roots) -> None:
    found = series(Metrics(roots, Counts(), lambda: 0, vf_counters=True))
    assert found == {("sriov_fast_scrape_errors_total", "vf_counters"): 0}


def test_a_pf_that_cannot_be_read_is_an_error(roots: Roots, tmp_path: Path) -> None:
    (tmp_path / "class/net/gone/device/virtfn0").mkdir(parents=True)
    found = series(Metrics(roots, Counts(), lambda: 0, vf_counters=True))
    assert found == {("sriov_fast_scrape_errors_total", "vf_counters"): 1}
