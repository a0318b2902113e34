"""Both interrupt modules: lists and masks, and /proc/irq, a tree's and this machine's."""

from __future__ import annotations

import errno
import importlib
import inspect
import os
import re
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.sysfs_tree import Tree, build_tree

NAMES = ("sriov_fast._irq", "sriov_fast.kernel._irq_py")
FUNCTIONS = ("cpu_mask", "irqs", "online", "parse_cpus", "parse_mask", "read_masks", "write_masks")
MODULES = [importlib.import_module(name) for name in NAMES]


@pytest.fixture(params=NAMES)
def irq(request: pytest.FixtureRequest) -> ModuleType:
    """Either module; one that was not built is a failure, not a skip."""
    return importlib.import_module(request.param)


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return build_tree(tmp_path, vfs=4, irqs_per_vf=3)


def open_fds() -> list[str]:
    return sorted(os.listdir("/proc/self/fd"))


def test_compiled_is_compiled() -> None:
    assert MODULES[0].__file__ is not None
    assert MODULES[0].__file__.endswith(".so")


@pytest.mark.parametrize("name", FUNCTIONS)
def test_same_surface(name: str) -> None:
    compiled, plain = (getattr(module, name) for module in MODULES)
    assert list(inspect.signature(compiled).parameters) == list(inspect.signature(plain).parameters)
    assert compiled.__doc__ == plain.__doc__


class TestIrqs:
    def test_numeric_order(self, irq: ModuleType, tree: Tree) -> None:
        for number in (9, 1000, 99, 0):
            (tree.device(1) / "msi_irqs" / str(number)).write_text("msix\n")
        assert irq.irqs(tree.pci(1), str(tree.sys)) == [0, 9, 99, *tree.irqs(1), 1000]

    def test_as_built(self, irq: ModuleType, tree: Tree) -> None:
        for index in range(4):
            assert irq.irqs(tree.pci(index), str(tree.sys)) == tree.irqs(index)

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
        with pytest.raises(OSError, match="symbolic links") as caught:
            irq.irqs(tree.pci(0), str(tree.sys))
        assert caught.value.filename == f"{tree.sys}/bus/pci/devices/{tree.pci(0)}/msi_irqs"


class TestParseCpus:
    @pytest.mark.parametrize(
        ("text", "cpus"),
        [
            ("0", [0]),
            ("1,2,3,4", [1, 2, 3, 4]),
            ("1-4,8", [1, 2, 3, 4, 8]),
            ("8,1-2,8", [8, 1, 2, 8]),
            ("3-3", [3]),
            (" 1 ,\t2-3 \n", [1, 2, 3]),
            ("007", [7]),
            ("8191", [8191]),
            ("0-8191", list(range(8192))),
        ],
    )
    def test_good(self, irq: ModuleType, text: str, cpus: list[int]) -> None:
        assert irq.parse_cpus(text) == cpus

    @pytest.mark.parametrize(
        ("text", "bad"),
        [
            ("", "''"),
            ("  ", "''"),
            (",", "''"),
            ("1,", "''"),
            ("1,,2", "''"),
            ("1,x", "'x'"),
            ("1,2-", "'2-'"),
            ("-1", "'-1'"),
            ("1--2", "'1--2'"),
            ("1-2-3", "'1-2-3'"),
            ("1 - 2", "'1 - 2'"),
            ("1,4-2", "'4-2'"),
            ("8192", "'8192'"),
            ("0-8192", "'0-8192'"),
            ("18446744073709551616", "'18446744073709551616'"),
            ("+1", r"'\+1'"),
            ("1_0", "'1_0'"),
            ("0x1", "'0x1'"),
            ("1.0", r"'1\.0'"),
            ("٣", "'٣'"),
            ("²", "'²'"),
            ("1\0", r"'1\\x00'"),
            ("0-31:1/2", "'0-31:1/2'"),
        ],
    )
    def test_bad(self, irq: ModuleType, text: str, bad: str) -> None:
        with pytest.raises(ValueError, match=f"CPU list .*{bad}"):
            irq.parse_cpus(text)

    def test_not_without_end(self, irq: ModuleType) -> None:
        with pytest.raises(ValueError, match="more than 8192 CPUs from '0' on"):
            irq.parse_cpus("0-8191,0")
        with pytest.raises(ValueError, match="more than 8192"):
            irq.parse_cpus(",".join(["0-8191"] * 100_000))


