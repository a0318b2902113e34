"""CHECK and the operator's commands, on a real card."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import pytest

from harness.card import Card, Node
from harness.pod import ip, link
from sriov_fast import cli

MAC, OTHER = "02:5f:00:00:00:01", "02:5f:00:00:00:02"
VF = 1

Change = tuple[str, Callable[[], object], Callable[[], object]]


def changes(card: Card, pod: str, address: str) -> list[Change]:
    """Return external changes of an attachment: the text expected from CHECK, the change, its reversal."""
    own = link("eth0", pod)["address"]
    irq, mask = next(iter(card.masks(VF).items()))
    affinity = Path(f"/proc/irq/{irq}/smp_affinity")
    inside = ("-n", pod, "link", "set", "eth0")
    ips = ("-n", pod, "address")
    return [
        ("vlan 101", lambda: card.set(VF, "vlan", "101"), lambda: card.set(VF, "vlan", "100")),
        ("spoofchk", lambda: card.set(VF, "spoofchk", "off"), lambda: card.set(VF, "spoofchk", "on")),
        (f"interrupt {irq}", lambda: affinity.write_text("2"), lambda: affinity.write_text(mask)),
        (OTHER, lambda: ip(*inside, "address", OTHER), lambda: ip(*inside, "address", own)),
        ("mtu is 1300", lambda: ip(*inside, "mtu", "1300"), lambda: ip(*inside, "mtu", "1400")),
        (
            f"address {address}",
            lambda: ip(*ips, "del", address, "dev", "eth0"),
            lambda: ip(*ips, "add", address, "dev", "eth0"),
        ),
        ("is down", lambda: ip(*inside, "down"), lambda: ip(*inside, "up")),
    ]


def test_check_names_what_was_changed(node: Node, card: Card) -> None:
    """CHECK names each change, and succeeds after the reversal of all."""
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("needs two CPUs, to move an interrupt")
    pod = node.pod()
    # CHECK compares the MTU in results since 1.1.0; IPAM plugins that are executed support only 1.0.0
    conf = node.conf(cniVersion="1.1.0", vf=VF, vlan=100, spoofchk="on", mtu=1400, cores="0")
    conf["ipam"] = node.host_local(delegate=False)
    result = node.add(conf, pod)
    conf["prevResult"] = result
    assert node.run("CHECK", conf, pod).status == 0
    for words, change, back in changes(card, pod, result["ips"][0]["address"]):
        change()
        error = node.refused(103, "CHECK", conf, pod)
        assert words in error
        assert ";" not in error.partition("\n")[0], f"more than was changed: {error}"
        back()
    done = node.run("CHECK", conf, pod)
    assert done.status == 0, done
    node.delete(conf, pod)
    node.refused(103, "CHECK", conf, pod)


def test_check_of_a_mac_that_the_pf_holds(node: Node, card: Card) -> None:
    pod = node.pod()
    conf = node.conf(vf=VF, mac=MAC)
    conf["prevResult"] = node.add(conf, pod)
    assert node.run("CHECK", conf, pod).status == 0
    card.set(VF, "mac", OTHER)
    error = node.refused(103, "CHECK", conf, pod)
    assert f"mac {OTHER}" in error
    node.delete(conf, pod)


# --- the operator's commands


def command(*words: str) -> str:
    """Run the operator's command in this process: an emulated interpreter takes ten seconds to start."""
    with redirect_stdout(StringIO()) as stdout:
        assert cli.main(list(words)) == 0, stdout.getvalue()
    return stdout.getvalue()


def test_the_operator_sees_it(node: Node, card: Card) -> None:
    pod = node.pod()
    conf = node.conf(vf=VF, vlan=42, mac="02:00:00:00:42:01")
    node.add(conf, pod)
    shown = {item["pf"]: item for item in json.loads(command("vfs", "--json"))}
    assert set(shown) >= {one.pf for one in node.cards}
    vfs = shown[card.pf]["vfs"]
    assert [vf["index"] for vf in vfs] == [vf.number for vf in card.vfs()]
    assert (vfs[VF]["pci"], vfs[VF]["mac"], vfs[VF]["vlan"]) == (card.vf(VF).pci, conf["mac"], 42)
    owners = {vf["index"]: vf["owner"] for vf in vfs if vf["owner"]}
    assert owners == {VF: {"containerID": pod, "ifname": "eth0"}}

    line = next(line for line in command("doctor").splitlines() if f"PF {card.pf}:" in line)
    assert line.startswith("OK"), line
    assert card.driver in line
    assert "1 in pods" in line
    node.delete(conf, pod)
    said = command("doctor")
    assert not [text for text in ("has VLAN", "on the PF and", "of another VF") if text in said], said
