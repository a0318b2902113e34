"""``python -m sriov_fast.cli``."""

from __future__ import annotations

import sys

from sriov_fast.cli import main

if __name__ == "__main__":
    sys.exit(main())
