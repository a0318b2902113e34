"""The fixtures of the field reports that need network namespaces."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "plain"))
sys.path.insert(0, str(Path(__file__).parents[2] / "netns"))

from netns_fixtures import (  # noqa: F401 (pytest finds them here)
    either,
    installed,
    make_node,
    mode,
    node,
    pytest_configure,
    pytest_generate_tests,
)
from plain_fixtures import world  # noqa: F401