class TestMask:
    @pytest.mark.parametrize(
        ("cpus", "mask"),
        [
            ([], "00000000"),
            ([0], "00000001"),
            ([1], "00000002"),
            ([31], "80000000"),
            ([32], "00000001,00000000"),
            ([0, 33, 65], "00000002,00000002,00000001"),
            ([3, 3, 3], "00000008"),
            (range(64), "ffffffff,ffffffff"),
            ([127], "80000000,00000000,00000000,00000000"),
            ([True], "00000002"),
        ],
    )
    def test_known(self, irq: ModuleType, cpus: list[int], mask: str) -> None:
        assert irq.cpu_mask(cpus) == mask
        assert irq.cpu_mask(iter(cpus)) == mask
        assert irq.parse_mask(mask) == sorted({int(cpu) for cpu in cpus})

    def test_widest(self, irq: ModuleType) -> None:
        mask = irq.cpu_mask([8191])
        assert mask == ",".join(["80000000"] + ["00000000"] * 255)
        assert irq.parse_mask(mask) == [8191]
        assert irq.cpu_mask(range(8192)) == ",".join(["ffffffff"] * 256)

    @pytest.mark.parametrize("cpu", [-1, 8192, 2**31, 2**63, 2**64 + 1, -(2**70)])
    def test_no_cpu(self, irq: ModuleType, cpu: int) -> None:
        with pytest.raises(ValueError, match=f"CPU {cpu}: not in 0 to 8191"):
            irq.cpu_mask([0, cpu])

    @pytest.mark.parametrize("cpus", [None, 1, ["1"], [None], [1.5], [1.0]])
    def test_wrong_types(self, irq: ModuleType, cpus: object) -> None:
        with pytest.raises(TypeError):
            irq.cpu_mask(cpus)

    @pytest.mark.parametrize(
        ("text", "cpus"),
        [
            ("3\n", [0, 1]),
            ("f", [0, 1, 2, 3]),
            ("FF,0000000A", [1, 3, *range(32, 40)]),
            (" 1,2 ", [1, 32]),
            ("0", []),
        ],
    )
    def test_as_the_kernel_writes(self, irq: ModuleType, text: str, cpus: list[int]) -> None:
        assert irq.parse_mask(text) == cpus

    @pytest.mark.parametrize(
        "text",
        ["", "\n", ",", "1,", ",1", "g", "0x1", "-1", "+1", "1 1", "1, 1", "123456789", "1_1", "٣", "1\0"],
    )
    def test_no_mask(self, irq: ModuleType, text: str) -> None:
        with pytest.raises(ValueError, match=r"CPU mask .* is not one to eight hexadecimal digits"):
            irq.parse_mask(text)

    def test_too_wide(self, irq: ModuleType) -> None:
        assert irq.parse_mask(",".join(["0"] * 256)) == []
        with pytest.raises(ValueError, match="CPU mask of 257 groups: more than 256"):
            irq.parse_mask(",".join(["0"] * 257))


def reference_cpus(text: str) -> list[int] | None:
    """Return what ``text`` says, in the most obvious way; None where it is no list."""
    cpus: list[int] = []
    for part in text.split(","):
        found = re.fullmatch(r"[ \t\r\n]*([0-9]+)(?:-([0-9]+))?[ \t\r\n]*", part)
        if not found:
            return None
        first, last = int(found[1]), int(found[2] or found[1])
        if last < first or last > 8191:
            return None
        cpus += range(first, last + 1)
    return cpus if len(cpus) <= 8192 else None


