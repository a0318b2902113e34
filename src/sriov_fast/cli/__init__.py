"""``sriov-fast``: the operator's command. Each subcommand's module is imported when it is called."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from typing import Any

from sriov_fast import __version__
from sriov_fast.cli import output
from sriov_fast.common.errors import SriovError

# The commands in the order of --help. Each is a module of this package: ``SUMMARY``, ``add_options(parser)``
# and ``run(args)``. A longer help text is in its ``DESCRIPTION``.
COMMANDS = (
    *("vfs", "doctor", "check", "warm", "release", "install", "uninstall", "serve", "node", "trace", "tune"),
    *("ipam", "demo"),
)
SHELLS = ("bash", "zsh", "tcsh")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    args = parser(arguments).parse_args(arguments)
    try:
        status = int(args.run(args) or 0)
        sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader of stdout has ended, which is no error; the interpreter's final flush must not fail.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (SriovError, OSError) as error:
        print(f"sriov-fast {args.command}: {output.explain(error)}", file=sys.stderr)
        return 1


def parser(arguments: Sequence[str]) -> argparse.ArgumentParser:
    """Return the parser for a command line; without arguments the one for all commands."""
    whole = argparse.ArgumentParser(
        prog="sriov-fast",
        description="Operate the sriov CNI plugin: see VFs, check the machine, install, try.",
    )
    whole.add_argument("--version", action=_Version, help="show version, backend and wheel, and exit")
    whole.add_argument(
        "--print-completion", action=_Completion, choices=SHELLS, help="print a shell's completion, and exit"
    )
    subparsers = whole.add_subparsers(required=True, dest="command", metavar="COMMAND")
    for name in _needed(arguments):
        command = importlib.import_module(f"sriov_fast.cli.{name}")
        description = getattr(command, "DESCRIPTION", command.SUMMARY)
        options = subparsers.add_parser(name, help=command.SUMMARY, description=description)
        options.set_defaults(run=command.run)
        command.add_options(options)
    return whole


def _needed(arguments: Sequence[str]) -> Sequence[str]:
    """Return the commands to import: the given one, or all for a help text."""
    if arguments[:1] == ["--version"]:
        return []
    first = next((argument for argument in arguments if not argument.startswith("-")), "")
    return [first] if first in COMMANDS else COMMANDS


class _Version(argparse.Action):
    """Prints the version. It selects the backend only then."""

    def __init__(self, option_strings: Sequence[str], dest: str, help: str = "") -> None:  # noqa: A002
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, help=help)

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from sriov_fast.kernel import backend

        python = f"{sys.implementation.name} {sys.version.split()[0]}, {sys.executable}"
        print(f"sriov-fast {__version__} (backend {backend.name}; {_wheel()}; {python})")
        parser.exit()


class _Completion(argparse.Action):
    """Prints a shell's completion of all commands."""

    def __call__(self, parser: argparse.ArgumentParser, _: object, shell: Any, *__: object) -> None:
        try:
            import shtab
        except ImportError:
            parser.error("completion needs shtab: pip install 'sriov-fast[completion]'")
        print(shtab.complete(parser, shell))
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
