"""The card of the demo: the choice of the PF, and all state of a VF that a pod could change."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lab.errors import LabError

SYS, PROC = Path("/sys"), Path("/proc")
UNUSED = "none yet"
_ROWS = 8  # VFs that a table shows
# The keys of a VF in ip(8) that are no settings.
_NO_SETTING = ("vf", "link_type", "broadcast")

State = dict[str, str]


class Difference(NamedTuple):
    """One field of a VF before and after."""

    field: str
    before: str
    after: str
    same: bool


class Vf(NamedTuple):
    """One VF as sysfs shows it; ``netdev`` is "" if it has none in this namespace."""

    number: int
    pci: str
    netdev: str


class Card:
    """A PF and its VFs."""

    def __init__(self, pf: str, sys: Path = SYS, proc: Path = PROC) -> None:
        self.pf = pf
        self.device = sys / "class/net" / pf / "device"
        self._proc = proc

    @property
    def driver(self) -> str:
        """The name of the PF's driver."""
        return (self.device / "driver").resolve().name

    def vfs(self) -> list[Vf]:
        """Return all VFs in the order of their indexes."""
        return [self._vf(path) for path in sorted(self.device.glob("virtfn*"), key=_index)]

    def _vf(self, path: Path) -> Vf:
        names = sorted(entry.name for entry in path.glob("net/*"))
        return Vf(_index(path), path.resolve().name, names[0] if names else "")

    def irqs(self, index: int) -> list[int]:
        """Return the interrupts of a VF, in numeric order."""
        return sorted(int(path.name) for path in self.device.glob(f"virtfn{index}/msi_irqs/*"))

    def masks(self, index: int) -> dict[int, str]:
        """Return the mask of each interrupt; the kernel shows none before an interrupt's first use."""
        return {irq: _read(self._proc / f"irq/{irq}/smp_affinity") or UNUSED for irq in self.irqs(index)}

    def state(self, vf: Vf, link: Callable[[str], Mapping[str, Any]]) -> State:
        """Return all state that a pod could change; ``link`` is a device's output of ``ip -j -d link``."""
        if not vf.netdev:
            return {"netdev": "not in the host"}
        netdev = link(vf.netdev)
        listed = link(self.pf).get("vfinfo_list", [])
        on_pf: Mapping[str, Any] = next((item for item in listed if item.get("vf") == vf.number), {})
        masks = {f"IRQ {irq} mask": mask for irq, mask in self.masks(vf.number).items()}
        return device_fields(vf.netdev, netdev) | pf_fields(on_pf) | masks


def _index(path: Path) -> int:
    return int(path.name.removeprefix("virtfn"))


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def device_fields(name: str, link: Mapping[str, Any]) -> State:
    """Return the fields of the VF's network device."""
    return {
        "netdev": name,
        "MAC": str(link.get("address", "")),
        "MTU": str(link.get("mtu", "")),
        "link": "up" if "UP" in link.get("flags", ()) else "down",
    }


def pf_fields(on_pf: Mapping[str, Any]) -> State:
    """Return the PF's settings of the VF, as far as this version of ip(8) shows them."""
    fields = {}
    for key, value in on_pf.items():
        if key == "address":
            fields["PF: MAC"] = str(value)
        elif key == "vlan_list":
            fields["PF: VLAN"] = vlan_text(value)
        elif key not in _NO_SETTING:
            fields[f"PF: {key}"] = value if isinstance(value, str) else json.dumps(value)
    return fields


def vlan_text(listed: Iterable[Mapping[str, Any]]) -> str:
    """Return a VF's VLAN as text: "none", "100", "100 qos 3"."""
    found = [
        " ".join([str(item["vlan"]), *(f"{key} {item[key]}" for key in ("qos", "protocol") if key in item)])
        for item in listed
        if item.get("vlan")
    ]
    return ", ".join(found) or "none"


