"""Several masters, of which some are no PF on this node."""

from __future__ import annotations

import pytest

from harness.veth import Node

pytestmark = pytest.mark.modes("resident")


@pytest.mark.parametrize("masters", [["pf0", "missing"], ["missing", "pf0"], ["lo", "pf0"]])
def test_503_a_missing_master_is_skipped(node: Node, masters: list[str]) -> None:
    """One configuration for nodes with different cards failed every ADD where one of the PFs was missing."""
    conf = node.conf(cniVersion="1.1.0", master=masters)
    assert node.run("STATUS", conf).status == 0
    done = node.run("ADD", conf, node.pod())
    assert (done.status, done.json["interfaces"][0]["pciID"]) == (0, node.tree.pci(0)), done
    other = next(name for name in masters if name != "pf0")
    log = node.root / "server.log"
    said = done.stderr + (log.read_text() if log.exists() else "")
    assert f"master '{other}' is no PF with SR-IOV" in said
    done = node.run("ADD", conf | {"vf": 1}, node.pod())
    assert done.status == 0, done


@pytest.mark.parametrize("masters", [["missing"], ["missing", "lo"]])
def test_503_add_and_status_refuse_in_the_same_words(node: Node, masters: list[str]) -> None:
    """STATUS said healthy where every ADD failed, and the other way round."""
    conf = node.conf(cniVersion="1.1.0", master=masters)
    added = node.run("ADD", conf, node.pod())
    status = node.run("STATUS", conf)
    assert (added.json["code"], status.json["code"]) == (7, 50)
    assert added.json["msg"] == status.json["msg"] != ""


def test_503_an_index_that_no_master_has(node: Node) -> None:
    """STATUS said healthy where the index that the configuration names is on none of the PFs."""
    conf = node.conf(cniVersion="1.1.0", vf=9)
    added = node.run("ADD", conf, node.pod())
    status = node.run("STATUS", conf)
    assert added.json["msg"] == status.json["msg"] == "vf 9: pf0 has no such VF"


@pytest.mark.parametrize("ipam", ["", "txipam"])
@pytest.mark.parametrize("master", ["missing", "lo", ["missing", "lo"]], ids=str)
def test_920_the_device_plugin_decides(node: Node, master: str | list[str], ipam: str) -> None:
    """A master that is not the PF of the VF was an error; the SR-IOV CNI ignores the key."""
    node.delegate("txipam", """[ $CNI_COMMAND = ADD ] && echo '{"ips":[{"address":"10.1.0.2/24"}]}'""")
    more = {"ipam": {"type": ipam, "delegate": True}} if ipam else {}
    pci, pod = node.tree.pci(1), node.pod()
    conf = node.conf(cniVersion="1.1.0", master=master, runtimeConfig={"deviceID": pci}, **more)
    done = node.run("ADD", conf, pod)
    assert (done.status, done.json["interfaces"][0]["pciID"]) == (0, pci), done
    node.check(conf, pod, done.json)
    node.delete(conf, pod)
    assert node.records() == []
