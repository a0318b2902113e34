"""Records with a field of a wrong type, and drafts of ADDs that were killed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from sriov_fast.common import json, log
from sriov_fast.common.paths import Roots
from sriov_fast.common.record import VfSettings
from sriov_fast.plugin import recovery
from sriov_fast.vf import locks, sriov_cni_record
from sriov_fast.vf.journal import ATTACHED, BROKEN, Attachment, Entry, Journal

PCI = "0000:01:10.0"
WRONG = [None, 5, -7, 1 << 40, True, "x", 1.5, [], [5], {}, {"x": 5}, {"-1": "ff"}, {"mac": 5}]


@pytest.fixture
def roots(tmp_path: Path) -> Roots:
    return Roots(run=str(tmp_path / "run"), proc=str(tmp_path / "proc"))


def record(**more: Any) -> Attachment:
    base = Attachment(container_id="c1", ifname="eth0", pci=PCI, state=ATTACHED, boot="unknown", vf=3)
    own = {"before": VfSettings(vlan=0, trust=False), "irqs": {7: "ff"}, "before_altnames": ("other",)}
    own |= dict.fromkeys(("before_disable_ipv6", "promisc", "allmulti"), False)
    return base.replace(**own | more)


def stored(roots: Roots, **more: Any) -> tuple[Journal, Path]:
    """Write a whole record, then some of its fields as JSON has them."""
    journal = Journal(roots.run, roots.proc)
    journal.write(record())
    path = Path(roots.run, "vfs", f"{PCI}~c1~eth0")
    path.write_bytes(json.dumps(json.loads(path.read_bytes()) | more))
    return journal, path


@pytest.mark.parametrize("key", Attachment.__annotations__)
def test_205_every_field_is_checked(roots: Roots, key: str) -> None:
    """What is read is of the type that it is declared with, or the record is broken."""
    whole = record()
    for value in WRONG:
        journal, _ = stored(roots, **{key: value})
        found = journal.find("c1", "eth0")
        assert found is not None
        if found.state == BROKEN:
            assert found.owner == ("c1", "eth0")
            (fault,) = journal.faults()
            assert (fault.pci, fault.owner) == (PCI, ("c1", "eth0"))
            assert fault.path in fault.why
            continue
        assert journal.faults() == []
        got = found.as_dict()[key]
        if got is None:
            assert "None" in Attachment.__annotations__[key]
        else:
            assert type(got) is type(whole.as_dict()[key]), (key, value)
        journal.write(found)
        assert journal.find("c1", "eth0") == found


@pytest.mark.parametrize(
    "more",
    [
        {"before_mac": "no MAC"},
        {"mac": "02:00:00:00:00:0g"},
        {"asked": {"mac": "x"}},
        {"before_ethtool": {"features": "odd"}},
        {"before_settings": {"broadcast": "everyone"}},
    ],
)
def test_205_values_that_no_release_could_set(roots: Roots, more: dict[str, Any]) -> None:
    """A record whose MAC is no MAC made each DEL of its VF fail for ever."""
    journal, _ = stored(roots, **more)
    found = journal.find("c1", "eth0")
    assert found is not None
    assert found.state == BROKEN
    assert len(journal.faults()) == 1


def test_205_a_record_of_another_version(roots: Roots) -> None:
    """A newer one has more fields, an older one fewer."""
    journal, path = stored(roots, unheard_of=5)
    assert journal.find("c1", "eth0") == record()
    plain = json.loads(path.read_bytes())
    del plain["token"], plain["before_perm"], plain["asked"]
    path.write_bytes(json.dumps(plain))
    assert journal.find("c1", "eth0") == record()


def test_205_what_is_kept_aside(roots: Roots) -> None:
    """It is not free, not its owner's, not on its way home, and not removed."""
    journal, path = stored(roots, mtu="x")
    content = path.read_bytes()
    broken = journal.find("c1", "eth0")
    assert broken is not None
    journal.remove(broken)
    assert journal.find("c1", "eth0") is None
    assert journal.entries() == {PCI: Entry(owner=("c1", "eth0"), aside=True)}
    assert (journal.taken(), journal.owners()) == ({PCI}, {PCI: ("c1", "eth0")})
    assert [fault.pci for fault in journal.faults()] == [PCI]
    journal.remove(broken)
    recovery.repair(roots, log.Logger("error"))
    (kept,) = Path(roots.run, "vfs").iterdir()
    assert kept.read_bytes() == content


def test_205_one_record_that_cannot_be_read(roots: Roots) -> None:
    """The others are repaired all the same."""
    journal, path = stored(roots)
    os.mkdir(path.with_name("0000:01:10.1~c2~eth0"))
    (fault,) = journal.faults()
    assert (fault.pci, "Is a directory" in fault.why) == ("0000:01:10.1", True)
    recovery.repair(roots, log.Logger("error"))
    assert journal.find("c1", "eth0") == record()


def test_207_drafts(roots: Roots) -> None:
    """One is left over when nobody holds its VF's lock."""
    journal, _ = stored(roots)
    journal.draft(record(mtu=1400))
    journal.draft(record(pci="0000:01:10.1"))
    with locks.acquire(roots.run, f"vf-{PCI}", "an ADD"):
        recovery.repair(roots, log.Logger("error"))
        assert journal.drafts() == [PCI]
    recovery.repair(roots, log.Logger("error"))
    assert journal.drafts() == []
    assert journal.find("c1", "eth0") == record()


@pytest.mark.parametrize(
    ("word", "asked"), [("on", True), ("off", False), ("no", False), ("ON", False), ("", None), (None, None)]
)
@pytest.mark.parametrize("key", ["spoofchk", "trust"])
def test_921_switches_of_the_sriov_cni(
    tmp_path: Path, key: str, word: str | None, asked: bool | None
) -> None:
    """That plugin takes each word but "on" for "off": it set the VF, and the DEL has to restore it."""
    conf = {"name": "n", "deviceID": PCI, "OrigVfState": {"HostIFName": "eth0v0"}, key: word}
    (tmp_path / "c1-net1").write_bytes(json.dumps(conf))
    found = sriov_cni_record.find("c1", "net1", Roots(sys=str(tmp_path), sriov_cni=str(tmp_path)))
    assert found
    assert getattr(found.asked, key) is asked
