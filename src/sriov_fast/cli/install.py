"""``sriov-fast install``: write the executables that container runtimes run.

An executable has absolute paths only: of the interpreter that wrote it, and of the directories of this
package and of its dependencies. PATH, PYTHONPATH, PYTHONHOME, the locale and the current directory have no
influence, and ``site`` is not imported.

It is a script of a few lines of Python, or, if the package was built with it, the client in C, which asks the
resident server first. The client executes the arguments at the end of its own file if no server runs.
"""

from __future__ import annotations

import argparse
import compileall
import importlib.util
import os
import struct
import sys
import sysconfig
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from sriov_fast import client
from sriov_fast.cli import units, unmanaged
from sriov_fast.common.errors import EnvError
from sriov_fast.common.replace import replace_file

PLUGIN_DIRECTORY = "/opt/cni/bin"
# The kernel reads 256 bytes of the first line since Linux 5.1, 128 before, the newline included.
MAX_SHEBANG = 127
REPLACED = ".replaced"  # the ending of an executable that `install --replace` has kept


class Program(NamedTuple):
    """An executable: the module with its ``main``, and the interpreter's flags.

    ``resident``: the server serves its requests as well, so it may be the client in C. ``is_plugin``: a
    runtime starts it and reads CNI's JSON from its stdout.
    """

    module: str
    flags: str
    resident: bool = False
    is_plugin: bool = True


# -I: no PYTHON* variables, no user site, no current directory; -S: no site; -X utf8: no locale.
# The operator's command imports site: it may use packages of a virtual environment that includes others.
PROGRAMS = {
    "sriov": Program("sriov_fast.plugin.process", "-ISXutf8", resident=True),
    "txipam": Program("sriov_fast.ipam.txipam_main", "-ISXutf8"),
    "sriov-fast": Program("sriov_fast.cli", "-IXutf8", is_plugin=False),
}
DEFAULT = ("sriov", "txipam")
LAUNCHERS = ("client", "script")
_NEEDED = ("sriov_fast", "orjson", "pyroute2")
_TRAILER_MAGIC = b"SRFARGV1"
# If the package cannot be read, this code writes the CNI error itself. Code 5 is a failure to read.
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


SUMMARY = "put the plugin where container runtimes look for it"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    add_bin_dir(parser)
    parser.add_argument(
        "--name",
        action="append",
        choices=sorted(PROGRAMS),
        help=f"executable to write, may be repeated ({', '.join(DEFAULT)})",
    )
    parser.add_argument(
        "--launcher",
        choices=LAUNCHERS,
        help="what sriov is: the client of the resident server, which also works without one, or a script "
        "that uses no server (default: client, if the package was built with it)",
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
        "--replace",
        action="store_true",
        help=f"replace executables of another plugin; each is kept as NAME{REPLACED}",
    )
    parser.add_argument(
        "--rollback", action="store_true", help="put the replaced executables back, and do nothing else"
    )
    parser.add_argument(
        "--unmanaged",
        nargs="+",
        metavar="PF",
        help="write only the files that keep NetworkManager and systemd-networkd away from these PFs' VFs",
    )


def add_bin_dir(parser: argparse.ArgumentParser) -> None:
    """Add the option ``--bin-dir``."""
    parser.add_argument(
        "--bin-dir",
        type=Path,
        default=Path(PLUGIN_DIRECTORY),
        metavar="DIR",
        help=f"directory of the CNI plugins ({PLUGIN_DIRECTORY})",
    )


def run(args: argparse.Namespace) -> None:
    """Write the executables, and set up the server; or do the one thing that an option names."""
    if args.unmanaged:
        unmanaged.write(args.unmanaged)
        return
    if args.rollback:
        _roll_back(args.bin_dir, args.name or DEFAULT)
        return
    if args.launcher == "client" and not client.binary():
        raise EnvError("this package was built without the client: no compiler")
    has_server = not args.no_server and "sriov" in (args.name or DEFAULT)
    if has_server:
        units.demand_ours(args.unit_dir or units.DIRECTORY)
    args.bin_dir.mkdir(parents=True, exist_ok=True)
    paths = [args.bin_dir / name for name in args.name or DEFAULT]
    others = [path for path in paths if path.exists() and not is_ours(path)]
    if others and not args.replace:
        raise EnvError(f"{others[0]} is another plugin's", "use --replace")
    for path in others:
        _keep(path)
    for path in paths:
        name = path.name
        write_executable(path, executable(PROGRAMS[name], args.launcher))
        print(f"wrote {path} (runs {sys.executable})")
    compile_package()
    if has_server:
        _set_up_server(args.unit_dir)


