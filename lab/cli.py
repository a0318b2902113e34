"""The command line of the lab: ``python -m lab``, from the top of the checkout."""

from __future__ import annotations

import argparse
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from lab import accel, install, node_image, requirements, source, tree
from lab.errors import LabError
from lab.guest import Guest, Task
from lab.paths import base
from lab.progress import say
from lab.qemu import CARD_VFS, MAX_PFS, Machine

INTERRUPTED = 130
TESTS = ("tests/lab",)
PYTEST = (install.PYTHON, "-m", "pytest", "-p", "no:cacheprovider")
# Plugins that pytest loads by itself (schemathesis, anyio) add half a minute to an emulated start.
ALONE = "PYTEST_DISABLE_PLUGIN_AUTOLOAD=1"


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line; ``run`` of its result is the function of the command."""
    whole = argparse.ArgumentParser(
        prog="python -m lab", description="a virtual machine with real SR-IOV cards"
    )
    commands = whole.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text)
        added.set_defaults(run=run)
        return added

    _add_source(command("build", _build, "build the guest and install the project in it"))
    run = command("run", _run, "boot the guest and run a command in it")
    _add_machine(run)
    run.add_argument("command", nargs="+", metavar="CMD", help="the command and its arguments, after --")
    pytest = command("pytest", _pytest, "boot the guest and run pytest in it, by default on its tier")
    _add_machine(pytest)
    pytest.add_argument("arguments", nargs="*", metavar="ARG", help="arguments for pytest, after --")
    _add_machine(command("shell", _shell, "boot the guest and open a shell in it"))
    command("clean", _clean, "delete everything that the lab keeps")
    return whole


def _add_source(parser: argparse.ArgumentParser) -> None:
    text = "checkout, sdist or wheel (default: this checkout)"
    parser.add_argument("--source", type=Path, metavar="PATH", help=text)


def _add_machine(parser: argparse.ArgumentParser) -> None:
    _add_source(parser)
    add = parser.add_argument
    add(
        "--image", action="store_true", help=f"build the DaemonSet's image for the guest: {node_image.OUTPUT}"
    )
    add("--no-install", action="store_true", help="do not install the project in the guest")
    add("--pfs", type=_count(0, MAX_PFS), default=1, metavar="N", help="SR-IOV cards (1)")
    add("--vfs", type=_count(0, CARD_VFS), default=CARD_VFS, metavar="K", help="VFs of each card (7)")
    add("--cpus", type=_count(1, 64), default=2, metavar="M", help="virtual CPUs (2)")
    add("--memory", type=_count(512, 65536), default=2048, metavar="MIB", help="memory (2048)")
    add("--timeout", type=float, default=600.0, metavar="S", help="seconds that the command may take (600)")
    add("--output", type=Path, metavar="DIR", help="gets what the command wrote to $SRIOV_FAST_OUT")
    add("--env", action="append", default=[], metavar="NAME=VALUE", help="set in the guest")
    add("--accel", choices=("auto", "kvm", "tcg"), default="auto", help="how QEMU runs the guest")
    add("--append", default="", metavar="WORDS", help="more of the kernel's command line: rcu_nocbs=all")
    add("--iommu", action="store_true", help="an IOMMU, which vfio-pci needs")
    add("--share", choices=("virtiofs", "9p"), default="virtiofs", help="how the guest gets its tree")


def _count(least: int, most: int) -> Callable[[str], int]:
    """Return the type of an integer between two limits."""

    def number(text: str) -> int:
        value = int(text)
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"{value} is not between {least} and {most}")
        return value

    return number


def _build(args: argparse.Namespace) -> int:
    place = tree.ensure()
    with tempfile.TemporaryDirectory() as scratch:
        install.ensure(place, source.locate(args.source, Path(scratch)))
    say(f"the guest is ready in {place.top}")
    return 0


def _run(args: argparse.Namespace) -> int:
    return _in_guest(args, args.command)


def _pytest(args: argparse.Namespace) -> int:
    named = [word for word in args.arguments if word.startswith(("tests", "benches", "/"))]
    plugin = ("-p", "pytest_benchmark.plugin") if any(word.startswith("benches") for word in named) else ()
    words = [*PYTEST, *plugin, *(() if named else TESTS)]
    script = 'exec "$@" --junitxml="$SRIOV_FAST_OUT/junit.xml"'
    args.env = [ALONE, *args.env]
    argv = ["sh", "-c", script, "pytest", *words, *args.arguments]
    return _in_guest(args, argv, native=[*words, *named, "--collect-only"])


def _shell(args: argparse.Namespace) -> int:
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise LabError("the shell needs a terminal; use: python -m lab run -- CMD")
    args.timeout = float("inf")
    return _in_guest(args, ["bash", "-i"], terminal=True)


def _in_guest(
    args: argparse.Namespace, argv: Sequence[str], terminal: bool = False, native: Sequence[str] = ()
) -> int:
    place = tree.ensure()
    requirements.require(building=False, cache=base())
    machine = Machine(
        pfs=args.pfs,
        cpus=args.cpus,
        vfs=args.vfs,
        memory=args.memory,
        accel=accel.choose(place) if args.accel == "auto" else args.accel,
        share=args.share,
        terminal=terminal,
        append=args.append,
        iommu=args.iommu,
    )
    task = Task(argv, _environment(args.env), args.timeout, args.output, native)
    if args.no_install:
        return Guest(place, machine).run(task)
    with tempfile.TemporaryDirectory() as scratch:
        what = source.locate(args.source, Path(scratch))
        return Guest(place, machine, install.ensure(place, what), what, image=args.image).run(task)


def _environment(words: Sequence[str]) -> dict[str, str]:
    pairs = [word.partition("=") for word in words]
    for name, equals, _ in pairs:
        if not (equals and name.isidentifier()):
            raise LabError(f"--env {name}: expected NAME=VALUE", 2)
    return {name: value for name, _, value in pairs}


def _clean(args: argparse.Namespace) -> int:
    shutil.rmtree(base(), ignore_errors=True)
    say(f"deleted {base()}")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line."""
    args = parser().parse_args(argv)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return int(args.run(args))
    except LabError as error:
        print(f"lab: {error}", file=sys.stderr)
        return error.status
    except KeyboardInterrupt:
        say("interrupted")
        return INTERRUPTED
