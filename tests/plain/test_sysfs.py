"""The sysfs modules of both backends, on simulated trees."""

from __future__ import annotations

import contextlib
import errno
import importlib
import os
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.descriptors import open_files
from harness.sysfs_tree import Tree, build_tree
from sriov_fast.common.record import Vf

NAMES = ("sriov_fast._sysfs", "sriov_fast.kernel._sysfs_py")


@pytest.fixture
def sysfs(backend: SimpleNamespace) -> ModuleType:
    module: ModuleType = backend.sysfs
    return module


def expected(tree: Tree, index: int, **other: object) -> Vf:
    vf = Vf(index=index, pci=tree.pci(index), driver="igbvf", netdev=tree.netdev(index), numa=0)
    return vf.replace(**other)


@pytest.mark.parametrize("vfs", [0, 1, 256])
def test_scan(sysfs: ModuleType, tmp_path: Path, vfs: int) -> None:
    tree = build_tree(tmp_path, vfs=vfs)
    assert sysfs.scan("eth1", str(tree.sys)) == [expected(tree, index) for index in range(vfs)]


@pytest.mark.parametrize(
    ("text", "numa"), [("-1", -1), ("0\n", 0), ("255\n", 255), ("", -1), ("none\n", -1), (None, -1)]
)
def test_numa(sysfs: ModuleType, tmp_path: Path, text: str | None, numa: int) -> None:
    tree = build_tree(tmp_path, vfs=2)
    node = tree.device() / "numa_node"
    node.unlink() if text is None else node.write_text(text)
    assert [vf.numa for vf in sysfs.scan("eth1", str(tree.sys))] == [numa, numa]


def test_two_pfs_on_one_machine(sysfs: ModuleType, tmp_path: Path) -> None:
    first = build_tree(tmp_path, vfs=4)
    second = build_tree(tmp_path, pf="eth2", vfs=4, pf_pci="0000:81:00.0", numa=1)
    assert sysfs.scan("eth1", str(first.sys)) == [expected(first, index) for index in range(4)]
    assert sysfs.scan("eth2", str(first.sys)) == [expected(second, index, numa=1) for index in range(4)]
    assert sysfs.vf_index(second.pci(3), str(first.sys)) == 3


def test_drivers(sysfs: ModuleType, tmp_path: Path) -> None:
    tree = build_tree(tmp_path, vfs=12)
    for index in (0, 1, 5, 9, 11):
        tree.unbind(index)
    for index in (0, 9):
        tree.bind(index, "vfio-pci")
    found = sysfs.scan("eth1", str(tree.sys))
    wanted = {0: "vfio-pci", 9: "vfio-pci", 1: "", 5: "", 11: ""}
    assert [vf.driver for vf in found] == [wanted.get(index, "igbvf") for index in range(12)]
    bound = [vf.index for vf in found if vf.netdev == tree.netdev(vf.index)]
    assert bound == [index for index in range(12) if index not in wanted]
    assert {found[index].netdev for index in wanted} == {""}


def test_driver_directory_without_links(sysfs: ModuleType, tmp_path: Path) -> None:
    tree = build_tree(tmp_path, vfs=8)
    for link in (tree.sys / "bus/pci/drivers/igbvf").iterdir():
        link.unlink()
    assert sysfs.scan("eth1", str(tree.sys)) == [expected(tree, index) for index in range(8)]


@pytest.mark.parametrize("others", [0, 40, 400])
def test_many_other_netdevs(sysfs: ModuleType, tmp_path: Path, others: int) -> None:
    """VFs are found with many veth devices, and with a file among the links of ``class/net``."""
    tree = build_tree(tmp_path, vfs=16)
    (tree.sys / "class/net/bonding_masters").write_text("\n")
    for number in range(others):
        home = tree.sys / f"devices/virtual/net/veth{number}"
        home.mkdir(parents=True)
        (tree.sys / f"class/net/veth{number}").symlink_to(f"../../devices/virtual/net/veth{number}")
    assert sysfs.scan("eth1", str(tree.sys)) == [expected(tree, index) for index in range(16)]


def test_smallest_netdev(sysfs: ModuleType, tmp_path: Path) -> None:
    tree = build_tree(tmp_path, vfs=1)
    for name in ("zz", "a1", "a0", "a2"):
        tree.add_netdev(0, name)
    assert sysfs.scan("eth1", str(tree.sys))[0].netdev == "a0"


