"""Test the contents of the files of ``make wheels``, and the wheels in fresh installations.

The wheels for this processor are installed for each version of CPython and for musl (``interpreters.py``).
The aarch64 wheels run under QEMU with a Python for glibc, Debian's, and one for musl.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tools.wheels import TARGETS, Target
from wheels import interpreters
from wheels.interpreters import Emulated, Interpreter

TOP = Path(__file__).resolve().parents[2]
DIST = TOP / "dist"
E_MACHINE = {"x86_64": 62, "aarch64": 183}  # of the ELF header, at its byte 18
BYTES = TOP / "tests/plain/test_nl_encode.py"
# Plain tests that need a checkout with its tools (CHECKOUT), or the address service, an extra (SERVICE).
CHECKOUT = (
    "bench_history",
    "client",
    "cni_docs",
    "demo",
    "deploy",
    "lab",
    "layers",
    "packaging",
    "run_tiers",
    "workflows",
)
SERVICE = ("allowed_files", "ipamd_*", "txipam_*")
# Plain tests that need _ssl or _sqlite3 by way of pyroute2 or prometheus_client. CPython for musl lacks both.
SSL = ("backend", "nl_encode", "nl_replies", "cli_machine", "exposition", "ipam_leases", "vf_counters")
REQUIRED = ("sriov-fast[check,metrics]", "pytest", "hypothesis")
pytestmark = pytest.mark.skipif(not (DIST / "SHA256SUMS").exists(), reason="needs make wheels")

# The hypothesis settings of the checkout's tests, without a deadline.
SETTINGS = """
from hypothesis import settings
settings.register_profile("same", derandomize=True, max_examples=40, deadline=None)
settings.load_profile("same")
"""
# pyroute2 imports ssl and sqlite3, but its messages use neither. asyncio is imported first: it must not find
# the empty module ssl.
ABSENT = """
import asyncio, importlib, sys, types
for name in ("ssl", "sqlite3"):
    try:
        importlib.import_module(name)
    except ModuleNotFoundError:
        sys.modules[name] = types.ModuleType(name)
"""
IMPORT_ALL = """
import importlib, pkgutil, sriov_fast
for module in pkgutil.walk_packages(sriov_fast.__path__, "sriov_fast."):
    if module.name.endswith("__main__"):
        continue
    try:
        importlib.import_module(module.name)
    except ModuleNotFoundError as error:  # of the extra "ipam"
        if error.name.startswith("sriov_fast"):
            raise