def outcome(call: object, *args: object) -> object:
    """Return what a call returns, or the text of its ValueError; nothing else may be raised."""
    try:
        return call(*args)  # type: ignore[operator]
    except ValueError as error:
        return str(error)


class TestProperties:
    @given(st.lists(st.integers(0, 8191), max_size=80))
    def test_round_trip(self, cpus: list[int]) -> None:
        masks = [module.cpu_mask(cpus) for module in MODULES]
        assert masks[0] == masks[1]
        assert re.fullmatch("[0-9a-f]{8}(,[0-9a-f]{8})*", masks[0])
        assert int(masks[0].replace(",", ""), 16) == sum(1 << cpu for cpu in set(cpus))
        assert [module.parse_mask(masks[0]) for module in MODULES] == [sorted(set(cpus))] * 2

    @given(st.text("0123456789-, \tx", max_size=24) | st.text(max_size=12))
    def test_lists(self, text: str) -> None:
        wanted = reference_cpus(text)
        said = [outcome(module.parse_cpus, text) for module in MODULES]
        assert said[0] == said[1]
        assert isinstance(said[0], str) if wanted is None else said[0] == wanted

    @given(st.lists(st.tuples(st.integers(0, 400), st.integers(0, 40)), min_size=1, max_size=8))
    def test_ranges(self, ranges: list[tuple[int, int]]) -> None:
        text = ",".join(f"{first}-{first + more}" if more else f"{first}" for first, more in ranges)
        wanted = [cpu for first, more in ranges for cpu in range(first, first + more + 1)]
        assert [module.parse_cpus(text) for module in MODULES] == [wanted] * 2

    @given(st.text("0123456789abcdefABCDEF,\n g", max_size=40) | st.text(max_size=12))
    def test_masks(self, text: str) -> None:
        said = [outcome(module.parse_mask, text) for module in MODULES]
        assert said[0] == said[1]


class TestOnline:
    @pytest.mark.parametrize(
        ("text", "cpus"),
        [("0-7\n", [*range(8)]), ("0", [0]), ("0,2-3\n", [0, 2, 3]), ("0-127\n", [*range(128)])],
    )
    def test_read(self, irq: ModuleType, tree: Tree, text: str, cpus: list[int]) -> None:
        (tree.sys / "devices/system/cpu/online").write_text(text)
        assert irq.online(str(tree.sys)) == cpus

    def test_this_machine(self, irq: ModuleType) -> None:
        assert irq.online() == reference_cpus(Path("/sys/devices/system/cpu/online").read_text())
        assert set(os.sched_getaffinity(0)) <= set(irq.online())

    def test_longer_than_a_page(self, irq: ModuleType, tree: Tree) -> None:
        text = ",".join(str(cpu) for cpu in range(0, 1500, 2))[:4000].rpartition(",")[0]
        (tree.sys / "devices/system/cpu/online").write_text(text + "\n")
        assert irq.online(str(tree.sys)) == reference_cpus(text)

    def test_errors(self, irq: ModuleType, tree: Tree) -> None:
        file = tree.sys / "devices/system/cpu/online"
        file.write_bytes(b"\xff\n")
        with pytest.raises(ValueError, match="CPU list"):
            irq.online(str(tree.sys))
        file.unlink()
        with pytest.raises(FileNotFoundError) as caught:
            irq.online(str(tree.sys))
        assert caught.value.filename == str(file)


