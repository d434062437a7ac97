"""The scheduled export: nothing where nothing is new, else the whole pipeline, once."""

from __future__ import annotations

from pathlib import Path

from prefect import flow
from prefect.runtime import flow_run
from prefect.states import Completed, Failed

from flows.export_and_validate import export_and_validate
from flows.outcome import Outcome
from flows.steps import look_step
from tasks.config import Recipe
from tasks.errors import GateError
from tasks.recipe_file import load_recipe
from tasks.registry import evidence_uri


def _run_name() -> str:
    return Path(flow_run.parameters["recipe"]).stem


@flow(name="nightly", flow_run_name=_run_name)
def nightly(recipe: str, again: bool = False) -> Outcome | None:
    """Export and validate a recipe's model where its revision, the recipe or a library changed since the last time.

    The run's state says what came of it: Completed, NothingNew, or GatesFailed. What a new version changes against
    the champion is an artifact, and in its MLflow run.

    Args:
        recipe: Path of a recipe file, from the folder that the workers run in.
        again: Try once more what failed its gates before.
    """
    loaded = load_recipe(Path(recipe))
    seen = look_step(loaded)
    known = _known(loaded, seen.origin.revision, seen.outcome, None if again else seen.failed_run)
    if known:
        return Completed(name="NothingNew", message=known)  # type: ignore[return-value] # Prefect's own way
    try:
        outcome = export_and_validate(loaded)
    except GateError as error:
        return Failed(name="GatesFailed", message=str(error))  # type: ignore[return-value]
    told = f"{outcome.version.reference} is validated"
    return Completed(message=told, data=outcome)  # type: ignore[return-value]


def _known(recipe: Recipe, revision: str, outcome: Outcome | None, failed: str | None) -> str:
    """Return what came of the same inputs before; empty: they are new."""
    if outcome:
        return f"{recipe.name} at {revision[:12]} is registered as {outcome.version.reference}"
    if failed:
        report = f"{evidence_uri(failed)}/report.html"
        return f"{recipe.name} at {revision[:12]} failed its gates before, see {report}; again: true tries once more"
    return ""
