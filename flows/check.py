"""A recipe against its checkpoint and this machine, before anything heavy begins."""

from __future__ import annotations

from tasks import locations
from tasks.config import Export, LocalSource, Recipe, WheelSource
from tasks.download import cached, hub
from tasks.preflight import Preflight, Structure, build_structure, preflight, read_structure
from tasks.records import Checkpoint


def check_recipe(recipe: Recipe) -> Preflight | None:
    """Predict a recipe's export from headers alone; None for a wheel that has not been fetched yet."""
    source = recipe.source
    checkpoint = cached(source, code=recipe.export.trust_remote_code)
    if checkpoint is not None:
        structure = _structure(checkpoint)
    elif isinstance(source, WheelSource):
        return None
    elif isinstance(source, LocalSource):
        structure = read_structure(source.path)
    else:
        structure = build_structure(source.repository, *hub.structure(source, hub.resolve(source)))
    return preflight(structure, recipe.export, work_folder=locations.cache())


def check_checkpoint(checkpoint: Checkpoint, export: Export) -> Preflight:
    """Predict the export of a checkpoint that is here.

    Raises:
        PreflightError: It cannot work.
    """
    found = preflight(_structure(checkpoint), export, work_folder=locations.cache())
    found.raise_on_error()
    return found


def _structure(checkpoint: Checkpoint) -> Structure:
    """Read a checkpoint's structure, and call it what its user calls it."""
    name = f"{checkpoint.origin.location} {checkpoint.origin.revision}"
    return read_structure(checkpoint.path).model_copy(update={"source": name})
