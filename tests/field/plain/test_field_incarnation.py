"""A VF that was made anew under its pod is not the record's any more."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from harness.sysfs_tree import build_tree
from sriov_fast.common.errors import NetlinkError
from sriov_fast.common.paths import Roots
from sriov_fast.common.record import Link, VfSettings
from sriov_fast.vf import detach, find
from sriov_fast.vf.journal import Attachment

ASKED = VfSettings(mac="02:00:00:00:00:01", vlan=100, qos=2, spoofchk=False)


class Host:
    """A netlink socket on which the PF is read."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer

    def run(self, batch: object, *, check: bool = True) -> list[Any]:
        return [self.answer]


def attached(**known: Any) -> Attachment:
    return Attachment(
        container_id="c", ifname="eth0", pf_index=3, vf=1, **{"pci": "", "asked": ASKED} | known
    )


def pf(**held: Any) -> Link:
    vf = VfSettings(**held) if held else None
    return Link(index=3, name="pf0", mac="", mtu=1500, up=True, vf=vf)


@pytest.mark.parametrize(
    ("answer", "left"),
    [
        (pf(**ASKED.as_dict()), ASKED),
        (pf(mac=ASKED.mac, vlan=200, qos=2, spoofchk=False), VfSettings(mac=ASKED.mac, spoofchk=False)),
        (pf(mac=ASKED.mac, vlan=100, qos=0, spoofchk=True), VfSettings(mac=ASKED.mac)),
        (pf(mac="02:00:00:00:00:99", vlan=100, qos=2, spoofchk=True), VfSettings(vlan=100, qos=2)),
        (pf(), VfSettings()),
        (NetlinkError(19), VfSettings()),
    ],
)
def test_406_only_what_the_pf_still_holds_is_taken_back(answer: Any, left: VfSettings) -> None:
    """The DEL set the operator's VLAN of a new VF back to that of the old one."""
    assert detach._held(Host(answer), attached()).asked == left  # type: ignore[arg-type]


def test_406_a_pf_that_cannot_be_read_is_an_error() -> None:
    with pytest.raises(NetlinkError):
        detach._held(Host(NetlinkError(12)), attached())  # type: ignore[arg-type]


def test_406_what_identifies_a_vf(tmp_path: Path) -> None:
    """The inodes of its PCI device and of the directory of its network devices."""
    tree = build_tree(tmp_path, vfs=2)
    roots, pci = Roots(sys=str(tree.sys), proc=str(tree.proc), run=str(tmp_path / "run")), tree.pci(0)
    record = attached(pci=pci, incarnation=find.incarnation(pci, roots))
    older = attached(pci=pci)
    tree.remove_netdev(0)  # in another namespace
    assert find.has_device(record, roots)
    assert find.has_device(older, roots)
    net = tree.device(0) / "net"
    net.rename(tree.device(0) / "kept")  # so that its inode is not used again
    assert not find.has_device(record, roots)
    net.mkdir()
    assert not find.has_device(record, roots)
    assert find.is_same_function(record, roots)
    tree.device(0).rename(tmp_path / "kept")
    assert find.is_same_function(record, roots)  # it is missing, not another one
    tree.device(0).mkdir()
    assert not find.is_same_function(record, roots)
    assert find.is_same_function(older, roots)
