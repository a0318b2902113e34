"""The DaemonSet's container on a node: its image, mounts and capabilities, and its upgrade.

containerd starts the container from the manifest as kubelet would. Only the directory of CNI plugins is
different: it belongs to the test.
"""

from __future__ import annotations

import json
import re
import tarfile
import threading
from collections.abc import Iterator
from email.parser import HeaderParser
from pathlib import Path
from typing import Any

import pytest

from harness.card import Card, Node, differences
from harness.daemonset import FIRST, SECOND, Daemon, daemon, serves
from harness.runtime import Outcome
from harness.scrape import scrape
from harness.waiting import wait_for
from lab import node_image

__all__ = ["daemon"]  # a fixture

pytestmark = pytest.mark.modes("own")

NUMBERS = {"NET_ADMIN": 12, "NET_RAW": 13, "SYS_ADMIN": 21}  # linux/capability.h
MOST_MEMORY = 40 << 10  # KiB
MOST_BYTES = 120e6  # of the image's files
MOST_BYTES_OF_CLIENT = 50e3  # with musl; with glibc: 700 kB, and a start three times as long
DPKG = Path("/var/lib/dpkg")  # the image contains packages of this guest
MADE = {"usr/bin/sriov", "usr/bin/sriov-fast", "etc/passwd", "etc/group", node_image.SBOM}
# Seconds to wait for a container that is replaced; an emulated machine under load takes a minute.
PATIENT = {"SRIOV_FAST_WAIT": "100"}


class Churn(threading.Thread):
    """A thread that repeatedly attaches and detaches a pod, on a separate network, until ``finish``."""

    def __init__(self, node: Node) -> None:
        super().__init__()
        self._node = node
        self._pod = node.pod()
        self._conf = network(node, name="churn")
        self._is_over = threading.Event()
        self.done: list[Outcome] = []

    def run(self) -> None:
        """Attach and detach the pod."""
        while not self._is_over.is_set():
            self.done += [self._node.run(verb, self._conf, self._pod, env=PATIENT) for verb in ("ADD", "DEL")]

    def finish(self) -> None:
        """Stop after a DEL; assert that all requests succeeded."""
        self._is_over.set()
        self.join()
        assert len(self.done) > 2
        assert not [done for done in self.done if done.status]


def network(node: Node, **more: Any) -> dict[str, Any]:
    """Return a configuration; the leases are in /var/lib/cni, which the container mounts."""
    return node.conf(ipam={"type": "host-local", "subnet": "10.81.0.0/24"}, **more)


def status(pid: int, key: str) -> str:
    text = Path(f"/proc/{pid}/status").read_text()
    return text.partition(f"{key}:")[2].split()[0]


def test_the_daemonset_attaches_pods_and_is_upgraded(node: Node, card: Card, daemon: Daemon) -> None:
    """No ADD or DEL fails while the container is killed, upgraded and rolled back.

    The container has the manifest's capabilities. GC releases the pod that the runtime does not list. GC
    fails if the container does not mount the namespaces.
    """
    before = card.state()
    upgrade(node, card, daemon)
    assert not differences(before, card.state())
    collect(node, daemon)
    assert not differences(before, card.state())


def upgrade(node: Node, card: Card, daemon: Daemon) -> None:
    conf = network(node)
    old, new = node.pod(), node.pod()
    pid = daemon.start(FIRST)
    wait_for(lambda: serves(node), "the container does not serve")
    assert int(status(pid, "CapEff"), 16) == sum(1 << number for number in NUMBERS.values())
    assert Path(f"/proc/{pid}/ns/pid").readlink() != Path("/proc/self/ns/pid").readlink()
    result = node.add(conf, old, args="CORES=1")
    assert node.addresses(old) == {result["ips"][0]["address"]}
    vf = node.owned(old)
    assert {int(mask, 16) for mask in card.masks(vf.number).values()} == {1 << 1}
    samples = scrape(Path("/run/sriov-fast/metrics.sock"))
    assert samples["sriov_fast_requests_total{code=0,verb=ADD}"] == 1

    churn = Churn(node)
    churn.start()
    daemon.end("SIGKILL")
    adding = node.start("ADD", conf, new, env=PATIENT)
    daemon.start(SECOND)
    done = node.finish(adding)
    assert done.status == 0, done
    assert node.owned(new).pci != vf.pci
    node.delete(conf, old, env=PATIENT)
    daemon.end()
    pid = daemon.start(FIRST)
    wait_for(lambda: serves(node), "the container does not serve")
    node.check(conf, new, done.json)
    node.delete(conf, new)
    churn.finish()
    assert node.records() == []
    assert int(status(pid, "VmRSS")) < MOST_MEMORY


