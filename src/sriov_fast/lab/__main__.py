"""``python -m sriov_fast.lab``: the lab without the rest of the operator's command."""

from __future__ import annotations

import sys

from sriov_fast.lab.cli import main

if __name__ == "__main__":
    sys.exit(main())
