"""Everything about one model."""

from __future__ import annotations

from pydantic import Field, model_validator

from tasks.config.base import Config
from tasks.config.export import Export
from tasks.config.source import HubSource, Source
from tasks.config.validation import Validation
from tasks.manifest import digest_of


class Registry(Config):
    """Where the runs and versions are kept."""

    experiment: str = Field("vinoflow", min_length=1, description="The MLflow experiment of the runs.")
    tags: dict[str, str] = Field({}, description="Tags of your own for the version.")


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
