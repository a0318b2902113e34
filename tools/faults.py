"""Let each system call of the plugin fail once, kill the plugin at each one, and verify that it recovers.

``make faults`` injects all faults, ``make faults-sample`` a sample for three minutes. The code is in
``tests/faults``. It uses the nodes of the tests in network namespaces.
"""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parent.parent / "tests"

if __name__ == "__main__":
    sys.path[:0] = [str(TESTS), str(TESTS.parent / "src")]
    runpy.run_module("faults", run_name="__main__")
