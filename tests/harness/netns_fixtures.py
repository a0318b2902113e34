"""Nodes to test on, taken away after each test, whatever came of it.

``modes`` says how a module or a test is to be run: in a process for each call ("process", the default without
the mark), through the resident server ("resident"), or through one that answers a DEL before the VF is in the
host ("deferred"). With
``falls_back=True`` the client in C may do without its server.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from harness.veth import KINDS, MakeNode, Node, ResidentNode


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    mark = metafunc.definition.get_closest_marker("modes")
    if mark and "mode" in metafunc.fixturenames:
        metafunc.parametrize("mode", mark.args, indirect=True, scope="module")


@pytest.fixture(scope="session", autouse=True)
def installed(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Write the executable that the nodes run."""
    Node.install(tmp_path_factory.mktemp("installed"))


@pytest.fixture(scope="module")
def mode(request: pytest.FixtureRequest) -> str:
    return getattr(request, "param", "process")


@pytest.fixture
def make_node(request: pytest.FixtureRequest, tmp_path: Path, mode: str) -> Iterator[MakeNode]:
    mark = request.node.get_closest_marker("modes")
    with ExitStack() as closing:
        made: list[Node] = []

        def make(vfs: int = 4, backend: str = "cython") -> Node:
            root = tmp_path / f"n{len(made)}"
            root.mkdir()
            node = KINDS[mode](root, vfs, backend)
            made.append(node)
            closing.callback(node.close)
            if isinstance(node, ResidentNode) and mark:
                node.may_fall_back = mark.kwargs.get("falls_back", False)
            return node

        yield make


@pytest.fixture
def node(make_node: MakeNode) -> Node:
    """A node with two VFs, on the compiled backend."""
    return make_node(vfs=2)


@pytest.fixture(params=["cython", "python"])
def either(request: pytest.FixtureRequest, make_node: MakeNode) -> Node:
    """A node with two VFs, on each backend."""
    return make_node(vfs=2, backend=request.param)
