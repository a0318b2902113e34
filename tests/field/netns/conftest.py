"""The fixtures of the field reports that need network namespaces."""

import sys
from pathlib import Path

from harness.netns_fixtures import *  # noqa: F403 (pytest finds them here)

sys.path.insert(0, str(Path(__file__).parents[2] / "plain"))

from plain_fixtures import world  # noqa: F401
