"""A PF with a driver that applies settings late and counts packets of VFs: a patched netdevsim.

``lab/netdevsim_faults.h`` is the patch. The VFs are veth devices, as in the netns tier.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from harness.netdevsim import delay_settings, simulated
from harness.scrape import scrape
from harness.veth import Node, ResidentNode
from harness.waiting import wait_for

VFS = 256
MAC = "02:5f:00:00:02:01"
ASKED: dict[str, Any] = {
    "mac": MAC,
    "vlan": 100,
    "vlanQoS": 5,
    "vlanProto": "802.1ad",
    "max_tx_rate": 1000,
    "spoofchk": "on",
    "trust": "on",
    "link_state": "enable",
}


class LateNode(ResidentNode):
    """A node with a simulated PF, and with two veth devices as VFs for pods."""

    def __init__(self, root: Path) -> None:
        super().__init__(root, vfs=2)
        self._card = ExitStack()
        self.nip("link", "del", "pf0")
        parent = self._card.enter_context(simulated(4712, VFS, self.enter()))
        links = json.loads(self.nip("-j", "-d", "link", "show"))
        (made,) = (link["ifname"] for link in links if link.get("parentdev") == parent)
        self.nip("link", "set", made, "name", "pf0", "up")
        self.nip("link", "set", "pf0", "vf", "0", "vlan", "0")
        self._name_parent(parent)
        self.reindex()

    def _name_parent(self, name: str) -> None:
        """Give the PF in the sysfs tree the device name that the kernel reports."""
        alias = self.tree.device().with_name(name)
        alias.symlink_to(self.tree.device())
        for index in range(self.tree.vfs):
            link = self.tree.device(index) / "physfn"
            link.unlink()
            link.symlink_to(os.path.relpath(alias, link.parent))

    def shown(self) -> dict[str, Any]:
        """Return the PF's settings for the first VF."""
        found: dict[str, Any] = self.link("pf0")["vfinfo_list"][0]
        return found

    def close(self) -> None:
        self._card.close()
        super().close()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LateNode]:
    top = tmp_path_factory.mktemp("late")
    Node.install(top)
    node = LateNode(top / "node")
    yield node
    node.close()


@pytest.fixture
def node(shared: LateNode) -> Iterator[LateNode]:
    """The shared node. A test must restore its VFs and the PF's settings."""
    before = shared.shown(), shared.state()
    yield shared
    delay_settings(0)
    shared.homed()
    assert (shared.shown(), shared.state(), shared.records()) == (*before, [])


def config(node: LateNode, **more: Any) -> dict[str, Any]:
    return node.conf(vf=0, ipam=node.host_local(delegate=False), **more)


def assert_asked(shown: dict[str, Any]) -> None:
    assert shown["address"] == MAC
    assert shown["vlan_list"] == [{"vlan": 100, "qos": 5, "protocol": "802.1ad"}]
    assert shown["rate"] == {"max_tx": 1000, "min_tx": 0}
    assert (shown["spoofchk"], shown["trust"], shown["link_state"]) == (True, True, "enable")


def test_settings_that_show_late(node: LateNode) -> None:
    """An ADD waits until the PF shows the requested settings. A DEL restores the previous ones."""
    pod, conf = node.pod(), config(node, **ASKED)
    before = node.shown()
    delay_settings(300)
    node.add(conf, pod)
    assert_asked(node.shown())
    node.delete(conf, pod)
    wait_for(lambda: node.shown() == before, "the settings are not restored")


def test_a_vlan_that_shows_late(node: LateNode) -> None:
    """An ADD without a MAC waits for the VLAN."""
    pod, conf = node.pod(), config(node, vlan=100)
    delay_settings(300)
    node.add(conf, pod)
    assert node.shown()["vlan_list"] == [{"vlan": 100}]
    delay_settings(0)
    node.delete(conf, pod)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"mac": MAC}, "pf0 holds 00:00:00:00:00:00 for VF 0"),
        ({"vlan": 100}, "vlan 100: pf0 holds 0 for VF 0"),
    ],
)
def test_settings_that_show_too_late(node: LateNode, asked: dict[str, Any], words: str) -> None:
    """The error of the ADD names the setting that the PF shows."""
    pod = node.pod()
    delay_settings(3000)
    done = node.run("ADD", config(node, **asked), pod)
    assert (done.status, done.json["code"]) == (1, 100), done
    assert words in done.json["msg"]


def test_counters_of_256_vfs(node: LateNode) -> None:
    """A scrape returns the counters of all 256 VFs."""
    node.again("--metrics", f"unix:{node.run_dir}/metrics.sock", "--vf-counters")
    samples = scrape(node.run_dir / "metrics.sock")
    assert samples["sriov_fast_scrape_errors_total{what=vf_counters}"] == 0
    for vf in range(VFS):
        for base, kind in ((1000, "packets"), (3000, "bytes"), (5000, "dropped")):
            for direction, more in (("rx", 0), ("tx", 1000)):
                name = f"sriov_fast_vf_{kind}_total{{direction={direction},pf=pf0,vf={vf}}}"
                assert samples[name] == base + more + vf
