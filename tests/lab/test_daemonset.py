"""The DaemonSet's container on a node: its image, exactly its mounts and rights, and what it does to pods.

containerd runs the container as kubelet would. Only the directory of CNI plugins is the test's own.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from harness.card import IN_LAB, Card, Node, differences
from harness.waiting import wait_for
from lab import containerd, node_image
from lab.containerd import Containerd

pytestmark = pytest.mark.modes("own")

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
FIRST, SECOND = "lab.local/sriov-fast:1", "lab.local/sriov-fast:2"
CONTAINER = "sriov-fast"
# What containerd gives a container that asks for nothing (oci.defaultUnixCaps).
DEFAULT_CAPABILITIES = (
    *("CHOWN", "DAC_OVERRIDE", "FSETID", "FOWNER", "MKNOD", "NET_RAW", "SETGID", "SETUID", "SETFCAP"),
    *("SETPCAP", "NET_BIND_SERVICE", "SYS_CHROOT", "KILL", "AUDIT_WRITE"),
)
NUMBERS = {"NET_ADMIN": 12, "NET_RAW": 13, "SYS_ADMIN": 21}  # linux/capability.h
MOST_MEMORY = 40 << 10  # KiB


class Daemon:
    """The container of the DaemonSet on this node."""

    def __init__(self, runtime: Containerd, plugins: Path) -> None:
        self.runtime = runtime
        self.plugins = plugins
        self.pod = yaml.safe_load((DEPLOY / "base/daemonset.yaml").read_text())["spec"]["template"]["spec"]
        self.container = self.pod["containers"][0]

    def words(self, without: str = "") -> list[str]:
        """Return the options of ``ctr run`` that make the manifest's container, without one volume."""
        rights = self.container["securityContext"]
        assert (rights["privileged"], rights["readOnlyRootFilesystem"]) == (False, True)
        assert (self.pod["hostNetwork"], "hostPID" in self.pod) == (True, False)
        wanted = rights["capabilities"]["add"]
        words = ["--net-host", "--read-only", "--seccomp"]
        words += [f"--cap-drop=CAP_{each}" for each in DEFAULT_CAPABILITIES if each not in wanted]
        words += [f"--cap-add=CAP_{each}" for each in wanted]
        words += [f"--env={each['name']}={each['value']}" for each in self.container["env"]]
        paths = {each["name"]: each["hostPath"]["path"] for each in self.pod["volumes"]}
        paths["plugins"] = str(self.plugins)
        for mount in self.container["volumeMounts"]:
            if mount["name"] == without:
                continue
            source = Path(paths[mount["name"]])
            source.mkdir(parents=True, exist_ok=True)
            mode = "ro" if mount.get("readOnly") else "rw"
            spread = "rslave" if mount.get("mountPropagation") == "HostToContainer" else "rprivate"
            options = f"rbind:{spread}:{mode}"
            words.append(f"--mount=type=bind,src={source},dst={mount['mountPath']},options={options}")
        return words

    def start(self, image: str, *, without: str = "") -> int:
        """Start it and wait until it serves; return its process."""
        options = ["run", "--detach", "--snapshotter", "overlayfs", *self.words(without)]
        # ctr replaces the entry point of the image, too.
        self.runtime.ctr(*options, image, CONTAINER, *node_image.ENTRYPOINT, *self.container["args"])
        return self.pid()

    def pid(self) -> int:
        lines = [line.split() for line in self.runtime.ctr("tasks", "list").stdout.splitlines()]
        return next(int(line[1]) for line in lines if line[:1] == [CONTAINER])

    def end(self, signal: str = "SIGTERM") -> None:
        self.runtime.ctr("tasks", "kill", "--signal", signal, CONTAINER, check=False)
        wait_for(self._has_ended, "the container does not end")
        self.runtime.ctr("tasks", "delete", "--force", CONTAINER, check=False)
        self.runtime.ctr("containers", "delete", CONTAINER, check=False)

    def _has_ended(self) -> bool:
        lines = self.runtime.ctr("tasks", "list").stdout.splitlines()
        return not any(line.startswith(f"{CONTAINER} ") and "RUNNING" in line for line in lines)