def _keep(path: Path) -> None:
    """Keep another plugin's executable, or the link to it; the runtime finds one of the two at any time."""
    kept = path.with_name(path.name + REPLACED)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{kept.name}.") as directory:
        second = Path(directory, path.name)
        os.link(path, second, follow_symlinks=False)
        # a concurrent install may have replaced the executable, and has kept it then
        if not is_ours(second):
            os.replace(second, kept)
            print(f"kept {path} as {kept}")


def _roll_back(directory: Path, names: Iterable[str]) -> None:
    """Put the executables back that ``--replace`` has kept."""
    found = [path for name in names if (path := directory / f"{name}{REPLACED}").exists()]
    if not found:
        raise EnvError(f"nothing in {directory} was replaced")
    for kept in found:
        path = kept.with_name(kept.name.removesuffix(REPLACED))
        os.replace(kept, path)
        print(f"put {path} back")


def _set_up_server(unit_dir: Path | None) -> None:
    """Write the server's units and start it if systemd runs; else print how to run it."""
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
    """Return the content of one executable: the client, unless a script is requested or it is not built."""
    binary = client.binary() if program.resident and launcher != "script" else None
    if binary:
        return binary.read_bytes() + trailer(program, sys.executable, search_path())
    return os.fsencode(script(program, sys.executable, search_path()))


def search_path() -> list[str]:
    """Return the directories of this package and of its dependencies."""
    directories = [_parent_of(module) for module in _NEEDED]
    directories += [sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    return list(dict.fromkeys(os.path.abspath(directory) for directory in directories if directory))


def _parent_of(module: str) -> str:
    spec = importlib.util.find_spec(module)
    locations = list(spec.submodule_search_locations or ()) if spec else []
    return os.path.dirname(locations[0]) if locations else ""


def code(program: Program, directories: list[str]) -> str:
    """Return the Python code of an executable."""
    importing = (_IMPORTING_PLUGIN if program.is_plugin else _IMPORTING).format(program.module)
    return f"import sys\nsys.path += {directories!a}\n{importing}sys.exit(main())\n"


def script(program: Program, interpreter: str, directories: list[str]) -> str:
    """Return the text of an executable script."""
    docstring = f'"""{_WRITTEN}; run that again instead of changing this."""\n'
    return f"{_first_lines(interpreter, program.flags)}{docstring}{code(program, directories)}"


def trailer(program: Program, interpreter: str, directories: list[str]) -> bytes:
    """Return the end of the client's file: the arguments to execute without a server (``struct trailer``)."""
    # The client appends its own arguments; the code finds them in sys.argv as a script does.
    argv = (interpreter, program.flags, "-c", f"import sys\ndel sys.argv[0]\n{code(program, directories)}")
    strings = b"".join(os.fsencode(argument) + b"\0" for argument in argv)
    return strings + struct.pack("=I", len(strings)) + _TRAILER_MAGIC


def is_ours(path: Path) -> bool:
    """Return whether ``install`` wrote this executable, and not another plugin of that name."""
    content = path.read_bytes() if path.is_file() else b""
    return content.endswith(_TRAILER_MAGIC) or _WRITTEN.encode() in content[:4096]


def _first_lines(interpreter: str, flags: str) -> str:
    """Return the lines that make the kernel start ``interpreter``.

    The kernel's ``#!`` cannot hold a long path or one with blanks. Then sh is started and executes the
    interpreter; Python reads that line as adjacent string literals.
    """
    line = f"#!{interpreter} {flags}\n"
    if len(os.fsencode(line)) <= MAX_SHEBANG and not any(char.isspace() for char in interpreter):
        return line
    return f'#!/bin/sh\n"exec" {_quoted(interpreter)} "{flags}" "$0" "$@"\n'


def _quoted(text: str) -> str:
    """Quote ``text`` for sh, as a valid string literal of Python."""
    if "\n" in text:
        raise ValueError(f"the interpreter's path has a line break: {text!r}")
    # In single quotes sh takes everything but a single quote literally; Python still reads backslashes.
    return "'" + text.replace("'", "'\"'\"'").replace("\\", "'\"\\\\\"'") + "'"


def write_executable(path: Path, content: str | bytes) -> None:
    """Replace an executable in one step."""
    replace_file(path, content if isinstance(content, bytes) else os.fsencode(content), 0o755)


def compile_package() -> None:
    """Compile the package to bytecode, if it is writable, so that the first ADD need not."""
    package = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    if os.access(package, os.W_OK):
        compileall.compile_dir(package, quiet=2)
