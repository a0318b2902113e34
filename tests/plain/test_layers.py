"""The direction of imports (docs/architecture.md): downwards only, and the rooms do not know each other."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import sriov_fast

PACKAGE = Path(sriov_fast.__file__).parent
ROOMS = ("cni", "sriov", "ipam")
ABOVE = ("call", "ready", "plugin", "upkeep", "entry", "resident", "cli", "ipamd")
# It lies with what it serves, and is a process of its own: above the rooms.
EXECUTABLES = ("ipam/txipam_main",)
BACKENDS = ("_nl", "_sysfs", "_irq", "_nl_py", "_sysfs_py", "_irq_py")


def modules() -> list[str]:
    """Every module, as a path below the package without its suffix: ``cni/reply``."""
    found = {path.relative_to(PACKAGE).with_suffix("") for path in PACKAGE.rglob("*.py*") if is_source(path)}
    return sorted(map(str, found))


def is_source(path: Path) -> bool:
    return path.suffix in (".py", ".pyi", ".pyx") and "__pycache__" not in path.parts


def imports(module: str) -> set[str]:
    """What of this package a module imports, wherever in it: "cni.reply", "errors"."""
    found: set[str] = set()
    for suffix in (".py", ".pyi"):
        path = PACKAGE / f"{module}{suffix}"
        if path.exists():
            for node in ast.walk(ast.parse(path.read_text())):
                found.update(imported(node))
    prefix = "sriov_fast."
    return {name.removeprefix(prefix) for name in found if name.startswith(prefix)}


def imported(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        assert node.level == 0, "imports are absolute here, so that this test understands them"
        # "from sriov_fast.cni import reply" may name a module or something in one: both count
        return [f"{node.module}.{alias.name}" for alias in node.names]
    return []


def within(name: str, room: str) -> bool:
    return name == room or name.startswith((f"{room}.", f"{room}/"))


def of(rooms: tuple[str, ...]) -> list[str]:
    within_one = (module for module in modules() if any(within(module, room) for room in rooms))
    return [module for module in within_one if module not in EXECUTABLES]


def refused(module: str, rooms: tuple[str, ...]) -> list[str]:
    return sorted(name for name in imports(module) if any(within(name, room) for room in rooms))


def test_nobody_imports_an_executable() -> None:
    names = tuple(module.replace("/", ".") for module in EXECUTABLES)
    assert [module for module in modules() if refused(module, names)] == []


def test_there_is_something_to_look_at() -> None:
    assert {"cni/request", "sriov/journal", "ipam/exec", "backend", "_nl_py"} <= set(modules())
    assert "backend.nl" in imports("plugin")


@pytest.mark.parametrize("module", of(ROOMS))
def test_rooms_know_only_what_is_below(module: str) -> None:
    others = tuple(room for room in ROOMS if not within(module, room))
    assert refused(module, (*others, *ABOVE)) == []


@pytest.mark.parametrize("module", of(BACKENDS))
def test_backends_know_errors_and_values(module: str) -> None:
    allowed = ("errors", "values", *BACKENDS)
    assert [name for name in imports(module) if not any(within(name, each) for each in allowed)] == []


def test_the_lab_and_the_plugin_do_not_import_each_other() -> None:
    """The lab drives the plugin as a process, as a runtime does."""
    sources = sorted((PACKAGE.parents[1] / "lab").rglob("*.py"))
    assert sources
    for path in sources:
        found = {name for node in ast.walk(ast.parse(path.read_text())) for name in imported(node)}
        assert not [name for name in found if within(name, "sriov_fast")], path
    assert [module for module in modules() if "lab" in "".join(imports(module)).split(".")] == []


@pytest.mark.parametrize("module", [name for name in modules() if "/" not in name and name not in ABOVE])
def test_what_all_share_knows_no_room(module: str) -> None:
    if module != "__init__":
        assert refused(module, (*ROOMS, *ABOVE)) == []


@pytest.mark.parametrize("module", ["plugin", "entry", *of(ROOMS)])
def test_pyroute2_stays_in_the_plain_backend(module: str) -> None:
    assert "pyroute2" not in (PACKAGE / f"{module}.py").read_text()


def test_the_compiled_modules_import_errors_and_values_alone() -> None:
    for module in BACKENDS[:3]:
        lines = (PACKAGE / f"{module}.pyi").with_suffix(".pyx")
        if not lines.exists():
            pytest.skip("an installed package has no .pyx")
        for line in lines.read_text().splitlines():
            words = line.split()
            if words[:1] == ["from"] and words[1].startswith("sriov_fast") and words[2] == "import":
                assert words[1] in ("sriov_fast.errors", "sriov_fast.values"), line


def test_the_address_service_has_no_circles() -> None:
    needs = {module.replace("/", "."): imports(module) for module in of(("ipamd",))}
    graph = {
        name: {other for other in needs for each in found if within(each, other)}
        for name, found in needs.items()
    }
    while leaves := [name for name, found in graph.items() if not found & graph.keys()]:
        for name in leaves:
            del graph[name]
    assert graph == {}
