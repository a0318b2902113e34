"""``sriov-fast uninstall``: remove everything that ``sriov-fast install`` set up on this machine."""

from __future__ import annotations

import argparse
from pathlib import Path

from sriov_fast.cli import install, units, unmanaged
from sriov_fast.common import paths
from sriov_fast.common.errors import BusyError
from sriov_fast.vf.journal import Journal

SUMMARY = "stop the resident server, remove its units and the plugin's executables"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
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


def run(args: argparse.Namespace) -> None:
    """Remove units, executables and files, unless a pod still has a VF."""
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
