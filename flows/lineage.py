"""Where an answer comes from: checkpoint, version, output, in both directions."""

from __future__ import annotations

import re

from pydantic import Field

from tasks.batch import exists, sha256_of
from tasks.errors import BatchError, VersionNotFoundError
from tasks.records import ModelVersion, Record
from tasks.registry import BatchRun, batches, list_versions, resolve

_REFERENCE = re.compile(r"[a-z0-9][a-z0-9._-]*(/[0-9]+|@[A-Za-z0-9_.-]+)")
_LEAST_DIGITS = 7  # of a digest or commit that is cut


class Chain(Record):
    """A version with the checkpoint that it was exported from, and what it answered."""

    source: str
    source_revision: str
    checkpoint_digest: str
    version: str
    digest: str
    aliases: str = ""
    bit_mix: str = Field("", description="Empty: the version is not registered any more.")
    recipe_digest: str = ""
    run_id: str = Field("", description="MLflow's id of the run that validated it.")
    outputs: tuple[BatchRun, ...] = Field(description="The newest first.")


def trace(what: str) -> list[Chain]:
    """Return what an output, a version, or a checkpoint's revision or digest is linked to.

    Raises:
        BatchError: Nothing is known of it.
    """
    if _REFERENCE.fullmatch(what) and not exists(what):
        version = resolve(what)
        return [_chain(version, batches(version=version.reference))]
    if exists(what):
        return _of_output(what)
    versions = [version for version in list_versions() if _is_from(version, what)]
    gone = [run for run in batches(source_revision=what) if run.version not in {one.reference for one in versions}]
    if not versions and not gone:
        raise BatchError(f"{what} is no file, no version, and no checkpoint's revision or digest that is known here")
    return [*(_chain(version, batches(version=version.reference)) for version in versions), *map(_alone, gone)]


def _of_output(url: str) -> list[Chain]:
    sha256 = sha256_of(url)
    known = batches(output_sha256=sha256)
    if not known:
        raise BatchError(
            f"{url} (SHA-256 {sha256[:12]}) is no output of a batch that is kept here: it was changed, or another "
            "registry keeps it"
        )
    return [_with_version(run) for run in known]


def _with_version(run: BatchRun) -> Chain:
    try:
        version = resolve(run.version)
    except VersionNotFoundError:
        return _alone(run)
    return _chain(version, [run]) if version.digest == run.digest else _alone(run)


def _chain(version: ModelVersion, outputs: list[BatchRun]) -> Chain:
    tags = version.tags
    return Chain(
        source=tags.get("vinoflow.source", ""),
        source_revision=tags.get("vinoflow.source_revision", ""),
        checkpoint_digest=tags.get("vinoflow.checkpoint_digest", ""),
        version=version.reference,
        digest=version.digest,
        aliases=", ".join(version.aliases),
        bit_mix=tags.get("vinoflow.bit_mix", ""),
        recipe_digest=tags.get("vinoflow.recipe_digest", ""),
        run_id=version.run_id,
        outputs=tuple(outputs),
    )


def _alone(run: BatchRun) -> Chain:
    """Return what a batch itself says of its version."""
    return Chain(
        source=run.source,
        source_revision=run.source_revision,
        checkpoint_digest=run.checkpoint_digest,
        version=run.version,
        digest=run.digest,
        outputs=(run,),
    )


def _is_from(version: ModelVersion, what: str) -> bool:
    revision, digest = (version.tags.get(f"vinoflow.{tag}", "") for tag in ("source_revision", "checkpoint_digest"))
    return what == revision or (len(what) >= _LEAST_DIGITS and (revision.startswith(what) or digest.startswith(what)))
