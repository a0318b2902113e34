"""The harness of the lab tier: real PFs with their VFs, pods (network namespaces), and the real executable.

Nothing here supposes the lab's virtual machine: an operator may run the tier on a card of a real machine,
named in ``SRIOV_FAST_PF``. It uses the journal in its ordinary place, so VFs of running pods are left alone.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import socket
import subprocess
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import devices
from lab import demo, demo_addresses, demo_card

RECORDS = Path("/run/sriov-fast/vfs")
LOCKS = Path("/run/sriov-fast/locks")
IN_LAB = os.environ.get("SRIOV_FAST_LAB") == "1"
PATIENCE = 30.0  # seconds; an emulated machine takes its time
ZERO_MAC = "00:00:00:00:00:00"
_CLONE_NEWNET = 0x40000000  # linux/sched.h
# A queue discipline stays behind when a device is moved; the next use brings the default one.
_VOLATILE = ("operstate", "flags", "link_netnsid", "qdisc")
_SETTABLE_FLAGS = {"UP", "BROADCAST", "MULTICAST", "PROMISC", "ALLMULTI", "NOARP"}

State = dict[str, dict[str, Any]]


class Vf(NamedTuple):
    """A VF: its PF, its index on that, its PCI address, and its network device in the host."""

    pf: str
    number: int
    pci: str
    netdev: str


class Outcome:
    """What one execution of the plugin gave."""

    def __init__(self, status: int, stdout: bytes, stderr: bytes) -> None:
        self.status = status
        self.stdout = stdout
        self.stderr = stderr.decode()
        self.json: Any = json.loads(stdout) if stdout.strip() else None

    def __repr__(self) -> str:
        return f"status {self.status}\nstdout {self.stdout.decode()}\nstderr {self.stderr}"


# --- the machine


def ip(*words: str) -> str:
    done = subprocess.run(["ip", *words], check=False, capture_output=True, text=True)
    assert done.returncode == 0, f"ip {' '.join(words)}: {done.stderr}"
    return done.stdout


def try_ip(*words: str) -> bool:
    return subprocess.run(["ip", *words], check=False, capture_output=True).returncode == 0


def links(pod: str = "") -> list[dict[str, Any]]:
    """Return every device of the host, or of a pod, with all that ip(8) knows."""
    found: list[dict[str, Any]] = json.loads(ip(*(("-n", pod) if pod else ()), "-j", "-d", "addr", "show"))
    return found


def link(name: str, pod: str = "") -> dict[str, Any]:
    where = ("-n", pod) if pod else ()
    found: list[dict[str, Any]] = json.loads(ip(*where, "-j", "-d", "addr", "show", "dev", name))
    return found[0]


def await_(what: str, question: Callable[[], object], seconds: float = PATIENCE) -> Any:
    """Wait until ``question`` has an answer; ``what`` is said where it has none in time."""
    deadline = time.monotonic() + seconds
    while not (answer := question()):
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        time.sleep(0.05)
    return answer


def executable() -> Path:
    """Return the plugin: the checkout's, else where runtimes look."""
    found = next((path for path in demo.candidates() if demo.is_ours(path)), None)
    assert found, "no sriov of this project: run `make build`, or `sriov-fast install`"
    return found


def delegate(name: str) -> Path | None:
    """Return an IPAM plugin's executable."""
    return next((path for part in demo_addresses.DELEGATES if (path := Path(part, name)).is_file()), None)


# --- the card


class Card:
    """One PF and its VFs."""

    def __init__(self, pf: str) -> None:
        self.pf = pf
        self.generation = 0  # counts how often the VFs were made anew
        self._card = demo_card.Card(pf)

    @property
    def driver(self) -> str:
        return self._card.driver

    @property
    def directory(self) -> Path:
        return self._card.device

    def vfs(self) -> list[Vf]:
        return [Vf(self.pf, vf.number, vf.pci, vf.netdev) for vf in self._card.vfs()]

    def vf(self, index: int) -> Vf:
        return next(vf for vf in self.vfs() if vf.number == index)

    def masks(self, index: int) -> dict[int, str]:
        return self._card.masks(index)

    def on_pf(self, index: int) -> dict[str, Any]:
        """What the PF holds for a VF, in ip(8)'s words."""
        listed = link(self.pf)["vfinfo_list"]
        found: dict[str, Any] = next(item for item in listed if item["vf"] == index)
        return found

    def vlan(self, index: int) -> int:
        """The VLAN that the PF tags a VF with, 0 for none."""
        return int(next((item["vlan"] for item in self.on_pf(index)["vlan_list"] if "vlan" in item), 0))

    def set(self, index: int, *words: str) -> None:
        """Set something for a VF as the operator does."""
        ip("link", "set", self.pf, "vf", str(index), *words)

    def warm_up(self) -> None:
        """Use every VF once: an interrupt shows a mask only then."""
        up = {item["ifname"] for item in links() if "UP" in item["flags"]}
        for vf in self.vfs():
            if vf.netdev and vf.netdev not in up:
                ip("link", "set", vf.netdev, "up")
                ip("link", "set", vf.netdev, "down")

    def state(self) -> State:
        """Return all that is known of every VF, by PCI address: device, the PF's words, interrupts."""
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
        """Take the PF's MAC away again, and give the VF its own back, as its reset makes it."""
        name = self.vf(index).netdev
        was_up = "UP" in link(name)["flags"]
        ip("link", "set", name, "down")
        self.set(index, "mac", ZERO_MAC)
        ip("link", "set", name, "address", mac)
        ip("link", "set", name, "up")
        if not was_up:
            ip("link", "set", name, "down")

    def make_vfs(self, number: int) -> None:
        """Remove all VFs and make ``number`` anew, ready for use."""
        self.generation += 1
        (self.directory / "sriov_numvfs").write_text("0")
        if not number:
            return
        (self.directory / "sriov_numvfs").write_text(str(number))
        await_(f"{number} VFs of {self.pf} with a device", lambda: self._ready(number))
        self.warm_up()

    def _ready(self, number: int) -> bool:
        return len([vf for vf in self.vfs() if vf.netdev]) == number


