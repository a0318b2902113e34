"""Build the files of sysfs and /proc/irq for a PF and its VFs in a directory.

The layout is that of a real machine, symbolic links included: devices are under ``devices/``, and the links
in all other directories refer to them.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sriov_fast.common.paths import Roots
from sriov_fast.common.record import Link
from sriov_fast.vf import locks
from sriov_fast.vf.candidate import Device
from sriov_fast.vf.journal import Journal
from sriov_fast.vf.select import VfRequest

FIRST_VF = 0x80  # routing IDs from the PF's to the first VF's, as on an Intel 82576
FIRST_IRQ = 100
CPUS = 8


@dataclass(frozen=True)
class Tree:
    """A simulated machine; the code under test reads ``sys`` and ``proc`` instead of /sys and /proc."""

    root: Path
    pf: str
    pf_pci: str
    vfs: int
    irqs_per_vf: int

    @property
    def sys(self) -> Path:
        return self.root / "sys"

    @property
    def proc(self) -> Path:
        return self.root / "proc"

    def pci(self, index: int) -> str:
        """Return the PCI address of a VF."""
        return vf_address(self.pf_pci, index)

    def device(self, index: int | None = None) -> Path:
        """Return the device directory of a VF, or of the PF."""
        return _devices(self.sys, self.pf_pci) / (self.pf_pci if index is None else self.pci(index))

    def netdev(self, index: int) -> str:
        """Return the name that a VF's netdev was built with."""
        return f"{self.pf}v{index}"

    def irqs(self, index: int) -> list[int]:
        """Return the IRQs that a VF was built with."""
        first = FIRST_IRQ + index * self.irqs_per_vf
        return list(range(first, first + self.irqs_per_vf))

    def mask(self, irq: int) -> Path:
        """Return the file that holds an IRQ's mask."""
        return self.proc / "irq" / str(irq) / "smp_affinity"

    def remove_netdev(self, index: int | None) -> None:
        """Hide the netdev of a VF, or of the PF, as moving it to another namespace does."""
        net = self.device(index) / "net"
        for netdev in net.iterdir():
            (self.sys / "class/net" / netdev.name).unlink()
            shutil.rmtree(netdev)

    def add_netdev(self, index: int | None, name: str) -> None:
        """Show a netdev of a VF, or of the PF."""
        _netdev(self.sys, self.device(index), name)

    def unbind(self, index: int) -> None:
        """Unbind a VF from its driver, which removes the netdev and the interrupts."""
        device = self.device(index)
        self.remove_netdev(index)
        (device / "net").rmdir()
        (device / "driver" / device.name).unlink()
        (device / "driver").unlink()
        shutil.rmtree(device / "msi_irqs", ignore_errors=True)
        for irq in self.irqs(index):
            shutil.rmtree(self.proc / "irq" / str(irq), ignore_errors=True)

    def bind(self, index: int, driver: str) -> None:
        """Bind a driver without a netdev (vfio-pci) to a VF, in place of its own."""
        if (self.device(index) / "driver").exists():
            self.unbind(index)
        _bind(self.sys, self.device(index), driver)

    def hide_pf(self, index: int) -> None:
        """Separate a VF from its PF, as in a virtual machine, which does not show the PF."""
        (self.device(index) / "physfn").unlink()
        (self.device() / f"virtfn{index}").unlink()

    def vanish(self, index: int) -> None:
        """Remove a VF and leave the links to it, as in the middle of an unplug."""
        if (self.device(index) / "driver").exists():
            self.unbind(index)
        shutil.rmtree(self.device(index))


def build_tree(
    root: Path,
    pf: str = "eth1",
    vfs: int = 8,
    pf_pci: str = "0000:01:00.0",
    irqs_per_vf: int = 2,
    numa: int = 0,
) -> Tree:
    """Build a PF with VFs under ``root``; call again with another PF to add it to the same machine."""
    tree = Tree(root, pf, pf_pci, vfs, irqs_per_vf)
    _machine(tree)
    device = _device(tree.sys, pf_pci, pf_pci, "0x10c9", numa)
    files = {"sriov_totalvfs": max(vfs, 8), "sriov_numvfs": vfs, "sriov_drivers_autoprobe": 1}
    for name, value in files.items():
        _write(device / name, value)
    _bind(tree.sys, device, "igb")
    _netdev(tree.sys, device, pf)
    for index in range(vfs):
        _vf(tree, index, numa)
    return tree


