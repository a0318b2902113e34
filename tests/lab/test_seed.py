"""The scenario of the plugin's first README, with host-local in the place of txipam."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.card import RECORDS, Card, Node, State, delegate, differences
from harness.pod import ip, link, links, try_ip
from harness.waiting import wait_for
from lab import demo_card

pytestmark = pytest.mark.modes("own")  # without a server

ADD = (
    "CNI_PATH=$CNI_PATH CNI_COMMAND=ADD CNI_NETNS=/var/run/netns/1234 CNI_CONTAINERID=1234 CNI_IFNAME=eth1 "
    'CNI_ARGS="IgnoreUnknown=1;PodID=1234;HostIP=10.55.206.20;CORES={cores}" bin/sriov < {conf}'
)
DEL = (
    "CNI_PATH=$CNI_PATH CNI_COMMAND=DEL CNI_NETNS=/var/run/netns/1234 CNI_CONTAINERID=1234 CNI_IFNAME=eth1 "
    'CNI_ARGS="PodID=1234;HostIP=10.55.206.20" bin/sriov < {conf}'
)


@pytest.fixture
def readme(node: Node, card: Card) -> Iterator[Path]:
    """The README's directory: bin/ with the plugins, the configuration, the namespace 1234."""
    (node.root / "bin").mkdir()
    (node.root / "bin/sriov").symlink_to(node.plugin)
    host_local = delegate("host-local")
    assert host_local, "needs the plugin host-local"
    (node.root / "bin/host-local").symlink_to(host_local)
    ipam = node.host_local("10.55.206.0/26", delegate=True, rangeStart="10.55.206.46", gateway="10.55.206.1")
    conf = {"name": "mynet", "type": "sriov", "master": card.pf, "ipam": ipam}
    (node.root / "txnet.conf").write_text(json.dumps(conf, indent=4))
    ip("netns", "add", "1234")
    yield node.root
    try_ip("netns", "del", "1234")


def say(line: str, directory: Path) -> bytes:
    environment = {"CNI_PATH": f"{directory}/bin", "PATH": os.environ["PATH"]}
    command = ["/bin/sh", "-c", line]
    done = subprocess.run(command, cwd=directory, env=environment, capture_output=True, check=False)
    assert done.returncode == 0, done
    return done.stdout


def owned(card: Card) -> int:
    name = next(name for name in os.listdir(RECORDS) if name.endswith("~1234~eth1"))
    return next(vf.number for vf in card.vfs() if name.startswith(vf.pci))


def only(state: State, index: int) -> State:
    return {pci: known for pci, known in state.items() if known["index"] == index}


def test_as_in_the_readme(node: Node, card: Card, readme: Path) -> None:
    online = demo_card.parse_cpus(Path("/sys/devices/system/cpu/online").read_text())
    cores, _ = demo_card.choose_cores((1, 2, 3, 4), online)
    before = card.state()
    printed = json.loads(say(ADD.format(cores=demo_card.listed(cores), conf="txnet.conf"), readme))
    assert printed == {"ip4": {"ip": "10.55.206.46/26", "gateway": "10.55.206.1"}, "dns": {}}

    index = owned(card)
    shown = link("eth1", "1234")
    assert "UP" in shown["flags"]
    assert node.addresses("1234", "eth1") == {"10.55.206.46/26"}
    wait_for(lambda: link("eth1", "1234")["operstate"] == "UP", "eth1's carrier")

    numbers = sorted(
        int(path.name) for path in Path(f"/sys/class/net/{card.pf}/device/virtfn{index}/msi_irqs").iterdir()
    )
    assert len(numbers) > 1
    pinned = {
        number: demo_card.cpus_of_mask(Path(f"/proc/irq/{number}/smp_affinity").read_text())
        for number in numbers
    }
    assert pinned == {number: {cores[i % len(cores)]} for i, number in enumerate(numbers)}
    others = {pci: known for pci, known in before.items() if known["index"] != index}
    assert not differences(others, {pci: card.state()[pci] for pci in others})

    assert say(DEL.format(conf="txnet.conf"), readme) == b""
    assert [item["ifname"] for item in links("1234")] == ["lo"]
    assert node.leases("mynet") == []
    assert not [name for name in os.listdir(RECORDS) if "~1234~" in name]
    assert not differences(only(before, index), only(card.state(), index))


def test_a_core_that_is_not_online_is_named_and_nothing_is_touched(node: Node, card: Card) -> None:
    before = card.state()
    pod = node.pod()
    error = node.refused(7, "ADD", node.conf(ipam=node.host_local()), pod, args="CORES=1,4095")
    assert "4095" in error
    assert not differences(before, card.state())
    assert node.leases() == []
