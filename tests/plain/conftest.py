"""The fixtures of the plain tests."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[0]))

from plain_fixtures import (  # noqa: F401 (pytest finds them here)
    admin,
    anyio_backend,
    clock,
    etcd,
    late_error,
    replica,
    server,
    service,
    url,
    world,
)
