"""The plugin with txipam: an address service in the node's host namespace, and its decisions."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from txipam_service import AUTHORITY, FakeService, Reply, problem

from harness.veth import Node

pytestmark = [pytest.mark.modes("resident"), pytest.mark.fresh]  # a server keeps its connections

HOST = "10.55.206.20"
FIRST = "10.55.206.46/26"


@pytest.fixture
def service(node: Node) -> Iterator[FakeService]:
    node.nip("link", "set", "lo", "up")
    AUTHORITY.cert_pem.write_to_path(str(node.root / "ca.pem"))
    node.search = str(node.root / "nothing")  # no executable is needed
    with closing(FakeService(netns=node.host)) as made:
        yield made


def conf(node: Node, service: FakeService, **more: Any) -> dict[str, Any]:
    ipam = {
        "type": "txipam",
        "remote": service.url,
        "ca": str(node.root / "ca.pem"),
        "timeout": 5,
        "retries": 1,
    }
    return node.conf(**{"cniVersion": "1.1.0", "ipam": ipam} | more)


def args(pod: str, more: str = "") -> str:
    return f"IgnoreUnknown=1;PodID={pod};HostIP={HOST}{more}"


def owed(node: Node) -> list[Path]:
    found = (node.root / "state/pending").glob("*/*~*")
    return [path for path in found if not json.loads(path.read_text())["live"]]


def test_the_first_readme(node: Node, service: FakeService) -> None:
    before, pod = node.snapshot(), node.pod()
    ask = conf(node, service, cniVersion=None)
    assert node.add(ask, pod, args=args(pod)) == {
        "ip4": {"ip": FIRST, "gateway": "10.55.206.1"},
        "dns": {},
    }
    assert node.addresses("eth0", pod) == [FIRST]
    node.delete(ask, pod, args=f"PodID={pod};HostIP={HOST}")
    node.homed()
    node.end(pod)
    assert node.snapshot() == before
    assert service.allocations == {}
    assert service.methods() == ["POST", "DELETE"]


def test_every_verb(node: Node, service: FakeService) -> None:
    pod, ask = node.pod(), conf(node, service)
    service.more = {"routes": [{"dst": "0.0.0.0/0"}], "dns": {"nameservers": ["10.0.0.53"]}}
    found = node.add(ask, pod, args=args(pod))
    assert found["ips"] == [{"address": FIRST, "gateway": "10.55.206.1", "interface": 0}]
    assert found["dns"] == {"nameservers": ["10.0.0.53"]}
    assert node.routes(pod, "default")[0]["gateway"] == "10.55.206.1"
    assert node.run("CHECK", ask | {"prevResult": found}, pod, args=args(pod)).status == 0
    assert node.run("STATUS", ask).status == 0
    service.allocations.clear()
    assert "never heard of it" in node.refused(103, "CHECK", ask | {"prevResult": found}, pod, args=args(pod))
    node.collect(ask)
    assert node.records() == []


def test_the_service_chooses_the_vf(node: Node, service: FakeService) -> None:
    service.more = {"extra": {"vf": 1}}
    pod = node.pod()
    found = node.add(conf(node, service, vf=0), pod, args=args(pod, ";VF=0"))
    assert found["interfaces"][0]["pciID"] == node.tree.pci(1)
    assert "extra" not in found


def test_a_vf_that_is_in_use_costs_no_address(node: Node, service: FakeService) -> None:
    service.more = {"extra": {"vf": 1}}
    one, two = node.pod(), node.pod()
    node.add(conf(node, service), one, args=args(one))
    before = node.snapshot()
    node.refused(11, "ADD", conf(node, service), two, args=args(two))
    assert node.snapshot() == before
    assert [owner[1] for owner in service.allocations] == [one]


@pytest.mark.parametrize("extra", [{"vlan": 100}, {"mac": "02:00:00:00:00:77"}])
def test_what_the_pf_refuses_costs_no_address(
    node: Node, service: FakeService, extra: dict[str, Any]
) -> None:
    """The address is returned if the PF refuses the service's settings, as a veth PF does."""
    service.more = {"extra": extra}
    before, pod = node.state(), node.pod()
    done = node.run("ADD", conf(node, service), pod, args=args(pod))
    assert done.status == 1
    assert (node.state(), node.records(), service.allocations) == (before, [], {})


