"""IRQs of a VF in a tree on tmpfs: list them, read and write their masks, compiled and plain."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from harness.sysfs_tree import Tree, build_tree
from paired import figures, paired
from sriov_fast import _irq
from sriov_fast.kernel import _irq_py
from sriov_fast.vf.irq import plan

IRQS = 64  # of one VF, on a large machine
CORES = (*range(1, 5), 8, *range(65, 128))


@pytest.fixture(scope="session")
def tree() -> Iterator[Tree]:
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="sriov-fast-bench-") as name:
        yield build_tree(Path(name), vfs=1, irqs_per_vf=IRQS)


def compare(benchmark: Any, call: Callable[[ModuleType], object]) -> None:
    """Benchmark the compiled module, and add the ratio of the plain one to its time."""
    assert call(_irq) == call(_irq_py)
    calls = {"compiled": lambda: call(_irq), "plain": lambda: call(_irq_py)}
    benchmark.extra_info |= figures(paired(calls, 200))
    benchmark(calls["compiled"])


def test_write_masks(benchmark: Any, tree: Tree) -> None:
    benchmark.group = "IRQ masks"
    masks = list(plan(tree.irqs(0), CORES).items())
    compare(benchmark, lambda module: module.write_masks(masks, str(tree.proc)))


def test_read_masks(benchmark: Any, tree: Tree) -> None:
    benchmark.group = "IRQ masks"
    compare(benchmark, lambda module: module.read_masks(tree.irqs(0), str(tree.proc)))


def test_irqs(benchmark: Any, tree: Tree) -> None:
    benchmark.group = "IRQ masks"
    compare(benchmark, lambda module: module.irqs(tree.pci(0), str(tree.sys)))


def test_pin_a_vf(benchmark: Any, tree: Tree) -> None:
    """Pin a VF as an ADD does: list the IRQs, read their masks, write new ones."""
    benchmark.group = "IRQ masks"
    root, proc = str(tree.sys), str(tree.proc)

    def pin(module: ModuleType) -> object:
        irqs = module.irqs(tree.pci(0), root)
        module.read_masks(irqs, proc)
        return module.write_masks(list(plan(irqs, CORES).items()), proc)

    compare(benchmark, pin)