class TestMasks:
    def test_read(self, irq: ModuleType, tree: Tree) -> None:
        tree.mask(100).write_text("ffffffff,00000001\n")
        tree.mask(101).write_text("3")
        tree.mask(102).write_text("")
        found = irq.read_masks([101, 100, 9999, 102, 101], str(tree.proc))
        assert found == ["3", "ffffffff,00000001", "", "", "3"]

    def test_read_none(self, irq: ModuleType, tree: Tree) -> None:
        assert irq.read_masks([], str(tree.proc)) == []
        assert irq.write_masks([], str(tree.proc)) == []

    def test_no_proc(self, irq: ModuleType, tree: Tree) -> None:
        assert irq.read_masks([1], str(tree.root / "none")) == [""]
        assert irq.write_masks([(1, "1")], str(tree.root / "none")) == [errno.ENOENT]

    def test_read_widest(self, irq: ModuleType, tree: Tree) -> None:
        widest = ",".join(["ffffffff"] * 256)
        tree.mask(100).write_text(widest + "\n")
        assert irq.read_masks([100], str(tree.proc)) == [widest]
        assert irq.write_masks([(101, widest)], str(tree.proc)) == [0]
        assert tree.mask(101).read_text() == widest + "\n"

    def test_read_failure(self, irq: ModuleType, tree: Tree) -> None:
        tree.mask(101).unlink()
        tree.mask(101).symlink_to("smp_affinity")
        with pytest.raises(OSError, match="symbolic links") as caught:
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

    @pytest.mark.parametrize("masks", [None, [1], [("1", "1")], [(None, "1")], [(100, 1)], [(100, b"1")]])
    def test_wrong_types(self, irq: ModuleType, tree: Tree, masks: object) -> None:
        with pytest.raises((TypeError, AttributeError)):
            irq.write_masks(masks, str(tree.proc))

    def test_no_descriptor_is_left(self, irq: ModuleType, tree: Tree) -> None:
        tree.mask(101).unlink()
        tree.mask(101).mkdir()
        before = open_fds()
        for _ in range(200):
            irq.write_masks([(100, "1"), (101, "1"), (102, ""), (9999, "1")], str(tree.proc))
            with pytest.raises(IsADirectoryError):
                irq.read_masks([100, 101], str(tree.proc))
            irq.irqs(tree.pci(0), str(tree.sys))
            irq.online(str(tree.sys))
        assert open_fds() == before

    def test_in_threads(self, irq: ModuleType, tree: Tree) -> None:
        from concurrent.futures import ThreadPoolExecutor

        def work(index: int) -> None:
            for turn in range(200):
                mask = irq.cpu_mask([turn % 8])
                assert irq.write_masks([(n, mask) for n in tree.irqs(index)], str(tree.proc)) == [0, 0, 0]
                assert irq.read_masks(tree.irqs(index), str(tree.proc)) == [mask] * 3

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(work, range(4)))


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
        assert all(irq.parse_mask(mask) for mask in masks)

    @pytest.mark.skipif(os.geteuid() != 0, reason="writing /proc/irq needs root")
    def test_write_back_what_is_there(self, irq: ModuleType) -> None:
        numbers = real_irqs()
        before = irq.read_masks(numbers)
        codes = irq.write_masks([*zip(numbers, before, strict=True), (2**31 - 1, "1")])
        assert codes.pop() == errno.ENOENT
        assert set(codes) <= {0, errno.EIO, errno.EPERM}
        assert irq.read_masks(numbers) == before

    @pytest.mark.skipif(os.geteuid() != 0, reason="writing /proc/irq needs root")
    @pytest.mark.parametrize("mask", ["zz", "00000000", "", "é"])
    def test_the_kernel_refuses(self, irq: ModuleType, mask: str) -> None:
        numbers = real_irqs()
        before = irq.read_masks(numbers)
        codes = irq.write_masks([(number, mask) for number in numbers])
        assert set(codes) <= {errno.EINVAL, errno.EIO, errno.EPERM}
        assert irq.read_masks(numbers) == before

    @pytest.mark.skipif(os.geteuid() != 0, reason="writing /proc/irq needs root")
    def test_one_core_and_back(self, irq: ModuleType) -> None:
        for number in real_irqs():
            (before,) = irq.read_masks([number])
            mask = irq.cpu_mask(irq.parse_mask(before)[:1])
            if irq.write_masks([(number, mask)]) == [0]:
                try:
                    assert irq.parse_mask(irq.read_masks([number])[0]) == irq.parse_mask(mask)
                finally:
                    assert irq.write_masks([(number, before)]) == [0]
                assert irq.read_masks([number]) == [before]
                return
        pytest.skip("no IRQ here whose affinity can be set")
