"""Demonstration of two pods on one SR-IOV card: ``python -m lab.demo``.

With ``--ipam txipam`` an address service gives the addresses, and chooses VF, VLAN and MAC (``demo_ipam``).
The demo prints every command and its output, and verifies its expectations. The exit status is 0 only if all
of them hold. The demo undoes its changes, also after a failure, unless ``--keep`` is given.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

from lab import demo_card
from lab.demo_addresses import (
    GATEWAY,
    IFNAME,
    VLAN,
    Addresses,
    Choice,
    HostLocal,
    Pod,
    add_args,
    release_args,
    shown,
)
from lab.demo_card import Card, Difference, State, Vf
from lab.demo_ipam import TxIpam
from lab.demo_stage import Done, Stage, complain, say
from lab.errors import LabError

CORES = (1, 2, 3, 4)
CARRIER_WAIT = 60.0  # seconds; an emulated machine is slow
# Paths of the plugin: in this checkout, then in the directory that runtimes search.
PLUGINS = (Path(__file__).resolve().parents[1] / "bin/sriov", Path("/opt/cni/bin/sriov"))
TOOLS = {"ip": "iproute2", "ping": "iputils-ping"}
IPAM: dict[str, type[Addresses]] = {"host-local": HostLocal, "txipam": TxIpam}


class Attached(NamedTuple):
    """The VF of a pod, and the masks of its interrupts after the ADD."""

    pod: Pod
    vf: Vf
    masks: dict[int, str]


class Demo:
    """The scenario on one card."""

    def __init__(
        self, card: Card, addresses: Addresses, stage: Stage, cleanup: ExitStack, attach: str
    ) -> None:
        self.card = card
        self.attach = attach
        self.addresses = addresses
        self.pods = addresses.pods
        self.stage = stage
        self.cleanup = cleanup
        self.pods_with_vf: set[str] = set()
        self.cores: list[int] = []

    def play(self, keep: bool) -> int:
        """Run all steps in order; return the exit status."""
        self.show_card()
        before = self.snapshot()
        self.addresses.prepare(self.card)
        self.configure()
        self.make_pods()
        attached = [self.first_pod(), self.second_pod()]
        self.show_vlan()
        self.ping()
        self.addresses.show()
        if keep:
            self.keep()
            return self.stage.summary()
        for number, done in enumerate(attached):
            self.release(done, before[done.vf.number], spoken=number == 0)
        self.addresses.end()
        return self.stage.summary()

    # --- before ADD

    def show_card(self) -> None:
        """Show the PF; bring it up if it is down, because its switch works for VFs only then."""
        self.stage.step("The card: a physical function (PF) and its virtual functions (VFs)")
        if "UP" not in self.link(self.card.pf).get("flags", ()):
            self.stage.run(f"ip link set {self.card.pf} up")
            self.cleanup.callback(self.stage.quiet, f"ip link set {self.card.pf} down")
        self.stage.run(f"ip link show {self.card.pf}", most=12)
        self.stage.run(f"basename $(readlink /sys/class/net/{self.card.pf}/device/driver)")

    def snapshot(self) -> dict[int, State]:
        """Return the state of every VF, and show it."""
        self.stage.step("The VFs before: what must be back in the end")
        vfs = self.card.vfs()
        states = {vf.number: self.card.state(vf, self.link) for vf in vfs}
        say("\n".join(demo_card.table(vfs, states)))
        return states

    def link(self, name: str, pod: str = "") -> dict[str, Any]:
        """Return the output of ip(8) for one device, in the host or in a pod; {} if there is none."""
        where = f"-n {pod} " if pod else ""
        done = self.stage.quiet(f"ip {where}-j -d link show dev {name}")
        if done.status:
            return {}
        found: dict[str, Any] = json.loads(done.out)[0]
        return found

    def configure(self) -> None:
        """Write the network configuration."""
        self.stage.step(self.addresses.title)
        network = self.addresses.network(self.card.pf)
        if self.attach != "move":
            network["attach"] = self.attach
        self.stage.write(self.addresses.conf, shown(network))
        self.addresses.export()

    def make_pods(self) -> None:
        """Make the network namespaces."""
        self.stage.step("Two pods: two network namespaces")
        for pod in self.pods:
            done = self.stage.run(f"ip netns add {pod.name}")
            if done.status:
                raise LabError(f"namespace {pod.name} cannot be made; if it exists: ip netns del {pod.name}")
            self.cleanup.callback(self.stage.quiet, f"ip netns del {pod.name}")

    # --- ADD

    def first_pod(self) -> Attached:
        """Attach the first pod, as a runtime would; show its address and its interrupts."""
        self.stage.step("ADD: the first pod gets a VF")
        online = demo_card.parse_cpus((demo_card.SYS / "devices/system/cpu/online").read_text())
        self.cores, remark = demo_card.choose_cores(CORES, online)
        if remark:
            say(f"({remark})")
        pod = self.pods[0]
        vf = self.add(pod, f"CORES={demo_card.listed(self.cores)}")
        self.show_address(pod)
        return Attached(pod, vf, self.show_interrupts(vf))

    def second_pod(self) -> Attached:
        """Attach the second pod; show the choices of IPAM."""
        self.stage.step("ADD: the second pod gets another VF")
        pod = self.pods[1]
        vf = self.add(pod)
        if self.addresses.choice is not None:
            self.show_choice(pod, vf, self.addresses.choice)
        return Attached(pod, vf, {})

    def show_choice(self, pod: Pod, vf: Vf, choice: Choice) -> None:
        """Show that the pod has the VF and the MAC that IPAM chose."""
        self.stage.run(f"ip -n {pod.name} -br link show {IFNAME}")
        self.stage.expect(f"IPAM chose VF {choice.vf}", vf.number == choice.vf, f"it is VF {vf.number}")
        mac = self.link(IFNAME, pod.name).get("address")
        self.stage.expect(f"IPAM chose the MAC {choice.mac}", mac == choice.mac, str(mac))

    def add(self, pod: Pod, *more: str) -> Vf:
        """Execute the plugin's ADD and return the pod's VF."""
        self.cleanup.callback(self.release_quietly, pod)
        self.pods_with_vf.add(pod.name)
        done = self.stage.run(self.addresses.command("ADD", pod, add_args(pod.name, *more)))
        if done.status:
            raise LabError(f"ADD for pod {pod.name} failed")
        self.expect_result(pod, done)
        return self.vf_of(pod)

    def expect_result(self, pod: Pod, done: Done) -> None:
        """Compare the printed result with that of CNI 0.1.0: the configuration has no cniVersion."""
        wanted = {"ip4": {"ip": f"{pod.address}/26", "gateway": GATEWAY}, "dns": {}}
        try:
            given = json.loads(done.out)
        except ValueError:
            given = None
        self.stage.expect(f"the result is in CNI 0.1.0's form and gives {pod.address}", given == wanted)

    def vf_of(self, pod: Pod) -> Vf:
        """Return the VF behind the pod's interface."""
        shown = self.link(IFNAME, pod.name)
        found = self._vf_under(shown) if self.attach == "macvlan" else self._vf_at(shown.get("parentdev", ""))
        if found is None:
            raise LabError(f"{IFNAME} of pod {pod.name} has no VF of {self.card.pf}: {shown}")
        verb = "is on top of" if self.attach == "macvlan" else "is"
        self.stage.expect(
            f"{IFNAME} of pod {pod.name} {verb} VF {found.number} of {self.card.pf}, {found.pci}", True
        )
        return found

    def _vf_at(self, pci: str) -> Vf | None:
        return next((vf for vf in self.card.vfs() if vf.pci == pci), None)

    def _vf_under(self, macvlan: dict[str, Any]) -> Vf | None:
        """Return the VF that is the lower device of a macvlan."""
        kind, lower = macvlan.get("linkinfo", {}).get("info_kind"), macvlan.get("link_index")
        vfs = self.card.vfs() if kind == "macvlan" else []
        return next((vf for vf in vfs if self.link(vf.netdev).get("ifindex") == lower), None)

    def show_address(self, pod: Pod) -> None:
        """Show the pod's interfaces when the VF has a link."""
        arrived = self.wait_for_carrier(pod)
        shown = self.stage.run(f"ip netns exec {pod.name} ip addr")
        self.stage.expect(f"{IFNAME} has {pod.address}/26", f"inet {pod.address}/26" in shown.out)
        self.stage.expect(f"{IFNAME} has a link", arrived)

    def wait_for_carrier(self, pod: Pod) -> bool:
        """Return whether the VF gets a link within ``CARRIER_WAIT`` seconds."""
        deadline = time.monotonic() + CARRIER_WAIT
        while "LOWER_UP" not in self.link(IFNAME, pod.name).get("flags", ()):
            if time.monotonic() > deadline:
                return False
            time.sleep(0.2)
        return True

    def show_interrupts(self, vf: Vf) -> dict[int, str]:
        """Show the VF's interrupts and their masks, and compare these with CORES."""
        self.stage.step("The VF's interrupts: number i goes to core i of CORES, and round again")
        self.stage.run(f"ls {self.card.device}/virtfn{vf.number}/msi_irqs/")
        masks = self.card.masks(vf.number)
        for number, irq in enumerate(masks):
            self.stage.run(f"cat /proc/irq/{irq}/smp_affinity")
            core = self.cores[number % len(self.cores)]
            self.stage.expect(f"interrupt {irq} is on core {core}", on_core(masks[irq], core), masks[irq])
        self.stage.expect("the VF has interrupts", bool(masks))
        return masks

    def show_vlan(self) -> None:
        """Show the VLANs of the VFs on the PF."""
        self.stage.step(f"The PF tags both VFs with VLAN {VLAN}")
        self.stage.run(f"ip link show {self.card.pf} | grep -w 'vlan {VLAN}'")
        tagged = vfs_with_vlan(self.link(self.card.pf), VLAN)
        self.stage.expect(f"two VFs or more have VLAN {VLAN}", len(tagged) >= len(self.pods), str(tagged))

    def ping(self) -> None:
        """Ping one pod from the other, through the card's switch."""
        self.stage.step("From pod to pod, through the card")
        for pod in self.pods:
            self.stage.expect(f"the VF of pod {pod.name} has a link", self.wait_for_carrier(pod))
        here, there = self.pods
        done = self.stage.run(f"ip netns exec {here.name} ping -c 3 -i 0.3 -W 5 {there.address}")
        self.stage.expect(f"{here.name} reaches {there.name}", not done.status and answered(done.out) > 0)

    # --- DEL

    def release(self, done: Attached, before: State, spoken: bool) -> None:
        """Execute DEL and compare the VF with its state before the ADD."""
        pod, index = done.pod, done.vf.number
        self.stage.step(f"DEL: VF {index} of pod {pod.name} comes back")
        ended = self.stage.run(self.addresses.command("DEL", pod, release_args(pod.name)))
        self.stage.expect(f"DEL for pod {pod.name} succeeds and prints nothing", ended == Done(0, ""))
        self.pods_with_vf.discard(pod.name)
        if spoken:
            self.stage.run(f"ip netns exec {pod.name} ip link")
        self.stage.expect(f"{IFNAME} is gone from the pod", not self.link(IFNAME, pod.name))
        self.stage.expect(f"{pod.address} is free again", not self.addresses.holds(pod))
        self.compare(index, before, done.masks)

    def compare(self, index: int, before: State, pinned: dict[int, str]) -> None:
        """Compare the VF with its snapshot, field by field."""
        vf = next(vf for vf in self.card.vfs() if vf.number == index)
        fields = demo_card.compare(before, self.card.state(vf, self.link), pinned)
        say("\n".join(verdicts(fields)))
        changed = [f"{item.field} is {item.after}, was {item.before}" for item in fields if not item.same]
        self.stage.expect(f"VF {index} is as it was", not changed, "; ".join(changed))

    def release_quietly(self, pod: Pod) -> None:
        """Execute DEL during the cleanup after a failure."""
        if pod.name in self.pods_with_vf:
            done = self.stage.quiet(self.addresses.command("DEL", pod, release_args(pod.name)))
            if done.status:
                complain(f"DEL for pod {pod.name} failed: {done.out}")

    def keep(self) -> None:
        """Leave the pods, and print the commands that clean up."""
        self.cleanup.pop_all()
        say(f"\nKept, as asked. To take it down again, in {self.stage.directory}:")
        for name, value in self.stage.exported.items():
            say(f"# export {name}={value}")
        for pod in self.pods:
            say(f"# {self.addresses.command('DEL', pod, release_args(pod.name))}")
            say(f"# ip netns del {pod.name}")
        for command in (*self.addresses.remains(), f"rm -r {self.stage.directory}"):
            say(f"# {command}")


