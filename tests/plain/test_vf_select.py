"""The choice of a VF: its order, the owners, and the error if no VF is free."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from harness.sysfs_tree import Tree, build_tree, vf_request
from sriov_fast.common.errors import ConfigError, TryAgainError
from sriov_fast.common.paths import Roots
from sriov_fast.vf import locks, select
from sriov_fast.vf.journal import ATTACHED, ATTACHING, RETURNING, Attachment, Journal
from sriov_fast.vf.select import VfRequest


class Machine:
    """A PF with VFs in a simulated sysfs, and a journal."""

    def __init__(self, root: Path, vfs: int = 3) -> None:
        self.tree: Tree = build_tree(root, pf="eth1", vfs=vfs)
        self.roots = Roots(sys=str(self.tree.sys), proc=str(self.tree.proc), run=str(root / "run"))
        boot = root / "proc/sys/kernel/random/boot_id"
        boot.parent.mkdir(parents=True)
        boot.write_text("this-boot")
        self.journal = Journal(self.roots.run, self.roots.proc)

    def take(self, index: int, container: str = "c", boot: str = "") -> Attachment:
        record = Attachment(
            container_id=container,
            ifname="eth0",
            pci=self.tree.pci(index),
            boot=boot or self.journal.boot(),
        )
        self.journal.write(record)
        return record

    def request(self, **wish: Any) -> VfRequest:
        return vf_request(self.journal, self.roots, **wish)

    def is_locked(self, index: int) -> bool:
        lock = locks.attempt(self.roots.run, f"vf-{self.tree.pci(index)}", "other")
        if lock:
            lock.release()
        return lock is None

    def choose(self, **wish: Any) -> int:
        """Choose, release the lock, and return the VF's index."""
        choice = select.choose(self.request(**wish))
        with choice.lock:
            return choice.vf.index


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_the_choice_is_locked(machine: Machine) -> None:
    choice = select.choose(machine.request())
    with choice.lock:
        assert (choice.pf, choice.vf.pci) == ("eth1", machine.tree.pci(0))
        assert machine.is_locked(0)
        assert machine.choose() == 1


def test_not_usable(machine: Machine) -> None:
    machine.tree.unbind(0)
    machine.tree.remove_netdev(1)
    assert machine.choose() == 2
    machine.tree.bind(0, "vfio-pci")
    assert machine.choose() == 2


def test_none_free(machine: Machine) -> None:
    for index in range(3):
        machine.take(index)
    with pytest.raises(TryAgainError) as caught:
        machine.choose()
    assert (caught.value.code, caught.value.msg) == (11, "no VF free on eth1 (3 VFs)")
    assert "sriov_numvfs" in caught.value.details


@pytest.mark.parametrize(
    ("prepare", "why", "advice"),
    [
        (lambda m: m.take(1, "abc"), "it belongs to container abc, eth0", "when its pod has ended"),
        (lambda m: m.tree.unbind(1), "it has no driver", "bind"),
        (lambda m: m.tree.remove_netdev(1), "driver igbvf, and no network device in this namespace", "bind"),
    ],
    ids=["taken", "no driver", "no netdev"],
)
@pytest.mark.parametrize("by", ["index", "device"])
def test_the_one_is_not_free(machine: Machine, prepare: object, why: str, advice: str, by: str) -> None:
    """The error names the reason, and its advice fits the reason."""
    prepare(machine)  # type: ignore[operator]
    wish = {"vf": 1} if by == "index" else {"device_id": machine.tree.pci(1)}
    with pytest.raises(TryAgainError) as caught:
        machine.choose(**wish)
    assert why in caught.value.msg
    assert advice in caught.value.details
    assert ("vf 1" if by == "index" else machine.tree.pci(1)) in caught.value.msg
    assert not machine.is_locked(1)


def test_another_request_has_the_lock(machine: Machine) -> None:
    """The error says that another request holds the VF's lock."""
    held = locks.acquire(machine.roots.run, f"vf-{machine.tree.pci(1)}", "other", wait=0)
    with held, pytest.raises(TryAgainError) as caught:
        machine.choose(vf=1)
    assert caught.value.msg == "vf 1 is not free on eth1 (3 VFs): another request works on it"
    assert caught.value.details == "try again"


def test_an_index_that_the_pf_has_not(machine: Machine) -> None:
    with pytest.raises(ConfigError) as caught:
        machine.choose(vf=3)
    assert (caught.value.code, caught.value.msg) == (7, "vf 3: eth1 has no such VF")
    assert "0 to 2" in caught.value.details


