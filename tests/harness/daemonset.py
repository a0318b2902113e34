"""The DaemonSet's container on a node: containerd starts it from the manifest, as kubelet would."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from harness.card import Node
from harness.waiting import wait_for
from lab import node_image
from lab.containerd import Containerd

MANIFEST = Path(__file__).resolve().parents[2] / "deploy/base/daemonset.yaml"
FIRST, SECOND = node_image.REFERENCE, node_image.REFERENCE.replace(":latest", ":next")
CONTAINER = "sriov-fast"
# The capabilities of a container by default (containerd: oci.defaultUnixCaps).
DEFAULT_CAPABILITIES = (
    *("CHOWN", "DAC_OVERRIDE", "FSETID", "FOWNER", "MKNOD", "NET_RAW", "SETGID", "SETUID", "SETFCAP"),
    *("SETPCAP", "NET_BIND_SERVICE", "SYS_CHROOT", "KILL", "AUDIT_WRITE"),
)


class Daemon:
    """The container of the DaemonSet on this node."""

    def __init__(self, runtime: Containerd, plugins: Path) -> None:
        self.runtime = runtime
        self.plugins = plugins
        self.log = plugins.with_name("daemon.log")
        self.pod = yaml.safe_load(MANIFEST.read_text())["spec"]["template"]["spec"]
        self.container = self.pod["containers"][0]

    def options(self, without: str) -> Iterator[str]:
        """Yield the options of ``ctr run`` for the manifest's container, except the volume ``without``."""
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
        """Start the container; return its process ID."""
        pid = self.log.with_suffix(".pid")
        options = ["run", "--detach", f"--pid-file={pid}", "--snapshotter=overlayfs", *self.options(without)]
        # ctr replaces the image's entry point by the arguments.
        self.runtime.ctr(*options, image, CONTAINER, *node_image.ENTRYPOINT, *self.container["args"])
        return int(pid.read_text())

    def end(self, signal: str = "SIGTERM") -> None:
        """End the container, as kubelet does before it starts the next one."""
        self.runtime.ctr("tasks", "kill", "--signal", signal, CONTAINER, check=False)
        wait_for(lambda: not self._runs(), "the container does not end")
        self.runtime.ctr("tasks", "delete", "--force", CONTAINER, check=False)
        self.runtime.ctr("containers", "delete", CONTAINER, check=False)

    def _runs(self) -> bool:
        lines = (line.split() for line in self.runtime.ctr("tasks", "list").stdout.splitlines())
        return any(words[0] == CONTAINER and "RUNNING" in words for words in lines)


@pytest.fixture
def daemon(node: Node, runtime: Containerd) -> Iterator[Daemon]:
    """A DaemonSet with a container that is not started; the image has two names."""
    if not node_image.OUTPUT.exists():
        pytest.skip("needs the image: python -m lab pytest --image")
    runtime.ctr("images", "import", "--snapshotter", "overlayfs", str(node_image.OUTPUT.resolve()))
    runtime.ctr("images", "tag", FIRST, SECOND)
    plugins = node.root / "plugins"
    plugins.mkdir()
    node.plugin = plugins / "sriov"
    one = Daemon(runtime, plugins)
    yield one
    one.end("SIGKILL")
    print(one.log.read_text())


def serves(node: Node) -> bool:
    return node.plugin.exists() and node.run("VERSION", {}).status == 0