# --- functions without a card


def verdicts(fields: Sequence[Difference]) -> list[str]:
    """Return one line for each field: its name, its value, and whether the value is unchanged."""
    name = max(len(item.field) for item in fields)
    value = max(len(item.after) for item in fields)
    return [f"  {item.field:<{name}}  {item.after:<{value}}  {verdict(item)}" for item in fields]


def verdict(item: Difference) -> str:
    """Return a text that states whether a field is unchanged."""
    if not item.same:
        return f"IT WAS {item.before}"
    return "as it was" if item.before == item.after else "the kernel's own, since its first use"


def on_core(mask: str, core: int) -> bool:
    """Return whether a mask contains exactly one core, ``core``."""
    return mask != demo_card.UNUSED and demo_card.cpus_of_mask(mask) == {core}


def vfs_with_vlan(link: dict[str, Any], vlan: int) -> list[int]:
    """Return the indexes of the VFs that a PF tags with a VLAN."""
    return [
        item["vf"]
        for item in link.get("vfinfo_list", [])
        if any(entry.get("vlan") == vlan for entry in item.get("vlan_list", []))
    ]


def answered(text: str) -> int:
    """Return the number of answers that ping(8) counted."""
    found = re.search(r"(\d+) (?:packets )?received", text)
    return int(found[1]) if found else 0


