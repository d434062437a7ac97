"""Download, export, validate, register: one model, from its recipe to a version with evidence."""

from __future__ import annotations

import subprocess
import time

from prefect import flow
from prefect.artifacts import create_table_artifact
from prefect.runtime import flow_run

from flows.outcome import Outcome, inputs_digest
from flows.steps import (
    download_step,
    export_step,
    find_step,
    preflight_step,
    record_step,
    register_step,
    validate_step,
)
from tasks.config import Recipe
from tasks.errors import GateError
from tasks.records import Checkpoint, ValidationReport
from tasks.registry import RunContext, metrics_of, one_at_a_time
from tasks.summary import summarise


@flow(name="export-and-validate", flow_run_name="{recipe.name}")
def export_and_validate(recipe: Recipe) -> Outcome:
    """Download, export, validate, register. A failed gate registers nothing, but its run is kept.

    The same inputs (checkpoint, recipe, library versions) as those of a complete version end with that version.
    """
    started_at = time.time()
    checkpoint = download_step(recipe.source, code=recipe.export.trust_remote_code)
    inputs = inputs_digest(recipe, checkpoint)
    with one_at_a_time(inputs):
        known = find_step(recipe.name, inputs)
        if known:
            return Outcome(version=known, metrics=metrics_of(known), reused=True)
        return _make(recipe, checkpoint, inputs, started_at=started_at)


def _make(recipe: Recipe, checkpoint: Checkpoint, inputs: str, *, started_at: float) -> Outcome:
    """Take a checkpoint through the other stages."""
    preflight_step(checkpoint, recipe.export)
    exported = export_step(checkpoint, recipe.export)
    report = validate_step(exported, recipe)
    context = RunContext(
        started_at=started_at, inputs=inputs, flow_run_id=str(flow_run.id or ""), git_commit=_git_commit()
    )
    run_id = record_step(recipe, exported, report, context)
    if not report.passed:
        raise GateError(_why_not(recipe, report, run_id))
    version = register_step(recipe, exported, report, context, run_id=run_id)
    outcome = Outcome(version=version, metrics=metrics_of(version), reused=False)
    create_table_artifact(
        key=f"{recipe.name.replace('.', '-').replace('_', '-')}-version",
        table=[dict(summarise(version, outcome.metrics))],
        description=f"{version.reference}, MLflow run {run_id}",
    )
    return outcome


def _why_not(recipe: Recipe, report: ValidationReport, run_id: str) -> str:
    lines = [f"{recipe.name} is not registered: it failed its gates on {report.device.used}"]
    for verdict in report.verdicts:
        if not verdict.passed:
            value = "not measured" if verdict.value is None else f"{verdict.value:g}"
            lines.append(f"  {verdict.metric} is {value}, must be {verdict.limit}")
    for result in report.prompts:
        if result.failures:
            shown = " ".join(result.answer.text.split())[:120]
            lines.append(f"  prompt {result.id}: {'; '.join(result.failures)}; the answer was: {shown}")
    lines.append(f"  the report is in MLflow run {run_id} (report.json, answers.jsonl)")
    return "\n".join(lines)


def _git_commit() -> str:
    """Return the commit of the folder that the flow runs in, where it is a git repository."""
    try:
        command = ["git", "rev-parse", "HEAD"]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()
