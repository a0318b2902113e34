"""The DaemonSet's container on a node: its image, mounts and rights, and its work while it is replaced.

containerd starts the container from the manifest as kubelet would. Only the directory of CNI plugins is the
test's own.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from harness.card import IN_LAB, Card, Node, differences
from harness.runtime import Outcome
from harness.waiting import wait_for
from lab import containerd, node_image
from lab.containerd import Containerd

pytestmark = pytest.mark.modes("own")

MANIFEST = Path(__file__).resolve().parents[2] / "deploy/base/daemonset.yaml"
FIRST, SECOND = node_image.REFERENCE, node_image.REFERENCE.replace(":latest", ":next")
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
        self.log = plugins.with_name("daemon.log")
        self.pod = yaml.safe_load(MANIFEST.read_text())["spec"]["template"]["spec"]
        self.container = self.pod["containers"][0]

    def options(self, without: str) -> Iterator[str]:
        """Yield the options of ``ctr run`` that make the manifest's container, without one volume."""
        rights = self.container["securityContext"]
        assert (rights["privileged"], rights["readOnlyRootFilesystem"]) == (False, True)
        assert (self.pod["hostNetwork"], "hostPID" in self.pod) == (True, False)
        yield from ("--net-host", "--read-only", "--seccomp", f"--log-uri=file://{self.log}")
        wanted = rights["capabilities"]["add"]
        yield from (f"--cap-drop=CAP_{each}" for each in DEFAULT_CAPABILITIES if each not in wanted)
        yield from (f"--cap-add=CAP_{each}" for each in wanted)
        yield from (f"--env={each['name']}={each['value']}" for each in self.container["env"])
        paths = {each["name"]: Path(each["hostPath"]["path"]) for each in self.pod["volumes"]}
        paths["plugins"] = self.plugins
        for mount in self.container["volumeMounts"]:
            if mount["name"] != without:
                yield self._mount(paths[mount["name"]], mount)

    def _mount(self, source: Path, mount: dict[str, Any]) -> str:
        source.mkdir(parents=True, exist_ok=True)
        mode = "ro" if mount.get("readOnly") else "rw"
        spread = "rslave" if mount.get("mountPropagation") == "HostToContainer" else "rprivate"
        return f"--mount=type=bind,src={source},dst={mount['mountPath']},options=rbind:{spread}:{mode}"

    def start(self, image: str, *, without: str = "") -> int:
        """Start the container; return its process."""
        options = ["run", "--detach", "--snapshotter", "overlayfs", *self.options(without)]
        # ctr replaces the image's entry point by the arguments.
        self.runtime.ctr(*options, image, CONTAINER, *node_image.ENTRYPOINT, *self.container["args"])
        return int(self._task()[1])

    def end(self, signal: str = "SIGTERM") -> None:
        """End the container, as kubelet does before it starts the next one."""
        self.runtime.ctr("tasks", "kill", "--signal", signal, CONTAINER, check=False)
        wait_for(lambda: "RUNNING" not in self._task(), "the container does not end")
        self.runtime.ctr("tasks", "delete", "--force", CONTAINER, check=False)
        self.runtime.ctr("containers", "delete", CONTAINER, check=False)

    def _task(self) -> list[str]:
        """Return ID, process and state of its task; nothing without one."""
        lines = (line.split() for line in self.runtime.ctr("tasks", "list").stdout.splitlines())
        return next((words for words in lines if words[:1] == [CONTAINER]), [])


@pytest.fixture(scope="module")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Containerd]:
    """containerd with the image, under two names; where it is emulated, that takes longer than the tests."""
    if not IN_LAB:
        pytest.skip("starts a server in place of this machine's: only in the lab")
    if not node_image.OUTPUT.exists():
        pytest.skip("needs the image: python -m lab pytest --image")
    with containerd.running(tmp_path_factory.mktemp("daemonset")) as running:
        running.ctr("images", "import", "--snapshotter", "overlayfs", str(node_image.OUTPUT.resolve()))
        running.ctr("images", "tag", FIRST, SECOND)
        yield running


