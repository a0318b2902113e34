"""The names of harness.veth, for tests that import them from here."""

from harness.server import (
    Strace,  # noqa: F401
    has_strace,  # noqa: F401
)
from harness.veth import *  # noqa: F403
from harness.waiting import wait_for  # noqa: F401