@pytest.mark.parametrize("pf", ["eth9", "lo"])
def test_no_pf(machine: Machine, pf: str) -> None:
    with pytest.raises(ConfigError) as caught:
        machine.choose(masters=(pf,))
    assert f"master '{pf}' is no PF with SR-IOV" in caught.value.msg


def test_a_device_of_another_master(machine: Machine) -> None:
    """The PCI address overrides ``master``: a resource of the device plugin may have VFs of several PFs."""
    said: list[str] = []
    device = machine.tree.pci(2)
    assert machine.choose(device_id=device, masters=("eth0",), warn=said.append) == 2
    assert said == [f"master eth0 is ignored: deviceID {device} is a VF of eth1"]


@pytest.mark.parametrize(
    ("wish", "words"),
    [
        ({"device_id": "0000:09:00.0"}, "0000:09:00.0"),
        ({"device_id": "0000:01:00.0"}, "not a VF"),
        ({"device_id": "VF2", "vf": 1}, "is VF 2 of eth1, not vf 1"),
    ],
)
def test_a_device_that_cannot_be(machine: Machine, wish: dict[str, object], words: str) -> None:
    if wish["device_id"] == "VF2":
        wish = wish | {"device_id": machine.tree.pci(2)}
    with pytest.raises(ConfigError) as caught:
        machine.choose(**wish)
    assert words in caught.value.msg
    assert str(wish["device_id"]) in caught.value.msg


def test_any_usable(machine: Machine) -> None:
    def usable(masters: tuple[str, ...] = ("eth1",), device: str = "") -> bool:
        return select.any_usable(machine.request(masters=masters, device_id=device))

    assert usable()
    assert usable((), machine.tree.pci(1))
    assert not usable(())
    for index in range(3):
        machine.tree.remove_netdev(index)
    assert not usable()
    machine.take(1)
    assert usable(), "a VF in a pod will be free again"
    with pytest.raises(ConfigError, match="eth9"):
        usable(("eth9",))


def test_a_vf_that_was_taken_while_we_looked(machine: Machine) -> None:
    """A VF is skipped if another ADD has recorded it between the listing of the journal and the lock."""

    class Late(Journal):
        looks = 0

        def taken(self) -> set[str]:
            self.looks += 1
            return set() if self.looks == 1 else super().taken()

    machine.take(0)
    machine.journal = Late(machine.roots.run, machine.roots.proc)
    machine.journal.boot()
    assert machine.choose() == 1
    assert not machine.is_locked(0)


# --- records of killed requests, and of VFs that are being returned


class Recovery:
    """A recovery that asserts the VF's lock, notes VF and state, and removes the record if ``works``."""

    def __init__(self, machine: Machine, *, works: bool = True) -> None:
        self.machine = machine
        self.works = works
        self.seen: list[tuple[str, str]] = []

    def __call__(self, record: Attachment) -> None:
        assert locks.attempt(self.machine.roots.run, f"vf-{record.pci}", "other") is None
        self.seen.append((record.pci, record.state))
        if self.works:
            self.machine.journal.remove(record)


def left(machine: Machine, index: int, state: str) -> Attachment:
    """Write a record in the given state, and return it."""
    record = machine.take(index).replace(state=ATTACHED if state == RETURNING else state)
    machine.journal.write(record)
    return machine.journal.release(record) if state == RETURNING else record


def wishes(machine: Machine, by: str) -> dict[str, Any]:
    device = machine.tree.pci(0)
    found: dict[str, dict[str, Any]] = {
        "any": {},
        "index": {"vf": 0},
        "device": {"device_id": device},
        "device alone": {"device_id": device, "masters": ()},
    }
    return found[by]


BY = ["any", "index", "device", "device alone"]


@pytest.mark.parametrize("by", BY)
def test_what_an_earlier_boot_left_keeps_no_vf(machine: Machine, by: str) -> None:
    for index in range(3):
        machine.take(index, f"c{index}", boot="an earlier one")
    assert machine.choose(**wishes(machine, by)) == 0


@pytest.mark.parametrize("works", [True, False])
@pytest.mark.parametrize("state", [ATTACHING, RETURNING, ATTACHED])
@pytest.mark.parametrize("by", BY)
def test_what_was_cut_short_is_finished(tmp_path: Path, by: str, state: str, works: bool) -> None:
    """An interrupted attachment or return is recovered first; without success, the VF is not chosen.

    An attached VF is not recovered.
    """
    machine = Machine(tmp_path, vfs=1)
    left(machine, 0, state)
    recover = Recovery(machine, works=works)
    if works and state != ATTACHED:
        assert machine.choose(recover=recover, **wishes(machine, by)) == 0
    else:
        with pytest.raises(TryAgainError):
            machine.choose(recover=recover, **wishes(machine, by))
    assert recover.seen == [(machine.tree.pci(0), state)] * (state != ATTACHED)
    assert not machine.is_locked(0)


