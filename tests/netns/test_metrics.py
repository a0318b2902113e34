"""The metrics of the resident server, read through its socket."""

from __future__ import annotations

import pytest

from harness.scrape import Samples
from harness.scrape import scrape as socket_scrape
from harness.veth import MakeNode, ResidentNode
from harness.waiting import wait_for

pytestmark = [pytest.mark.modes("resident"), pytest.mark.fresh]


def scrape(node: ResidentNode) -> Samples:
    return socket_scrape(node.run_dir / "metrics.sock")


@pytest.fixture
def make_node(make_node: MakeNode) -> MakeNode:
    """A function that makes a node with a metrics socket."""

    def make(vfs: int) -> ResidentNode:
        node: ResidentNode = make_node(vfs=vfs)
        node.again("--metrics", f"unix:{node.run_dir}/metrics.sock")
        return node

    return make


def states(samples: Samples) -> dict[str, int]:
    prefix = "sriov_fast_vfs{pf=pf0,state="
    return {key.removeprefix(prefix)[:-1]: int(value) for key, value in samples.items() if prefix in key}


def counted(node: ResidentNode, verb: str, number: int) -> Samples:
    """Scrape until the server has counted a number of requests; it counts after the reply."""
    found: Samples = {}

    def is_counted() -> bool:
        found.update(scrape(node))
        name, of = "sriov_fast_requests_total{", f"verb={verb}"
        return sum(value for key, value in found.items() if key.startswith(name) and of in key) == number

    wait_for(is_counted, f"{number} {verb} are not counted")
    return found


def test_a_scrape_shows_requests_and_vfs(node: ResidentNode) -> None:
    assert (node.run_dir / "metrics.sock").stat().st_mode & 0o777 == 0o600
    pod, conf = node.pod(), node.conf(ipam=node.host_local())
    before = scrape(node)
    assert states(before) == {"free": 2, "attached": 0, "returning": 0, "used": 0, "broken": 0}
    node.nip("addr", "add", "192.0.2.1/24", "dev", node.tree.netdev(1))
    node.add(conf, pod)
    assert node.run("ADD", conf, pod).json["code"] == 101
    after = counted(node, "ADD", 2)
    assert states(after) == {"free": 0, "attached": 1, "returning": 0, "used": 1, "broken": 0}
    assert after["sriov_fast_requests_total{code=0,verb=ADD}"] == 1
    assert after["sriov_fast_requests_total{code=101,verb=ADD}"] == 1
    assert after["sriov_fast_request_seconds_count{verb=ADD}"] == 2
    assert after["sriov_fast_step_seconds_count{step=move,verb=ADD}"] == 1
    assert 0 < after["sriov_fast_step_seconds_sum{step=move,verb=ADD}"] < 60
    assert after["sriov_fast_journal_records{state=attached}"] == 1
    assert 0 < after["sriov_fast_journal_oldest_seconds{state=attached}"] < 600
    assert after["sriov_fast_scrape_errors_total{what=pf}"] == 0
    assert after["sriov_fast_requests_queued{}"] == 0
    node.delete(conf, pod)
    last = counted(node, "DEL", 1)
    assert states(last)["attached"] == 0
    assert last["sriov_fast_requests_total{code=0,verb=DEL}"] == 1
    node.server.stop()
    assert not (node.run_dir / "metrics.sock").exists()


def test_a_record_that_cannot_be_used_is_broken(node: ResidentNode) -> None:
    path = node.run_dir / "vfs" / f"{node.tree.pci(0)}~other~eth0"
    path.parent.mkdir(exist_ok=True)
    path.write_text("no JSON")
    assert states(scrape(node))["broken"] == 1


def test_a_userspace_vf_without_an_attachment_is_free(node: ResidentNode) -> None:
    for index, driver in enumerate(("vfio-pci", "other")):
        node.tree.bind(index, driver)
    pod, conf = node.pod(), node.conf(master=None, deviceID=node.tree.pci(0))
    before = states(scrape(node))
    assert before == {"free": 1, "attached": 0, "returning": 0, "used": 1, "broken": 0}
    node.add(conf, pod)
    assert states(scrape(node)) == before | {"free": 0, "attached": 1}


def test_a_scrape_of_256_vfs(make_node: MakeNode) -> None:
    """A scrape of 256 VFs, half of them up, takes at most 20 ms of CPU time.

    The limit is for the shortest of 20 scrapes, since load on the machine adds to most of them.
    """
    node = make_node(vfs=256)
    lines = [f"link set {node.tree.netdev(index)} up" for index in range(128)]
    node.nip("-batch", "-", stdin="\n".join(lines))
    scrape(node)
    spent = []
    for _ in range(20):
        begin = node.server.cpu()
        assert states(scrape(node))["free"] == 256
        spent.append(node.server.cpu() - begin)
    assert min(spent) < 0.02, f"{min(spent) * 1000:.1f} ms"
