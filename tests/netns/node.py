"""The names of harness.veth, for tests that import them from here."""

from harness.runtime import Outcome  # noqa: F401
from harness.veth import (
    MakeNode,  # noqa: F401
    Node,  # noqa: F401
)
