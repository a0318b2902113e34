"""The direction of imports (docs/architecture.md): downwards only, in one total order, without cycles."""

from __future__ import annotations

import ast
import functools
import graphlib
from pathlib import Path

import pytest

import sriov_fast

PACKAGE = Path(sriov_fast.__file__).parent
# From the lowest to the highest. A package stands for all of its modules that are not listed themselves.
ORDER = (
    "__init__",
    *("common.__init__", "common.errors", "common.record", "common.ip", "common.json"),
    "common.json_object",
    *("common.descriptors", "common.paths", "common.files", "common.log", "common.cni_args", "common.cpu"),
    *("common.interpreter", "common.sd_notify", "common.replace"),
    *("common.helpers", "common.executor", "common.trace"),
    "ipamd_api",
    *("_nl", "_sysfs", "_irq"),
    *("kernel.__init__", "kernel.netlink.__init__", "kernel.netlink.constants", "kernel.netlink.arguments"),
    *(
        "kernel.netlink.attributes",
        "kernel.netlink.links",
        "kernel.netlink.routes",
        "kernel.netlink.messages",
    ),
    *("kernel.netlink.replies", "kernel.netlink.calls"),
    *("kernel._nl_py", "kernel._sysfs_py", "kernel._irq_py", "kernel.backend"),
    *("vf", "cni", "ipam"),
    *(
        "plugin.__init__",
        "plugin.context",
        "plugin.addresses",
        "plugin.device_info",
        "plugin.pod_cores",
        "plugin.prepare",
        "plugin.userspace",
    ),
    *(
        "plugin.release",
        "plugin.recovery",
        "plugin.add",
        "plugin.check",
        "plugin.status",
        "plugin.gc",
        "plugin.run",
    ),
    *("plugin.process", "ipam.txipam_main"),
    *("server", "client", "ipamd", "cli"),
)
DOMAINS = ("vf", "cni", "ipam")  # no imports between these
# The modules that the address service shares with the plugin.
SHARED = ("__init__", "common", "ipamd_api")
COMPILED = ("_nl", "_sysfs", "_irq")
BACKENDS = (*COMPILED, "kernel._nl_py", "kernel._sysfs_py", "kernel._irq_py")


def modules() -> list[str]:
    """Return the name of every module below the package, such as "cni.response" and "cni.__init__"."""
    found = {path.relative_to(PACKAGE).with_suffix("") for path in PACKAGE.rglob("*.py*") if is_source(path)}
    return sorted(".".join(path.parts) for path in found)


def is_source(path: Path) -> bool:
    return path.suffix in (".py", ".pyi", ".pyx") and "__pycache__" not in path.parts


MODULES = modules()


@functools.cache
def imports(module: str) -> set[str]:
    """Return the modules of this package that a module imports, also in functions and for types."""
    found: set[str] = set()
    for suffix in (".py", ".pyi"):
        path = PACKAGE / f"{module.replace('.', '/')}{suffix}"
        if path.exists():
            for node in ast.walk(ast.parse(path.read_text())):
                found.update(imported(node))
    return {as_module(name.removeprefix("sriov_fast.")) for name in found if name.startswith("sriov_fast.")}


def imported(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        assert node.level == 0, "imports are absolute here, so that this test understands them"
        return [f"{node.module}.{alias.name}" for alias in node.names]
    return []


def as_module(name: str) -> str:
    """Return the module of an imported name: the module itself, or the one that defines the name."""
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        for found in (".".join(parts[:end]), ".".join([*parts[:end], "__init__"])):
            if found in MODULES:
                return found
    return "__init__"


def layer(module: str) -> str:
    """Return the most specific entry of ORDER for a module."""
    parts = module.split(".")
    return next(name for end in range(len(parts), 0, -1) if (name := ".".join(parts[:end])) in ORDER)


def pairs() -> list[tuple[str, str]]:
    """Return every import as the importing and the imported module."""
    return [(module, name) for module in MODULES for name in sorted(imports(module))]


def test_imports_run_downwards() -> None:
    places = {module: ORDER.index(layer(module)) for module in MODULES}
    assert [pair for pair in pairs() if places[pair[1]] > places[pair[0]]] == []


def test_there_are_no_circles() -> None:
    graph = {module: imports(module) - {module} for module in MODULES}
    graphlib.TopologicalSorter(graph).prepare()


def test_there_is_something_to_look_at() -> None:
    assert {"cni.request", "vf.journal", "ipam.keys", "kernel.backend", "kernel._nl_py"} <= set(MODULES)
    assert {"kernel.backend", "vf.select", "plugin.context"} <= imports("plugin.add")


def test_domains_do_not_know_each_other() -> None:
    layers = [(layer(module), layer(name)) for module, name in pairs()]
    assert [pair for pair in layers if set(pair) <= set(DOMAINS) and pair[0] != pair[1]] == []


def test_the_address_service_stands_alone() -> None:
    known = {"ipamd", *SHARED}
    found = [(module, name) for module, name in pairs() if layer(module) == "ipamd"]
    assert [(module, name) for module, name in found if layer(name).split(".")[0] not in known] == []


def test_the_lab_and_the_plugin_do_not_import_each_other() -> None:
    """The lab runs the plugin as a process, as a runtime does."""
    sources = sorted((PACKAGE.parents[1] / "lab").rglob("*.py"))
    assert sources
    for path in sources:
        found = {name for node in ast.walk(ast.parse(path.read_text())) for name in imported(node)}
        assert not [name for name in found if name.split(".")[0] == "sriov_fast"], path
    assert "lab" not in {name.split(".")[0] for name in MODULES}


@pytest.mark.parametrize("high", ["server", "client", "ipamd"])
def test_only_the_operators_command_knows_these(high: str) -> None:
    found = [(module, name) for module, name in pairs() if layer(name) == high]
    assert [(module, name) for module, name in found if layer(module) not in (high, "cli")] == []


@pytest.mark.parametrize("module", BACKENDS)
def test_backends_know_errors_and_values(module: str) -> None:
    others = {name for name in imports(module) if not name.startswith("kernel.netlink.")}
    assert others - {"common.errors", "common.record", "common.descriptors", *BACKENDS} == set()


def test_pyroute2_stays_in_the_plain_backend() -> None:
    for module in MODULES:
        if layer(module) in DOMAINS or module.startswith("plugin."):
            assert "pyroute2" not in (PACKAGE / f"{module.replace('.', '/')}.py").read_text(), module


def test_the_compiled_modules_import_errors_and_values_alone() -> None:
    for module in COMPILED:
        sources = [*PACKAGE.glob(f"{module}.pyx"), *PACKAGE.glob(f"{module}_*.pxi")]
        if not sources:
            pytest.skip("an installed package has no .pyx")
        for line in "".join(path.read_text() for path in sources).splitlines():
            words = line.split()
            if words[:1] == ["from"] and words[1].startswith("sriov_fast") and words[2] == "import":
                assert words[1] in ("sriov_fast.common.errors", "sriov_fast.common.record"), line
