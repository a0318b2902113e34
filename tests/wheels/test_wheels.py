"""The files of ``make wheels``: what they contain, and that the wheels work where they are installed.

The wheels for this processor are installed for each Python that is here: those of pyenv, those on PATH, and
one of ``SRIOV_FAST_PYTHONS``. The aarch64 wheel runs under QEMU with Debian's Python, if QEMU is installed.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tools.wheels import TARGETS, Target

TOP = Path(__file__).resolve().parents[2]
DIST = TOP / "dist"
E_MACHINE = {"x86_64": 62, "aarch64": 183}  # of the ELF header, at its byte 18
PT_INTERP = 3  # elf.h: the program header of what is linked dynamically
QEMU = shutil.which("qemu-aarch64-static")
BYTES = TOP / "tests/plain/test_nl_encode.py"
pytestmark = pytest.mark.skipif(not (DIST / "SHA256SUMS").exists(), reason="needs make wheels")

SETTINGS = """
from hypothesis import settings
settings.register_profile("same", derandomize=True, max_examples=40, deadline=None)
settings.load_profile("same")
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


def pythons() -> list[Path]:
    """Return one interpreter for each version from 3.11 on."""
    found: dict[str, Path] = {}
    places = [Path(place) for place in os.environ.get("SRIOV_FAST_PYTHONS", "").split(":") if place]
    places += sorted(Path.home().glob(".pyenv/versions/3.*/bin/python3"))
    places += [Path(at) for at in (shutil.which(f"python3.{minor}") for minor in range(11, 20)) if at]
    for path in places:
        asked = [path, "-c", "import sys, ensurepip; print(sys.version_info.minor)"]
        done = subprocess.run(asked, capture_output=True, text=True, check=False)
        if done.returncode == 0 and int(done.stdout) >= 11:
            found.setdefault(done.stdout.strip(), path)
    return list(found.values())


def run(*words: object, cwd: Path | None = None, stdin: str = "", **env: str) -> str:
    """Run a program without our settings; return its output, fail with it."""
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


@pytest.fixture(params=TARGETS, ids=lambda target: target.tag)
def target(request: pytest.FixtureRequest) -> Target:
    return request.param


def sums(dist: Path) -> dict[str, str]:
    """Return the SHA-256 of each file by its name."""
    return dict(reversed(line.split()) for line in (dist / "SHA256SUMS").read_text().splitlines())


def installable(libc: str, machine: str) -> Path:
    return wheel(next(each for each in TARGETS if each.machine == machine and each.libc.startswith(libc)))


# --- what they contain


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
    with zipfile.ZipFile(wheel(target)) as archive:
        client = archive.read("sriov_fast/client/sriov-client")
    # Elf64_Ehdr: e_phoff at 32, e_phentsize at 54, e_phnum at 56
    start, size, number = (
        int.from_bytes(client[at:end], "little") for at, end in ((32, 40), (54, 56), (56, 58))
    )
    kinds = [int.from_bytes(client[start + i * size : start + i * size + 4], "little") for i in range(number)]
    assert PT_INTERP not in kinds


def test_the_licences_are_inside(target: Target) -> None:
    with zipfile.ZipFile(wheel(target)) as archive:
        names = {name.rpartition("/licenses/")[2] for name in archive.namelist() if "/licenses/" in name}
    assert {"LICENSE", "musl.txt"} <= names


def test_a_second_build_is_equal_to_the_byte(tmp_path: Path) -> None:
    """Each file, built again in another directory."""
    run(sys.executable, "-m", "tools.wheels", tmp_path / "dist", cwd=TOP)
    again = sums(tmp_path / "dist")
    assert len(again) == 3 * (len(TARGETS) + 1)  # each with its bill of materials and its provenance
    assert again == sums(DIST), "not equal; run make wheels for this commit first"


# --- that they work


@pytest.fixture(scope="module", params=pythons(), ids=lambda path: path.parts[-3])
def programs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of a clean environment in which the wheel is installed."""
    directory = tmp_path_factory.mktemp("venv")
    run(request.param, "-m", "venv", directory)
    libc = "musl" if platform.libc_ver()[0] != "glibc" else "gnu"
    run(directory / "bin/pip", "install", "-q", installable(libc, platform.machine()), "pytest", "hypothesis")
    return directory / "bin"


def copy_test_of_bytes(directory: Path) -> None:
    """Copy the test of the encoder; the settings are those of the checkout's tests, without a deadline."""
    shutil.copy(BYTES, directory)
    (directory / "conftest.py").write_text(SETTINGS)


def test_the_command_names_the_wheel(programs: Path) -> None:
    said = run(programs / "sriov-fast", "--version")
    assert "(backend cython; wheel cp311-abi3-" in said


def test_every_module_can_be_imported(programs: Path, tmp_path: Path) -> None:
    run(programs / "python", "-c", IMPORT_ALL, cwd=tmp_path)


def test_the_encoder_writes_the_same_bytes(programs: Path, tmp_path: Path) -> None:
    copy_test_of_bytes(tmp_path)
    run(programs / "python", "-m", "pytest", "-q", "-c", "/dev/null", tmp_path / BYTES.name, cwd=tmp_path)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_an_add_and_a_del_in_namespaces(programs: Path) -> None:
    assert "10.99.0.2/24" in run(programs / "sriov-fast", "demo", "--netns")


# --- the other processor


@pytest.fixture(scope="module")
def aarch64(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    """The command of an aarch64 Python with the wheel, in a tree of Debian's packages."""
    if not (QEMU and shutil.which("mmdebstrap") and os.geteuid() == 0):
        pytest.skip("needs root, qemu-user-static and mmdebstrap")
    root = tmp_path_factory.mktemp("aarch64") / "root"
    run(
        "mmdebstrap",
        "-q",
        "--variant=extract",
        "--architectures=arm64",
        "--include=python3",
        "bookworm",
        root,
    )
    shutil.copy(str(QEMU), root)
    pip = [shutil.which("python3"), "-m", "pip", "install", "-q", "--target", root / "opt/site"]
    other = ["--platform", "manylinux_2_17_aarch64", "--python-version", "3.11", "--only-binary", ":all:"]
    run(*pip, *other, installable("gnu", "aarch64"), "pytest", "hypothesis")
    yield ["chroot", str(root), f"/{Path(str(QEMU)).name}", "-E", "PYTHONPATH=/opt/site", "/usr/bin/python3"]
    shutil.rmtree(root)


def test_another_processor_imports_every_module(aarch64: list[str]) -> None:
    run(*aarch64, "-c", IMPORT_ALL)


def test_another_processor_encodes_the_same_bytes(aarch64: list[str]) -> None:
    copy_test_of_bytes(Path(aarch64[1]) / "opt")
    run(*aarch64, "-m", "pytest", "-q", "-c", "/dev/null", "-p", "no:cacheprovider", f"/opt/{BYTES.name}")


def test_another_processor_answers_version(aarch64: list[str]) -> None:
    program = "import sys; from sriov_fast.plugin.process import main; sys.exit(main())"
    said = run(*aarch64, "-c", program, stdin="{}", CNI_COMMAND="VERSION")
    assert "1.1.0" in json.loads(said)["supportedVersions"]
