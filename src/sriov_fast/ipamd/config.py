"""The configuration of the address service as a whole."""

from __future__ import annotations

from typing import Self

from pydantic import model_validator

from sriov_fast.ipamd.checks import faults
from sriov_fast.ipamd.model import Sections


class Config(Sections):
    """The whole configuration, checked across its items."""

    @model_validator(mode="after")
    def _whole(self) -> Self:
        found = faults(self)
        if found:
            raise ValueError("; ".join(found))
        return self
