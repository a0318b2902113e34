"""What the benchmarks of whole processes stand on: VFs, pods, and what a runtime tells a plugin about them.

``Veth`` is the ``netns`` tier's node, whose VFs are veth pairs. ``Igb`` is a card with real VFs, the lab's or
the one that ``SRIOV_FAST_PF`` names.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any, Protocol

from harness import card, veth
from harness import pod as netns

ON_CARD = bool(os.environ.get("SRIOV_FAST_PF"))
DELEGATES = next((path for path in ("/usr/lib/cni", "/opt/cni/bin") if os.access(path, os.X_OK)), "")
# As far as possible where a node's /run is: in memory.
MEMORY = "/dev/shm" if os.path.isdir("/dev/shm") else None
SUBNET = "10.77.0.0/24"
# What the floor sets where no IPAM plugin is executed: one of the subnet, and its gateway.
ADDRESS = "10.77.0.9/24,10.77.0.1"


class Ground(Protocol):
    """A host with VFs, and pods; ``namespace`` is the host's, "" where that is the one that we are in."""

    root: Path
    pods: list[str]
    namespace: str

    def netdev(self, index: int) -> str:
        """Return the name of a VF's network device in the host."""

    def pci(self, index: int) -> str:
        """Return a VF's PCI address."""

    def masters(self) -> str | list[str]:
        """Return the PF, or the PFs."""

    def environment(self, verb: str, pod: str) -> dict[str, str]:
        """Return what a runtime sets for a plugin, and we for ours."""

    def state(self) -> Any:
        """Return all of the VFs that a verb could leave changed."""

    def close(self) -> None:
        """Leave nothing behind."""


class Veth:
    """Veth pairs in place of VFs; sysfs is a directory."""

    def __init__(self, root: Path, vfs: int, pods: int) -> None:
        self.root = root
        self._node = veth.Node(root / "node", vfs=vfs)
        self._node.socket = ""  # the server that SRIOV_FAST_RUN leads to
        self._node.search = f"{root}/bin:{DELEGATES}"
        self._node.allow(dataDir=[root])
        self.pods = [self._node.pod() for _ in range(pods)]
        self.namespace = f"/run/netns/{self._node.host}"

    def netdev(self, index: int) -> str:
        return self._node.tree.netdev(index)

    def pci(self, index: int) -> str:
        return self._node.tree.pci(index)

    def masters(self) -> str | list[str]:
        return self._node.tree.pf

    def environment(self, verb: str, pod: str) -> dict[str, str]:
        return self._node.environment(verb, pod)

    def state(self) -> Any:
        return self._node.state()

    def close(self) -> None:
        self._node.close()


class Igb:
    """The VFs of real cards. The journal is our own, so that of the node stays as it is."""

    namespace = ""

    def __init__(self, root: Path, vfs: int, pods: int) -> None:
        self.root = root
        self._etc = root / "etc"
        self._etc.mkdir()
        (self._etc / "plugin.toml").write_text(f'[allow]\ndataDir = ["{root}"]\n')
        self._cards = [card.Card(name) for name in os.environ["SRIOV_FAST_PF"].replace(",", " ").split()]
        for each in self._cards:
            netns.ip("link", "set", each.pf, "up")
            each.warm_up()
        self._vfs = [vf for each in self._cards for vf in each.vfs() if vf.netdev]
        assert len(self._vfs) >= vfs, f"{vfs} VFs are needed, {len(self._vfs)} are there: name more PFs"
        self.pods = [f"bench-{os.getpid()}-{number}" for number in range(pods)]
        for pod in self.pods:
            netns.ip("netns", "add", pod)

    def netdev(self, index: int) -> str:
        return self._vfs[index].netdev

    def pci(self, index: int) -> str:
        return self._vfs[index].pci

    def masters(self) -> str | list[str]:
        names = [each.pf for each in self._cards]
        return names if len(names) > 1 else names[0]

    def environment(self, verb: str, pod: str) -> dict[str, str]:
        return {
            "CNI_COMMAND": verb,
            "CNI_CONTAINERID": pod,
            "CNI_NETNS": f"/run/netns/{pod}",
            "CNI_IFNAME": "eth0",
            "CNI_PATH": f"{self.root}/bin:{DELEGATES}",
            "SRIOV_FAST_ETC": str(self._etc),
            "PATH": os.environ["PATH"],
        }

    def state(self) -> Any:
        return {pci: fields for each in self._cards for pci, fields in each.state().items()}

    def close(self) -> None:
        for pod in self.pods:
            netns.try_ip("netns", "del", pod)
        shutil.rmtree(self.root, ignore_errors=True)


def make(root: Path, vfs: int, pods: int) -> Ground:
    """Return a card's VFs where one is named, veth pairs otherwise."""
    return Igb(root, vfs, pods) if ON_CARD else Veth(root, vfs, pods)


def pod_state(pod: str) -> dict[str, Any]:
    """Return what the verbs leave in a pod, without what differs from one time to the next."""

    link = netns.link("eth0", pod)
    keys = ("prefixlen", "broadcast", "scope")  # whoever gives the address chooses it
    inet = [item for item in link["addr_info"] if item["family"] == "inet"]
    addresses = [{key: item[key] for key in keys} for item in inet]
    kept = ("dst", "gateway", "dev", "protocol", "scope")
    routes = [{key: route.get(key) for key in kept} for route in netns.shown(pod, "route")]
    return {"up": "UP" in link["flags"], "mtu": link["mtu"], "addresses": addresses, "routes": routes}
