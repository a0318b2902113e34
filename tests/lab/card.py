"""The names of harness.card, for tests that import them from here."""

from harness.card import *  # noqa: F403
from harness.pod import ip, link, links  # noqa: F401
