"""The choice of the backend, which a process makes once: each case runs in a new process."""

from __future__ import annotations

import ast
import inspect
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import sriov_fast
from sriov_fast.kernel import backend as selected

PACKAGE = Path(sriov_fast.__file__).parent
PRINT = "from sriov_fast.kernel import backend; print(backend.name, backend.nl.__name__)"


def choose(parent: Path, wanted: str | None = None) -> subprocess.CompletedProcess[str]:
    """Import the package from ``parent`` in a new process with SRIOV_FAST_BACKEND set to ``wanted``."""
    env = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "SRIOV_FAST"))}
    if wanted is not None:
        env["SRIOV_FAST_BACKEND"] = wanted
    code = f"import sys; sys.path.insert(0, {str(parent)!r}); {PRINT}"
    return subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The parent directory of a copy of the package without the compiled modules."""
    ignored = shutil.ignore_patterns("*.so", "*.c", "__pycache__", "lab", "cli")
    shutil.copytree(PACKAGE, tmp_path / "sriov_fast", ignore=ignored)
    return tmp_path


@pytest.mark.skipif(
    os.environ.get("SRIOV_FAST_BACKEND") == "python", reason="the plain backend was asked for"
)
def test_the_compiled_backend_is_what_is_tested() -> None:
    assert selected.name == "cython"
    assert all(str(getattr(selected, part).__file__).endswith(".so") for part in selected.EXPORTS)


def test_both_backends_export_the_same(backend: SimpleNamespace) -> None:
    for part, names in selected.EXPORTS.items():
        module, other = getattr(backend, part), getattr(selected, part)
        assert [name for name in names if not hasattr(module, name)] == []
        for name in names if part != "nl" else ():  # its callables are types
            found, wanted = (inspect.signature(getattr(each, name)) for each in (module, other))
            assert list(found.parameters) == list(wanted.parameters)


@pytest.mark.parametrize("part", selected.EXPORTS)
def test_every_function_of_the_interface_is_required(part: str) -> None:
    """EXPORTS lists the whole interface, so that loading detects an older module that lacks a function."""
    tree = ast.parse((PACKAGE / f"_{part}.pyi").read_text())
    declared = {item.name for item in tree.body if isinstance(item, ast.FunctionDef | ast.ClassDef)}
    assert declared - {"Replies"} == set(selected.EXPORTS[part])


@pytest.mark.skipif(
    os.environ.get("SRIOV_FAST_BACKEND") == "python", reason="the plain backend was asked for"
)
def test_compiled_by_itself() -> None:
    done = choose(PACKAGE.parent)
    assert (done.stdout, done.stderr) == ("cython sriov_fast._nl\n", "")


@pytest.mark.parametrize("wanted", ["cython", "python"])
def test_by_name(wanted: str, backend: SimpleNamespace) -> None:
    if backend.name == wanted:
        done = choose(PACKAGE.parent, wanted)
        assert done.stdout.split()[0] == wanted


def test_plain_where_nothing_was_built_and_without_a_word(copy: Path) -> None:
    done = choose(copy)
    assert (done.stdout, done.stderr) == ("python sriov_fast.kernel._nl_py\n", "")


def test_asked_for_and_not_built(copy: Path) -> None:
    done = choose(copy, "cython")
    assert done.returncode == 1
    assert "SRIOV_FAST_BACKEND=cython: No module named" in done.stderr


def test_unknown_name(copy: Path) -> None:
    done = choose(copy, "rust")
    assert "SRIOV_FAST_BACKEND='rust': not one of cython, python" in done.stderr


def test_broken_is_said_and_the_plain_one_serves(copy: Path) -> None:
    (copy / "sriov_fast/_nl.abi3.so").write_bytes(b"not an ELF file")
    done = choose(copy)
    assert done.stdout == "python sriov_fast.kernel._nl_py\n"
    assert "compiled backend is broken" in done.stderr


def test_broken_and_asked_for(copy: Path) -> None:
    (copy / "sriov_fast/_nl.abi3.so").write_bytes(b"not an ELF file")
    done = choose(copy, "cython")
    assert done.returncode == 1
    assert "SRIOV_FAST_BACKEND=cython" in done.stderr


def test_incomplete_is_broken(copy: Path) -> None:
    (copy / "sriov_fast/_nl.py").write_text("")
    done = choose(copy)
    assert done.stdout == "python sriov_fast.kernel._nl_py\n"
    assert "lacks Batch, Socket" in done.stderr


def test_half_built_is_said(copy: Path) -> None:
    """One compiled module of three is reported as a broken installation."""
    (copy / "sriov_fast/_nl.py").write_text("Batch = Socket = netns_write = raw_socket = None")
    done = choose(copy)
    assert done.stdout == "python sriov_fast.kernel._nl_py\n"
    assert "broken" in done.stderr
