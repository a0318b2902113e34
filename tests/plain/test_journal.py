"""The journal: complete records or none, found by name alone, readable by root only."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import pytest

from sriov_fast.common import json, log
from sriov_fast.common.errors import FileError
from sriov_fast.common.paths import Roots
from sriov_fast.common.record import VfSettings
from sriov_fast.plugin import recovery
from sriov_fast.vf import locks, sriov_cni_record
from sriov_fast.vf.journal import ATTACHED, BROKEN, RETURNING, Attachment, Entry, Journal

PCI = "0000:01:10.0"


@pytest.fixture
def roots(tmp_path: Path) -> Roots:
    return Roots(sys=str(tmp_path), run=str(tmp_path / "run"), proc=str(tmp_path / "proc"))


@pytest.fixture
def journal(roots: Roots) -> Journal:
    boot = Path(roots.proc, "sys/kernel/random")
    boot.mkdir(parents=True)
    (boot / "boot_id").write_text("this-boot\n")
    return Journal(roots.run, roots.proc)


def attachment(journal: Journal, **more: object) -> Attachment:
    base = Attachment(container_id="c1", ifname="eth0", pci=PCI, boot=journal.boot())
    return base.replace(**more)


FULL = {
    "state": ATTACHED,
    "network": "net1",
    "netns": "/run/netns/größe",
    "pf": "eth1",
    "pf_index": 3,
    "vf": 7,
    "ifindex": 12,
    "host_name": "eth1v7",
    "before": VfSettings(mac="02:00:00:00:00:01", vlan=0, qos=0, trust=False, link_state="auto"),
    "before_mac": "02:00:00:00:00:01",
    "before_mtu": 1500,
    "before_up": True,
    "before_altnames": ("other",),
    **dict.fromkeys(("before_disable_ipv6", "promisc", "allmulti"), False),
    "irqs": {100: "ff", 101: "ff,00000000"},
    "pinned": {100: "02"},
    "asked": VfSettings(vlan=5, spoofchk=True),
    "mac": "02:00:00:00:00:02",
    "mtu": 1400,
    "addresses": ("10.0.0.2/24", "fd00::2/64"),
    "routes": ({"dst": "0.0.0.0/0", "gw": "10.0.0.1", "scope": None},),
    "ipam": "host-local",
    "request": {"args": "A=b", "path": ["/opt/cni/bin"], "config": {"name": "net1", "x": [1.5, None]}},
}


def test_round_trip(journal: Journal) -> None:
    record = attachment(journal, **FULL)
    journal.write(record)
    assert journal.read(PCI, Entry(owner=record.owner)) == record
    assert journal.find("c1", "eth0") == record
    assert journal.all() == [record]
    assert journal.owners() == {PCI: ("c1", "eth0")}


def test_a_draft_is_no_record(journal: Journal, tmp_path: Path) -> None:
    """A draft becomes a record when it is published; a dropped draft is removed."""
    first, later = attachment(journal, mtu=1400), attachment(journal, mtu=9000)
    journal.draft(first)
    assert (journal.all(), journal.taken(), journal.find("c1", "eth0")) == ([], set(), None)
    journal.publish(first)
    journal.draft(later)
    assert journal.all() == [first]
    journal.drop(later.pci)
    journal.drop(later.pci)
    assert journal.all() == [first]
    assert len(list((tmp_path / "run/vfs").iterdir())) == 1


def test_a_draft_that_was_used_up_is_made_again(journal: Journal) -> None:
    """A draft is written again if another record of the VF used its file.

    The masks of interrupts are recorded in this way while the draft of the whole record exists.
    """
    between, whole = attachment(journal, mtu=1400), attachment(journal, mtu=9000)
    journal.draft(whole)
    journal.write(between)
    assert journal.all() == [between]
    journal.publish(whole)
    assert journal.all() == [whole]


def test_nothing_there(journal: Journal, tmp_path: Path) -> None:
    assert (journal.owners(), journal.all(), journal.find("c1", "eth0")) == ({}, [], None)
    assert journal.read(PCI, Entry(owner=("c1", "eth0"))) is None
    journal.remove(attachment(journal))
    assert not journal.prune()
    assert not (tmp_path / "run").exists(), "looking makes no directory"


@pytest.mark.parametrize("ifname", ["a~b", "~", "eth0.5", "größe", "-x", "a b~c~d"])
def test_odd_names(journal: Journal, ifname: str) -> None:
    record = attachment(journal, ifname=ifname, container_id="A_b.c-d")
    journal.write(record)
    assert journal.owners() == {PCI: ("A_b.c-d", ifname)}
    assert journal.find("A_b.c-d", ifname) == record


def test_modes_whatever_the_umask(journal: Journal, tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        journal.write(attachment(journal))
    finally:
        os.umask(old)
    run = tmp_path / "run"
    (record,) = (run / "vfs").iterdir()
    assert [path.stat().st_mode & 0o7777 for path in (run, run / "vfs", record)] == [0o700, 0o700, 0o600]


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"{", b'{"boot": 5}', b"\xff", b'{"container_id": "c1"}', b"\0" * 4096],
)
@pytest.mark.parametrize("is_returning", [False, True])
def test_a_broken_record_still_says_whose_it_is(
    journal: Journal, tmp_path: Path, content: bytes, is_returning: bool
) -> None:
    record = returning(journal) if is_returning else attachment(journal, **FULL)
    if not is_returning:
        journal.write(record)
    (path,) = (tmp_path / "run/vfs").iterdir()
    path.write_bytes(content)
    broken = attachment(journal, state=BROKEN)
    assert (journal.again(record) if is_returning else journal.find("c1", "eth0")) == broken
    assert journal.entries() == {PCI: Entry(owner=("c1", "eth0"), returning=is_returning)}
    assert [fault.path for fault in journal.faults()] == [str(path)]


def test_what_is_no_record(journal: Journal, tmp_path: Path) -> None:
    journal.write(attachment(journal))
    for name in (".0000:01:10.0", "README", "a~b", ".hidden~b~c"):
        (tmp_path / "run/vfs" / name).write_text("{}")
    assert journal.owners() == {PCI: ("c1", "eth0")}
    assert journal.taken() == {PCI}


def test_a_name_that_ends_as_anothers(journal: Journal) -> None:
    """A record's name matches a container only if its first part is a PCI address alone."""
    other = attachment(journal, pci="0000:01:10.1", container_id="c2", ifname="x~c1~eth0")
    journal.write(other)
    assert journal.find("c1", "eth0") is None
    mine = attachment(journal)
    journal.write(mine)
    assert (journal.find("c1", "eth0"), journal.find("c2", "x~c1~eth0")) == (mine, other)
    returning = journal.release(mine)
    assert journal.find("c1", "eth0") is None
    assert (journal.has(mine), journal.has(returning), journal.has(other)) == (False, True, True)
    assert journal.taken() == {PCI, other.pci}