def collect(node: Node, daemon: Daemon) -> None:
    conf = network(node)
    kept, lost = node.pod(), node.pod()
    for pod in (kept, lost):
        node.add(conf, pod)
    node.collect(kept)
    assert node.attached() == {kept}

    daemon.end()
    daemon.start(FIRST, without="namespaces")
    wait_for(lambda: serves(node), "the container does not serve")
    nothing = conf | {"cniVersion": "1.1.0", "cni.dev/valid-attachments": []}
    assert "is not visible here" in node.refused(5, "GC", nothing)
    assert node.attached() == {kept}
    node.delete(conf, kept)

    daemon.end()
    told = node.refused(5, "ADD", conf, kept, env={"SRIOV_FAST_WAIT": "1"})
    assert "does not know its interpreter" in told
    assert "server" in told


# --- the image


@pytest.mark.skipif(not node_image.OUTPUT.exists(), reason="needs the image: python -m lab pytest --image")
def test_the_image_is_small_and_lists_its_contents() -> None:
    """The SBOM lists exactly the packages and versions that the image's files belong to."""
    sizes, sbom = contents()
    assert sum(sizes.values()) < MOST_BYTES
    assert sizes["usr/bin/sriov"] < MOST_BYTES_OF_CLIENT
    owners = debian_owners()
    site = f"{node_image.SITE}/"
    found = {owners[source_of(name)] for name in sizes.keys() - MADE if not name.startswith(site)}
    found |= {
        f"pkg:pypi/{normal(match[1])}@{match[2]}"
        for name in sizes
        if (match := re.match(rf"{site}([^/]+)-([^/-]+)\.dist-info/", name))
    }
    assert found == {each["purl"] for each in sbom["components"]}
    assert {each.rpartition("@")[0] for each in found} >= {"pkg:pypi/sriov-fast", "pkg:deb/debian/libc6"}


def contents() -> tuple[dict[str, int], dict[str, Any]]:
    """Return the size of each file of the image, and its SBOM."""
    with tarfile.open(node_image.OUTPUT) as archive:
        blob = archive.extractfile(max(archive.getmembers(), key=lambda member: member.size))
        with tarfile.open(fileobj=blob) as layer:
            sbom = layer.extractfile(node_image.SBOM)
            assert sbom
            return {each.name: each.size for each in layer if not each.isdir()}, json.loads(sbom.read())


def debian_owners() -> dict[str, str]:
    """Return the package URL of each installed file."""
    stanzas = (HeaderParser().parsestr(text) for text in (DPKG / "status").read_text().split("\n\n"))
    purls = {each["Package"]: f"pkg:deb/debian/{each['Package']}@{each['Version']}" for each in stanzas}
    return {
        path: purls[each.stem.partition(":")[0]]
        for each in (DPKG / "info").glob("*.list")
        if each.stem.partition(":")[0] in purls
        for path in installed(each)
    }


def installed(listing: Path) -> Iterator[str]:
    """Yield the paths of a package's files with /usr merged."""
    for line in listing.read_text().splitlines():
        yield re.sub(r"^/(bin|sbin|lib|lib64)/", r"/usr/\1/", line).lstrip("/")


def source_of(name: str) -> str:
    """Return the path of a bytecode file's source; other paths are returned unchanged."""
    return re.sub(r"__pycache__/([^/]+)\.cpython-\d+\.pyc$", r"\1.py", name)


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
