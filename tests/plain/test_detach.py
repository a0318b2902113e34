"""The return of a VF to the host: its MAC on the PF, refused changes, and a VF that was re-created."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest

from harness.sysfs_tree import build_tree
from sriov_fast.common.errors import NetlinkError
from sriov_fast.common.log import Logger
from sriov_fast.common.paths import Roots
from sriov_fast.common.record import Link, VfSettings
from sriov_fast.kernel.backend import nl
from sriov_fast.vf import detach, find
from sriov_fast.vf.driver_socket import Patience
from sriov_fast.vf.find import PodNetns
from sriov_fast.vf.journal import Attachment


class Refusing:
    """A netlink socket of a kernel that refuses every change."""

    def __init__(self, refused: int) -> None:
        self.asked: list[bytes] = []
        self._refused = refused

    def run(self, batch: nl.Batch) -> None:
        self.asked.append(batch.tobytes())
        raise NetlinkError(self._refused, operation="set link of eth7")


@pytest.mark.parametrize("refused", [errno.ENETDOWN, errno.EIO])
def test_a_device_that_will_not_come_up_is_a_warning(capfd: pytest.CaptureFixture[str], refused: int) -> None:
    host, wanted = Refusing(refused), nl.Batch()
    record = Attachment(container_id="c", ifname="eth0", pci="")
    release = detach.Release(record, PodNetns(), Roots(), Logger(), Patience())
    release._host = host  # type: ignore[assignment]
    release._bring_up(Link(index=7, name="eth7", mac="", mtu=0, up=False))
    wanted.set_link(7, up=True)
    assert host.asked == [wanted.tobytes()]
    said = capfd.readouterr().err
    assert "level=warning" in said
    assert "interface=eth7" in said
    assert "set link of eth7" in said


OWN, ADMIN, OTHER, ZERO = ("02:00:00:00:00:01", "02:00:00:00:00:0a", "02:00:00:00:00:77", "00:00:00:00:00:00")
ASKED = VfSettings(mac=OWN, vlan=100, qos=2, spoofchk=False)


def attached(**known: Any) -> Attachment:
    return Attachment(
        container_id="c", ifname="eth0", pf_index=3, vf=1, **{"pci": "", "asked": ASKED} | known
    )


class Host:
    """A netlink socket that returns ``answer`` for every read, and accepts every change."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer
        self.asked: list[str] = []

    def run(self, batch: nl.Batch, *, check: bool = True) -> list[Any]:
        self.asked += batch.operations
        return [self.answer if operation.startswith("get") else None for operation in batch.operations]


def pf(**held: Any) -> Link:
    vf = VfSettings(**held) if held else None
    return Link(index=3, name="pf0", mac="", mtu=1500, up=True, vf=vf)


@pytest.mark.parametrize(
    ("before", "now", "asked", "changed", "requests"),
    [
        pytest.param(ADMIN, OWN, {"trust": True}, False, 2, id="the pod has restored its device's MAC"),
        pytest.param(ADMIN, OTHER, {"trust": True}, True, 2, id="the pod has changed its device's MAC"),
        pytest.param(ADMIN, ADMIN, {"trust": True}, False, 1, id="the PF has its MAC"),
        pytest.param(ADMIN, ADMIN, {"trust": False}, False, 0, id="the driver refuses an untrusted VF's MAC"),
        pytest.param(OWN, OWN, {"trust": True}, False, 0, id="the VF used the PF's MAC"),
        pytest.param(OWN, ZERO, {"mac": OTHER}, False, 2, id="the ADD set a MAC"),
        pytest.param(None, None, {"mac": OTHER}, False, 0, id="the PF reports no MAC"),
    ],
)
def test_the_mac_on_the_pf(
    before: str | None, now: str | None, asked: dict[str, Any], changed: bool, requests: int
) -> None:
    """The PF is read only if it may hold another MAC, and changed only if it does."""
    was = VfSettings(mac=before, trust=False)
    record = attached(before=was, before_mac=OWN, asked=VfSettings(**asked))
    release = detach.Release(record, PodNetns(), Roots(), Logger(), Patience())
    host = Host(pf(mac=now))
    release._host = host  # type: ignore[assignment]
    release._restore_macs(Link(index=7, name="eth7", mac=OWN, mtu=0, up=False), changed=changed)
    assert len(host.asked) == requests, host.asked


# --- a VF that was re-created during its attachment does not match the record


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
def test_only_what_the_pf_still_holds_is_taken_back(answer: Any, left: VfSettings) -> None:
    assert detach._held(Host(answer), attached()).asked == left  # type: ignore[arg-type]


def test_a_pf_that_cannot_be_read_is_an_error() -> None:
    with pytest.raises(NetlinkError):
        detach._held(Host(NetlinkError(12)), attached())  # type: ignore[arg-type]


def test_what_identifies_a_vf(tmp_path: Path) -> None:
    """The inodes of the PCI device and of its directory of network devices identify a VF."""
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
    assert find.is_same_function(record, roots)  # missing, but not replaced
    tree.device(0).mkdir()
    assert not find.is_same_function(record, roots)
    assert find.is_same_function(older, roots)
