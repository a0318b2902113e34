"""A node with a real card: PFs with their VFs, pods (network namespaces), and the installed executable.

The tier runs in the lab's virtual machine, or on a real machine with a card that ``SRIOV_FAST_PF`` names. It
uses the default directory of the journal, so it does not take the VFs of running pods.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness import devices
from harness import pod as netns
from harness.pod import ip, link, links
from harness.runtime import Runtime
from harness.server import Server
from harness.waiting import PATIENCE, wait_for
from lab import demo, demo_addresses, demo_card
from lab.demo_card import Vf

RUN = Path("/run/sriov-fast")
RECORDS = RUN / "vfs"
LOCKS = RUN / "locks"
SOCKET = RUN / "sriov.sock"
IN_LAB = os.environ.get("SRIOV_FAST_LAB") == "1"
ZERO_MAC = "00:00:00:00:00:00"
# A moved device loses its queue discipline, and gets the default one at its next use.
_VOLATILE = ("operstate", "flags", "link_netnsid", "qdisc")
_SETTABLE_FLAGS = {"UP", "BROADCAST", "MULTICAST", "PROMISC", "ALLMULTI", "NOARP"}

State = dict[str, dict[str, Any]]


def executable() -> Path:
    """Return the plugin's executable: the checkout's, else that in the directories of runtimes."""
    found = next((path for path in demo.PLUGINS if demo.is_ours(path)), None)
    assert found, "no sriov of this project: run `make build`, or `sriov-fast install`"
    return found


def delegate(name: str) -> Path | None:
    """Return an IPAM plugin's executable."""
    return next((path for part in demo_addresses.DELEGATES if (path := Path(part, name)).is_file()), None)


def start_server(log: Path, *options: str) -> Server:
    """Start a server with the default socket; return it when it is ready."""
    words = [sys.executable, "-m", "sriov_fast.cli", "serve", *options]
    return Server(words, dict(os.environ), log).ready()


# --- the card


class Card(demo_card.Card):
    """One PF and its VFs."""

    generation = 0  # how many times the VFs were recreated

    def vf(self, index: int) -> Vf:
        return next(vf for vf in self.vfs() if vf.number == index)

    def on_pf(self, index: int) -> dict[str, Any]:
        """Return the PF's settings for a VF, as ip(8) shows them."""
        listed = link(self.pf)["vfinfo_list"]
        found: dict[str, Any] = next(item for item in listed if item["vf"] == index)
        return found

    def vlan(self, index: int) -> int:
        """Return the VLAN that the PF tags a VF with, 0 for none."""
        return int(next((item["vlan"] for item in self.on_pf(index)["vlan_list"] if "vlan" in item), 0))

    def set(self, index: int, *words: str) -> None:
        """Change a VF's setting on the PF, as the operator does."""
        ip("link", "set", self.pf, "vf", str(index), *words)

    def warm_up(self) -> None:
        """Set every VF up once: its interrupts have no masks before."""
        up = {item["ifname"] for item in links() if "UP" in item["flags"]}
        cold = [vf.netdev for vf in self.vfs() if vf.netdev and vf.netdev not in up]
        ip("-batch", "-", stdin="".join(f"link set {name} up\nlink set {name} down\n" for name in cold))

    def state(self) -> State:  # type: ignore[override]
        """Return the state of every VF by PCI address: its device, settings on the PF, interrupt masks."""
        everything = links()
        pf = next(item for item in everything if item["ifname"] == self.pf)
        devices = {item["parentdev"]: item for item in everything if "parentdev" in item}
        on_pf = {item["vf"]: item for item in pf["vfinfo_list"]}
        return {
            vf.pci: {
                "index": vf.number,
                "device": _device(devices.get(vf.pci)),
                "pf": on_pf.get(vf.number),
                "masks": self.masks(vf.number),
            }
            for vf in self.vfs()
        }

    def restore_mac(self, index: int, mac: str) -> None:
        """Remove the PF's MAC of a VF, and restore the VF's own MAC by a reset."""
        name = self.vf(index).netdev
        was_up = "UP" in link(name)["flags"]
        ip("link", "set", name, "down")
        self.set(index, "mac", ZERO_MAC)
        ip("link", "set", name, "address", mac)
        ip("link", "set", name, "up")
        if not was_up:
            ip("link", "set", name, "down")

    def make_vfs(self, number: int) -> None:
        """Remove all VFs and make ``number`` new ones, ready for use."""
        self.generation += 1
        (self.device / "sriov_numvfs").write_text("0")
        if not number:
            return
        (self.device / "sriov_numvfs").write_text(str(number))
        wait_for(lambda: self.ready() == number, f"{number} VFs of {self.pf} with a device")
        self.warm_up()

    def ready(self) -> int:
        """Return the number of VFs that have a device in the host."""
        return len([vf for vf in self.vfs() if vf.netdev])


