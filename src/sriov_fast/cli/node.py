"""``sriov-fast node``: the entry point of the container image.

It copies the client to the host's directory of CNI plugins and becomes the resident server. The options
``--cni-bin-dir``, ``--sriov-bin-file`` and ``--no-sleep`` are those of the image of the sriov-cni project,
which the SR-IOV network operator runs as an init container.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from sriov_fast import client
from sriov_fast.cli import serve
from sriov_fast.cli.install import write_executable
from sriov_fast.common.errors import ConfigError

HOST_PLUGINS = Path("/host/opt/cni/bin")
SECOND_SOCKET = "/var/lib/cni/sriov-fast/sriov.sock"


SUMMARY = "copy the client to the host's CNI plugins and serve; the entry point of the container image"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument(
        "--cni-bin-dir",
        type=Path,
        default=HOST_PLUGINS,
        metavar="DIR",
        help=f"the host's directory of CNI plugins ({HOST_PLUGINS})",
    )
    parser.add_argument(
        "--sriov-bin-file",
        type=Path,
        metavar="FILE",
        help="the executable to copy, under its own name (the client, as sriov)",
    )
    parser.add_argument("--no-sleep", action="store_true", help="copy and end, as an init container")
    serve.add_options(parser)
    parser.set_defaults(also_listen=SECOND_SOCKET)


def run(args: argparse.Namespace) -> None:
    """Copy the executable, then serve."""
    binary: Path | None = args.sriov_bin_file or client.binary()
    if binary is None:
        raise ConfigError("this package was built without the client", "build it where a C compiler is")
    name = binary.name if args.sriov_bin_file else "sriov"
    missing = [str(path) for path in (args.cni_bin_dir, binary) if not path.exists()]
    if missing:
        raise ConfigError(f"{', '.join(missing)} does not exist")
    _copy(binary, args.cni_bin_dir / name)
    if not args.no_sleep:
        serve.run(args)


def _copy(binary: Path, target: Path) -> None:
    """Replace the target by rename, unless it is the same already."""
    content = binary.read_bytes()
    if target.is_file() and not target.is_symlink() and target.read_bytes() == content:
        return
    write_executable(target, content)
    print(f"wrote {target}", file=sys.stderr)
