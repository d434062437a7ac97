"""What all settings have in common."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Config(BaseModel):
    """The base of all settings: frozen, and nothing unknown."""

    model_config = ConfigDict(frozen=True, extra="forbid", str_strip_whitespace=False)
