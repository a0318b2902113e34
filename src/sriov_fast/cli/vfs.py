"""``sriov-fast vfs``: show the VFs and their owners."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterable, Sequence
from typing import Any

from sriov_fast.cli import machine, output
from sriov_fast.cli.warm import Warmth
from sriov_fast.common import paths, table
from sriov_fast.common.record import Vf

_HEADER = ("PF", "VF", "PCI", "DRIVER", "NETDEV", "NUMA", "OWNER")
_CLEAR = "\x1b[H\x1b[2J"  # ECMA-48: CUP, ED


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register ``vfs``."""
    summary = "show PFs, their VFs, and which container has which"
    parser = subparsers.add_parser("vfs", help=summary, description=summary)
    parser.add_argument("pf", nargs="*", metavar="PF", help="network device of a PF (default: all)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    watch = "show them again every SECONDS (2), until Ctrl-C"
    parser.add_argument("--watch", nargs="?", type=float, const=2.0, metavar="SECONDS", help=watch)
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    while args.watch is not None:
        if sys.stdout.isatty():
            print(_CLEAR, end="")
        _show(args)
        sys.stdout.flush()
        time.sleep(max(args.watch, 0.1))
    return _show(args)


def _show(args: argparse.Namespace) -> int:
    roots = paths.from_environment()
    owned = machine.owners(roots)
    strays = {record.pci: why for record, why in machine.strays(roots)}
    warm = Warmth(roots).marked()
    pfs = []
    status = 0
    for name in args.pf or machine.pf_names(roots):
        try:
            pfs.append(machine.pf(name, roots))
        except (OSError, ValueError) as error:
            why = (error.strerror if isinstance(error, OSError) else None) or error
            print(f"sriov-fast vfs: {name} is no PF with SR-IOV: {why}", file=sys.stderr)
            status = 1
    if args.json:
        output.print_json([_plain(pf, owned, strays, warm) for pf in pfs])
    elif pfs:
        print("\n".join(table.lines([_HEADER, *_rows(pfs, owned, strays, warm)])))
    elif not status:
        print("no network card here can have VFs (SR-IOV)", file=sys.stderr)
    return status


def _rows(
    pfs: Iterable[machine.Pf], owned: machine.Owners, strays: dict[str, str], warm: set[str]
) -> Iterable[Sequence[str]]:
    for pf in pfs:
        if not pf.vfs:
            yield (pf.name, "-", "-", "-", "-", "-", f"(no VFs, up to {pf.total})")
        for vf in pf.vfs:
            numa = str(vf.numa) if vf.numa >= 0 else "-"
            owner = "/".join(owned.get(vf.pci, ())) or "-"
            if vf.pci in strays:
                owner += f" ({strays[vf.pci]})"
            if vf.pci in warm:
                owner += " (warm)"
            yield (pf.name, str(vf.index), vf.pci, vf.driver or "-", vf.netdev or "-", numa, owner)


def _plain(pf: machine.Pf, owned: machine.Owners, strays: dict[str, str], warm: set[str]) -> dict[str, Any]:
    return {
        "pf": pf.name,
        "total": pf.total,
        "vfs": [_plain_vf(vf, owned, strays) | {"warm": vf.pci in warm} for vf in pf.vfs],
    }


def _plain_vf(vf: Vf, owned: machine.Owners, strays: dict[str, str]) -> dict[str, Any]:
    owner = owned.get(vf.pci)
    return vf.as_dict() | {
        "owner": {"containerID": owner[0], "ifname": owner[1]} if owner else None,
        "stray": strays.get(vf.pci),  # the reason to run `sriov-fast release`
    }
