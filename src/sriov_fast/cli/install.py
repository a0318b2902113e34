"""``sriov-fast install``: write the executables that container runtimes run.

An executable is a few lines of Python that know everything by absolute path: the interpreter that wrote them
and the directories of this package and of what it needs. So neither PATH, PYTHONPATH, PYTHONHOME, the locale
nor the current directory can change what a runtime starts, and nobody waits for ``site``.
"""

from __future__ import annotations

import argparse
import compileall
import importlib.util
import os
import sys
import sysconfig
from pathlib import Path
from typing import NamedTuple

PLUGIN_DIRECTORY = "/opt/cni/bin"
# The kernel reads 256 bytes of the first line since Linux 5.1, 128 before, the newline included.
MAX_SHEBANG = 127


class Program(NamedTuple):
    """What one executable starts: a module's ``main``, and the interpreter's flags."""

    module: str
    flags: str


# -I: no PYTHON* variables, no user site, no current directory; -S: no site; -X utf8: no locale.
# What the operator starts may use site: there a virtual environment must be whole.
PROGRAMS = {
    "sriov": Program("sriov_fast.entry", "-ISXutf8"),
    "sriov-fast": Program("sriov_fast.cli", "-IXutf8"),
}
DEFAULT = ("sriov",)
_NEEDED = ("sriov_fast", "orjson", "pyroute2")


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register ``install``."""
    summary = "put the plugin where container runtimes look for it"
    parser = subparsers.add_parser("install", help=summary, description=summary)
    parser.add_argument(
        "--bin-dir",
        type=Path,
        default=Path(PLUGIN_DIRECTORY),
        metavar="DIR",
        help=f"directory of the CNI plugins ({PLUGIN_DIRECTORY})",
    )
    parser.add_argument(
        "--name",
        action="append",
        choices=sorted(PROGRAMS),
        help=f"executable to write, may be repeated ({', '.join(DEFAULT)})",
    )
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    try:
        args.bin_dir.mkdir(parents=True, exist_ok=True)
        for name in args.name or DEFAULT:
            path = args.bin_dir / name
            write_executable(path, script(PROGRAMS[name], sys.executable, search_path()))
            print(f"wrote {path} (runs {sys.executable})")
    except OSError as error:
        print(f"sriov-fast install: {error.filename}: {error.strerror}", file=sys.stderr)
        return 1
    compile_package()
    return 0


def search_path() -> list[str]:
    """Return the directories that hold this package and what it needs, as they are now."""
    found = [_parent_of(module) for module in _NEEDED]
    found += [sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    return list(dict.fromkeys(os.path.abspath(directory) for directory in found if directory))


def _parent_of(module: str) -> str:
    spec = importlib.util.find_spec(module)
    places = list(spec.submodule_search_locations or ()) if spec else []
    return os.path.dirname(places[0]) if places else ""


def script(program: Program, interpreter: str, directories: list[str]) -> str:
    """Return the text of one executable."""
    return "".join(
        (
            _first_lines(interpreter, program.flags),
            '"""Written by sriov-fast install; run that again instead of changing this."""\n',
            "import sys\n",
            f"sys.path += {directories!a}\n",
            f"from {program.module} import main\n",
            "sys.exit(main())\n",
        )
    )


def _first_lines(interpreter: str, flags: str) -> str:
    """Return what makes the kernel start ``interpreter``.

    The kernel's ``#!`` can hold neither a long path nor one with blanks. Then sh is started, and execs it;
    the line that tells sh so is to Python just a few strings side by side, the docstring.
    """
    line = f"#!{interpreter} {flags}\n"
    if len(os.fsencode(line)) <= MAX_SHEBANG and not any(char.isspace() for char in interpreter):
        return line
    return f'#!/bin/sh\n"exec" {_quoted(interpreter)} "{flags}" "$0" "$@"\n'


def _quoted(text: str) -> str:
    """Quote so that sh reads exactly ``text``, and Python a well-formed string."""
    if "\n" in text:
        raise ValueError(f"the interpreter's path has a line break: {text!r}")
    # Single quotes hide all from sh but themselves; a backslash in them would still be an escape to Python.
    return "'" + text.replace("'", "'\"'\"'").replace("\\", "'\"\\\\\"'") + "'"


def write_executable(path: Path, text: str) -> None:
    """Replace ``path`` in one step, so that a runtime finds the old file or the new one, whole."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o700)
    try:
        with open(descriptor, "w", encoding="utf-8", errors="surrogateescape") as file:
            file.write(text)
            file.flush()
            os.fchmod(descriptor, 0o755)  # whatever the umask
            os.fsync(descriptor)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def compile_package() -> None:
    """Compile the package to bytecode now, where it may be written, so that the first ADD need not."""
    package = _package_directory()
    if os.access(package, os.W_OK):
        compileall.compile_dir(package, quiet=2)


def _package_directory() -> str:
    return os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
