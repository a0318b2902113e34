"""CORES: an ADD binds the VF's interrupts to the given cores; a DEL restores their masks."""

from __future__ import annotations

import json
import shutil

import pytest

from harness.server import interfered, needs_strace
from harness.sysfs_tree import build_tree
from harness.veth import MakeNode, Node

pytestmark = pytest.mark.modes("resident")


def masks(node: Node, index: int = 0) -> list[str]:
    return [node.tree.mask(irq).read_text().strip() for irq in node.tree.irqs(index)]


@pytest.fixture
def wide(make_node: MakeNode) -> Node:
    """A node with a single VF that has six interrupts."""
    node = make_node(vfs=1)
    shutil.rmtree(node.root / "tree")
    node.tree = build_tree(node.root / "tree", pf="pf0", vfs=1, irqs_per_vf=6)
    node.reindex()
    return node


CASES = {
    "1,2,3,4": ["02", "04", "08", "10", "02", "04"],
    "1-4,7": ["02", "04", "08", "10", "80", "02"],
    "3": ["08"] * 6,
    "7,0": ["80", "01"] * 3,
}


@pytest.mark.parametrize("cores", CASES)
def test_masks(wide: Node, cores: str) -> None:
    conf, pod = wide.conf(), wide.pod()
    wide.add(conf, pod, args=f"CORES={cores}")
    assert [mask[-2:] for mask in masks(wide)] == CASES[cores]
    assert {mask[:-2] for mask in masks(wide)} == {"000000"}
    wide.delete(conf, pod)
    assert masks(wide) == ["ff"] * 6


def test_the_chosen_vfs_interrupts_and_no_others(either: Node) -> None:
    """ADD changes only the masks of the chosen VF; DEL restores the masks in the record."""
    node, pod = either, either.pod()
    node.add(node.conf(vf=1, cores=[5, 2]), pod)
    assert (masks(node, 0), masks(node, 1)) == (["ff", "ff"], ["00000020", "00000004"])
    node.delete(node.conf(), pod)
    assert masks(node, 1) == ["ff", "ff"]


def test_an_interrupt_that_vanished_before_add(node: Node) -> None:
    """An interrupt in sysfs without a mask is skipped, and the next interrupt gets the next core."""
    shutil.rmtree(node.tree.mask(node.tree.irqs(0)[0]).parent)
    node.add(node.conf(cores=[1, 2]), node.pod())
    assert node.tree.mask(node.tree.irqs(0)[1]).read_text().strip() == "00000002"


@pytest.mark.parametrize("vanished", [True, False])
def test_an_interrupt_that_is_no_longer_the_vfs(node: Node, vanished: bool) -> None:
    """A DEL does not change an interrupt that has disappeared or no longer belongs to the VF."""
    pod, (first, second) = node.pod(), node.tree.irqs(0)
    node.add(node.conf(cores=[1, 2]), pod)
    if vanished:
        shutil.rmtree(node.tree.mask(first).parent)
    else:
        (node.tree.device(0) / "msi_irqs" / str(first)).unlink()
    node.delete(node.conf(), pod)
    assert vanished or node.tree.mask(first).read_text().strip() == "00000002"
    assert node.tree.mask(second).read_text().strip() == "ff"
    assert node.records() == []


@needs_strace
@pytest.mark.modes("process")
def test_a_managed_interrupt(node: Node) -> None:
    """If the kernel refuses the mask of a managed interrupt (EIO), the ADD warns and sets the others."""
    pod, (first, second) = node.pod(), node.tree.irqs(0)
    wrap = interfered("write", "error=EIO", node.tree.mask(first))
    conf = node.conf(cniVersion="1.0.0", cores=[1, 2])
    done = node.run("ADD", conf, pod, wrap=wrap)
    assert done.status == 0, done
    assert "level=warning" in done.stderr
    assert f"irq={first}" in done.stderr
    assert "the kernel manages this interrupt itself" in done.stderr
    assert node.tree.mask(second).read_text().strip() == "00000004"
    node.tree.mask(first).write_text("ff\n")
    node.check(conf, pod, done.json)


def test_without_cores_no_mask_is_written(node: Node) -> None:
    before = {path: path.stat().st_mtime_ns for irq in node.tree.irqs(0) for path in [node.tree.mask(irq)]}
    pod = node.pod()
    node.add(node.conf(), pod)
    node.delete(node.conf(), pod)
    assert {path: path.stat().st_mtime_ns for path in before} == before


UID = "7c0f9f7e-2f0e-4c67-9f7e-0f1d2c3b4a59"
OTHER = "11111111-2f0e-4c67-9f7e-0f1d2c3b4a59"


def kubelet(node: Node, entries: object) -> None:
    """Write the state of kubelet's CPU manager."""
    path = node.root / "kubelet" / "cpu_manager_state"
    path.parent.mkdir(exist_ok=True)
    state = {"policyName": "static", "defaultCpuSet": "0,6-7", "entries": entries, "checksum": 4711}
    path.write_text(json.dumps(state))


@pytest.mark.modes("resident")
@pytest.mark.parametrize("given", ["configuration", "argument"])
def test_the_exclusive_cores_of_the_pod(wide: Node, given: str) -> None:
    kubelet(wide, {OTHER: {"main": "1"}, UID: {"main": "4-5", "side": "2"}})
    more = f"IgnoreUnknown=1;K8S_POD_UID={UID}" + (";CORES=pod" if given == "argument" else "")
    pod, conf = wide.pod(), wide.conf(cores="pod" if given == "configuration" else [0])
    wide.add(conf, pod, args=more)
    assert [mask[-2:] for mask in masks(wide)] == ["04", "10", "20", "04", "10", "20"]
    wide.delete(conf, pod)
    assert masks(wide) == ["ff"] * 6


@pytest.mark.parametrize(
    ("uid", "entries", "why"),
    [
        ("", {}, "no K8S_POD_UID"),
        (UID, {OTHER: {"main": "1"}}, "the pod has none"),
        (UID, None, "the pod has none"),
        (UID, ..., "No such file"),
        (UID, "garbage", "not an object"),
        (UID, {UID: {"main": 5}}, "not a string"),
    ],
)
def test_a_pod_without_exclusive_cores(node: Node, uid: str, entries: object, why: str) -> None:
    if entries is not ...:
        kubelet(node, entries)
    done = node.run("ADD", node.conf(cores="pod"), node.pod(), args=f"K8S_POD_UID={uid}")
    assert (done.status, why in done.stderr, masks(node)) == (0, True, ["ff", "ff"]), done
