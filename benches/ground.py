"""Hosts for the benchmarks of whole processes: VFs, pods, and the environment of a plugin.

``Veth`` is the node of the ``netns`` tier, with veth pairs as VFs. ``Igb`` has the real VFs of the cards that
``SRIOV_FAST_PF`` names, such as the lab's.
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
# In memory if possible, as /run on a node.
MEMORY = "/dev/shm" if os.path.isdir("/dev/shm") else None
SUBNET = "10.77.0.0/24"
# Address and gateway that the C program sets without an IPAM plugin.
ADDRESS = "10.77.0.9/24,10.77.0.1"


class Ground(Protocol):
    """A host with VFs and pods; ``namespace`` is the path of its netns, "" for the current one."""

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
        """Return the environment of a plugin: the runtime's variables and those of this project."""

    def state(self) -> Any:
        """Return all state of the VFs that a verb could change."""

    def close(self) -> None:
        """Delete the namespaces and files of the host."""


class Veth:
    """Veth pairs in place of VFs; sysfs is a directory."""

    def __init__(self, root: Path, vfs: int, pods: int) -> None:
        self.root = root
        self._node = veth.Node(root / "node", vfs=vfs)
        self._node.socket = ""  # the socket below SRIOV_FAST_RUN
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
    """The VFs of real cards. The benchmarks use a separate journal, not the node's."""

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
    """Return a host with VFs of cards if SRIOV_FAST_PF is set, else one with veth pairs."""
    return Igb(root, vfs, pods) if ON_CARD else Veth(root, vfs, pods)


def pod_state(pod: str) -> dict[str, Any]:
    """Return the state of a pod after a verb, without values that differ between runs."""

    link = netns.link("eth0", pod)
    keys = ("prefixlen", "broadcast", "scope")  # not the address: IPAM chooses it
    inet = [item for item in link["addr_info"] if item["family"] == "inet"]
    addresses = [{key: item[key] for key in keys} for item in inet]
    kept = ("dst", "gateway", "dev", "protocol", "scope")
    routes = [{key: route.get(key) for key in kept} for route in netns.shown(pod, "route")]
    return {"up": "UP" in link["flags"], "mtu": link["mtu"], "addresses": addresses, "routes": routes}
