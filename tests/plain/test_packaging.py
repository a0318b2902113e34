"""The distributions: the sdist has git's files, the wheel is built from it, and its installation works."""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parents[2]
MODULES = ("_nl", "_sysfs", "_irq")
# setuptools adds these to every sdist
ADDED = ("PKG-INFO", "setup.cfg")

pytestmark = pytest.mark.slow


def run(*argv: object, cwd: Path | None = None, **env: str) -> str:
    """Run a program without settings of Python and this package, and return its stdout.

    AssertionError with its whole output if it fails.
    """
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "SRIOV_FAST"))}
    words = [str(word) for word in argv]
    done = subprocess.run(words, cwd=cwd, env=clean | env, capture_output=True, text=True, check=False)
    if done.returncode:
        raise AssertionError(f"{words}: exit status {done.returncode}\n{done.stdout}\n{done.stderr}")
    return done.stdout


def tracked() -> set[str]:
    """Return the files that git tracks or would add."""
    if not (TOP / ".git").exists():
        pytest.skip("not a checkout: there is no git to compare with")
    listed = run(
        "git", "-c", f"safe.directory={TOP}", "-C", TOP, "ls-files", "-z", "-co", "--exclude-standard"
    )
    return {name for name in listed.split("\0") if name and (TOP / name).is_file()}


