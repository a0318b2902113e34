"""The fixtures of the field reports that need no privilege."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "plain"))

from plain_fixtures import (  # noqa: F401 (pytest finds them here)
    admin,
    etcd,
    server,
    url,
    world,
)
