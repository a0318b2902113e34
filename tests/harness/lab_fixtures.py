"""Fixtures of the lab tier. A test that does not restore every VF fails; the lab then gets new VFs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.card import IN_LAB, LOCKS, SOCKET, Card, Node, State, differences, start_server
from harness.cri import networks
from harness.pod import ip, link, pfs
from harness.server import Server
from harness.waiting import wait_for
from lab import containerd


@pytest.fixture(scope="session")
def cards() -> Iterator[list[Card]]:
    """All PFs, in the state up, with each VF used once."""
    found = [Card(name) for name in pfs()]
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


@pytest.fixture(scope="session")
def known() -> dict[str, tuple[int, State]]:
    """The generation and state of each card after the last test."""
    return {}


@pytest.fixture(autouse=True)
def _as_it_was(cards: list[Card], known: dict[str, tuple[int, State]]) -> Iterator[None]:
    """Compare all VFs of all cards before and after each test; recreated VFs are only counted."""
    before = {card.pf: known.pop(card.pf, None) or (card.generation, card.state()) for card in cards}
    yield
    faults = []
    for card in cards:
        generation, state = before[card.pf]
        now = card.state()
        found = differences(state, now)
        if card.generation != generation:
            found = [] if card.ready() == len(state) else [f"{card.ready()} VFs, not {len(state)}"]
        if not found:
            known[card.pf] = card.generation, now
        elif IN_LAB:  # the tests must not recreate the operator's VFs
            card.make_vfs(len(state))
        faults += [f"{card.pf}: {fault}" for fault in found]
    assert not faults, "the test did not leave the card as it was:\n" + "\n".join(faults)
    if IN_LAB:  # the server releases a lock after its reply
        wait_for(lambda: not list(LOCKS.glob("*")), "locks were left behind")


class Resident:
    """The server that the tests share: the operator's server if one runs already."""

    def __init__(self, log: Path) -> None:
        self._log = log
        self._server: Server | None = None
        self.is_operators = SOCKET.exists()

    def start(self) -> None:
        """Start the server if none runs."""
        if not self._server and not self.is_operators:
            self._server = start_server(self._log)

    def stop(self) -> None:
        """Stop the server; skip the test if the server is the operator's."""
        if self._server:
            self._server.stop()
            self._server = None
        if self.is_operators:
            pytest.skip("a server of this machine runs: this test has one of its own")


@pytest.fixture(scope="session")
def resident(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Resident]:
    one = Resident(tmp_path_factory.mktemp("resident") / "log")
    yield one
    if not one.is_operators:
        one.stop()


@pytest.fixture
def node(
    request: pytest.FixtureRequest, cards: list[Card], tmp_path: Path, resident: Resident
) -> Iterator[Node]:
    """This machine as a node. Its plugin calls the shared server, unless the mark ``modes`` is set.

    With "process", there is no server. With "own", the test starts a server itself.
    """
    mark = request.node.get_closest_marker("modes")
    one = Node(tmp_path / "node", cards)
    one.root.mkdir()
    if mark is None:
        resident.start()
    elif mark.args == ("own",):
        resident.stop()
    else:
        one.socket = "none"
    yield one
    one.close()


@pytest.fixture(scope="session")
def runtime(cards: list[Card], tmp_path_factory: pytest.TempPathFactory) -> Iterator[containerd.Containerd]:
    """A containerd for all tests: its start takes long on an emulated machine."""
    if not IN_LAB:
        pytest.skip("runs containerd with the plugins in /opt/cni/bin: only in the lab")
    top = tmp_path_factory.mktemp("cri")
    with containerd.running(top / "containerd", containerd.Cri(networks(cards[0], top / "ipam"))) as running:
        yield running


@pytest.fixture
def card(cards: list[Card]) -> Card:
    """The first PF."""
    return cards[0]


@pytest.fixture
def igb(card: Card) -> Card:
    """The first PF, for tests of the refusals of its driver igb."""
    if card.driver != "igb":
        pytest.skip(f"{card.pf} has driver {card.driver}: what igb refuses, it may do")
    return card


@pytest.fixture
def second(cards: list[Card]) -> Card:
    """Another PF."""
    if len(cards) < 2:
        pytest.skip("needs two PFs: name them in SRIOV_FAST_PF, or `python -m lab pytest --pfs 2`")
    return cards[1]
