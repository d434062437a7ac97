"""What the pipeline ends with, and whether it has been there before."""

from __future__ import annotations

from tasks.config import Recipe
from tasks.download import cached
from tasks.manifest import digest_of
from tasks.records import Checkpoint, ModelVersion, Record
from tasks.registry import find_by_inputs, metrics_of
from tasks.versions import EXPORT, RUN, versions


class Outcome(Record):
    """A registered version, and how it did."""

    version: ModelVersion
    metrics: dict[str, float]
    reused: bool


def inputs_digest(recipe: Recipe, checkpoint: Checkpoint) -> str:
    """Return the digest of everything that decides what a run ends with: checkpoint, recipe, library versions."""
    content = recipe.model_dump(mode="json", exclude={"source"})
    return digest_of({"checkpoint": checkpoint.digest, "recipe": content, "versions": versions((*EXPORT, *RUN))})


def find_known(recipe: Recipe) -> Outcome | None:
    """Return the complete version of the same inputs, where the checkpoint is here already; fetches nothing."""
    checkpoint = cached(recipe.source, code=recipe.export.trust_remote_code)
    version = find_by_inputs(recipe.name, inputs_digest(recipe, checkpoint)) if checkpoint else None
    return Outcome(version=version, metrics=metrics_of(version), reused=True) if version else None
