"""``sriov-fast vfs``: show the VFs and their owners."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, Self

from sriov_fast.cli import machine, output, problems, terminal
from sriov_fast.cli.serve import seconds
from sriov_fast.cli.warm import Warmth
from sriov_fast.common import paths
from sriov_fast.common.paths import Roots
from sriov_fast.common.record import Vf
from sriov_fast.vf.journal import ATTACHED, PF, Attachment

_HEADER = ("PF", "VF", "PCI", "DRIVER", "NETDEV", "NUMA", "MAC", "VLAN", "STATE", "OWNER")
_CLEAR = "\x1b[H\x1b[2J"  # ECMA-48: CUP, ED


SUMMARY = "show PFs, their VFs, and which container has which"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("pf", nargs="*", metavar="PF", help="network device of a PF (default: all)")
    output.add_json(parser)
    watch = "show them again every SECONDS (2), until Ctrl-C"
    parser.add_argument("--watch", nargs="?", type=seconds, const=2.0, metavar="SECONDS", help=watch)


def run(args: argparse.Namespace) -> int:
    """Show the VFs once or repeatedly; return 1 if a name is no PF."""
    while args.watch is not None:
        if sys.stdout.isatty():
            print(_CLEAR, end="")
        _show(args)
        sys.stdout.flush()
        time.sleep(max(args.watch, 0.1))
    return _show(args)


def _show(args: argparse.Namespace) -> int:
    roots = paths.from_environment()
    pfs = []
    status = 0
    attachments = machine.records(roots)
    away = {record.host_name: record for record in attachments if record.attach == PF}
    if args.pf:
        away = {name: record for name, record in away.items() if name in args.pf}
    for name in [name for name in args.pf or machine.pf_names(roots) if name not in away]:
        try:
            pfs.append(machine.pf(name, roots))
        except (OSError, ValueError) as error:
            why = (error.strerror if isinstance(error, OSError) else None) or error
            print(f"sriov-fast vfs: {name} is no PF with SR-IOV: {why}", file=sys.stderr)
            status = 1
    known = _Known.read(pfs, attachments, roots)
    if args.json:
        output.print_json(
            [_plain(pf, known) for pf in pfs] + [_plain_away(pf, known) for pf in away.values()]
        )
    elif pfs or away:
        rows = [*_rows(pfs, known), *(_row_away(record, known) for record in away.values())]
        terminal.print_table(_HEADER, rows)
    elif not status:
        print("no network card here can have VFs (SR-IOV)", file=sys.stderr)
    return status


class _Known(NamedTuple):
    """Facts about VFs from other sources than sysfs, by PCI address."""

    owned: machine.Owners
    strays: dict[str, str]
    warm: set[str]
    pods: dict[str, str]
    states: dict[str, str]
    settings: dict[str, problems.VfMacVlan]
    problems: dict[str, list[str]]

    @classmethod
    def read(cls, pfs: Sequence[machine.Pf], attachments: Sequence[Attachment], roots: Roots) -> Self:
        """Read everything."""
        owned, settings = machine.owners(roots), problems.settings(pfs, roots)
        return cls(
            owned=owned,
            strays={record.pci: why for record, why in machine.strays(attachments, roots)},
            warm=Warmth(roots).marked(),
            pods=machine.pods(attachments),
            states=machine.states(pfs, roots),
            settings=settings,
            problems=problems.of(pfs, owned, settings, roots),
        )

    def owner(self, pci: str) -> str:
        """Return the owner of a VF with remarks, "-" without one."""
        pod = [f"pod {self.pods[pci]}"] if pci in self.pods else []
        stray = [self.strays[pci]] if pci in self.strays else []
        warm = ["warm"] if pci in self.warm else []
        remarks = [*pod, *stray, *warm, *self.problems.get(pci, ())]
        return " ".join(["/".join(self.owned.get(pci, ())) or "-", *(f"({text})" for text in remarks)])


def _rows(pfs: Iterable[machine.Pf], known: _Known) -> Iterable[Sequence[str]]:
    for pf in pfs:
        if not pf.vfs:
            yield (pf.name, *["-"] * (len(_HEADER) - 2), f"(no VFs, up to {pf.total})")
        for vf in pf.vfs:
            mac, vlan = known.settings[vf.pci]
            device = (vf.driver or "-", vf.netdev or "-", str(vf.numa) if vf.numa >= 0 else "-")
            shown = (mac or "-", str(vlan or "-"), known.states[vf.pci], known.owner(vf.pci))
            yield (pf.name, str(vf.index), vf.pci, *device, *shown)


def _row_away(record: Attachment, known: _Known) -> Sequence[str]:
    """Return the row of a PF in a pod: its VFs can be given to nobody."""
    unknown = ["-"] * (len(_HEADER) - 5)
    return (record.host_name, "-", record.pci, *unknown, ATTACHED, known.owner(record.pci))


def _plain_away(record: Attachment, known: _Known) -> dict[str, Any]:
    owner = {"containerID": record.container_id, "ifname": record.ifname}
    named = {"pf": record.host_name, "pci": record.pci, "vfs": [], "owner": owner}
    return named | {"pod": known.pods.get(record.pci), "stray": known.strays.get(record.pci)}


def _plain(pf: machine.Pf, known: _Known) -> dict[str, Any]:
    return {"pf": pf.name, "total": pf.total, "vfs": [_plain_vf(vf, known) for vf in pf.vfs]}


def _plain_vf(vf: Vf, known: _Known) -> dict[str, Any]:
    owner = known.owned.get(vf.pci)
    return vf.as_dict() | {
        **known.settings[vf.pci]._asdict(),
        "state": known.states[vf.pci],
        "owner": {"containerID": owner[0], "ifname": owner[1]} if owner else None,
        "pod": known.pods.get(vf.pci),
        "stray": known.strays.get(vf.pci),  # the reason to run `sriov-fast release`
        "warm": vf.pci in known.warm,
        "problems": known.problems.get(vf.pci, []),
    }