ODD_NAMES = ["a b", "é\u4e00", "net", "x'\"\\", "-", "...", "a" * 15, os.fsdecode(b"\xff\xfe")]


@pytest.mark.parametrize("vfs", [1, 64])
def test_odd_netdev_names(sysfs: ModuleType, tmp_path: Path, vfs: int) -> None:
    tree = build_tree(tmp_path, vfs=vfs)
    for name in ODD_NAMES:
        tree.remove_netdev(0)
        tree.add_netdev(0, name)
        assert sysfs.scan("eth1", str(tree.sys))[0].netdev == name


@pytest.mark.parametrize("pf", ["a b", "é", "eth1.5", "-", "...", "virtfn0", os.fsdecode(b"\xff")])
def test_odd_pf_names(sysfs: ModuleType, tmp_path: Path, pf: str) -> None:
    tree = build_tree(tmp_path, pf=pf, vfs=2)
    assert [vf.pci for vf in sysfs.scan(pf, str(tree.sys))] == [tree.pci(0), tree.pci(1)]
    assert sysfs.vf_index(tree.pci(1), str(tree.sys)) == 1


def test_index_order_is_numeric_and_gaps_are_kept(sysfs: ModuleType, tmp_path: Path) -> None:
    tree = build_tree(tmp_path, vfs=120)
    for index in (0, 7, 99):
        (tree.device() / f"virtfn{index}").unlink()
    found = [vf.index for vf in sysfs.scan("eth1", str(tree.sys))]
    assert found == [index for index in range(120) if index not in (0, 7, 99)]


def test_names_that_are_no_vf(sysfs: ModuleType, tmp_path: Path) -> None:
    tree = build_tree(tmp_path, vfs=2)
    for ending in ("", "01", "x", "-1", "1x", "9999999999", "٣"):
        (tree.device() / f"virtfn{ending}").symlink_to("nowhere")
    for name in ("xvirtfn3", "virt", "virtfm3"):
        (tree.device() / name).symlink_to("nowhere")
    assert [vf.index for vf in sysfs.scan("eth1", str(tree.sys))] == [0, 1]


@pytest.mark.parametrize("vfs", [3, 64])
def test_vanished(sysfs: ModuleType, tmp_path: Path, vfs: int) -> None:
    tree = build_tree(tmp_path, vfs=vfs)
    tree.vanish(0)
    tree.vanish(2)
    assert [vf.index for vf in sysfs.scan("eth1", str(tree.sys))] == [1, *range(3, vfs)]


def failure(call: object, *args: object) -> tuple[type, int | None, object, str | None]:
    with pytest.raises(OSError) as caught:  # noqa: PT011
        call(*args)  # type: ignore[operator]
    return type(caught.value), caught.value.errno, caught.value.filename, caught.value.strerror


def test_no_such_netdev(sysfs: ModuleType, tmp_path: Path) -> None:
    tree = build_tree(tmp_path)
    assert failure(sysfs.scan, "eth9", str(tree.sys)) == (
        FileNotFoundError,
        errno.ENOENT,
        f"{tree.sys}/class/net/eth9",
        "No such file or directory",
    )
    assert failure(sysfs.scan, "eth1", str(tmp_path / "none"))[1] == errno.ENOENT


@pytest.mark.parametrize("has", ["nothing", "a device without SR-IOV", "a device that is no PCI function"])
def test_no_pf(sysfs: ModuleType, tmp_path: Path, has: str) -> None:
    tree = build_tree(tmp_path, vfs=0)
    if has == "nothing":
        (tree.device() / "net/eth1/device").unlink()
    else:
        (tree.device() / "sriov_totalvfs").unlink()
    if has == "a device without SR-IOV":
        (tree.device() / "sriov_numvfs").unlink()
    kind, code, filename, why = failure(sysfs.scan, "eth1", str(tree.sys))
    assert (kind, code, why) == (OSError, errno.ENOTSUP, "no SR-IOV PF")
    assert filename == f"{tree.sys}/class/net/eth1/device"


def test_what_the_kernel_says_otherwise(sysfs: ModuleType, tmp_path: Path) -> None:
    tree = build_tree(tmp_path, vfs=2)
    link = tree.device() / "virtfn1"
    link.unlink()
    link.mkdir()
    where = f"{tree.sys}/class/net/eth1/device/virtfn1"
    assert failure(sysfs.scan, "eth1", str(tree.sys)) == (OSError, errno.EINVAL, where, "Invalid argument")