def _device(shown: dict[str, Any] | None) -> dict[str, Any] | None:
    if shown is None:
        return None
    kept = {key: value for key, value in shown.items() if key not in _VOLATILE and key != "addr_info"}
    # a link-local IPv6 address comes with the carrier, some time after the device is up
    addresses = [item["local"] for item in shown["addr_info"] if item["scope"] != "link"]
    flags, names = sorted(_SETTABLE_FLAGS & set(shown["flags"])), sorted(shown.get("altnames", ()))
    found = kept | {"flags": flags, "altnames": names, "addresses": addresses}
    return found | devices.settings("", shown["ifname"])


def differences(before: State, after: State) -> list[str]:
    """Say in words what is not as it was."""
    return [
        f"{pci} {part}: {left} -> {right}"
        for pci in sorted(before.keys() | after.keys())
        for part, left, right in _parts(before.get(pci, {}), after.get(pci, {}))
    ]


def _parts(before: dict[str, Any], after: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    flat = [
        (part, before.get(part), after.get(part))
        for part in ("index", "device", "pf", "masks")
        if before.get(part) != after.get(part)
    ]
    found: list[tuple[str, Any, Any]] = []
    for part, left, right in flat:
        if isinstance(left, dict) and isinstance(right, dict):
            keys = [key for key in {**left, **right} if left.get(key) != right.get(key)]
            found += [(f"{part} {key}", left.get(key), right.get(key)) for key in keys]
        else:
            found.append((part, left, right))
    return found


# --- the node


class Node:
    """The machine as a runtime sees it: networks, pods, and the plugin to execute."""

    def __init__(self, root: Path, cards: Sequence[Card]) -> None:
        self.root = root
        self.cards = list(cards)
        self.card = self.cards[0]
        self.id = uuid.uuid4().hex[:8]
        self.name = f"lab-{self.id}"
        self.plugin = executable()
        self.pods: list[str] = []
        self.processes: list[subprocess.Popen[bytes]] = []

    # networks

    def conf(self, **more: Any) -> dict[str, Any]:
        """Return a configuration; None takes a key away."""
        base = {"cniVersion": "1.0.0", "name": self.name, "type": "sriov", "master": self.card.pf}
        return {key: value for key, value in (base | more).items() if value is not None}

    def host_local(self, subnet: str = "10.77.0.0/24", **more: Any) -> dict[str, Any]:
        """Return an ``ipam`` object; the real plugin serves it unless ``delegate`` says otherwise."""
        own = {"type": "host-local", "delegate": True, "subnet": subnet, "dataDir": str(self.root / "ipam")}
        return own | more

    def leases(self, network: str = "") -> list[str]:
        """Return the addresses that host-local has given away."""
        directory = self.root / "ipam" / (network or self.name)
        names = os.listdir(directory) if directory.exists() else []
        return sorted(name for name in names if name[0].isdigit())

    # pods

    def pod(self) -> str:
        """Make a pod's namespace and return its name, which is its container's ID, too."""
        name = f"{self.name}-{len(self.pods)}"
        ip("netns", "add", name)
        self.pods.append(name)
        return name

    def inside(self, pod: str, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a program in a pod's namespace."""
        command = ["ip", "netns", "exec", pod, *words]
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)
        assert not check or done.returncode == 0, f"{' '.join(words)}: {done.stdout}{done.stderr}"
        return done

    def background(self, pod: str, *words: str) -> subprocess.Popen[bytes]:
        """Start a program, in a pod's namespace where one is named; it ends with the node."""
        with (self.root / f"{Path(words[0]).name}.log").open("ab") as log:
            enter = ["ip", "netns", "exec", pod] if pod else []
            process = subprocess.Popen([*enter, *words], stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self.processes.append(process)
        return process

    def addresses(self, pod: str, name: str = "eth0") -> set[str]:
        """Return what was given: no link-local addresses."""
        shown = link(name, pod)["addr_info"]
        return {f"{item['local']}/{item['prefixlen']}" for item in shown if item["scope"] != "link"}

    def await_carrier(self, pod: str, name: str = "eth0") -> None:
        await_(f"carrier of {name} in {pod}", lambda: "LOWER_UP" in link(name, pod)["flags"])

    def pings(self, pod: str, address: str, seconds: int = int(PATIENCE)) -> bool:
        """Say whether one answer comes in time."""
        return self.inside(pod, "ping", "-c1", f"-w{seconds}", address, check=False).returncode == 0

    def sniffer(self, pod: str, name: str = "eth0") -> socket.socket:
        """Return a packet socket that hears everything in a pod."""
        heard = []

        def work() -> None:
            enter(pod)
            heard.append(socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0))
            heard[0].bind((name, 3))  # ETH_P_ALL

        thread = threading.Thread(target=work)  # a thread of its own: it never leaves the namespace
        thread.start()
        thread.join()
        heard[0].settimeout(PATIENCE)
        return heard[0]

    # the plugin

    def environment(self, command: str, pod: str, ifname: str, container: str, args: str) -> dict[str, str]:
        path = [str(self.root / "bin"), str(self.plugin.parent), *demo_addresses.DELEGATES]
        given = {
            "CNI_COMMAND": command,
            "CNI_CONTAINERID": container or pod,
            "CNI_NETNS": pod if pod.startswith("/") or not pod else f"/run/netns/{pod}",
            "CNI_IFNAME": ifname,
            "CNI_ARGS": args,
            "CNI_PATH": ":".join(dict.fromkeys(path)),
            "SRIOV_FAST_ETC": os.environ.get("SRIOV_FAST_ETC", ""),
        }
        return {key: value for key, value in given.items() if value}

    def start(
        self,
        command: str,
        conf: dict[str, Any],
        pod: str = "",
        *,
        ifname: str = "eth0",
        container: str = "",
        args: str = "",
        wrap: tuple[str, ...] = (),
        env: dict[str, str] | None = None,
    ) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [*wrap, str(self.plugin)],
            env=self.environment(command, pod, ifname, container, args) | (env or {}),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert process.stdin
        process.stdin.write(json.dumps(conf).encode())
        process.stdin.close()
        process.stdin = None
        return process

    def finish(self, process: subprocess.Popen[bytes]) -> Outcome:
        out, err = process.communicate(timeout=180)
        return Outcome(process.returncode, out, err)

    def run(self, command: str, conf: dict[str, Any], pod: str = "", **more: Any) -> Outcome:
        """Execute the plugin and return what it said."""
        return self.finish(self.start(command, conf, pod, **more))

    def add(self, conf: dict[str, Any], pod: str, **more: Any) -> Any:
        """ADD, and return the result."""
        done = self.run("ADD", conf, pod, **more)
        assert done.status == 0, done
        return done.json

    def delete(self, conf: dict[str, Any], pod: str, **more: Any) -> None:
        """DEL, which says nothing."""
        done = self.run("DEL", conf, pod, **more)
        assert done.status == 0, done
        assert done.stdout == b"", done

    def refused(self, command: str, conf: dict[str, Any], pod: str = "", **more: Any) -> Any:
        """Run what must fail, and return the error object."""
        done = self.run(command, conf, pod, **more)
        assert done.status == 1, done
        assert done.json["code"], done
        return done.json

    def records(self) -> dict[str, Path]:
        """Return the journal's records of this node's pods: {container: file}."""
        names = os.listdir(RECORDS) if RECORDS.exists() else []
        parts = [(name.split("~"), RECORDS / name) for name in names if not name.startswith(".")]
        return {part[1]: path for part, path in parts if part[1].startswith(self.name)}

    def owned(self, pod: str) -> Vf:
        """Return the VF that a pod has, as the journal says."""
        pci = self.records()[pod].name.partition("~")[0]
        return next(vf for card in self.cards for vf in card.vfs() if vf.pci == pci)

    def collect(self, valid: Sequence[tuple[str, str]] = (), name: str = "") -> None:
        """GC, with the attachments that are to stay."""
        kept = [{"containerID": container, "ifname": ifname} for container, ifname in valid]
        conf = self.conf(cniVersion="1.1.0", name=name or self.name)
        done = self.run("GC", conf | {"cni.dev/valid-attachments": kept})
        assert done.status == 0, done

    def close(self) -> None:
        """Bring home what a test left behind."""
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            process.wait()
        if self.records():
            self.run("GC", self.conf(cniVersion="1.1.0") | {"cni.dev/valid-attachments": []})
        for name in self.pods:
            try_ip("netns", "del", name)
        shutil.rmtree(self.root, ignore_errors=True)


def enter(pod: str) -> None:
    """Move the calling thread into a pod's network namespace, for good."""
    fd = os.open(f"/run/netns/{pod}", os.O_RDONLY)
    try:
        # os.setns came with Python 3.12
        if ctypes.CDLL(None, use_errno=True).setns(fd, _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "setns", pod)
    finally:
        os.close(fd)
