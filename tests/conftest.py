"""Settings and fixtures of all tests: hypothesis, compiled modules, tiers, root's rules, both backends."""

from __future__ import annotations

import importlib
import os
import signal
from collections.abc import Callable, Iterator
from importlib.machinery import ExtensionFileLoader
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from harness.pod import pfs

if os.environ.get("SRIOV_FAST_LAB") != "1":  # the lab's tests draw no examples, and the import takes seconds
    from hypothesis import HealthCheck, settings

    # The same examples in every run; `make fuzz` draws new ones, from a seed that it prints.
    patient = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # a busy machine is slow
    settings.register_profile("same", patient, derandomize=True, max_examples=40)
    settings.register_profile("long", patient, derandomize=False, max_examples=2000)
    settings.load_profile("same")

HERE = Path(__file__).parent
MODULES = ("_nl", "_sysfs", "_irq")
NAMES = {"cython": "sriov_fast.{}", "python": "sriov_fast.kernel.{}_py"}
HINT = "run `make build`, or set SRIOV_FAST_BACKEND=python to test the plain backend alone"


@pytest.fixture(scope="session", autouse=True)
def interruptible() -> None:
    """Restore Python's handler of SIGINT, which a background job of a shell ignores.

    Processes that the tests start would inherit the ignored signal.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def others_write_nothing() -> None:
    """Set a umask that denies others to write: the plugin refuses directories that others may write to."""
    os.umask(0o022)


@pytest.fixture(scope="session", autouse=True)
def root_allows(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Allow network configurations to name files in the tests' temporary directory (docs/security.md)."""
    top = tmp_path_factory.getbasetemp()
    before = os.environ.get("SRIOV_FAST_ETC")
    os.environ["SRIOV_FAST_ETC"] = str(allow(top / "etc", top))
    yield
    del os.environ["SRIOV_FAST_ETC"]
    if before:
        os.environ["SRIOV_FAST_ETC"] = before


@pytest.fixture
def allows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """A function that writes root's rules for one test, with ``top`` and ``tokens`` of ``allow``."""
    monkeypatch.setenv("SRIOV_FAST_ETC", str(tmp_path / "etc"))
    return lambda top, tokens="": allow(tmp_path / "etc", top, tokens)


def allow(etc: Path, top: Path, tokens: str = "") -> Path:
    """Write root's rules to the directory ``etc``, and return it.

    Every key that names a file allows ``top``; ``tokens`` is the content of the table [tokens].
    """
    from sriov_fast.common import files

    etc.mkdir(mode=0o755, exist_ok=True)
    lists = "".join(f'{key} = ["{top}"]\n' for key in files.DEFAULTS)
    (etc / files.NAME).write_text(f"[allow]\n{lists}[tokens]\n{tokens}")
    (etc / files.NAME).chmod(0o644)
    return etc


def ext_required() -> bool:
    """Return whether the caller (make, CI) requires that all modules are compiled and up to date."""
    return os.environ.get("SRIOV_FAST_REQUIRE_EXT", "") not in ("", "0")


def wants_compiled() -> bool:
    """Return whether the compiled modules are tested: SRIOV_FAST_BACKEND=python leaves out optional ones."""
    return ext_required() or os.environ.get("SRIOV_FAST_BACKEND") != "python"


def compiled_fault(name: str) -> str:
    """Return why a module is not compiled, or is stale although it must not be; "" without a fault."""
    try:
        module = importlib.import_module(f"sriov_fast.{name}")
    except ImportError as error:
        return f"sriov_fast.{name}: {error}"
    spec = module.__spec__
    if spec is None or not isinstance(spec.loader, ExtensionFileLoader):
        return f"sriov_fast.{name} is not compiled: {module.__file__}"
    return f"{module.__file__} is older than its source" if ext_required() and is_stale(module) else ""


def is_stale(module: ModuleType) -> bool:
    """Return whether a source file of a compiled module is newer than the module."""
    built = Path(str(module.__file__))
    name = built.name.partition(".")[0]
    sources = (
        *built.parent.glob("_*.pxd"),
        *built.parent.glob(f"{name}_*.pxi"),
        *built.parent.glob(f"{name}.pyx"),
    )
    return any(source.stat().st_mtime > built.stat().st_mtime for source in sources)


def pytest_sessionstart() -> None:
    if not wants_compiled():
        return
    faults = [fault for fault in map(compiled_fault, MODULES) if fault]
    if faults:
        raise pytest.UsageError("\n".join([*faults, HINT]))


def pytest_report_header() -> str:
    from sriov_fast.kernel import backend

    who = "root" if os.geteuid() == 0 else "not root"
    stale = ", OLDER THAN ITS SOURCE" if is_stale(backend.nl) else ""
    return f"sriov-fast: backend {backend.name} ({backend.nl.__file__}{stale}), {who}"


def tier_of(path: Path) -> str:
    """Return the tier of a test, which is its directory below ``tests``; "" elsewhere."""
    return path.relative_to(HERE).parts[0] if path.is_relative_to(HERE) else ""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    no_root = "" if os.geteuid() == 0 else "needs root: run it as root, or through `make test`"
    no_pf = "" if pfs() else "needs an SR-IOV PF: `python -m lab pytest` has one, or name it in SRIOV_FAST_PF"
    missing = {"plain": "", "netns": no_root, "lab": no_root or no_pf}
    for item in items:
        tier = tier_of(item.path)
        if tier in ("netns", "lab"):
            item.add_marker(getattr(pytest.mark, tier))
        if missing.get(tier):
            item.add_marker(pytest.mark.skip(reason=missing[tier]))


def trio(kind: str) -> SimpleNamespace:
    def load(name: str) -> ModuleType:
        return importlib.import_module(NAMES[kind].format(name))

    return SimpleNamespace(name=kind, nl=load("_nl"), sysfs=load("_sysfs"), irq=load("_irq"))


@pytest.fixture(scope="session", params=("cython", "python"))
def backend(request: pytest.FixtureRequest) -> SimpleNamespace:
    """The modules ``nl``, ``sysfs`` and ``irq`` of each backend, also of the one that is not selected."""
    if request.param == "cython" and not wants_compiled():
        pytest.skip("SRIOV_FAST_BACKEND=python: the compiled backend is left out")
    return trio(request.param)


@pytest.fixture
def nl(backend: SimpleNamespace) -> ModuleType:
    """The rtnetlink module of each backend."""
    module: ModuleType = backend.nl
    return module