def vf_address(pf_pci: str, index: int) -> str:
    """Return the PCI address of the VF with this index, computed from the PF's routing ID."""
    domain, bus, rest = pf_pci.split(":")
    slot, function = rest.split(".")
    rid = (int(bus, 16) << 8 | int(slot, 16) << 3 | int(function)) + FIRST_VF + index
    return f"{domain}:{rid >> 8:02x}:{rid >> 3 & 31:02x}.{rid & 7}"


def _write(path: Path, value: object) -> None:
    _made(path.parent)
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
    try:
        os.write(file, f"{value}\n".encode())
    finally:
        os.close(file)


def _link(path: Path, target: Path) -> None:
    """Make a relative symbolic link, as in sysfs."""
    _made(path.parent)
    os.symlink(os.path.relpath(target, path.parent), path)


def _made(directory: Path) -> None:
    if not os.access(directory, os.F_OK):
        os.makedirs(directory, exist_ok=True)


def _devices(sys: Path, pf_pci: str) -> Path:
    return sys / f"devices/pci{pf_pci[:5]}00" / f"{pf_pci[:5]}00:01.0"


def _machine(tree: Tree) -> None:
    for name in ("online", "possible", "present"):
        _write(tree.sys / "devices/system/cpu" / name, f"0-{CPUS - 1}")
    _write(tree.proc / "irq/default_smp_affinity", "ff")
    if not (tree.proc / "sys").exists():  # made by an earlier PF of the same machine
        _link(tree.proc / "sys/net", Path("/proc/sys/net"))


def _device(sys: Path, pf_pci: str, pci: str, product: str, numa: int) -> Path:
    device = _devices(sys, pf_pci) / pci
    files = {"vendor": "0x8086", "device": product, "class": "0x020000", "irq": 0, "numa_node": numa}
    for name, value in files.items():
        _write(device / name, value)
    _link(sys / "bus/pci/devices" / pci, device)
    return device


def _bind(sys: Path, device: Path, driver: str) -> None:
    home = sys / "bus/pci/drivers" / driver
    home.mkdir(parents=True, exist_ok=True)
    _link(device / "driver", home)
    _link(home / device.name, device)


def _netdev(sys: Path, device: Path, name: str) -> None:
    netdev = device / "net" / name
    known = sys / "class/net"
    index = 2 + (len(os.listdir(known)) if known.exists() else 0)
    mac = f"02:00:00:00:{index >> 8:02x}:{index & 255:02x}"
    for file, value in {"ifindex": index, "mtu": 1500, "address": mac}.items():
        _write(netdev / file, value)
    _link(netdev / "device", device)
    _link(known / name, netdev)


def _vf(tree: Tree, index: int, numa: int) -> None:
    device = _device(tree.sys, tree.pf_pci, tree.pci(index), "0x10ca", numa)
    _link(device / "physfn", tree.device())
    _link(tree.device() / f"virtfn{index}", device)
    _bind(tree.sys, device, "igbvf")
    _netdev(tree.sys, device, tree.netdev(index))
    for irq in tree.irqs(index):
        _write(device / "msi_irqs" / str(irq), "msix")
        home = tree.proc / "irq" / str(irq)
        for file, value in {"smp_affinity": "ff", "smp_affinity_list": f"0-{CPUS - 1}", "node": numa}.items():
            _write(home / file, value)


def vf_request(journal: Journal, roots: Roots, **wish: Any) -> VfRequest:
    """Return a request for a VF of eth1 with stub functions; ``wish`` replaces its arguments."""
    default: dict[str, Any] = {
        "holder": "test",
        "wait": lambda: locks.WAIT,
        "recover": lambda record: None,
        "examine": lambda vf: Device(link=Link(index=0, name=vf.netdev, mac="", mtu=0, up=False)),
        "real_name": lambda name: "",
        "warn": lambda message: None,
        "masters": ("eth1",),
    }
    return VfRequest(journal=journal, roots=roots, **default | wish)
