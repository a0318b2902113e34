"""The configuration of the address service as a whole."""

from __future__ import annotations

from typing import Self

from pydantic import model_validator

from sriov_fast.ipamd.checks import faults
from sriov_fast.ipamd.model import Sections


class Config(Sections):
    """The whole configuration; it is valid as a whole or refused."""

    @model_validator(mode="after")
    def _whole(self) -> Self:
        found = faults(self)
        if found:
            raise ValueError("; ".join(found))
        return self
