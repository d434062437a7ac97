"""Download, export, validate, register: one model, from its recipe to a version with evidence."""

from __future__ import annotations

import subprocess
import tempfile
import time
from pathlib import Path

from prefect import flow
from prefect.artifacts import create_link_artifact, create_markdown_artifact, create_table_artifact
from prefect.runtime import flow_run

from flows.changes import changes
from flows.environment import leave
from flows.events import gates_failed, validated
from flows.locking import export_slot, locking_here
from flows.outcome import Outcome, inputs_digest
from flows.steps import (
    champion_step,
    download_step,
    export_step,
    find_step,
    preflight_step,
    record_step,
    register_step,
    report_step,
    validate_step,
)
from tasks.config import Recipe
from tasks.errors import GateError
from tasks.export import UNCOMPRESSED
from tasks.records import Checkpoint, ValidationReport
from tasks.registry import RunContext, attach, evidence_uri, metrics_of, one_at_a_time
from tasks.summary import summarise

_FAULTS = 20  # findings that an error message lists


@flow(name="export-and-validate", flow_run_name="{recipe.name}")
def export_and_validate(recipe: Recipe) -> Outcome:
    """Download, export, validate, register. A failed gate registers nothing, but its run is kept.

    The same inputs (checkpoint, recipe, library versions) as those of a complete version end with that version.
    """
    started_at = time.time()
    checkpoint = download_step(recipe.source, code=recipe.export.trust_remote_code)
    inputs = inputs_digest(recipe, checkpoint.digest)
    with one_at_a_time(inputs):
        known = find_step(recipe.name, inputs)
        if known:
            return Outcome(version=known, metrics=metrics_of(known), reused=True)
        with export_slot():
            return _make(recipe, checkpoint, inputs, started_at=started_at)


def _make(recipe: Recipe, checkpoint: Checkpoint, inputs: str, *, started_at: float) -> Outcome:
    """Take a checkpoint through the other stages."""
    preflight_step(checkpoint, recipe.export)
    exported = export_step(checkpoint, recipe.export)
    floor = export_step(checkpoint, UNCOMPRESSED) if recipe.validation.noise_floor else None
    report = validate_step(exported, recipe, champion=champion_step(recipe.name), floor=floor)
    context = RunContext(
        started_at=started_at, inputs=inputs, flow_run_id=str(flow_run.id or ""), git_commit=_git_commit()
    )
    with tempfile.TemporaryDirectory(prefix="vinoflow-") as folder:
        report_step(report, recipe, exported, Path(folder))
        run_id = record_step(recipe, exported, report, context, evidence=Path(folder))
    _publish_verdicts(recipe, report, run_id)
    if not report.passed:
        why = why_not(recipe, report, run_id)
        gates_failed(recipe, why, run_id)
        raise GateError(why)
    version = register_step(recipe, exported, report, context, run_id=run_id, locking=locking_here())
    outcome = Outcome(version=version, metrics=metrics_of(version), reused=False)
    leave(
        create_table_artifact,
        key=f"{_key(recipe)}-version",
        table=[dict(summarise(version, outcome.metrics))],
        description=f"{version.reference}, MLflow run {run_id}",
    )
    changed = changes(version, alias=recipe.registry.auto_promote or "champion")
    validated(version, auto_promote=recipe.registry.auto_promote)
    if changed:
        attach(run_id, "changes.md", changed)
        key = f"{_key(recipe)}-changes"
        leave(create_markdown_artifact, markdown=changed, key=key, description=version.reference)
    return outcome


def _publish_verdicts(recipe: Recipe, report: ValidationReport, run_id: str) -> None:
    """Leave the verdicts and a link to the whole report in Prefect."""
    rows = [
        {
            "metric": verdict.metric,
            "value": "not measured" if verdict.value is None else f"{verdict.value:.4g}",
            "interval": "" if verdict.low is None else f"{verdict.low:.4g} to {verdict.high:.4g}",
            "limit": verdict.limit,
            "passed": "yes" if verdict.passed else "NO",
        }
        for verdict in sorted(report.verdicts, key=lambda verdict: verdict.passed)
    ]
    state = "passed" if report.passed else "failed"
    about = f"{recipe.name} on {report.device.used}: {state}; MLflow run {run_id}"
    leave(create_table_artifact, key=f"{_key(recipe)}-verdicts", table=rows, description=about)
    page = f"{evidence_uri(run_id)}/report.html"
    link = page if "://" in page else f"file://{page}"
    key = f"{_key(recipe)}-report"
    leave(create_link_artifact, key=key, link=link, link_text="report.html", description=about)


def _key(recipe: Recipe) -> str:
    return recipe.name.replace(".", "-").replace("_", "-")


def why_not(recipe: Recipe, report: ValidationReport, run_id: str) -> str:
    """Return in words why a model is not registered: gates, what the checks found, prompts, and where to read on."""
    lines = [f"{recipe.name} is not registered: it failed its gates on {report.device.used}"]
    for verdict in report.verdicts:
        if not verdict.passed:
            value = "not measured" if verdict.value is None else f"{verdict.value:g}"
            spread = "" if verdict.low is None else f" ({verdict.low:.4g} to {verdict.high:.4g})"
            lines.append(f"  {verdict.metric} is {value}{spread}, must be {verdict.limit}")
    lines += [f"  {fault.subject}: {fault.message}" for fault in report.faults[:_FAULTS]]
    if len(report.faults) > _FAULTS:
        lines.append(f"  and {len(report.faults) - _FAULTS} more findings")
    for result in report.prompts:
        if result.failures:
            shown = " ".join(result.answer.text.split())[:120]
            lines.append(f"  prompt {result.id}: {'; '.join(result.failures)}; the answer was: {shown}")
    lines.append(f"  the whole report: {evidence_uri(run_id)}/report.html")
    return "\n".join(lines)


def _git_commit() -> str:
    """Return the commit of the folder that the flow runs in, where it is a git repository."""
    try:
        command = ["git", "rev-parse", "HEAD"]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()