def find_plugin(candidates: Sequence[Path], scratch: Path, stage: Stage) -> Path:
    """Return this project's plugin: one of the candidates, else one written to ``scratch``."""
    for path in candidates:
        if is_ours(path):
            return path
    done = stage.quiet(f"'{sys.executable}' -m sriov_fast.cli install --bin-dir '{scratch}' --name sriov")
    if done.status:
        raise LabError(f"no sriov in {', '.join(map(str, candidates))}, and none could be made: {done.out}")
    return scratch / "sriov"


def is_ours(path: Path) -> bool:
    """Return whether an executable is this project's: other plugins have the same name."""
    try:
        return os.access(path, os.X_OK) and b"sriov_fast" in path.read_bytes()
    except OSError:
        return False


def require_tools() -> None:
    """Raise LabError if a requirement of the demo is missing."""
    if os.geteuid() != 0:
        raise LabError("the demo moves network devices: run it as root")
    lacks = [
        f"{tool} (apt-get install {package})" for tool, package in TOOLS.items() if not shutil.which(tool)
    ]
    if lacks:
        raise LabError(f"missing: {', '.join(lacks)}")


def play(pf: str, ipam: str, keep: bool, attach: str) -> int:
    """Choose the card and the plugin, run the scenario, clean up."""
    require_tools()
    card = Card(demo_card.choose_pf(pf, os.environ.get("SRIOV_FAST_PF", "")))
    demo_card.require_two(card)
    with ExitStack() as cleanup:
        directory = Path(tempfile.mkdtemp(prefix="sriov-fast-demo-"))
        cleanup.callback(shutil.rmtree, directory, ignore_errors=True)
        stage = Stage(directory)
        plugin = find_plugin(PLUGINS, directory, stage)
        addresses = IPAM[ipam](stage, cleanup, plugin)
        return told(stage, lambda: Demo(card, addresses, stage, cleanup, attach).play(keep))


def told(stage: Stage, story: Callable[[], int]) -> int:
    """Run the scenario; print the summary also if it fails."""
    try:
        return story()
    except LabError as error:
        stage.expect("the demo can go on", False, str(error))
        return stage.summary()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m lab.demo", description="two pods on one SR-IOV card")
    parser.add_argument(
        "--pf", default="", metavar="NAME", help="network device of the PF (default: $SRIOV_FAST_PF)"
    )
    parser.add_argument(
        "--ipam", choices=sorted(IPAM), default="host-local", help="who gives the addresses (host-local)"
    )
    parser.add_argument(
        "--attach", choices=("move", "macvlan"), default="move", help="how the pods get their VFs (move)"
    )
    parser.add_argument("--keep", action="store_true", help="leave the pods; say how to take them down")
    args = parser.parse_args(argv)
    os.umask(0o022)  # the plugin's rules must be writable for root only
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return play(args.pf, args.ipam, args.keep, args.attach)
    except LabError as error:
        complain(str(error))
        return 1
    except KeyboardInterrupt:
        complain("interrupted; everything is cleaned up")
        return 130


if __name__ == "__main__":
    sys.exit(main())