def test_an_earlier_boot_is_forgotten(journal: Journal, tmp_path: Path) -> None:
    old = attachment(journal, pci="0000:01:10.1", container_id="c2", boot="an earlier one")
    for record in (attachment(journal), old):
        journal.write(record)
    assert set(journal.owners()) == {PCI, old.pci}, "names alone do not tell"
    assert journal.prune()
    assert journal.owners() == {PCI: ("c1", "eth0")}
    assert not journal.prune()
    journal.write(old)
    assert journal.find("c2", "eth0") is None
    assert journal.owners() == {PCI: ("c1", "eth0")}


def test_a_symbolic_link_in_the_drafts_place(journal: Journal, tmp_path: Path) -> None:
    """The journal writes through no symbolic link, although its directory is root's."""
    journal.write(attachment(journal))
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / "run/vfs/.0000:01:10.0").symlink_to(victim)
    with pytest.raises(FileError) as caught:
        journal.write(attachment(journal))
    assert str(tmp_path / "run") in caught.value.msg
    assert victim.read_text() == "precious"


def test_a_reader_never_sees_half_a_record(journal: Journal) -> None:
    short, long = attachment(journal, network="a"), attachment(journal, network="b" * 100_000)
    journal.write(short)
    writing = True
    seen: set[str] = set()
    faults: list[object] = []

    def read() -> None:
        while writing:
            found = journal.read(PCI, Entry(owner=short.owner))
            if found not in (short, long):
                faults.append(found)
            elif found is not None:
                seen.add(found.network[:1])

    reader = threading.Thread(target=read)
    reader.start()
    for _ in range(200):
        journal.write(long)
        journal.write(short)
    writing = False
    reader.join()
    assert (faults, seen <= {"a", "b"}, bool(seen)) == ([], True, True)


# --- VFs that are being returned


def returning(journal: Journal, **more: object) -> Attachment:
    """Write a record and release its VF."""
    record = attachment(journal, **(FULL | more))
    journal.write(record)
    return journal.release(record)


def test_a_vf_on_its_way_home(journal: Journal, tmp_path: Path) -> None:
    """A VF that is being returned has no owner and is not free; its record keeps the original state."""
    record = returning(journal)
    assert os.listdir(tmp_path / "run/vfs") == [f"{PCI}~~c1~eth0"]
    assert record == attachment(journal, **(FULL | {"state": RETURNING}))
    assert journal.entries() == {PCI: Entry(owner=("c1", "eth0"), returning=True)}
    assert journal.owners() == {PCI: ("c1", "eth0")}
    assert journal.find("c1", "eth0") is None
    assert journal.all() == [record] == [journal.again(record)]
    journal.remove(record)
    assert (journal.entries(), journal.again(record)) == ({}, None)