@pytest.mark.parametrize(
    ("fault", "code"), [(problem(409, "exhausted"), 11), (problem(404, "unknown-host"), 7), (Reply(500), 11)]
)
def test_a_refusal_touches_nothing(node: Node, service: FakeService, fault: Reply, code: int) -> None:
    before, pod = node.snapshot(), node.pod()
    service.always = fault
    node.refused(code, "ADD", conf(node, service), pod, args=args(pod))
    node.end(pod)
    assert node.snapshot() == before


def test_del_while_the_service_is_down(node: Node, service: FakeService) -> None:
    """A DEL returns the VF at once, and the address when the service is available again."""
    before, pod, ask = node.state(), node.pod(), conf(node, service)
    node.add(ask, pod, args=args(pod))
    service.stop_listening()
    node.delete(ask, pod, args=args(pod))
    node.homed()
    assert (node.state(), node.records()) == (before, [])
    assert len(owed(node)) == 1
    assert len(service.allocations) == 1
    service.listen_again()
    node.collect(ask)
    assert (service.allocations, owed(node)) == ({}, [])


def test_what_is_told_is_told_to_who_asked(node: Node, service: FakeService) -> None:
    """Messages go to the stderr and the log file of their request, with its pod."""
    log = node.root / "sriov.log"
    ask, pods = conf(node, service, logFile=str(log)), [node.pod() for _ in range(2)]
    for pod in pods:
        node.add(ask, pod, args=args(pod))
    service.stop_listening()
    for pod in pods:
        said = node.delete(ask, pod, args=args(pod)).stderr.splitlines()
        (line,) = [line for line in said if "the address is given back later" in line]
        assert f"containerID={pod} ifname=eth0 network={ask['name']}" in line
        assert line in log.read_text()
    service.listen_again()
    valid = {"cni.dev/valid-attachments": []}
    told = node.run("GC", ask | valid).stderr
    assert told.count("an address that was owed has been given back") == 2
    assert service.allocations == {}


def test_a_vf_is_free_for_the_next_pod_while_the_service_is_down(node: Node, service: FakeService) -> None:
    ask, pods = conf(node, service, vf=0), [node.pod() for _ in range(2)]
    node.add(ask, pods[0], args=args(pods[0]))
    service.stop_listening()
    node.delete(ask, pods[0], args=args(pods[0]))
    assert "refuses connections" in node.refused(11, "ADD", ask, pods[1], args=args(pods[1]))
    service.listen_again()
    assert node.add(ask, pods[1], args=args(pods[1]))["ips"][0]["address"] != FIRST
    node.delete(ask, pods[1], args=args(pods[1]))
    assert (service.allocations, owed(node)) == ({}, [])


def test_gc_after_everything_was_forgotten(node: Node, service: FakeService) -> None:
    """GC returns the addresses without a journal, as after a reboot: the host's address is stored."""
    pod, ask = node.pod(), conf(node, service)
    node.add(ask, pod, args=args(pod))
    node.settle()
    for name in node.records():
        (node.run_dir / "vfs" / name).unlink()
    node.collect(ask)
    assert service.allocations == {}


def test_the_executable_is_still_there_for_who_asks(node: Node, service: FakeService) -> None:
    node.search = str(node.root / "bin")
    node.delegate("txipam", 'echo "{\\"ips\\":[{\\"address\\":\\"10.9.9.9/24\\"}]}"')
    ask, pod = conf(node, service), node.pod()
    ask["ipam"]["delegate"] = True
    assert node.add(ask, pod)["ips"][0]["address"] == "10.9.9.9/24"
    assert service.seen == []
