"""Build the three compiled modules and the C client; install without those that cannot be compiled.

The metadata of the package is in pyproject.toml. With ``SRIOV_FAST_REQUIRE_EXT=1`` a failed compilation
is an error. The Makefile and CI set it, because a missing module would hide a fault there.
``SRIOV_FAST_STABLE_ABI=1`` builds one wheel for every CPython from 3.11 on, like the released wheels
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
# The stable ABI has the buffer protocol from Python 3.11 on. It has functions in place of these macros.
STABLE_MACROS = (
    ("Py_LIMITED_API", "0x030B0000"),
    ("PyBytes_AS_STRING", "PyBytes_AsString"),
    ("PyBytes_GET_SIZE", "PyBytes_Size"),
    ("PyByteArray_AS_STRING", "PyByteArray_AsString"),
)


class Build(build_ext):
    """A build_ext that also builds the client: an executable without a suffix, with its own compilers."""

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
        """Return the path of a built file, relative to the directory of the packages."""
        # get_ext_fullpath() passes the last part of the name only.
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
    """Translate the modules to C below ``build``; return none if Cython is missing and not required."""
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
    """Mark all as optional unless they are required.

    The plain implementation replaces a missing module, a Python script the client.
    """
    for each in built:
        each.optional = not REQUIRED  # set here, because cythonize() drops it
    return built


client = Extension(CLIENT, [str(PACKAGE / "client" / "sriov.c")])
setup(
    ext_modules=optional([client, *extensions()]),  # the client first: it compiles within a second
    cmdclass={"build_ext": Build},
    options={"bdist_wheel": {"py_limited_api": "cp311"}} if STABLE_ABI else {},
)
