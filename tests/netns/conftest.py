"""Nodes to test on, taken away after each test, whatever came of it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "plain"))  # for sysfs_tree

from node import MakeNode, Node


@pytest.fixture
def make_node(tmp_path: Path) -> Iterator[MakeNode]:
    made: list[Node] = []

    def make(vfs: int = 4, backend: str = "cython") -> Node:
        root = tmp_path / f"n{len(made)}"
        root.mkdir()
        made.append(Node(root, vfs, backend))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture
def node(make_node: MakeNode) -> Node:
    """A node with two VFs, on the compiled backend."""
    return make_node(vfs=2)


@pytest.fixture(params=["cython", "python"])
def either(request: pytest.FixtureRequest, make_node: MakeNode) -> Node:
    """A node with two VFs, on each backend."""
    return make_node(vfs=2, backend=request.param)
