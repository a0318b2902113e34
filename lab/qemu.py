"""QEMU's command line for the guest."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

PROGRAM = "qemu-system-x86_64"
CARD_VFS = 7
MAX_PFS = 8
SOCKET = "/run/tree.sock"


@dataclass(frozen=True, slots=True)
class Machine:
    """The virtual hardware of the guest, and the way QEMU runs it."""

    pfs: int
    cpus: int
    vfs: int
    memory: int
    accel: str
    share: str
    terminal: bool
    append: str
    iommu: bool


def arguments(machine: Machine, version: str, tree: str, job: str) -> list[str]:
    """Return QEMU's command line: kernel, shares of ``tree`` and ``job``, ports, cards."""
    return [
        *(PROGRAM, "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"),
        *_board(machine),
        *("-kernel", f"/boot/vmlinuz-{version}", "-initrd", f"{job}/initramfs"),
        *("-append", command_line(machine)),
        *("-serial", f"file:{job}/console.log"),
        *_tree_share(machine, tree),
        *_ninep("job", job, readonly=False),
        *_ports(machine, job),
        *("-device", "virtio-rng-pci"),
        *(argument for number in range(machine.pfs) for argument in card(number)),
    ]


def command_line(machine: Machine) -> str:
    """Return the kernel's command line."""
    words = ("console=ttyS0", "quiet", "panic=-1", "mitigations=off", "random.trust_cpu=on", "net.ifnames=0")
    ours = ("audit=0", "selinux=0", "apparmor=0", f"lab.share={machine.share}")
    iommu = ("intel_iommu=on",) if machine.iommu else ()
    return " ".join((*words, *ours, *iommu, *machine.append.split()))


def card(number: int) -> list[str]:
    """Return the arguments of one SR-IOV card on its own root port; a hub connects all cards."""
    return [
        *("-netdev", f"hubport,id=wire{number},hubid=0"),
        *("-device", f"pcie-root-port,id=port{number},slot={number + 1},chassis={number + 1}"),
        *("-device", f"igb,bus=port{number},netdev=wire{number},mac=52:54:00:5f:{number:02x}:00"),
    ]


def _board(machine: Machine) -> list[str]:
    # With a thread for each CPU, emulation loses timer interrupts and races with the mapping of the cards'
    # memory: several boots in ten hung or crashed. A single thread is as fast on small hosts, and reliable.
    accel = "kvm" if machine.accel == "kvm" else "tcg,thread=single"
    return [
        *("-machine", "q35,memory-backend=memory", "-accel", accel),
        # Emulated AVX is slower than SSE2: libraries use AVX with the CPU "max", and SSE2 with "qemu64".
        *("-cpu", "host" if machine.accel == "kvm" else "qemu64"),
        *("-smp", str(machine.cpus), "-m", str(machine.memory)),
        *("-object", f"memory-backend-memfd,id=memory,size={machine.memory}M,share=on"),
        *(("-device", "intel-iommu") if machine.iommu else ()),  # before the devices that it serves
    ]


def _tree_share(machine: Machine, tree: str) -> list[str]:
    if machine.share == "9p":
        return _ninep("tree", tree, readonly=True)
    return [
        *("-chardev", f"socket,id=tree,path={SOCKET}"),
        *("-device", "vhost-user-fs-pci,chardev=tree,tag=tree,queue-size=1024"),
    ]


def _ninep(tag: str, path: str, *, readonly: bool) -> list[str]:
    options = f"local,id={tag},path={path},security_model=none,multidevs=remap"
    return [
        *("-fsdev", options + (",readonly=on" if readonly else "")),
        *("-device", f"virtio-9p-pci,fsdev={tag},mount_tag={tag}"),
    ]


def _ports(machine: Machine, job: str) -> Iterator[str]:
    yield from ("-device", "virtio-serial-pci,id=ports")
    for name in ("out", "err", "control"):
        yield from ("-chardev", f"file,id={name},path={job}/{name}.pipe")
        yield from ("-device", f"virtserialport,bus=ports.0,chardev={name},name={name}")
    if machine.terminal:
        yield from ("-chardev", "stdio,id=terminal,signal=off")
        yield from ("-device", "virtconsole,bus=ports.0,chardev=terminal")
