"""Interrupts and cores: the plan, the masks that are written, and warnings of those that cannot be."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.sysfs_tree import Tree, build_tree
from sriov_fast.common.errors import ConfigError
from sriov_fast.common.log import Logger
from sriov_fast.common.paths import Roots
from sriov_fast.vf import irq


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return build_tree(tmp_path, vfs=2, irqs_per_vf=3)


@pytest.fixture
def roots(tree: Tree) -> Roots:
    return Roots(sys=str(tree.sys), proc=str(tree.proc))


def test_online(tree: Tree, roots: Roots) -> None:
    irq.require_online([0, 7, 7], roots)
    irq.require_online([], Roots(sys="/nowhere"))
    with pytest.raises(ConfigError) as caught:
        irq.require_online([1, 9, 8, 9], roots)
    assert (caught.value.code, caught.value.msg) == (7, "CORES: core 9, 8 is not online")
    assert caught.value.details == "online are 0-7; name only these"
    (tree.sys / "devices/system/cpu/online").write_text("0-2,4,6-7\n")
    with pytest.raises(ConfigError) as caught:
        irq.require_online([3], roots)
    assert caught.value.details == "online are 0-2,4,6-7; name only these"


@pytest.mark.parametrize(
    ("cores", "text"),
    [([], ""), ([5], "5"), ([3, 1, 2], "1-3"), ([0, 2, 4], "0,2,4"), ([0, 1, 3, 4], "0-1,3-4")],
)
def test_ranges(cores: list[int], text: str) -> None:
    assert irq.ranges(cores) == text


@given(st.sets(st.integers(0, 300)))
def test_ranges_say_all_and_no_more(cores: set[int]) -> None:
    said: set[int] = set()
    for part in filter(None, irq.ranges(sorted(cores)).split(",")):
        low, _, high = part.partition("-")
        said |= set(range(int(low), int(high or low) + 1))
    assert said == cores


def test_plan() -> None:
    assert irq.plan([174, 175], [1, 2, 3, 4]) == {174: "00000002", 175: "00000004"}
    assert irq.plan([5, 6, 7], [3, 1]) == {5: "00000008", 6: "00000002", 7: "00000008"}
    assert irq.plan([], [1]) == {}
    assert irq.plan([5], [64]) == {5: "00000001,00000000,00000000"}
    assert irq.plan([5], [31]) == {5: "80000000"}
    assert irq.plan([5], [8191]) == {5: ",".join(["80000000", *["00000000"] * 255])}


@pytest.mark.parametrize(
    ("text", "cores"),
    [("0-7\n", [*range(8)]), ("0", [0]), ("0,2-3\n", [0, 2, 3]), ("0-127\n", [*range(128)])],
)
def test_online_cores(tree: Tree, text: str, cores: list[int]) -> None:
    (tree.sys / "devices/system/cpu/online").write_text(text)
    assert irq.read_online(str(tree.sys)) == cores


def test_online_on_this_machine() -> None:
    assert set(os.sched_getaffinity(0)) <= set(irq.read_online())


def test_masks_of(tree: Tree, roots: Roots) -> None:
    assert irq.masks_of(tree.pci(1), roots) == {103: "ff", 104: "ff", 105: "ff"}
    tree.mask(104).unlink()
    assert irq.masks_of(tree.pci(1), roots) == {103: "ff", 105: "ff"}
    tree.unbind(1)
    assert irq.masks_of(tree.pci(1), roots) == {}


def test_apply_says_what_was_taken(tree: Tree, roots: Roots, capfd: pytest.CaptureFixture[str]) -> None:
    tree.mask(101).unlink()
    tree.mask(102).unlink()
    tree.mask(102).mkdir()  # cannot be written
    wanted = {100: "00000002", 101: "00000004", 102: "00000008"}
    assert irq.apply(wanted, roots, Logger()) == {100: "00000002"}
    assert tree.mask(100).read_text().strip() == "00000002"
    said = capfd.readouterr().err
    assert said.count("\n") == 1, "an interrupt that is gone is no fault"
    assert "irq=102" in said
    assert "Is a directory" in said


def test_differing(tree: Tree, roots: Roots) -> None:
    masks = {100: "00000002", 101: "00000004", 102: "ff"}
    tree.mask(100).write_text("0000,00000002\n")  # the same core, with more CPUs
    tree.mask(101).write_text("00000006\n")
    tree.mask(102).unlink()
    assert irq.differing(masks, roots) == {101: "00000006", 102: ""}


def warned(run: Path, capfd: pytest.CaptureFixture[str]) -> str:
    irq.warn_of_irqbalance(Logger(), str(run))
    return capfd.readouterr().err


def test_a_running_irqbalance(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    sockets = tmp_path / "irqbalance"
    assert warned(tmp_path, capfd) == ""
    sockets.mkdir()
    assert warned(tmp_path, capfd) == ""
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    for name in (f"irqbalance{child}.sock", "irqbalance.sock", "other"):
        (sockets / name).touch()
    assert warned(tmp_path, capfd) == "", "that one runs no more"
    (sockets / f"irqbalance{os.getpid()}.sock").touch()
    said = warned(tmp_path, capfd)
    assert "irqbalance runs" in said
    assert f"pid={os.getpid()}" in said
