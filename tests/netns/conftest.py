"""The fixtures of tests in network namespaces."""

from harness.netns_fixtures import *  # noqa: F403 (pytest finds them here)
