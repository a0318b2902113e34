"""VF scan of a sysfs tree on tmpfs: compiled, plain, and the system calls in C as the baseline."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.sysfs_tree import Tree, build_tree
from paired import figures, paired
from sriov_fast import _sysfs
from sriov_fast.kernel import _sysfs_py

HERE = Path(__file__).resolve().parent
SIZES = (8, 64, 256)
OTHERS = 200  # netdevs of ordinary pods


class CVf(ctypes.Structure):
    """``struct vf`` in scan.c."""

    _fields_ = (
        ("index", ctypes.c_int),
        ("numa", ctypes.c_int),
        ("pci", ctypes.c_char * 32),
        ("driver", ctypes.c_char * 64),
        ("netdev", ctypes.c_char * 64),
    )


VFS = (CVf * 512)()  # results of scan.c


@pytest.fixture(scope="session")
def shm() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="sriov-fast-bench-") as name:
        yield Path(name)


@pytest.fixture(scope="session")
def c_function(shm: Path) -> Callable[..., int]:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler")
    library = shm / "scan.so"
    subprocess.run([compiler, "-O2", "-shared", "-fPIC", "-o", library, HERE / "scan.c"], check=True)
    function: Callable[..., int] = ctypes.CDLL(str(library)).scan
    return function


@pytest.fixture(scope="session", params=SIZES)
def tree(request: pytest.FixtureRequest, shm: Path) -> Tree:
    return build_tree(shm / f"tree{request.param}", vfs=request.param)


@pytest.fixture(scope="session")
def crowded(shm: Path) -> Tree:
    """Eight VFs on a node with many other netdevs."""
    tree = build_tree(shm / "crowded", vfs=8)
    for number in range(OTHERS):
        (tree.sys / f"devices/virtual/net/veth{number}").mkdir(parents=True)
        (tree.sys / f"class/net/veth{number}").symlink_to(f"../../devices/virtual/net/veth{number}")
    return tree


def test_all_see_the_same(tree: Tree, c_function: Callable[..., int]) -> None:
    """All implementations find the same VFs."""
    found = _sysfs.scan(tree.pf, str(tree.sys))
    assert found == _sysfs_py.scan(tree.pf, str(tree.sys))
    wanted = [(vf.index, vf.pci, vf.driver, vf.netdev, vf.numa) for vf in found]
    count = c_function(os.fsencode(tree.sys), tree.pf.encode(), VFS)
    raw = [(vf.index, vf.pci.decode(), vf.driver.decode(), vf.netdev.decode(), vf.numa) for vf in VFS[:count]]
    assert raw == wanted
    assert count == tree.vfs


def test_scan(benchmark: Any, tree: Tree, c_function: Callable[..., int]) -> None:
    root = str(tree.sys)
    c_arguments = (os.fsencode(tree.sys), tree.pf.encode(), VFS)
    benchmark.group = "VF scan"
    calls = {
        "compiled": lambda: _sysfs.scan(tree.pf, root),
        "plain": lambda: _sysfs_py.scan(tree.pf, root),
        "c": lambda: c_function(*c_arguments),
    }
    benchmark.extra_info |= figures(paired(calls))
    benchmark(calls["compiled"])


def test_scan_on_a_crowded_node(benchmark: Any, crowded: Tree) -> None:
    root = str(crowded.sys)
    benchmark.group = "VF scan"
    calls = {
        "compiled": lambda: _sysfs.scan(crowded.pf, root),
        "plain": lambda: _sysfs_py.scan(crowded.pf, root),
    }
    benchmark.extra_info |= figures(paired(calls))
    benchmark(calls["compiled"])


def test_vf_index(benchmark: Any, tree: Tree) -> None:
    root, pci = str(tree.sys), tree.pci(tree.vfs - 1)
    benchmark.group = "VF to PF"
    calls = {"compiled": lambda: _sysfs.vf_index(pci, root), "plain": lambda: _sysfs_py.vf_index(pci, root)}
    benchmark.extra_info |= figures(paired(calls))
    benchmark(calls["compiled"])