def compare(before: State, after: State, pinned: Mapping[int, str]) -> list[Difference]:
    """Compare two states of a VF, field by field.

    An interrupt without a mask gets one from the kernel at its first use. For such an interrupt the states
    are equal if the mask differs from that set for the pod (``pinned``).
    """
    found = []
    for field in dict.fromkeys([*before, *after]):
        was, now = before.get(field, "(not there)"), after.get(field, "(not there)")
        if was == UNUSED and field.startswith("IRQ "):
            same = now != pinned.get(int(field.split()[1]))
        else:
            same = was == now
        found.append(Difference(field, was, now, same))
    return found


def cpus_of_mask(mask: str) -> set[int]:
    """Return the CPUs of a mask in comma-separated groups of 32 bits."""
    number = int(mask.replace(",", ""), 16)
    return {cpu for cpu in range(number.bit_length()) if number >> cpu & 1}


def parse_cpus(text: str) -> list[int]:
    """Read the kernel's list form, such as "0-3,8"."""
    cpus: list[int] = []
    for part in filter(None, text.strip().split(",")):
        first, _, last = part.partition("-")
        cpus += range(int(first), int(last or first) + 1)
    return cpus


def choose_cores(wanted: Sequence[int], online: Sequence[int]) -> tuple[list[int], str]:
    """Return the wanted cores that are online, or all online cores if none is, and a remark."""
    here = [core for core in wanted if core in online]
    if here == list(wanted):
        return here, ""
    missing = ", ".join(str(core) for core in wanted if core not in online)
    taken = here or list(online)
    return taken, f"core {missing} is not online here, so CORES={listed(taken)}"


def listed(cores: Iterable[int]) -> str:
    """Return cores in the form of CNI_ARGS."""
    return ",".join(map(str, cores))


def choose_pf(asked: str, environment: str, sys: Path = SYS) -> str:
    """Return the PF to use: the one asked for, the first in SRIOV_FAST_PF, or the only one with VFs."""
    named = asked or next(iter(environment.replace(",", " ").split()), "")
    if named:
        return named
    able = sorted(path.parts[-3] for path in (sys / "class/net").glob("*/device/sriov_totalvfs"))
    if not able:
        raise LabError(
            "no network card here can have VFs (SR-IOV); `make demo` and `python -m lab` bring a virtual one"
        )
    ready = [name for name in able if any((sys / "class/net" / name / "device").glob("virtfn*"))]
    if len(ready) > 1:
        raise LabError(f"several PFs have VFs: {', '.join(ready)}. Choose one: --pf {ready[0]}")
    return (ready or able)[0]


def require_two(card: Card) -> None:
    """Raise LabError unless the PF is one and has two VFs that could go to pods."""
    if not card.device.parent.exists():
        raise LabError(f"there is no network device {card.pf!r}")
    if not (card.device / "sriov_totalvfs").exists():
        raise LabError(f"{card.pf} is no PF with SR-IOV")
    vfs = card.vfs()
    if not vfs:
        number = min(int(_read(card.device / "sriov_totalvfs") or 7), 7)
        command = f"echo {number} > /sys/class/net/{card.pf}/device/sriov_numvfs"
        raise LabError(f"{card.pf} has no VFs yet. Make some: {command}")
    free = [vf for vf in vfs if vf.netdev]
    if len(free) < 2:
        raise LabError(
            f"the demo needs two free VFs; {card.pf} has {len(free)} of {len(vfs)} with a network device in "
            "the host. The others are in pods, or their driver is not loaded"
        )


def table(vfs: Sequence[Vf], states: Mapping[int, State]) -> list[str]:
    """Return lines that show the VFs' states, one VF each."""
    rows: list[tuple[str, ...]] = [
        ("VF", "netdev", "MAC", "MTU", "link", "MAC at the PF", "VLAN", "IRQ masks")
    ]
    rows += [_row(vf, states[vf.number]) for vf in vfs[:_ROWS]]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
    return [*lines, f"... ({len(vfs) - _ROWS} more)"] if len(vfs) > _ROWS else lines


def _row(vf: Vf, state: State) -> tuple[str, ...]:
    keys = ("netdev", "MAC", "MTU", "link", "PF: MAC", "PF: VLAN")
    masks = [value for key, value in state.items() if key.startswith("IRQ ")]
    return (str(vf.number), *(state.get(key, "-") for key in keys), " ".join(dict.fromkeys(masks)) or "-")