def test_loop_of_links(sysfs: ModuleType, tmp_path: Path) -> None:
    tree = build_tree(tmp_path, vfs=1)
    link = tree.sys / "class/net/eth1"
    link.unlink()
    link.symlink_to("eth1")
    assert failure(sysfs.scan, "eth1", str(tree.sys))[1] == errno.ELOOP


BAD_PARTS = ["", ".", "..", "a/b", "/", "../eth1", "eth1/", "a\0b", "\0"]


@pytest.mark.parametrize("name", BAD_PARTS)
def test_what_is_no_path_part(sysfs: ModuleType, tmp_path: Path, name: str) -> None:
    tree = build_tree(tmp_path, vfs=1)
    with pytest.raises(ValueError, match=r"PF .* cannot be part of a path"):
        sysfs.scan(name, str(tree.sys))
    with pytest.raises(ValueError, match=r"PCI address .* cannot be part of a path"):
        sysfs.vf_index(name, str(tree.sys))


def test_first_vf(sysfs: ModuleType, tmp_path: Path) -> None:
    tree = build_tree(tmp_path, vfs=12, numa=1)
    root = str(tree.sys)
    assert sysfs.first_vf("eth1", (), root=root) == expected(tree, 0, numa=1)
    assert sysfs.first_vf("eth1", {tree.pci(0), tree.pci(1), tree.pci(3)}, root=root).index == 2
    assert sysfs.first_vf("eth1", {tree.pci(3)}, 3, root) == expected(tree, 4, numa=1)
    assert sysfs.first_vf("eth1", (), 11, root) == expected(tree, 11, numa=1)
    assert sysfs.first_vf("eth1", (), 12, root) is None
    assert sysfs.first_vf("eth1", {tree.pci(index) for index in range(12)}, 0, root) is None


def test_first_vf_sees_what_scan_sees(sysfs: ModuleType, tmp_path: Path) -> None:
    tree = build_tree(tmp_path, vfs=5)
    root = str(tree.sys)
    tree.vanish(0)
    tree.bind(1, "vfio-pci")
    tree.unbind(2)
    tree.remove_netdev(3)
    found: list[Vf] = []
    while vf := sysfs.first_vf("eth1", (), found[-1].index + 1 if found else 0, root):
        found.append(vf)
    assert found == sysfs.scan("eth1", root)
    assert [vf.index for vf in found] == [1, 2, 3, 4]


def test_first_vf_of_no_pf(sysfs: ModuleType, tmp_path: Path) -> None:
    tree = build_tree(tmp_path, vfs=2)
    root = str(tree.sys)
    assert sysfs.first_vf("eth7", (), 0, root) is None
    assert sysfs.first_vf(tree.netdev(0), (), 0, root) is None
    with pytest.raises(ValueError, match="PF"):
        sysfs.first_vf("../eth1", (), 0, root)


def test_first_vf_does_not_hide_an_error(sysfs: ModuleType, tmp_path: Path) -> None:
    tree = build_tree(tmp_path, vfs=2)
    driver = tree.device() / "virtfn1" / "driver"
    driver.unlink()
    driver.write_text("no link")
    where = f"{tree.sys}/class/net/eth1/device/virtfn1/driver"
    skipped = {tree.pci(0)}
    found = failure(sysfs.first_vf, "eth1", skipped, 0, str(tree.sys))
    assert found == (OSError, errno.EINVAL, where, "Invalid argument")


def test_vf_index(sysfs: ModuleType, tmp_path: Path) -> None:
    tree = build_tree(tmp_path, vfs=70)
    for index in (0, 1, 9, 10, 69):
        assert sysfs.vf_index(tree.pci(index), str(tree.sys)) == index


def test_vf_index_errors(sysfs: ModuleType, tmp_path: Path) -> None:
    tree = build_tree(tmp_path, vfs=3)
    root = str(tree.sys)
    device = f"{root}/bus/pci/devices/"
    absent = (FileNotFoundError, errno.ENOENT, f"{device}0000:99:00.0", "No such file or directory")
    assert failure(sysfs.vf_index, "0000:99:00.0", root) == absent
    assert failure(sysfs.vf_index, tree.pf_pci, root)[1:] == (errno.ENODEV, device + tree.pf_pci, "not a VF")
    (tree.device() / "virtfn2").unlink()
    assert failure(sysfs.vf_index, tree.pci(2), root)[1:3] == (errno.ENODEV, device + tree.pci(2))


