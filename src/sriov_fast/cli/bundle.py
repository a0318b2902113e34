"""The bundle: the bytecode of all that a request may import, in one file.

An ordinary import looks for a file, reads and checks it, and keeps account of that: for 40 small modules
that is 3 ms. ``write`` makes the bundle, ``code`` returns the lines that use it. Without a bundle, or with
one that does not fit, everything is imported as ever. It is to be trusted as the bytecode in ``__pycache__``.
"""

from __future__ import annotations
import __future__

import ast
import importlib.util
import json
import marshal
import os
import re
import subprocess
import sys
from pathlib import Path
from types import CodeType
from typing import NamedTuple

from sriov_fast.cli import preload

PACKAGE = Path(__file__).resolve().parents[1]
# What entry imports for every request: these, and what they import, are put in place before anything else.
HOT = (
    "sriov_fast.entry",
    "sriov_fast.call",
    "sriov_fast.plugin",
    "sriov_fast.cni.request",
    "sriov_fast.sriov.roots",
)
# What else a request may need. Not the plain backend: pyroute2 starts slowly whatever we do.
ROOMS = ("", "cni", "ipam", "sriov")
PLAIN = re.compile(r"_\w+_py")

# Prints what was imported, from where; -X importtime says in which order the imports ended.
_LISTING = """
import sys
started = set(sys.modules)
sys.path += {path!r}
sys.stderr.write({mark!r})
for name in {hot!r}:
    __import__(name)
sys.stderr.write({mark!r})
for name in {cold!r}:
    try:
        __import__(name)
    except Exception:
        pass  # it cannot be used here, so nobody will
import json
specs = [module.__spec__ for name, module in sys.modules.items() if name not in started]
print(json.dumps({{spec.name: spec.origin for spec in specs if spec and spec.has_location}}))
"""
_MARK = "-- sriov-fast --\n"
_ENDED = re.compile(r"^import time:.*\| +(\S+)$", re.MULTILINE)

# The interpreter must be the one that the bundle is for: magic number and version are looked at before use.
_CODE = """\
try:
    import gc, marshal, posix, sys
    gc.disable()  # as entry.main does: of what is unmarshalled and imported nothing can be collected
    from _frozen_importlib_external import MAGIC_NUMBER
    fd = posix.open({path!a}, posix.O_RDONLY | posix.O_CLOEXEC)
    try:
        head = posix.read(fd, 8)
        if head[:4] == MAGIC_NUMBER:
            size = int.from_bytes(head[4:], "little")
            head = marshal.loads(posix.read(fd, size))
            if head["version"] == sys.version:
                first = {{"__name__": "sriov_fast.cli.preload"}}
                exec(head["preload"], first)
                first["start"]({path!a}, fd, 8 + size, head)
    finally:
        posix.close(fd)
except Exception:
    pass  # it is not needed: what is missing is imported as ever
"""


class Seen(NamedTuple):
    """What a process imported: the hot modules in the order in which that ended, and where all are from."""

    hot: list[str]
    origins: dict[str, str]


def default_path() -> Path:
    """Return where the bundle is kept: with the package's other bytecode."""
    return PACKAGE / "__pycache__" / f"exec.{sys.implementation.cache_tag}.bundle"


def code(path: Path | str) -> str:
    """Return the lines that use the bundle at ``path``, to run before ``sriov_fast`` is imported.

    They are for a process that ends with its request: the garbage collector is off from here on.
    """
    return _CODE.format(path=str(path))


def write(path: Path | str) -> None:
    """Write the bundle for this interpreter, replacing the old one in one step.

    Raises OSError where it cannot be written, CalledProcessError where the package cannot be imported.
    """
    seen = _seen()
    hot: preload.Hot = []
    cold: preload.Cold = {}
    bodies: list[bytes] = []
    size = 0
    for name in dict.fromkeys((*seen.hot, *seen.origins)):
        origin = seen.origins.get(name, "")
        if not origin.endswith(".py"):
            if origin:  # a library; what is built in or frozen has no origin here
                cold[name] = _source(origin), None
        elif name in seen.hot:
            hot.append((name, _source(origin), _compiled(origin)))
        else:
            bodies.append(marshal.dumps(_compiled(origin)))
            cold[name] = _source(origin), (size, len(bodies[-1]))
            size += len(bodies[-1])
    head: preload.Head = {
        "version": sys.version,
        "preload": _compiled(str(preload.__file__)),
        "hot": hot,
        "cold": cold,
    }
    packed = marshal.dumps(head)  # type: ignore[arg-type]  # a TypedDict is a dict
    start = importlib.util.MAGIC_NUMBER + len(packed).to_bytes(4, "little")
    _replace(Path(path), b"".join((start, packed, *bodies)))


def _seen() -> Seen:
    """Import everything in an interpreter like the plugin's, and tell what that was."""
    directories = [str(PACKAGE.parent), *(directory for directory in sys.path if directory)]
    listing = _LISTING.format(path=directories, hot=HOT, cold=_cold(), mark=_MARK)
    argv = [sys.executable, "-I", "-S", "-B", "-X", "utf8", "-X", "importtime", "-c", listing]
    done = subprocess.run(argv, env={}, capture_output=True, text=True, check=True)
    return Seen(_ENDED.findall(done.stderr.split(_MARK)[1]), json.loads(done.stdout))


def _cold() -> list[str]:
    """Name the modules of the rooms."""
    found = []
    for room in ROOMS:
        names = sorted(path.stem for path in (PACKAGE / room).glob("*.py"))
        prefix = f"sriov_fast.{room}." if room else "sriov_fast."
        found += [prefix + name for name in names if name != "__init__" and not PLAIN.fullmatch(name)]
    return found


def _source(origin: str) -> preload.Source:
    there = os.stat(origin)
    return origin, there.st_mtime_ns, there.st_size, os.path.basename(origin) == "__init__.py"


def _compiled(origin: str) -> CodeType:
    """Compile a source without docstrings, and without what it imports from ``__future__``: flags do."""
    tree = ast.parse(Path(origin).read_bytes(), origin)
    futures = [node for node in tree.body if isinstance(node, ast.ImportFrom) and node.module == "__future__"]
    flags = 0
    for alias in (alias for node in futures for alias in node.names):
        flags |= getattr(__future__, alias.name).compiler_flag
    tree.body = [node for node in tree.body if node not in futures]
    found: CodeType = compile(tree, origin, "exec", flags=flags, dont_inherit=True, optimize=2)
    return found


def _replace(path: Path, content: bytes) -> None:
    """Write a file so that everybody finds the old one or the new one, whole."""
    path.parent.mkdir(exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    try:
        with open(fd, "wb") as file:
            file.write(content)
            file.flush()
            os.fchmod(fd, 0o644)
            os.fsync(fd)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
