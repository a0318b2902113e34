"""Fixtures of nodes without a card. Tests reuse a node if its initial state can be restored.

The mark ``modes`` selects the ways to execute the plugin in a module or a test: a process for each call
("process", the default without the mark), the resident server ("resident"), or a server that answers a DEL
before the VF is in the host ("deferred"). With ``falls_back=True``, the client in C may execute the plugin
without its server. The mark ``fresh`` requests a node that no earlier test has used.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from harness.veth import KINDS, MakeNode, Node, ResidentNode


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    mark = metafunc.definition.get_closest_marker("modes")
    modes = mark.args if mark and "mode" in metafunc.fixturenames else ()
    if "either" in metafunc.fixturenames:
        modes = modes or ("process",)
        plain = "resident" if "resident" in modes else modes[0]
        pairs = [*((mode, "cython") for mode in modes), (plain, "python")]
        metafunc.parametrize(("mode", "kernel"), pairs, indirect=True, scope="module")
    elif modes:
        metafunc.parametrize("mode", modes, indirect=True, scope="module")


@pytest.fixture(scope="session", autouse=True)
def installed(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Write the executable that the nodes run."""
    Node.install(tmp_path_factory.mktemp("installed"))


@pytest.fixture(scope="module")
def mode(request: pytest.FixtureRequest) -> str:
    return getattr(request, "param", "process")


@pytest.fixture(scope="module")
def kernel(request: pytest.FixtureRequest) -> str:
    """The backend of ``either``."""
    return str(request.param)


class Pool:
    """Free nodes in their initial state: reuse saves the start of a server, a quarter of a second."""

    def __init__(self, top: Path) -> None:
        self._top = top
        self._made = 0
        self._free: dict[tuple[str, int, str], Node] = {}

    def take(self, mode: str, vfs: int, backend: str) -> Node:
        """Return a free node in its initial state, or a new one."""
        return self._free.pop((mode, vfs, backend), None) or self.make(mode, vfs, backend)

    def make(self, mode: str, vfs: int, backend: str) -> Node:
        """Return a new node."""
        self._made += 1
        root = self._top / f"n{self._made}"
        root.mkdir()
        return KINDS[mode](root, vfs, backend)

    def give(self, mode: str, node: Node) -> None:
        """Keep a node for the next test if its initial state can be restored; remove it otherwise."""
        key = mode, node.tree.vfs, node.backend
        if key in self._free or not node.renew():
            node.close()
        else:
            self._free[key] = node

    def close(self) -> None:
        """Remove all free nodes."""
        with ExitStack() as closing:
            for node in self._free.values():
                closing.callback(node.close)


@pytest.fixture(scope="session")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pool]:
    made = Pool(tmp_path_factory.mktemp("nodes"))
    yield made
    made.close()


@pytest.fixture
def make_node(request: pytest.FixtureRequest, mode: str, pool: Pool) -> Iterator[MakeNode]:
    mark = request.node.get_closest_marker("modes")
    falls_back = mark.kwargs.get("falls_back", False) if mark else False
    fresh = request.node.get_closest_marker("fresh") is not None
    failed = request.session.testsfailed
    with ExitStack() as closing:

        def give(node: Node) -> None:
            if fresh or request.session.testsfailed != failed:
                node.close()
            else:
                pool.give(mode, node)

        def make(vfs: int = 4, backend: str = "cython") -> Node:
            node = (pool.make if fresh else pool.take)(mode, vfs, backend)
            closing.callback(give, node)
            if isinstance(node, ResidentNode):
                node.may_fall_back = falls_back
            return node

        yield make


@pytest.fixture
def node(make_node: MakeNode) -> Node:
    """A node with two VFs, on the compiled backend."""
    return make_node(vfs=2)


@pytest.fixture
def either(make_node: MakeNode, kernel: str) -> Node:
    """A node with two VFs: on the compiled backend in every mode, on the plain one in one of them."""
    return make_node(vfs=2, backend=kernel)
