"""The interrupt modules of both backends on simulated files, and on this machine's /proc/irq."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from harness.descriptors import open_files
from harness.sysfs_tree import Tree, build_tree
from sriov_fast.kernel import _irq_py


@pytest.fixture
def irq(backend: SimpleNamespace) -> ModuleType:
    module: ModuleType = backend.irq
    return module


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return build_tree(tmp_path, vfs=4, irqs_per_vf=3)


class TestIrqs:
    def test_numeric_order(self, irq: ModuleType, tree: Tree) -> None:
        for number in (9, 1000, 99, 0):
            (tree.device(1) / "msi_irqs" / str(number)).write_text("msix\n")
        assert irq.irqs(tree.pci(1), str(tree.sys)) == [0, 9, 99, *tree.irqs(1), 1000]

    def test_many(self, irq: ModuleType, tmp_path: Path) -> None:
        tree = build_tree(tmp_path, vfs=1, irqs_per_vf=700)
        assert irq.irqs(tree.pci(0), str(tree.sys)) == list(range(100, 800))

    def test_other_names(self, irq: ModuleType, tree: Tree) -> None:
        for name in ("x", "1x", "-1", "01", " 1", "9999999999", "٣"):
            (tree.device(0) / "msi_irqs" / name).write_text("")
        assert irq.irqs(tree.pci(0), str(tree.sys)) == tree.irqs(0)

    def test_none_asked_for(self, irq: ModuleType, tree: Tree) -> None:
        tree.unbind(2)
        (tree.device(2) / "irq").write_text("17\n")
        assert irq.irqs(tree.pci(2), str(tree.sys)) == []

    def test_no_such_device(self, irq: ModuleType, tree: Tree) -> None:
        with pytest.raises(FileNotFoundError) as caught:
            irq.irqs("0000:99:00.0", str(tree.sys))
        assert caught.value.errno == errno.ENOENT
        assert caught.value.filename == f"{tree.sys}/bus/pci/devices/0000:99:00.0"

    @pytest.mark.parametrize("pci", ["", ".", "..", "a/b", "../x", "a\0b"])
    def test_what_is_no_path_part(self, irq: ModuleType, tree: Tree, pci: str) -> None:
        with pytest.raises(ValueError, match=r"PCI address .* cannot be part of a path"):
            irq.irqs(pci, str(tree.sys))

    def test_what_the_kernel_says_otherwise(self, irq: ModuleType, tree: Tree) -> None:
        loop = tree.device(0) / "msi_irqs"
        loop.rename(tree.root / "away")
        loop.symlink_to("msi_irqs")
        with pytest.raises(OSError, match=r"(?i)symbolic link") as caught:
            irq.irqs(tree.pci(0), str(tree.sys))
        assert caught.value.filename == f"{tree.sys}/bus/pci/devices/{tree.pci(0)}/msi_irqs"


class TestMasks:
    def test_a_mask_whose_close_fails_is_written(self, tree: Tree, late_error: None) -> None:
        assert _irq_py.write_masks([(100, "2")], str(tree.proc)) == [0]
        assert tree.mask(100).read_text() == "2\n"

    def test_read(self, irq: ModuleType, tree: Tree) -> None:
        tree.mask(100).write_text("ffffffff,00000001\n")
        tree.mask(101).write_text("3")
        tree.mask(102).write_text("")
        found = irq.read_masks([101, 100, 9999, 102, 101], str(tree.proc))
        assert found == ["3", "ffffffff,00000001", "", "", "3"]

    def test_read_widest(self, irq: ModuleType, tree: Tree) -> None:
        widest = ",".join(["ffffffff"] * 256)
        tree.mask(100).write_text(widest + "\n")
        assert irq.read_masks([100], str(tree.proc)) == [widest]
        assert irq.write_masks([(101, widest)], str(tree.proc)) == [0]
        assert tree.mask(101).read_text() == widest + "\n"

    def test_read_failure(self, irq: ModuleType, tree: Tree) -> None:
        tree.mask(101).unlink()
        tree.mask(101).symlink_to("smp_affinity")
        with pytest.raises(OSError, match=r"(?i)symbolic link") as caught:
            irq.read_masks([100, 101], str(tree.proc))
        assert caught.value.errno == errno.ELOOP
        assert caught.value.filename == str(tree.mask(101))

    def test_write(self, irq: ModuleType, tree: Tree) -> None:
        tree.mask(101).write_text("ffffffff,ffffffff,ffffffff\n")
        assert irq.write_masks([(100, "00000002"), (101, "4"), (102, "8\n")], str(tree.proc)) == [0, 0, 0]
        assert irq.read_masks([100, 101, 102], str(tree.proc)) == ["00000002", "4", "8"]

    def test_write_goes_on_after_errors(self, irq: ModuleType, tree: Tree) -> None:
        tree.mask(101).unlink()
        tree.mask(101).mkdir()
        tree.mask(103).unlink()
        masks = [(9999, "1"), (100, "2"), (101, "2"), (102, ""), (103, "1"), (104, "2")]
        codes = [errno.ENOENT, 0, errno.EISDIR, errno.EINVAL, errno.ENOENT, 0]
        assert irq.write_masks(masks, str(tree.proc)) == codes
        assert irq.read_masks([100, 104, 105], str(tree.proc)) == ["2", "2", "ff"]
        assert not tree.mask(103).exists()

    def test_full(self, irq: ModuleType, tree: Tree) -> None:
        tree.mask(100).unlink()
        tree.mask(100).symlink_to("/dev/full")
        assert irq.write_masks([(100, "1"), (101, "1")], str(tree.proc)) == [errno.ENOSPC, 0]

    def test_what_is_no_text_for_the_kernel(self, irq: ModuleType, tree: Tree) -> None:
        assert irq.write_masks([(100, "é\udcff")], str(tree.proc)) == [0]
        assert tree.mask(100).read_text() == "??\n"

    @pytest.mark.parametrize("number", [-1, 2**31, 2**64])
    def test_no_irq(self, irq: ModuleType, tree: Tree, number: int) -> None:
        with pytest.raises(ValueError, match=f"IRQ {number}: not in 0 to 2147483647"):
            irq.read_masks([100, number], str(tree.proc))
        with pytest.raises(ValueError, match=f"IRQ {number}: not in"):
            irq.write_masks([(100, "1"), (number, "1")], str(tree.proc))
        assert irq.read_masks([100], str(tree.proc)) == ["ff"]

    def test_no_descriptor_is_left(self, irq: ModuleType, tree: Tree) -> None:
        tree.mask(101).unlink()
        tree.mask(101).mkdir()
        before = open_files()
        for _ in range(200):
            irq.write_masks([(100, "1"), (101, "1"), (102, ""), (9999, "1")], str(tree.proc))
            with pytest.raises(IsADirectoryError):
                irq.read_masks([100, 101], str(tree.proc))
            irq.irqs(tree.pci(0), str(tree.sys))
        assert open_files() == before


def real_irqs() -> list[int]:
    try:
        return sorted(int(name) for name in os.listdir("/proc/irq") if name.isdigit())
    except OSError:
        return []


@pytest.mark.skipif(not real_irqs(), reason="no /proc/irq here")
class TestThisMachine:
    def test_read(self, irq: ModuleType) -> None:
        numbers = real_irqs()
        masks = irq.read_masks([*numbers, 2**31 - 1])
        assert masks.pop() == ""
        assert masks == [Path(f"/proc/irq/{n}/smp_affinity").read_text().strip() for n in numbers]

    @pytest.mark.skipif(os.geteuid() != 0, reason="writing /proc/irq needs root")
    @pytest.mark.parametrize("mask", ["zz", "00000000", "", "é"])
    def test_the_kernel_refuses(self, irq: ModuleType, mask: str) -> None:
        numbers = real_irqs()
        before = irq.read_masks(numbers)
        codes = irq.write_masks([(number, mask) for number in numbers])
        assert set(codes) <= {errno.EINVAL, errno.EIO, errno.EPERM}
        assert irq.read_masks(numbers) == before
