"""The fixtures of the lab tests."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[0]))

from lab_fixtures import (  # noqa: F401 (pytest finds them here)
    _as_it_was,
    card,
    cards,
    igb,
    node,
    second,
)
