"""Builds the three compiled modules, and lets the install go on without them.

Everything else about the package stands in pyproject.toml. ``SRIOV_FAST_REQUIRE_EXT=1`` makes a module that
cannot be compiled an error: the Makefile and CI set it, because a missing one would hide a fault there.
"""

from __future__ import annotations

import os
from pathlib import Path

from setuptools import Extension, setup

MODULES = ("_nl", "_sysfs", "_irq")
PACKAGE = Path("src", "sriov_fast")
REQUIRED = os.environ.get("SRIOV_FAST_REQUIRE_EXT", "") not in ("", "0")


def extension(module: str) -> Extension:
    """Describe one module."""
    return Extension(
        f"sriov_fast.{module}",
        [str(PACKAGE / f"{module}.pyx")],
        include_dirs=[str(PACKAGE)],
        depends=[str(header) for header in sorted(PACKAGE.glob("*.h"))],
        extra_compile_args=["-O2", "-g0"],
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
    for each in built:
        # Said here, because cythonize forgets it: where the compiler fails, the plain twin serves.
        each.optional = not REQUIRED
    return built


setup(ext_modules=extensions())
