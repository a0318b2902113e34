"""The fixtures of the tests in network namespaces."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "plain"))

from netns_fixtures import (  # noqa: F401 (pytest finds them here)
    either,
    installed,
    make_node,
    mode,
    node,
    pytest_configure,
    pytest_generate_tests,
)