def test_its_name_alone_says_so(journal: Journal, tmp_path: Path) -> None:
    """A release only renames the record, so that the reply waits for one call."""
    record = attachment(journal, **FULL)
    journal.write(record)
    before = (tmp_path / f"run/vfs/{PCI}~c1~eth0").read_bytes()
    journal.release(record)
    assert (tmp_path / f"run/vfs/{PCI}~~c1~eth0").read_bytes() == before


def test_what_was_never_written_cannot_be_released(journal: Journal) -> None:
    journal.write(attachment(journal, container_id="other"))
    with pytest.raises(FileNotFoundError):
        journal.release(attachment(journal))


# --- fields of a wrong type, records of other versions, drafts of ADDs that were killed

WRONG = [None, 5, -7, 1 << 40, True, "x", 1.5, [], [5], {}, {"x": 5}, {"-1": "ff"}, {"mac": 5}]


def stored(journal: Journal, roots: Roots, **more: Any) -> Path:
    """Write a complete record, then replace some of its fields in the JSON."""
    journal.write(attachment(journal, **FULL))
    path = Path(roots.run, "vfs", f"{PCI}~c1~eth0")
    path.write_bytes(json.dumps(json.loads(path.read_bytes()) | more))
    return path


@pytest.mark.parametrize("key", Attachment.__annotations__)
def test_every_field_is_checked(journal: Journal, roots: Roots, key: str) -> None:
    """Each field of a record has its declared type, or the record is broken."""
    whole = attachment(journal, **FULL)
    for value in WRONG:
        stored(journal, roots, **{key: value})
        found = journal.find("c1", "eth0")
        if found is None:
            assert (key, value) == ("boot", "x"), "it is of an earlier boot"
            continue
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
def test_values_that_no_release_could_set(journal: Journal, roots: Roots, more: dict[str, Any]) -> None:
    stored(journal, roots, **more)
    found = journal.find("c1", "eth0")
    assert found is not None
    assert found.state == BROKEN
    assert len(journal.faults()) == 1


def test_a_record_of_another_version(journal: Journal, roots: Roots) -> None:
    """Records of other versions are valid: newer ones have more fields, older ones fewer."""
    path, whole = stored(journal, roots, unheard_of=5), attachment(journal, **FULL)
    assert journal.find("c1", "eth0") == whole
    plain = json.loads(path.read_bytes())
    del plain["token"], plain["before_perm"], plain["asked"]
    path.write_bytes(json.dumps(plain))
    assert journal.find("c1", "eth0") == whole.replace(asked=VfSettings())


def test_what_is_kept_aside(journal: Journal, roots: Roots) -> None:
    """A broken record stays after its owner's DEL: its VF is neither free, nor its owner's, nor returned."""
    path = stored(journal, roots, mtu="x")
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


def test_one_record_that_cannot_be_read(journal: Journal, roots: Roots) -> None:
    """The repair skips a record that cannot be read, and continues with the others."""
    path = stored(journal, roots)
    os.mkdir(path.with_name("0000:01:10.1~c2~eth0"))
    (fault,) = journal.faults()
    assert (fault.pci, "Is a directory" in fault.why) == ("0000:01:10.1", True)
    recovery.repair(roots, log.Logger("error"))
    assert journal.find("c1", "eth0") == attachment(journal, **FULL)


def test_drafts(journal: Journal, roots: Roots) -> None:
    """The repair removes the draft of a VF if no process holds the VF's lock."""
    stored(journal, roots)
    journal.draft(attachment(journal, mtu=1500))
    journal.draft(attachment(journal, pci="0000:01:10.1"))
    with locks.acquire(roots.run, f"vf-{PCI}", "an ADD"):
        recovery.repair(roots, log.Logger("error"))
        assert journal.drafts() == [PCI]
    recovery.repair(roots, log.Logger("error"))
    assert journal.drafts() == []
    assert journal.find("c1", "eth0") == attachment(journal, **FULL)


@pytest.mark.parametrize(
    ("word", "asked"), [("on", True), ("off", False), ("no", False), ("ON", False), ("", None), (None, None)]
)
@pytest.mark.parametrize("key", ["spoofchk", "trust"])
def test_switches_of_the_sriov_cni(tmp_path: Path, key: str, word: str | None, asked: bool | None) -> None:
    """The SR-IOV CNI treats each word but "on" as "off" and sets the VF, so a DEL restores it."""
    conf = {"name": "n", "deviceID": PCI, "OrigVfState": {"HostIFName": "eth0v0"}, key: word}
    (tmp_path / "c1-net1").write_bytes(json.dumps(conf))
    found = sriov_cni_record.find("c1", "net1", Roots(sys=str(tmp_path), sriov_cni=str(tmp_path)))
    assert found
    assert getattr(found.asked, key) is asked