def _device(shown: dict[str, Any] | None) -> dict[str, Any] | None:
    if shown is None:
        return None
    kept = {key: value for key, value in shown.items() if key not in _VOLATILE and key != "addr_info"}
    # the carrier, some time after the device is up, adds a link-local IPv6 address
    addresses = [item["local"] for item in shown["addr_info"] if item["scope"] != "link"]
    flags, names = sorted(_SETTABLE_FLAGS & set(shown["flags"])), sorted(shown.get("altnames", ()))
    found = kept | {"flags": flags, "altnames": names, "addresses": addresses}
    return found | devices.settings("", shown["ifname"])


def differences(before: State, after: State) -> list[str]:
    """Return a line for each value that differs."""
    left, right = _flat(before), _flat(after)
    keys = sorted(key for key in left.keys() | right.keys() if left.get(key) != right.get(key))
    return [f"{key}: {left.get(key)} -> {right.get(key)}" for key in keys]


def _flat(state: State) -> dict[str, Any]:
    """Return each value by its name: the VF, the part, and the part's key."""
    found: dict[str, Any] = {}
    for pci, vf in state.items():
        for part, value in vf.items():
            parts = value if isinstance(value, dict) else {"": value}
            found |= {f"{pci} {part} {key}".rstrip(): one for key, one in parts.items()}
    return found


# --- the node


class Node(Runtime):
    """The node that is this machine."""

    time_limit = 180.0
    run_dir = RUN
    socket = ""  # of the server; "none" for no server

    def __init__(self, root: Path, cards: Sequence[Card]) -> None:
        super().__init__(root)
        self.cards = list(cards)
        self.card = self.cards[0]
        self.master = self.card.pf
        self.network = self.name = f"lab-{self.id}"
        self.plugin = executable()
        self.processes: list[subprocess.Popen[bytes]] = []

    def command(self) -> list[str]:
        return [str(self.plugin)]

    def settings(self) -> dict[str, str]:
        path = [str(self.root / "bin"), str(self.plugin.parent), *demo_addresses.DELEGATES]
        return {
            "CNI_PATH": ":".join(dict.fromkeys(path)),
            "SRIOV_FAST_ETC": os.environ.get("SRIOV_FAST_ETC", ""),
            "SRIOV_FAST_SOCKET": self.socket,
        }

    def host_local(self, subnet: str = "10.77.0.0/24", **more: Any) -> dict[str, Any]:
        """Return an ``ipam`` object for the built-in plugin: executing one is slow on an emulated machine."""
        return super().host_local(subnet, **({"delegate": False} | more))

    # --- pods

    def inside(self, pod: str, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a program in a pod's namespace."""
        command = ["ip", "netns", "exec", pod, *words]
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)
        assert not check or done.returncode == 0, f"{' '.join(words)}: {done.stdout}{done.stderr}"
        return done

    def background(self, pod: str, *words: str) -> subprocess.Popen[bytes]:
        """Start a program, in a pod's namespace if one is named; ``close`` ends the program."""
        with (self.root / f"{Path(words[0]).name}.log").open("ab") as log:
            enter = ["ip", "netns", "exec", pod] if pod else []
            process = subprocess.Popen([*enter, *words], stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self.processes.append(process)
        return process

    def addresses(self, pod: str, name: str = "eth0") -> set[str]:
        """Return the addresses of a pod's device without its link-local ones."""
        return set(netns.addresses(name, pod))

    def await_carrier(self, pod: str) -> None:
        wait_for(lambda: "LOWER_UP" in link("eth0", pod)["flags"], f"carrier in {pod}")

    def pings(self, pod: str, address: str, seconds: int = int(PATIENCE)) -> bool:
        """Return whether an address answers a ping in time."""
        return self.inside(pod, "ping", "-c1", f"-w{seconds}", address, check=False).returncode == 0

    # --- the journal

    def records(self) -> list[str]:
        """Return the names of the records of this node's pods."""
        return [name for name in super().records() if name.split("~")[1].startswith(f"pod-{self.id}-")]

    def attached(self) -> set[str]:
        """Return the pods that have a VF."""
        return {name.split("~")[1] for name in self.records()}

    def owned(self, pod: str) -> Vf:
        """Return the VF of a pod according to the journal."""
        pci = next(name.partition("~")[0] for name in super().records() if name.split("~")[1] == pod)
        return next(vf for card in self.cards for vf in card.vfs() if vf.pci == pci)

    def collect(self, *valid: str, network: str = "") -> None:  # type: ignore[override]
        """Execute GC for a network; the pods in ``valid`` keep their interface eth0."""
        super().collect(self.conf(name=network or self.network), *valid)

    def close(self) -> None:
        """End the programs, and release the VFs that a test has left attached."""
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            process.wait()
        if self.records():
            self.collect()
        super().close()
        shutil.rmtree(self.root, ignore_errors=True)
