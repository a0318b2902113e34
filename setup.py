"""Builds the three compiled modules and the client in C, and lets the install go on without them.

Everything else about the package stands in pyproject.toml. ``SRIOV_FAST_REQUIRE_EXT=1`` makes what cannot be
compiled an error: the Makefile and CI set it, because a missing one would hide a fault there.
``SRIOV_FAST_STABLE_ABI=1`` builds a wheel for every CPython from 3.11 on, as the released wheels are
(docs/releasing.md).
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

MODULES = ("_nl", "_sysfs", "_irq")
PACKAGE = Path("src", "sriov_fast")
CLIENT = "sriov_fast.client.sriov-client"
REQUIRED = os.environ.get("SRIOV_FAST_REQUIRE_EXT", "") not in ("", "0")
STABLE_ABI = os.environ.get("SRIOV_FAST_STABLE_ABI", "") not in ("", "0")
# Python 3.11 is the first whose stable ABI has the buffer protocol. It has these macros as functions only.
STABLE_MACROS = (
    ("Py_LIMITED_API", "0x030B0000"),
    ("PyBytes_AS_STRING", "PyBytes_AsString"),
    ("PyBytes_GET_SIZE", "PyBytes_Size"),
    ("PyByteArray_AS_STRING", "PyByteArray_AsString"),
)


class Build(build_ext):
    """Also builds the client, which is an executable: no suffix, compilers of its own."""

    def build_extension(self, ext: Extension) -> None:
        """Build one module, or the client."""
        if ext.name != CLIENT:
            super().build_extension(ext)
            return
        machine = self.plat_name.removeprefix("linux-")
        command = [sys.executable, "tools/build_client.py", self.get_ext_fullpath(ext.name), machine]
        if subprocess.run(command, check=False).returncode:
            raise CompileError(f"{ext.sources[0]} was not compiled")

    def get_ext_filename(self, fullname: str) -> str:
        """Return where it goes, from the top of the packages."""
        # As on import: a name may come without its package.
        if fullname.rpartition(".")[2] == CLIENT.rpartition(".")[2]:
            return os.path.join(*fullname.split("."))
        return str(super().get_ext_filename(fullname))


def extension(module: str) -> Extension:
    """Describe one module."""
    return Extension(
        f"sriov_fast.{module}",
        [str(PACKAGE / f"{module}.pyx")],
        include_dirs=[str(PACKAGE)],
        depends=[str(path) for path in sorted([*PACKAGE.glob("_*.pxd"), *PACKAGE.glob(f"{module}_*.pxi")])],
        extra_compile_args=["-O2", "-g0"],
        py_limited_api=STABLE_ABI,
        define_macros=[*STABLE_MACROS] if STABLE_ABI else [],
    )


def extensions() -> list[Extension]:
    """Translate the modules to C, outside of the source tree; none without Cython, unless required."""
    try:
        from Cython.Build import cythonize
    except ImportError:
        if REQUIRED:
            raise
        return []
    built: list[Extension] = cythonize(
        [extension(module) for module in MODULES],
        build_dir=os.path.join("build", "cython"),
        language_level=3,
        compiler_directives={"embedsignature": False},
    )
    return built


def optional(built: list[Extension]) -> list[Extension]:
    """Let the build go on without what cannot be compiled: the plain twin serves, or a script."""
    for each in built:
        each.optional = not REQUIRED  # said here, because cythonize forgets it
    return built


client = Extension(CLIENT, [str(PACKAGE / "client" / "sriov.c")])
setup(
    ext_modules=optional([client, *extensions()]),  # the one that compiles within a second first
    cmdclass={"build_ext": Build},
    options={"bdist_wheel": {"py_limited_api": "cp311"}} if STABLE_ABI else {},
)
