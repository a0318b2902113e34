"""Fixtures of the lab tier. A test that does not leave every VF as it was fails, and the lab is repaired."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from card import IN_LAB, LOCKS, Card, Node, differences, ip, link


def _names() -> list[str]:
    named = os.environ.get("SRIOV_FAST_PF", "").replace(",", " ").split()
    return named or sorted(path.parts[4] for path in Path("/sys/class/net").glob("*/device/sriov_totalvfs"))


@pytest.fixture(scope="session")
def cards() -> Iterator[list[Card]]:
    """All PFs, up, each VF used once."""
    found = [Card(name) for name in _names()]
    down = [card.pf for card in found if "UP" not in link(card.pf)["flags"]]
    for pf in down:
        ip("link", "set", pf, "up")
    for card in found:
        if not any(vf.netdev for vf in card.vfs()):
            pytest.skip(f"{card.pf} has no free VF: make some (sriov_numvfs)")
        card.warm_up()
    yield found
    for pf in down:
        ip("link", "set", pf, "down")


@pytest.fixture(autouse=True)
def _as_it_was(cards: list[Card]) -> Iterator[None]:
    """Compare every VF of every card before and after each test; VFs that were made anew are just counted."""
    before = [(card, card.generation, card.state()) for card in cards]
    yield
    faults = []
    for card, generation, state in before:
        same = card.generation == generation
        found = differences(state, card.state()) if same else recount(card, len(state))
        if found and IN_LAB:  # the operator's own VFs are not ours to make anew
            card.make_vfs(len(state))
        faults += [f"{card.pf}: {fault}" for fault in found]
    locks = sorted(path.name for path in LOCKS.glob("*")) if IN_LAB else []
    assert not faults, "the test did not leave the card as it was:\n" + "\n".join(faults)
    assert not locks, f"locks were left behind: {locks}"


def recount(card: Card, number: int) -> list[str]:
    here = len([vf for vf in card.vfs() if vf.netdev])
    return [] if here == number else [f"{here} VFs with a device, not {number}"]


@pytest.fixture
def node(cards: list[Card], tmp_path: Path) -> Iterator[Node]:
    one = Node(tmp_path / "node", cards)
    one.root.mkdir()
    yield one
    one.close()


@pytest.fixture
def card(cards: list[Card]) -> Card:
    """The first PF."""
    return cards[0]


@pytest.fixture
def igb(card: Card) -> Card:
    """The first PF, where its driver is the one whose refusals are known."""
    if card.driver != "igb":
        pytest.skip(f"{card.pf} has driver {card.driver}: what igb refuses, it may do")
    return card


@pytest.fixture
def second(cards: list[Card]) -> Card:
    """Another PF."""
    if len(cards) < 2:
        pytest.skip("needs two PFs: name them in SRIOV_FAST_PF, or `python -m lab pytest --pfs 2`")
    return cards[1]