from sriov_fast.kernel import backend
assert backend.name == "cython", backend.name
"""


def run(*words: object, cwd: Path | None = None, stdin: str = "", **env: str) -> str:
    """Run a program without this project's environment variables, which must succeed; return its output."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "SRIOV_FAST"))}
    argv = [str(word) for word in words]
    done = subprocess.run(
        argv, cwd=cwd, env=clean | env, input=stdin, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{argv}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def wheel(target: Target) -> Path:
    found = list(DIST.glob(f"*-cp311-abi3-{target.tag}.whl"))
    assert len(found) == 1, f"{target.tag}: {found}; run make wheels first"
    return found[0]


def wheel_tagged(tag: str) -> Path:
    return wheel(next(each for each in TARGETS if each.tag == tag))


class Installed(NamedTuple):
    """A virtual environment with the wheel; its directory has the same path inside the interpreter's tree."""

    interpreter: Interpreter
    directory: Path

    def run(self, *words: object) -> str:
        return run(*self.interpreter.command(self.directory, *words))

    def run_program(self, name: str, *words: object) -> str:
        return self.run(self.directory / "venv/bin" / name, *words)


@pytest.fixture(params=TARGETS, ids=lambda target: target.tag)
def target(request: pytest.FixtureRequest) -> Target:
    return request.param


def sums(dist: Path) -> dict[str, str]:
    """Return the SHA-256 of each file by its name."""
    return dict(reversed(line.split()) for line in (dist / "SHA256SUMS").read_text().splitlines())


# --- contents


def test_every_file_has_its_sum_and_its_provenance() -> None:
    listed = sums(DIST)
    built = [*DIST.glob("*.whl"), *DIST.glob("*.tar.gz")]
    assert len(built) == len(TARGETS) + 1
    for path in built:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        assert listed[path.name] == digest
        (subject,) = json.loads(Path(f"{path}.provenance.json").read_text())["subject"]
        assert subject == {"name": path.name, "digest": {"sha256": digest}}


def test_the_bill_of_materials_is_valid(target: Target) -> None:
    schema = pytest.importorskip("cyclonedx.schema")
    validation = pytest.importorskip("cyclonedx.validation.json")
    validator = validation.JsonStrictValidator(schema.SchemaVersion.V1_6)
    text = Path(f"{wheel(target)}.cdx.json").read_text()
    assert validator.validate_str(text) is None
    assert {"musl", "cython", "orjson>=3.9"} <= {each["name"] for each in json.loads(text)["components"]}


def test_the_binaries_are_for_the_machine(target: Target) -> None:
    with zipfile.ZipFile(wheel(target)) as archive:
        names = [name for name in archive.namelist() if name.endswith((".so", "sriov-client"))]
        contents = {name: archive.read(name) for name in names}
    assert len(names) == 4
    for name, content in contents.items():
        assert int.from_bytes(content[18:20], "little") == E_MACHINE[target.machine], name


def test_the_client_is_static(target: Target) -> None:
    from elftools.elf.elffile import ELFFile  # of auditwheel

    with zipfile.ZipFile(wheel(target)) as archive:
        client = ELFFile(io.BytesIO(archive.read("sriov_fast/client/sriov-client")))
    kinds = [segment["p_type"] for segment in client.iter_segments()]
    assert kinds
    assert "PT_INTERP" not in kinds


def test_the_licences_are_inside(target: Target) -> None:
    with zipfile.ZipFile(wheel(target)) as archive:
        names = {name.rpartition("/licenses/")[2] for name in archive.namelist() if "/licenses/" in name}
    assert {"LICENSE", "musl.txt"} <= names


def test_a_second_build_is_equal_to_the_byte(tmp_path: Path) -> None:
    """Build each file again in another directory and compare its hash."""
    run(sys.executable, "-m", "tools.wheels", tmp_path / "dist", cwd=TOP)
    again = sums(tmp_path / "dist")
    assert len(again) == 3 * (len(TARGETS) + 1)  # each with a bill of materials and a provenance
    assert again == sums(DIST), "not equal; run make wheels for this commit first"


# --- installations


@pytest.fixture(scope="module", params=[*interpreters.VERSIONS, "musl"])
def installed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """A new virtual environment with the wheel."""
    interpreter = interpreters.musl() if request.param == "musl" else interpreters.glibc(request.param)
    directory = tmp_path_factory.mktemp("wheel")
    found = Installed(interpreter, directory)
    download(directory / "packages", wheel_tagged(interpreter.tag), interpreter.version, interpreter.tag)
    found.run(interpreter.python, "-m", "venv", directory / "venv")
    pip = ("pip", "install", "-q", "--no-index", "--find-links", directory / "packages")
    found.run_program(*pip, *REQUIRED)
    return found


def download(packages: Path, wheel: Path, version: str, tag: str) -> None:
    """Download a wheel's dependencies and the tests' requirements as wheels for an interpreter."""
    target = ("--only-binary", ":all:", "--python-version", version, "--platform", tag)
    pip = (sys.executable, "-m", "pip", "download", "-q", "--dest", packages)
    run(*pip, *target, wheel, *REQUIRED)


def test_the_command_names_the_wheel(installed: Installed) -> None:
    said = installed.run_program("sriov-fast", "--version")
    assert f"(backend cython; wheel cp311-abi3-{installed.interpreter.tag};" in said


def test_every_module_can_be_imported(installed: Installed) -> None:
    installed.run_program("python", "-c", IMPORT_ALL)


def test_the_plain_tests(installed: Installed) -> None:
    for name in ("tests", "tools", "lab"):
        shutil.copytree(TOP / name, installed.directory / name, ignore=shutil.ignore_patterns("__pycache__"))
    text = (TOP / "pyproject.toml").read_text()
    (installed.directory / "pyproject.toml").write_text(
        text.replace('pythonpath = ["src", ', "pythonpath = [")
    )
    others = (*CHECKOUT, *SERVICE, *(SSL if installed.interpreter.tag.startswith("musl") else ()))
    ignored = [f"--ignore-glob=tests/plain/test_{name}.py" for name in others]
    pytest = ("python", "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not slow")
    installed.run_program(*pytest, *ignored, "tests/plain")


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_an_add_and_a_del_in_namespaces(installed: Installed) -> None:
    assert "10.99.0.2/24" in installed.run_program("sriov-fast", "demo", "--netns")


# --- the other processor


@pytest.fixture(
    scope="module",
    params=[interpreters.emulated_glibc, interpreters.emulated_musl],
    ids=["glibc", "musl"],
)
def emulated(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Emulated]:
    """An emulated Python for the other processor, with the wheel."""
    other = request.param(tmp_path_factory.mktemp("emulated") / "root")
    target = ("--platform", other.tag, "--python-version", other.version, "--only-binary", ":all:")
    pip = (sys.executable, "-m", "pip", "install", "-q", "--target", other.root / "opt/site")
    run(*pip, *target, wheel_tagged(other.tag), "pytest", "hypothesis")
    yield other
    shutil.rmtree(other.root)


def test_another_processor_imports_every_module(emulated: Emulated) -> None:
    run(*emulated.command("-c", IMPORT_ALL))


def test_another_processor_encodes_the_same_bytes(emulated: Emulated) -> None:
    directory = emulated.root / "opt"
    shutil.copy(BYTES, directory)
    (directory / "conftest.py").write_text(SETTINGS)
    (directory / "site/absent.py").write_text(ABSENT)
    pytest = ("-m", "pytest", "-q", "-c", "/dev/null", "-p", "no:cacheprovider", "-p", "absent")
    run(*emulated.command(*pytest, f"/opt/{BYTES.name}"))


def test_another_processor_answers_version(emulated: Emulated) -> None:
    program = "import sys; from sriov_fast.plugin.process import main; sys.exit(main())"
    said = run(*emulated.command("-c", program), stdin="{}", CNI_COMMAND="VERSION")
    assert "1.1.0" in json.loads(said)["supportedVersions"]


def test_another_processor_names_the_wheel(emulated: Emulated) -> None:
    said = run(*emulated.command("-m", "sriov_fast.cli", "--version"))
    assert f"wheel cp311-abi3-{emulated.tag};" in said
