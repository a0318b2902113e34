"""The bundle: the same modules as without it, sooner; and where it does not fit, as if it were not there."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import pytest

import sriov_fast
from sriov_fast.cli import bundle

PACKAGE = Path(sriov_fast.__file__).parent
NOT_NEEDED = shutil.ignore_patterns("__pycache__", "lab", "txipamd", "resident")
ENTRY = "sriov_fast.cni.request"
COLD = "sriov_fast.ipam.static"
MAGIC = importlib.util.MAGIC_NUMBER

# Imports a hot and a cold module, and all others that there are, and tells what became of them.
REPORT = """
import sys
first = {name for name in sys.modules if name.startswith("sriov_fast")}
CODE
import sriov_fast.entry, sriov_fast.call, sriov_fast.plugin, sriov_fast.cni.request, sriov_fast.sriov.roots
import sriov_fast.ipam.static, json
def told(module):
    keys = ("__name__", "__package__", "__file__", "__path__")
    spec = module.__spec__
    of_spec = {"name": spec.name, "origin": spec.origin, "parent": spec.parent, "location": spec.has_location}
    names = sorted(name for name in vars(module) if name not in ("annotations", "__annotations__"))
    return {key: getattr(module, key, None) for key in keys} | {"spec": of_spec, "names": names}
print(json.dumps({
    "used": [type(finder).__module__ for finder in sys.meta_path],
    "before": sorted(first),
    "modules": {name: told(m) for name, m in sys.modules.items() if name.startswith("sriov_fast")},
    "loader": type(sys.modules["sriov_fast.ipam.static"].__loader__).__module__,
}))
"""


class Copy:
    """A copy of the package, to be changed, and its bundle."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.package = root / "src/sriov_fast"
        shutil.copytree(PACKAGE, self.package, ignore=NOT_NEEDED)
        self.bundle = root / "exec.bundle"
        self.write()

    def write(self) -> None:
        program = f"from sriov_fast.cli import bundle; bundle.write({str(self.bundle)!r})"
        env = {
            key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "SRIOV_FAST"))
        }
        argv = [sys.executable, "-c", program]
        subprocess.run(argv, env=env | {"PYTHONPATH": str(self.package.parent)}, check=True)

    def run(self, program: str, code: str | None = None, **env: str) -> str:
        """Run a program as the plugin's executable is run; return stdout."""
        paths = [str(self.package.parent), sysconfig.get_path("purelib")]
        lines = bundle.code(self.bundle) if code is None else code
        whole = f"import sys\nsys.path += {paths!r}\n{program.replace('CODE', lines)}"
        argv = [sys.executable, "-ISBXutf8", "-c", whole]
        done = subprocess.run(argv, env=env, input="{}", capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, ""), done
        return done.stdout

    def report(self, code: str | None = None) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.run(REPORT, code))
        return found

    def used(self) -> bool:
        return "sriov_fast.cli.preload" in self.report()["used"]

    def answers(self) -> dict[str, Any]:
        """What the plugin itself says, through the bundle or not."""
        program = "CODE\nfrom sriov_fast.entry import main\nmain()"
        found: dict[str, Any] = json.loads(self.run(program, CNI_COMMAND="VERSION"))
        return found

    def append(self, module: str, line: str) -> None:
        path = self.package.parent / f"{module.replace('.', '/')}.py"
        path.write_text(f"{path.read_text()}\n{line}\n")


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Copy:
    """A copy that no test changes."""
    return Copy(tmp_path_factory.mktemp("kept"))


@pytest.fixture
def copy(tmp_path: Path) -> Copy:
    return Copy(tmp_path)


def test_modules_are_what_they_are_without_it(kept: Copy) -> None:
    with_it, without = kept.report(), kept.report("")
    assert with_it["used"][0] == with_it["loader"] == "sriov_fast.cli.preload"
    assert "sriov_fast.cli.preload" not in without["used"]
    assert with_it["modules"] == without["modules"]
    assert "sriov_fast.cli.preload" not in with_it["modules"]


def test_what_every_request_needs_is_there_before_it_is_asked_for(kept: Copy) -> None:
    report = kept.report(
        bundle.code(kept.bundle) + "first = {n for n in sys.modules if n.startswith('sriov')}\n"
    )
    assert set(bundle.HOT) <= set(report["before"])
    assert COLD not in report["before"]


def test_the_plugin_answers(kept: Copy) -> None:
    assert "1.1.0" in kept.answers()["supportedVersions"]


def test_nothing_of_it_is_docstrings(kept: Copy) -> None:
    assert b"what is asked, ``ipam`` gives addresses" in (kept.package / "plugin.py").read_bytes()
    assert b"what is asked, ``ipam`` gives addresses" not in kept.bundle.read_bytes()


