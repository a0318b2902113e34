"""``sriov-fast``: the operator's command. Each subcommand's module is imported when it is called."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Callable, Sequence

from sriov_fast import __version__

_Add = Callable[["argparse._SubParsersAction[argparse.ArgumentParser]"], None]

# In the order of --help. Each module has add_parser(subparsers), which sets ``run`` to what the command does.
COMMANDS = {
    "vfs": "sriov_fast.cli.vfs",
    "doctor": "sriov_fast.cli.doctor",
    "check": "sriov_fast.cli.check",
    "warm": "sriov_fast.cli.warm",
    "release": "sriov_fast.cli.release",
    "install": "sriov_fast.cli.install",
    "uninstall": "sriov_fast.cli.uninstall",
    "serve": "sriov_fast.cli.serve",
    "trace": "sriov_fast.cli.trace",
    "tune": "sriov_fast.cli.tune",
    "ipam": "sriov_fast.cli.ipam",
    "demo": "sriov_fast.cli.demo",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    args = _parser(words).parse_args(words)
    try:
        status = int(args.run(args) or 0)
        sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # Whoever read us has what it wanted; the interpreter's own flush at its end must not complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _parser(words: Sequence[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sriov-fast",
        description="Operate the sriov CNI plugin: see VFs, check the machine, install, try.",
    )
    parser.add_argument("--version", action=_Version, help="show version, backend and wheel, and exit")
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")
    for name in _needed(words):
        add_parser: _Add = importlib.import_module(COMMANDS[name]).add_parser
        add_parser(subparsers)
    return parser


def _needed(words: Sequence[str]) -> Sequence[str]:
    """Name the commands whose parsers this call needs: the one that was given, or all for a help text."""
    if words[:1] == ["--version"]:
        return []
    first = next((word for word in words if not word.startswith("-")), "")
    return [first] if first in COMMANDS else list(COMMANDS)


class _Version(argparse.Action):
    """Prints the version; the backend is only then selected."""

    def __init__(self, option_strings: Sequence[str], dest: str, help: str = "") -> None:  # noqa: A002
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, help=help)

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from sriov_fast.kernel import backend

        python = f"{sys.implementation.name} {sys.version.split()[0]}, {sys.executable}"
        print(f"sriov-fast {__version__} (backend {backend.name}; {_wheel()}; {python})")
        parser.exit()


def _wheel() -> str:
    """Return the tag of the installed wheel (PEP 427), or "no wheel" for a package without one."""
    from importlib import metadata

    try:
        installed = metadata.distribution("sriov-fast").read_text("WHEEL") or ""
    except metadata.PackageNotFoundError:
        installed = ""
    tags = [line.split()[1] for line in installed.splitlines() if line.startswith("Tag: ")]
    return f"wheel {tags[0]}" if tags else "no wheel"