@pytest.fixture
def daemon(node: Node, runtime: Containerd) -> Iterator[Daemon]:
    plugins = node.root / "plugins"
    plugins.mkdir()
    node.plugin = plugins / "sriov"
    one = Daemon(runtime, plugins)
    yield one
    one.end("SIGKILL")
    print(one.log.read_text())


class Churn(threading.Thread):
    """A pod that is attached and detached again and again, by its own network, until ``finish``."""

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
            self.done += [self._node.run(verb, self._conf, self._pod) for verb in ("ADD", "DEL")]

    def finish(self) -> None:
        """End with a DEL, and see that no request has failed."""
        self._is_over.set()
        self.join()
        assert len(self.done) > 2
        assert not [done for done in self.done if done.status]


def network(node: Node, **more: Any) -> dict[str, Any]:
    """Return a configuration; the addresses are in /var/lib/cni, which the container mounts."""
    return node.conf(ipam={"type": "host-local", "subnet": "10.81.0.0/24"}, **more)


def serves(node: Node) -> bool:
    return node.plugin.exists() and node.run("VERSION", {}).status == 0


def metrics() -> str:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect("/run/sriov-fast/metrics.sock")
        client.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
        with client.makefile("rb") as file:
            return file.read().decode()


def status(pid: int, key: str) -> str:
    text = Path(f"/proc/{pid}/status").read_text()
    return text.partition(f"{key}:")[2].split()[0]


def test_the_daemonset_attaches_pods_and_is_upgraded(node: Node, card: Card, daemon: Daemon) -> None:
    """It has the manifest's rights; no ADD or DEL fails while it is killed, upgraded and rolled back."""
    before, conf = card.state(), network(node)
    old, new = node.pod(), node.pod()
    pid = daemon.start(FIRST)
    wait_for(lambda: serves(node), "the container does not serve")
    assert int(status(pid, "CapEff"), 16) == sum(1 << number for number in NUMBERS.values())
    assert Path(f"/proc/{pid}/ns/pid").readlink() != Path("/proc/self/ns/pid").readlink()
    result = node.add(conf, old, args="CORES=1")
    assert node.addresses(old) == {result["ips"][0]["address"]}
    vf = node.owned(old)
    assert {int(mask, 16) for mask in card.masks(vf.number).values()} == {1 << 1}
    assert 'sriov_fast_requests_total{code="0",verb="ADD"} 1.0' in metrics()

    churn = Churn(node)
    churn.start()
    daemon.end("SIGKILL")
    adding = node.start("ADD", conf, new)
    daemon.start(SECOND)
    done = node.finish(adding)
    assert done.status == 0, done
    assert node.owned(new).pci != vf.pci
    node.delete(conf, old)
    daemon.end()
    pid = daemon.start(FIRST)
    node.check(conf, new, done.json)
    node.delete(conf, new)
    churn.finish()
    assert node.records() == []
    assert not differences(before, card.state())
    assert int(status(pid, "VmRSS")) < MOST_MEMORY


def test_gc_and_the_mount_of_the_namespaces(node: Node, card: Card, daemon: Daemon) -> None:
    """GC releases the pod that the runtime does not name; without the mount it refuses and keeps the VF."""
    before, conf = card.state(), network(node)
    kept, lost = node.pod(), node.pod()
    daemon.start(FIRST)
    wait_for(lambda: serves(node), "the container does not serve")
    for pod in (kept, lost):
        node.add(conf, pod)
    node.collect(kept)
    assert node.attached() == {kept}

    daemon.end()
    daemon.start(FIRST, without="namespaces")
    nothing = conf | {"cniVersion": "1.1.0", "cni.dev/valid-attachments": []}
    assert "is not visible here" in node.refused(5, "GC", nothing)
    assert node.attached() == {kept}
    node.delete(conf, kept)
    assert not differences(before, card.state())

    daemon.end()
    told = node.refused(5, "ADD", conf, kept, env={"SRIOV_FAST_WAIT": "1"})
    assert "does not know its interpreter" in told
    assert "server" in told
