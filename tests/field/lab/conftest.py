"""The fixtures of tests on a real card."""

from harness.lab_fixtures import *  # noqa: F403 (pytest finds them here)
from harness.lab_fixtures import _as_it_was  # noqa: F401