def test_a_traceback_shows_the_source(kept: Copy) -> None:
    program = """CODE
import traceback
from sriov_fast import errors
errors.os = None
try:
    errors.NetlinkError(2)
except AttributeError:
    print(traceback.format_exc())
"""
    said = kept.run(program)
    assert f'File "{kept.package}/errors.py", line ' in said
    assert "said = extack or os.strerror(errno)" in said


# --- where it does not fit


def test_a_changed_module_is_imported_from_its_source(copy: Copy) -> None:
    for module in (ENTRY, COLD):
        copy.append(module, "CHANGED = 1")
    program = f"CODE\nimport {ENTRY}, {COLD}\nprint({ENTRY}.CHANGED + {COLD}.CHANGED)"
    assert copy.run(program) == "2\n"
    assert copy.answers()
    copy.write()
    assert copy.run(program) == "2\n"
    assert copy.report()["loader"] == "sriov_fast.cli.preload"


def test_a_change_that_keeps_the_size(copy: Copy) -> None:
    copy.append(COLD, "CHANGED = 1")
    copy.write()
    path = copy.package / "ipam/static.py"
    path.write_text(path.read_text().replace("CHANGED = 1", "CHANGED = 2"))
    assert copy.run(f"CODE\nimport {COLD}\nprint({COLD}.CHANGED)") == "2\n"


def test_without_sources_nothing_is_taken_from_it(copy: Copy) -> None:
    shutil.rmtree(copy.package / "ipam")
    program = f"CODE\ntry:\n    import {COLD}\nexcept ImportError as error:\n    print(error.name)"
    assert copy.run(program).startswith("sriov_fast.ipam")


def broken(content: bytes, how: str) -> bytes:
    if how == "half":
        return content[: len(content) // 20]
    if how == "magic":
        return bytes([content[0] ^ 1]) + content[1:]
    if how == "version":
        return content.replace(sys.version.encode(), sys.version.encode()[::-1], 1)
    return {"empty": b"", "text": b"no bundle at all", "no head": MAGIC + bytes(4)}[how]


@pytest.mark.parametrize("how", ["half", "magic", "version", "empty", "text", "no head"])
def test_one_that_is_wrong_is_not_used(copy: Copy, how: str) -> None:
    content = broken(copy.bundle.read_bytes(), how)
    assert content != copy.bundle.read_bytes()
    copy.bundle.write_bytes(content)
    assert not copy.used()
    assert copy.answers()


@pytest.mark.parametrize("what", ["nothing", "directory"])
def test_no_file(copy: Copy, what: str) -> None:
    copy.bundle.unlink()
    if what == "directory":
        copy.bundle.mkdir()
    assert not copy.used()
    assert copy.answers()


def test_one_that_is_replaced_under_a_process(copy: Copy) -> None:
    """The head that a process has read says where the code is in that very file, and in no other."""
    later = copy.root / "later"
    later.write_bytes(bytes(copy.bundle.stat().st_size))
    replaced = f"import os\nos.replace({str(later)!r}, {str(copy.bundle)!r})"
    assert copy.run(f"CODE\n{replaced}\nimport {COLD}\nprint({COLD}.Static.kind)") == "static\n"


def test_one_that_is_removed_under_a_process(copy: Copy) -> None:
    removed = f"import os\nos.unlink({str(copy.bundle)!r})"
    assert copy.run(f"CODE\n{removed}\nimport {COLD}\nprint({COLD}.Static.kind)") == "static\n"


def test_streams_that_are_closed(kept: Copy) -> None:
    """It must not stay open as anybody's stdin."""
    program = "CODE\ntry:\n    print(posix.fstat(0))\nexcept OSError as error:\n    print(error.strerror)"
    lines = f"import posix\nposix.close(0)\n{bundle.code(kept.bundle)}"
    assert kept.run(program, lines) == "Bad file descriptor\n"


# --- writing


def test_writing_replaces_in_one_step(copy: Copy) -> None:
    old = copy.bundle.read_bytes()
    with open(copy.bundle, "rb") as reader:
        copy.write()
        assert reader.read() == old
    assert sorted(os.listdir(copy.root)) == ["exec.bundle", "src"]
    assert copy.bundle.stat().st_mode & 0o777 == 0o644


def test_a_failed_write_leaves_the_old_one(
    copy: Copy, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    old = copy.bundle.read_bytes()
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        bundle.write(copy.bundle)
    assert copy.bundle.read_bytes() == old
    assert sorted(os.listdir(tmp_path)) == ["exec.bundle", "src"]


def test_where_it_is_kept() -> None:
    assert bundle.default_path().parent == PACKAGE / "__pycache__"


def test_awkward_path(copy: Copy) -> None:
    copy.bundle = copy.bundle.rename(copy.root / 'it\'s "here" {0} \\n é')
    assert copy.used()
