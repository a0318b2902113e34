"""The fixtures of tests in network namespaces."""

from plain_fixtures import world  # noqa: F401

from harness.netns_fixtures import *  # noqa: F403 (pytest finds them here)
