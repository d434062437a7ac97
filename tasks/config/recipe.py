"""Everything about one model."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, field_validator, model_validator

from tasks.config.base import Config
from tasks.config.export import Export
from tasks.config.source import HubSource, Source
from tasks.config.validation import Validation, one_device
from tasks.manifest import digest_of

_ALIAS = re.compile(r"[A-Za-z][A-Za-z0-9_.-]*")


def alias_name(name: str) -> str:
    """Return the name of an alias.

    Raises:
        ValueError: MLflow would not take it, or gives it another meaning.
    """
    if _ALIAS.fullmatch(name) is None or name.lower() == "latest" or re.fullmatch(r"v\d+", name.lower()):
        raise ValueError(f"{name!r} cannot be an alias: letters, digits, -, _ and . after a letter; not latest, not v1")
    return name


class AliasPolicy(Config):
    """What a version must be to have an alias."""

    device: str | None = Field(None, description="The device that it must have been validated on; none: any.")
    approval: Literal["automatic", "manual"] = Field(
        "automatic", description="manual: promotion waits for `vinoflow approve` or `vinoflow reject`."
    )

    @field_validator("device")
    @classmethod
    def _names_one_device(cls, value: str | None) -> str | None:
        return value and one_device(value)


class Registry(Config):
    """Where the runs and versions are kept, and what may serve."""

    experiment: str = Field("vinoflow", min_length=1, description="The MLflow experiment of the runs.")
    tags: dict[str, str] = Field({}, description="Tags of your own for the version.")
    aliases: dict[Annotated[str, AfterValidator(alias_name)], AliasPolicy] = Field(
        {}, description="What an alias asks of a version, beyond a validation that it passed."
    )
    auto_promote: Annotated[str, AfterValidator(alias_name)] | None = Field(
        None, description="The alias that a deployment promotes a validated version to by itself; none: by hand."
    )


class Recipe(Config):
    """Everything about one model: where it comes from, how it is exported, checked and kept."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]*$", description="The registered model's name.")
    source: Source
    export: Export
    validation: Validation
    registry: Registry = Registry()

    @model_validator(mode="after")
    def _remote_code_is_pinned(self) -> Recipe:
        if self.export.trust_remote_code and not (isinstance(self.source, HubSource) and self.source.pinned):
            raise ValueError(
                "export.trust_remote_code runs code out of the checkpoint: it needs source.kind hub and a "
                "source.revision that is a 40-hex commit"
            )
        return self

    @property
    def digest(self) -> str:
        """SHA-256 of the recipe's content; comments and layout don't count."""
        return digest_of(self.model_dump(mode="json"))
