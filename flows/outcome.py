"""What the pipeline ends with, and whether it has been there before: here or on another machine."""

from __future__ import annotations

from tasks.config import Recipe
from tasks.config.source import HubSource
from tasks.download import cached, identify
from tasks.manifest import digest_of
from tasks.records import ModelVersion, Origin, Record
from tasks.registry import checkpoint_digest, failed_run, find_by_inputs, metrics_of
from tasks.versions import EXPORT, RUN, versions


class Outcome(Record):
    """A registered version, and how it did."""

    version: ModelVersion
    metrics: dict[str, float]
    reused: bool


class Seen(Record):
    """What a recipe's source is at this moment, and what came of these inputs before."""

    origin: Origin
    outcome: Outcome | None = None
    failed_run: str | None = None


def inputs_digest(recipe: Recipe, checkpoint: str) -> str:
    """Return the digest of everything that decides what a run ends with: checkpoint, recipe, library versions.

    Args:
        recipe: The recipe; where its checkpoint comes from and who promotes what it makes don't count.
        checkpoint: The checkpoint's digest.
    """
    content = recipe.model_dump(mode="json", exclude={"source": True, "registry": {"auto_promote"}})
    return digest_of({"checkpoint": checkpoint, "recipe": content, "versions": versions((*EXPORT, *RUN))})


def find_known(recipe: Recipe) -> Outcome | None:
    """Return the complete version of the same inputs, where the checkpoint is here already; fetches nothing."""
    checkpoint = cached(recipe.source, code=recipe.export.trust_remote_code)
    version = find_by_inputs(recipe.name, inputs_digest(recipe, checkpoint.digest)) if checkpoint else None
    return Outcome(version=version, metrics=metrics_of(version), reused=True) if version else None


def look(recipe: Recipe) -> Seen:
    """Resolve a recipe's revision, and tell what came of the same inputs before; fetches no checkpoint.

    Raises:
        SourceError: The source does not answer, or has no such revision.
        RegistryError: The registry does not answer.
    """
    origin = identify(recipe.source)
    digest = _digest_of(recipe, origin)
    if digest is None:
        return Seen(origin=origin)
    inputs = inputs_digest(recipe, digest)
    version = find_by_inputs(recipe.name, inputs)
    if version:
        return Seen(origin=origin, outcome=Outcome(version=version, metrics=metrics_of(version), reused=True))
    return Seen(origin=origin, failed_run=failed_run(recipe.registry.experiment, inputs))


def _digest_of(recipe: Recipe, origin: Origin) -> str | None:
    """Return a checkpoint's digest: of the cache, or as a version keeps it that another machine made."""
    source = recipe.source
    if isinstance(source, HubSource):
        source = source.model_copy(update={"revision": origin.revision})
    checkpoint = cached(source, code=recipe.export.trust_remote_code)
    if checkpoint:
        return checkpoint.digest
    return None if origin.kind == "local" else checkpoint_digest(recipe.name, origin)