@pytest.fixture
def daemon(node: Node) -> Iterator[Daemon]:
    if not IN_LAB:
        pytest.skip("would start a server in place of this machine's: only in the lab")
    site = next(Path("/opt/sriov-fast").glob("lib/python3*/site-packages"))
    archive = node.root / "image.tar"
    size = node_image.build(Path("/"), site, archive, FIRST, compress=False)
    assert size < 120e6
    with containerd.running(node.root / "containerd") as runtime:
        runtime.ctr("images", "import", "--snapshotter", "overlayfs", str(archive))
        archive.unlink()
        runtime.ctr("images", "tag", FIRST, SECOND)
        plugins = node.root / "plugins"
        plugins.mkdir()
        node.plugin = plugins / "sriov"
        one = Daemon(runtime, plugins)
        yield one
        one.end("SIGKILL")


def serves(node: Node) -> bool:
    return node.plugin.exists() and node.run("VERSION", {}).status == 0


def network(node: Node, **more: Any) -> dict[str, Any]:
    """Return a configuration; the addresses are in /var/lib/cni, which the container mounts."""
    return node.conf(ipam={"type": "host-local", "subnet": "10.81.0.0/24"}, **more)


def metrics() -> str:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect("/run/sriov-fast/metrics.sock")
        client.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
        with client.makefile("rb") as file:
            return file.read().decode()


def status(pid: int, key: str) -> str:
    text = Path(f"/proc/{pid}/status").read_text()
    return text.partition(f"{key}:")[2].split()[0]


def test_a_node_with_the_daemonset(node: Node, card: Card, daemon: Daemon) -> None:
    """ADD, DEL, CHECK and GC; killed, replaced by another version and rolled back while pods run."""
    before, conf = card.state(), network(node)
    pods = [node.pod() for _ in range(3)]
    pid = daemon.start(FIRST)
    wait_for(lambda: serves(node), "it does not serve")
    assert int(status(pid, "CapEff"), 16) == sum(1 << number for number in NUMBERS.values())
    assert Path(f"/proc/{pid}/ns/pid").readlink() != Path("/proc/self/ns/pid").readlink()
    result = node.add(conf, pods[0], args="CORES=1")
    assert node.addresses(pods[0]) == {result["ips"][0]["address"]}
    vf = node.owned(pods[0])
    assert set(card.masks(vf.number).values()) == {"2"}
    assert 'sriov_fast_requests_total{code="0",verb="ADD"} 1.0' in metrics()

    # killed, and replaced by another version while an ADD waits
    daemon.end("SIGKILL")
    adding = node.start("ADD", conf, pods[1])
    daemon.start(SECOND)
    done = node.finish(adding)
    assert done.status == 0, done
    assert node.owned(pods[1]).pci != vf.pci
    node.delete(conf, pods[0])
    assert node.run("CHECK", conf | {"prevResult": done.json}, pods[1]).status == 0

    # rolled back; GC finds the pod that the runtime does not know any more
    daemon.end()
    pid = daemon.start(FIRST)
    node.add(conf, pods[2])
    node.collect([(pods[2], "eth0")])
    assert list(node.records()) == [pods[2]]
    node.delete(conf, pods[2])
    assert node.records() == {}
    assert not differences(before, card.state())
    assert int(status(pid, "VmRSS")) < MOST_MEMORY

    # without the mount of the namespaces
    daemon.end()
    daemon.start(FIRST, without="namespaces")
    node.add(conf, pods[2])
    listed = {"cni.dev/valid-attachments": []}
    assert "is not visible here" in node.refused(5, "GC", network(node, cniVersion="1.1.0") | listed)
    assert list(node.records()) == [pods[2]]
    node.delete(conf, pods[2])
    assert not differences(before, card.state())
