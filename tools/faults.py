"""Let every system call of the plugin fail once, and kill it at every one; see that all comes right.

``make faults`` runs everything, ``make faults-sample`` as much as fits into three minutes. The
work is done in ``tests/faults``, with the nodes of the tests in network namespaces.
"""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parent.parent / "tests"

if __name__ == "__main__":
    sys.path[:0] = [str(TESTS), str(TESTS.parent / "src")]
    runpy.run_module("faults", run_name="__main__")
