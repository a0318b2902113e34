"""``sriov-fast vfs``: which VFs there are, and whose they are."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from sriov_fast.cli import machine
from sriov_fast.cli.warm import Warmth
from sriov_fast.common import paths, table
from sriov_fast.common.record import Vf

_HEADER = ("PF", "VF", "PCI", "DRIVER", "NETDEV", "NUMA", "OWNER")


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register ``vfs``."""
    summary = "show PFs, their VFs, and which container has which"
    parser = subparsers.add_parser("vfs", help=summary, description=summary)
    parser.add_argument("pf", nargs="*", metavar="PF", help="network device of a PF (default: all)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    here = paths.from_environment()
    owned = machine.owners(here)
    strays = {record.pci: why for record, why in machine.strays(here)}
    warm = Warmth(here).marked()
    pfs = []
    status = 0
    for name in args.pf or machine.pf_names(here):
        try:
            pfs.append(machine.pf(name, here))
        except (OSError, ValueError) as error:
            why = (error.strerror if isinstance(error, OSError) else None) or error
            print(f"sriov-fast vfs: {name} is no PF with SR-IOV: {why}", file=sys.stderr)
            status = 1
    if args.json:
        _print_json(pfs, owned, strays, warm)
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


def _print_json(
    pfs: Iterable[machine.Pf], owned: machine.Owners, strays: dict[str, str], warm: set[str]
) -> None:
    import orjson

    document = [
        {
            "pf": pf.name,
            "total": pf.total,
            "vfs": [_plain(vf, owned, strays) | {"warm": vf.pci in warm} for vf in pf.vfs],
        }
        for pf in pfs
    ]
    sys.stdout.write(orjson.dumps(document, option=orjson.OPT_INDENT_2).decode() + "\n")


def _plain(vf: Vf, owned: machine.Owners, strays: dict[str, str]) -> dict[str, Any]:
    plain = vf.as_dict()
    owner = owned.get(vf.pci)
    plain["owner"] = {"containerID": owner[0], "ifname": owner[1]} if owner else None
    plain["stray"] = strays.get(vf.pci)  # why it waits for `sriov-fast release`
    return plain