def test_no_descriptor_is_left(sysfs: ModuleType, tmp_path: Path) -> None:
    tree = build_tree(tmp_path, vfs=8)
    root = str(tree.sys)
    bad = build_tree(tmp_path / "bad", vfs=8)
    (bad.device() / "virtfn5").unlink()
    (bad.device() / "virtfn5").mkdir()
    tree.unbind(6)
    tree.vanish(7)
    before = open_files()
    for _ in range(200):
        sysfs.scan("eth1", root)
        sysfs.vf_index(tree.pci(1), root)
        for call, name, where in (
            (sysfs.scan, "eth9", root),
            (sysfs.scan, tree.netdev(0), root),
            (sysfs.scan, "eth1", str(bad.sys)),
            (sysfs.vf_index, tree.pf_pci, root),
            (sysfs.vf_index, bad.pci(7), str(bad.sys)),
            (sysfs.vf_index, "none", root),
        ):
            with pytest.raises(OSError, match=r"."):
                call(name, where)
    assert open_files() == before


@pytest.mark.parametrize("free", [0, 1])
def test_out_of_descriptors(sysfs: ModuleType, tmp_path: Path, free: int) -> None:
    """A full table of descriptors is an error, not a missing interface."""
    import resource

    tree = build_tree(tmp_path, vfs=2)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    held = [os.open("/dev/null", os.O_RDONLY)]
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (held[0] + 8, limits[1]))
        with contextlib.suppress(OSError):
            while True:
                held.append(os.open("/dev/null", os.O_RDONLY))
        for _ in range(free):
            os.close(held.pop())
        codes: list[int | None] = []
        if free and sysfs.__name__ != NAMES[0]:  # the plain backend needs no second descriptor
            assert len(sysfs.scan("eth1", str(tree.sys))) == 2
        else:
            codes.append(failure(sysfs.scan, "eth1", str(tree.sys))[1])
        if free:
            assert sysfs.vf_index(tree.pci(0), str(tree.sys)) == 0
        else:
            codes.append(failure(sysfs.vf_index, tree.pci(0), str(tree.sys))[1])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        for fd in held:
            os.close(fd)
    assert set(codes) <= {errno.EMFILE}


def test_in_threads_while_vfs_come_and_go(sysfs: ModuleType, tmp_path: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    tree = build_tree(tmp_path, vfs=32)
    away = tmp_path / "away"

    def unplug() -> None:
        for _ in range(150):
            for index in (3, 17):
                tree.device(index).rename(away)
                away.rename(tree.device(index))

    def look() -> set[int]:
        seen = set()
        for _ in range(60):
            found = sysfs.scan("eth1", str(tree.sys))
            assert all(vf.pci == tree.pci(vf.index) for vf in found)
            seen |= {vf.index for vf in found}
            assert {vf.index for vf in found} >= set(range(32)) - {3, 17}
        return seen

    with ThreadPoolExecutor(4) as pool:
        looking = [pool.submit(look) for _ in range(3)]
        pool.submit(unplug).result()
        assert all(done.result() >= set(range(32)) - {3, 17} for done in looking)


@given(name=st.text(max_size=20))
def test_any_name_is_refused_in_the_same_way(tmp_path_factory: pytest.TempPathFactory, name: str) -> None:
    root = str(tmp_path_factory.getbasetemp())
    said = []
    for module in NAMES:
        for call in ("scan", "vf_index"):
            with pytest.raises((OSError, ValueError)) as caught:
                getattr(importlib.import_module(module), call)(name, root)
            said.append((type(caught.value), caught.value.args, getattr(caught.value, "filename", None)))
    assert said[:2] == said[2:]


@given(data=st.data())
def test_both_see_the_same(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    vfs = data.draw(st.integers(0, 12))
    tree = build_tree(tmp_path_factory.mktemp("tree"), vfs=vfs, numa=data.draw(st.integers(-1, 3)))
    for index in range(vfs):
        match data.draw(st.sampled_from(["as built", "in a pod", "unbound", "vfio", "gone"])):
            case "in a pod":
                tree.remove_netdev(index)
            case "unbound":
                tree.unbind(index)
            case "vfio":
                tree.bind(index, "vfio-pci")
            case "gone":
                tree.vanish(index)
    compiled, plain = (importlib.import_module(module) for module in NAMES)
    assert compiled.scan("eth1", str(tree.sys)) == plain.scan("eth1", str(tree.sys))
