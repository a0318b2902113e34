"""``sriov-fast uninstall``: remove everything that ``sriov-fast install`` set up on this machine."""

from __future__ import annotations

import argparse
from pathlib import Path

from sriov_fast.cli import install, units, unmanaged
from sriov_fast.common import paths
from sriov_fast.common.errors import BusyError
from sriov_fast.vf.journal import Journal


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register ``uninstall``."""
    summary = "stop the resident server, remove its units and the plugin's executables"
    parser = subparsers.add_parser("uninstall", help=summary, description=summary)
    install.add_bin_dir(parser)
    parser.add_argument(
        "--unit-dir",
        type=Path,
        default=units.DIRECTORY,
        metavar="DIR",
        help=f"directory of the units ({units.DIRECTORY})",
    )
    parser.add_argument(
        "--force", action="store_true", help="also while pods have VFs, which nothing can release then"
    )
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> None:
    roots = paths.from_environment()
    attached = len(Journal(roots.run, roots.proc).taken())
    if attached and not args.force:
        raise BusyError(
            f"{attached} VFs are attached to pods, and their DEL needs the plugin",
            "drain the node first, or use --force",
        )
    units.remove(args.unit_dir)
    for name in install.PROGRAMS:
        _remove(args.bin_dir / name)
    unmanaged.remove()


def _remove(program: Path) -> None:
    if install.is_ours(program):
        program.unlink()
        print(f"removed {program}")
    elif program.exists():
        print(f"left {program}: sriov-fast install did not write it")