@pytest.mark.parametrize(
    ("states", "recovered"), [((RETURNING, ATTACHING), []), ((ATTACHING, ATTACHED, RETURNING), [RETURNING])]
)
def test_the_order_of_the_choice(machine: Machine, states: tuple[str, ...], recovered: list[str]) -> None:
    """A free VF is chosen first, then one that is being returned, then one of an interrupted attachment."""
    for index, state in enumerate(states):
        left(machine, index, state)
    recover = Recovery(machine)
    assert machine.choose(recover=recover) == 2
    assert recover.seen == [(machine.tree.pci(2), state) for state in recovered]


def test_who_attaches_is_not_waited_for(machine: Machine) -> None:
    """A VF that a running request attaches is skipped, as its lock shows."""
    for index in range(3):
        left(machine, index, ATTACHING)
    recover = Recovery(machine)
    held = [locks.acquire(machine.roots.run, f"vf-{machine.tree.pci(index)}", "x") for index in range(3)]
    with pytest.raises(TryAgainError):
        machine.choose(recover=recover)
    held[1].release()
    assert machine.choose(recover=recover) == 1
    assert recover.seen == [(machine.tree.pci(1), ATTACHING)]
    for lock in held:
        lock.release()


@pytest.mark.parametrize("by", BY)
def test_a_way_home_is_waited_for(tmp_path: Path, by: str) -> None:
    """A request waits for the lock of a VF that is being returned, and then needs no recovery.

    The request that returns the VF removes the record before it releases the lock.
    """
    machine = Machine(tmp_path, vfs=1)
    record = left(machine, 0, RETURNING)
    lock = locks.acquire(machine.roots.run, f"vf-{record.pci}", "DEL c eth0")
    chosen: list[int] = []
    recover = Recovery(machine)
    wish = wishes(machine, by) | {"recover": recover}
    thread = threading.Thread(target=lambda: chosen.append(machine.choose(**wish)))
    thread.start()
    while locks._thread_locks[f"{machine.roots.run}/locks/vf-{record.pci}"].users < 2:
        time.sleep(0.001)
    assert chosen == []
    machine.journal.remove(record)
    lock.release()
    thread.join()
    assert (chosen, recover.seen) == ([0], [])


def test_a_vf_that_came_home_without_a_device(machine: Machine) -> None:
    """A VF that lost its driver during its return is skipped."""
    for index in range(3):
        left(machine, index, RETURNING)

    def recover(record: Attachment) -> None:
        if record.pci == machine.tree.pci(0):
            machine.tree.unbind(0)
        machine.journal.remove(record)

    assert machine.choose(recover=recover) == 1


def test_the_second_pf_where_the_first_has_nothing(tmp_path: Path) -> None:
    machine = Machine(tmp_path, vfs=1)
    build_tree(tmp_path, pf="eth2", vfs=1, pf_pci="0000:02:00.0", numa=1)
    left(machine, 0, ATTACHED)
    other = Attachment(container_id="d", ifname="eth0", pci="0000:02:10.0", boot=machine.journal.boot())
    machine.journal.write(other)
    recover = Recovery(machine)
    choice = select.choose(machine.request(masters=("eth1", "eth2"), recover=recover))
    with choice.lock:
        pass
    assert (choice.pf, recover.seen) == ("eth2", [("0000:02:10.0", ATTACHING)])


class FailingJournal(Journal):
    """A journal in which only the ``nth`` listing fails."""

    nth = 0

    def _names(self) -> list[str]:
        self.nth -= 1
        if not self.nth:
            raise OSError(24, "Too many open files", self._dir)
        return super()._names()


@pytest.mark.parametrize("nth", [1, 2, 3])
@pytest.mark.parametrize("by", ["any", "device alone"])
def test_a_listing_of_the_journal_that_fails_leaves_no_lock(tmp_path: Path, nth: int, by: str) -> None:
    machine = Machine(tmp_path, vfs=1)
    machine.journal = FailingJournal(machine.roots.run, machine.roots.proc)
    machine.journal.nth = nth
    with contextlib.suppress(OSError):  # there may be fewer listings
        machine.choose(**wishes(machine, by))
    assert not machine.is_locked(0)
    assert os.listdir(f"{machine.roots.run}/locks") == []