def isolation() -> list[str]:
    """Return the option to build with this environment's tools, without downloads, if they are new enough."""
    installed = {name: importlib.metadata.version(name) for name in ("setuptools", "cython")}
    major = {name: int(version.split(".")[0]) for name, version in installed.items()}
    return ["--no-isolation"] if major["setuptools"] >= 77 and major["cython"] >= 3 else []


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sdist, built from a copy of the checkout without build products."""
    top = tmp_path_factory.mktemp("sdist")
    for name in tracked():
        (top / "checkout" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(TOP / name, top / "checkout" / name)
    run(sys.executable, "-m", "build", *isolation(), "--sdist", "--outdir", top, top / "checkout")
    return next(top.glob("*.tar.gz"))


def unpacked(sdist: Path, directory: Path) -> Path:
    with tarfile.open(sdist) as tar:
        tar.extractall(directory)  # trusted; Python 3.11.2 has no ``filter``
    return next(directory.iterdir())


@pytest.fixture(scope="module")
def sources(sdist: Path) -> Path:
    """The unpacked sdist without build products."""
    return unpacked(sdist, sdist.parent / "unpacked")


@pytest.fixture(scope="module")
def compiler(sdist: Path) -> str:
    """The path of a C compiler without optimization, which would take most of the time."""
    path = sdist.with_name("cc")
    path.write_text('#!/bin/sh\nexec cc "$@" -O0\n')
    path.chmod(0o755)
    return str(path)


def built(sources: Path, to: Path, **env: str) -> Path:
    """Build a wheel from unpacked sources, and return its path."""
    run(sys.executable, "-m", "build", *isolation(), "--wheel", "--outdir", to, sources, **env)
    return next(to.glob("*.whl"))


@pytest.fixture(scope="module")
def wheel(sdist: Path, compiler: str) -> Path:
    workplace = unpacked(sdist, sdist.parent / "workplace")
    return built(workplace, sdist.parent, CC=compiler, SRIOV_FAST_REQUIRE_EXT="1")


@pytest.fixture
def translated(sdist: Path, wheel: Path, tmp_path: Path) -> Path:
    """The unpacked sdist with Cython's output from the wheel's build, and without compiled modules."""
    assert wheel.exists()
    sources = unpacked(sdist, tmp_path / "workplace")
    made = Path("build/cython")
    shutil.copytree(sdist.parent / "workplace" / sources.name / made, sources / made)
    return sources


def environment(directory: Path, wheel: Path) -> Path:
    """Install a wheel, without bytecode, in a clean virtual environment; return its programs' directory."""
    venv.create(directory)
    pip = (sys.executable, "-m", "pip", "--python", directory / "bin/python")
    run(*pip, "install", "-q", "--no-compile", wheel)
    return directory / "bin"


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of programs of an environment in which the wheel is installed."""
    return environment(tmp_path_factory.mktemp("clean") / "venv", wheel)


def test_the_sdist_is_what_git_has(sources: Path) -> None:
    found = {str(path.relative_to(sources)) for path in sources.rglob("*") if path.is_file()}
    found -= {name for name in found if name in ADDED or ".egg-info/" in name}
    assert found == tracked()


def test_the_sdist_has_no_generated_code(sources: Path) -> None:
    assert sorted(path.name for path in (sources / "src").rglob("*.c")) == ["sriov.c"]
    assert not list(sources.rglob("*.so"))
    assert not list(sources.rglob("sriov-client"))


def test_scripts_stay_executable(sources: Path) -> None:
    for name in (".ci/run", "tools/host.sh", "tools/venv.sh"):
        assert os.access(sources / name, os.X_OK), name


def test_what_the_wheel_has(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name.removeprefix("sriov_fast/") for name in archive.namelist()}
    compiled = {name.split(".")[0] for name in names if name.endswith(".so")}
    assert compiled == set(MODULES)
    assert {"py.typed", "plugin/process.py", "client/sriov-client"} | {
        f"{name}.pyi" for name in MODULES
    } <= names
    assert not [name for name in names if name.endswith((".c", ".pyx", ".pxd", ".pxi", ".h"))]
    assert not [name for name in names if name.startswith(("tests", "benches", "docs", "lab"))]


def test_the_wheel_has_every_module_of_the_sources(wheel: Path, sources: Path) -> None:
    package = sources / "src/sriov_fast"
    expected = {str(path.relative_to(package)) for path in package.rglob("*.py")}
    with zipfile.ZipFile(wheel) as archive:
        names = {name.removeprefix("sriov_fast/") for name in archive.namelist() if name.endswith(".py")}
    assert names == expected


def test_the_command_says_that_it_is_compiled(installed: Path) -> None:
    assert "(backend cython;" in run(installed / "sriov-fast", "--version")


def test_the_installed_plugin_answers(installed: Path, tmp_path: Path) -> None:
    run(installed / "sriov-fast", "install", "--no-server", "--bin-dir", tmp_path / "bin")
    assert (tmp_path / "bin/sriov").read_bytes().startswith(b"\x7fELF")
    assert_answers(tmp_path / "bin/sriov")
    (package,) = installed.parent.glob("lib/python*/site-packages/sriov_fast")
    compiled = {path.name.split(".")[0] for path in package.rglob("__pycache__/*.pyc")}
    assert {"process", "add", "json"} <= compiled, "the first call finds bytecode"


def assert_answers(plugin: Path) -> None:
    env = {"CNI_COMMAND": "VERSION", "SRIOV_FAST_SOCKET": "none"}
    done = subprocess.run([plugin], env=env, input=b"{}", capture_output=True, check=True)
    assert "1.1.0" in json.loads(done.stdout)["supportedVersions"]
    assert done.stderr == b""


def test_without_a_compiler_the_plain_backend_serves(translated: Path, tmp_path: Path) -> None:
    wheel = built(translated, tmp_path, CC="/bin/false", SRIOV_FAST_CLIENT_CC="/bin/false")
    programs = environment(tmp_path / "venv", wheel)
    assert "(backend python;" in run(programs / "sriov-fast", "--version")
    run(programs / "sriov-fast", "install", "--no-server", "--bin-dir", tmp_path)
    assert (tmp_path / "sriov").read_bytes().startswith(b"#!")
    assert_answers(tmp_path / "sriov")


@pytest.mark.parametrize("missing", ["CC", "SRIOV_FAST_CLIENT_CC"])
def test_what_is_required_must_be_compiled(translated: Path, compiler: str, missing: str) -> None:
    env = {"CC": compiler, missing: "/bin/false", "SRIOV_FAST_REQUIRE_EXT": "1"}
    with pytest.raises(AssertionError, match="/bin/false"):
        run(sys.executable, "setup.py", "-q", "build", cwd=translated, **env)


WITHOUT_CYTHON = """
import runpy, sys
sys.modules["Cython"] = None
sys.argv = ["setup.py", "-q", "build", "--build-base", sys.argv[1]]
runpy.run_path("setup.py", run_name="__main__")
"""


@pytest.mark.skipif(
    not isolation(), reason="setuptools here is older than pyproject.toml asks for: make build"
)
def test_without_cython_the_build_goes_on(sdist: Path, tmp_path: Path) -> None:
    sources = unpacked(sdist, tmp_path / "workplace")
    run(sys.executable, "-c", WITHOUT_CYTHON, tmp_path / "build", cwd=sources)
    assert not list(tmp_path.rglob("*.so"))
    assert list((tmp_path / "build").rglob("_nl_py.py"))
    assert list((tmp_path / "build").rglob("client/sriov-client"))


def test_without_cython_a_required_extension_is_required(sources: Path, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="Cython"):
        run(sys.executable, "-c", WITHOUT_CYTHON, tmp_path, cwd=sources, SRIOV_FAST_REQUIRE_EXT="1")
