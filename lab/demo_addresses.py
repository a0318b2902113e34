"""Sources of the pods' addresses: ``host-local`` here, an address service in ``demo_ipam``."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

from lab.demo_card import Card
from lab.demo_stage import Stage, wrapped

NETNS = "/var/run/netns"
IFNAME = "eth1"
NETWORK = "mynet"
VLAN = 100
SUBNET, GATEWAY, FIRST = "10.55.206.0/26", "10.55.206.1", "10.55.206.46"
HOST_IP = "10.55.206.20"
DELEGATES = ("/opt/cni/bin", "/usr/lib/cni")
_STORES = Path("/run/cni")  # dataDir may be below it without a rule of root


class Pod(NamedTuple):
    """A network namespace that stands for a pod, and its expected address."""

    name: str
    address: str


class Choice(NamedTuple):
    """The VF and the MAC that IPAM chooses for a pod."""

    vf: int
    mac: str


class Addresses:
    """Interface of a source of addresses."""

    title = ""
    conf = ""
    before: tuple[str, ...] = ()  # variables in front of a call of the plugin
    pods: tuple[Pod, Pod]
    # for the second pod
    choice: Choice | None = None

    def __init__(self, stage: Stage, cleanup: ExitStack, plugin: Path) -> None:
        self.stage = stage
        self.cleanup = cleanup
        self.plugin = plugin

    @property
    def called(self) -> str:
        """The command of the plugin."""
        return str(self.plugin)

    def prepare(self, card: Card) -> None:
        """Run the steps before the network configuration."""

    def network(self, pf: str) -> dict[str, Any]:
        """Return the network configuration; it has no cniVersion, which means CNI 0.1.0."""
        raise NotImplementedError

    def export(self) -> None:
        """Set the environment of the commands that follow."""
        raise NotImplementedError

    def command(self, verb: str, pod: Pod, args: Sequence[str]) -> str:
        """Return the shell command that executes the plugin."""
        return wrapped([*self.before, *call(verb, pod.name, args), f"{self.called} < {self.conf}"])

    def show(self) -> None:
        """Show the allocated addresses while both pods are attached."""

    def holds(self, pod: Pod) -> bool:
        """Return whether the pod's address is still allocated."""
        raise NotImplementedError

    def end(self) -> None:
        """Show the remaining allocations after both DELs, and undo ``prepare``."""

    def remains(self) -> list[str]:
        """Return the commands that undo ``prepare``."""
        return []


class HostLocal(Addresses):
    """Addresses from a directory on this node."""

    title = "The network: addresses from host-local, and a VLAN of its own"
    conf = "mynet.conf"
    pods = (Pod("1234", FIRST), Pod("1235", "10.55.206.47"))

    @property
    def _store(self) -> Path:
        return _STORES / self.stage.directory.name

    def network(self, pf: str) -> dict[str, Any]:
        """Return the network configuration, with the VLAN."""
        ipam = {
            "type": "host-local",
            "subnet": SUBNET,
            "rangeStart": FIRST,
            "gateway": GATEWAY,
            "dataDir": str(self._store),
        }
        return {"name": NETWORK, "type": "sriov", "master": pf, "vlan": VLAN, "ipam": ipam}

    def export(self) -> None:
        """Set CNI_PATH, where the plugin finds its delegates."""
        self.cleanup.callback(shutil.rmtree, self._store, ignore_errors=True)
        self.stage.export("CNI_PATH", ":".join(dict.fromkeys([str(self.plugin.parent), *DELEGATES])))

    def remains(self) -> list[str]:
        """Return the command that removes the store."""
        return [f"rm -r {self._store}"]

    def holds(self, pod: Pod) -> bool:
        """Return whether the store has a file for the address."""
        return (self._store / NETWORK / pod.address).exists()


def call(verb: str, pod: str, args: Sequence[str]) -> list[str]:
    """Return the environment variables of a call (SPEC, "Parameters")."""
    given = f"CNI_COMMAND={verb} CNI_NETNS={NETNS}/{pod} CNI_CONTAINERID={pod} CNI_IFNAME={IFNAME}"
    return [*given.split(), f'CNI_ARGS="{";".join(args)}"']


def release_args(pod: str, host_ip: str = HOST_IP) -> list[str]:
    """Return CNI_ARGS for a DEL."""
    return [f"PodID={pod}", f"HostIP={host_ip}"]


def add_args(pod: str, *more: str, host_ip: str = HOST_IP) -> list[str]:
    """Return CNI_ARGS for an ADD."""
    return ["IgnoreUnknown=1", *release_args(pod, host_ip), *more]


def shown(document: dict[str, Any]) -> str:
    """Return a configuration as indented JSON."""
    return json.dumps(document, indent=4)
