"""``sriov-fast install``: write the executables that container runtimes run.

An executable knows everything by absolute path: the interpreter that wrote it and the directories of this
package and of what it needs. So neither PATH, PYTHONPATH, PYTHONHOME, the locale nor the current directory
can change what a runtime starts, and nobody waits for ``site``.

It is a script of a few lines of Python; or, where the package has it, the client in C, which asks the
resident server first. What that executes without a server is written behind the program, in the same file.
"""

from __future__ import annotations

import argparse
import compileall
import importlib.util
import os
import shlex
import struct
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import NamedTuple

from sriov_fast import client
from sriov_fast.cli import units, unmanaged

PLUGIN_DIRECTORY = "/opt/cni/bin"
# The kernel reads 256 bytes of the first line since Linux 5.1, 128 before, the newline included.
MAX_SHEBANG = 127


class Program(NamedTuple):
    """What one executable starts: a module's ``main``, and the interpreter's flags.

    ``resident``: the server does its work too, so that it may be the client in C. ``is_plugin``: a runtime
    starts it, and reads CNI's JSON from its stdout.
    """

    module: str
    flags: str
    resident: bool = False
    is_plugin: bool = True


# -I: no PYTHON* variables, no user site, no current directory; -S: no site; -X utf8: no locale.
# What the operator starts may use site: there a virtual environment must be whole.
PROGRAMS = {
    "sriov": Program("sriov_fast.plugin.process", "-ISXutf8", resident=True),
    "txipam": Program("sriov_fast.ipam.txipam_main", "-ISXutf8"),
    "sriov-fast": Program("sriov_fast.cli", "-IXutf8", is_plugin=False),
}
DEFAULT = ("sriov", "txipam")
LAUNCHERS = ("client", "script")
_NEEDED = ("sriov_fast", "orjson", "pyroute2")
_TRAILER_MAGIC = b"SRFARGV1"
# A plugin whose files cannot be read has no module to word that with: code 5 is CNI's for a failure to read.
_IMPORTING_PLUGIN = """\
try:
    from {} import main
except (ImportError, OSError) as error:
    why = ascii(str(error)).translate({{34: 39, 92: 47}})
    print('{{"cniVersion": "1.0.0", "code": 5, "msg": "sriov-fast cannot be imported: %s"}}' % why)
    sys.exit(1)
"""
_IMPORTING = "from {} import main\n"
_WRITTEN = "Written by sriov-fast install"


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
    parser.add_argument(
        "--launcher",
        choices=LAUNCHERS,
        help="what sriov is: the client of the resident server, which does without one too, or a script that "
        "knows no server (client, where the package has it compiled)",
    )
    parser.add_argument(
        "--no-server", action="store_true", help="write no systemd units and start no resident server"
    )
    parser.add_argument(
        "--unit-dir",
        type=Path,
        metavar="DIR",
        help=f"write the server's units to DIR and start nothing (without it: {units.DIRECTORY}, started)",
    )
    parser.add_argument(
        "--unmanaged",
        nargs="+",
        metavar="PF",
        help="write only the files that keep NetworkManager and systemd-networkd away from these PFs' VFs",
    )
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    if args.unmanaged:
        return _leave_unmanaged(args.unmanaged)
    if args.launcher == "client" and not client.binary():
        print("sriov-fast install: this package was built without the client: no compiler", file=sys.stderr)
        return 1
    try:
        args.bin_dir.mkdir(parents=True, exist_ok=True)
        for name in args.name or DEFAULT:
            path = args.bin_dir / name
            write_executable(path, executable(PROGRAMS[name], args.launcher))
            print(f"wrote {path} (runs {sys.executable})")
        compile_package()
        if not args.no_server and "sriov" in (args.name or DEFAULT):
            _set_up_server(args.unit_dir)
    except OSError as error:
        print(f"sriov-fast install: {error.filename}: {error.strerror}", file=sys.stderr)
        return 1
    except subprocess.CalledProcessError as error:
        print(f"sriov-fast install: {shlex.join(error.cmd)} failed; see journalctl -xe", file=sys.stderr)
        return 1
    return 0


def _leave_unmanaged(pfs: list[str]) -> int:
    try:
        unmanaged.write(pfs)
    except OSError as error:
        print(f"sriov-fast install: {error.filename}: {error.strerror}", file=sys.stderr)
        return 1
    except ValueError as error:
        print(f"sriov-fast install: --unmanaged: {error}", file=sys.stderr)
        return 1
    return 0


def _set_up_server(unit_dir: Path | None) -> None:
    """Write the server's units and start it where systemd runs; elsewhere say how to run it."""
    if unit_dir:
        units.write(unit_dir)
    elif units.is_systemd_running():
        units.write(units.DIRECTORY)
        units.start()
    else:
        print(
            "systemd does not run here: keep `sriov-fast serve` running, or each call starts an interpreter"
        )


def executable(program: Program, launcher: str | None = None) -> bytes:
    """Return the content of one executable: the client where that can be and no script is asked for."""
    binary = client.binary() if program.resident and launcher != "script" else None
    if binary:
        return binary.read_bytes() + trailer(program, sys.executable, search_path())
    return os.fsencode(script(program, sys.executable, search_path()))


def search_path() -> list[str]:
    """Return the directories that hold this package and what it needs, as they are now."""
    found = [_parent_of(module) for module in _NEEDED]
    found += [sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    return list(dict.fromkeys(os.path.abspath(directory) for directory in found if directory))


def _parent_of(module: str) -> str:
    spec = importlib.util.find_spec(module)
    places = list(spec.submodule_search_locations or ()) if spec else []
    return os.path.dirname(places[0]) if places else ""


def code(program: Program, directories: list[str]) -> str:
    """Return what the interpreter is to do."""
    return "".join(
        (
            "import sys\n",
            f"sys.path += {directories!a}\n",
            (_IMPORTING_PLUGIN if program.is_plugin else _IMPORTING).format(program.module),
            "sys.exit(main())\n",
        )
    )


def script(program: Program, interpreter: str, directories: list[str]) -> str:
    """Return the text of an executable script."""
    return "".join(
        (
            _first_lines(interpreter, program.flags),
            f'"""{_WRITTEN}; run that again instead of changing this."""\n',
            code(program, directories),
        )
    )


def trailer(program: Program, interpreter: str, directories: list[str]) -> bytes:
    """Return what goes behind the client: what to execute without a server (``struct trailer`` there)."""
    # The client's own words follow these, and the code finds them in sys.argv as a script would.
    words = (interpreter, program.flags, "-c", f"import sys\ndel sys.argv[0]\n{code(program, directories)}")
    strings = b"".join(os.fsencode(word) + b"\0" for word in words)
    return strings + struct.pack("=I", len(strings)) + _TRAILER_MAGIC


def is_ours(path: Path) -> bool:
    """Return whether ``install`` wrote this executable; another plugin of that name is not ours."""
    content = path.read_bytes() if path.is_file() else b""
    return content.endswith(_TRAILER_MAGIC) or _WRITTEN.encode() in content[:4096]


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


def write_executable(path: Path, content: str | bytes) -> None:
    """Replace ``path`` in one step, so that a runtime finds the old file or the new one, whole."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o700)
    try:
        with open(descriptor, "wb") as file:
            file.write(content if isinstance(content, bytes) else os.fsencode(content))
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
