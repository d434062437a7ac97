"""What a version is judged by: its report, its recipe, its files, and whether they belong together."""

from __future__ import annotations

import json
from collections.abc import Iterator
from urllib.parse import unquote, urlparse

import yaml

from tasks.config import Recipe
from tasks.errors import RegistryError, VersionNotFoundError
from tasks.manifest import digest_of
from tasks.records import Champion, Evidence, ModelVersion, ValidationReport
from tasks.registry.files import problem_of
from tasks.registry.read import resolve
from tasks.registry.store import connect, translated
from tasks.registry.trouble import ready


def evidence_uri(run_id: str) -> str:
    """Return where the evidence of a run is kept: a path where that is a folder of this machine."""
    with translated():
        uri = ready(str(connect().get_run(run_id).info.artifact_uri))
    parts = urlparse(uri)
    return unquote(parts.path) if parts.scheme in ("", "file") else uri


def metrics_of(version: ModelVersion) -> dict[str, float]:
    """Return the metrics of the run that a version came from."""
    with translated():
        return dict(connect().get_run(version.run_id).data.metrics)


def report_of(version: ModelVersion) -> ValidationReport:
    """Return the validation that a version passed.

    Raises:
        RegistryError: It is not there, or is not one.
    """
    return _report(version, _text(version, "report.json"))


def recipe_of(version: ModelVersion) -> Recipe:
    """Return the recipe that a version was made by.

    Raises:
        RegistryError: It is not there, is not one, or is another one.
    """
    text = _text(version, "recipe.yaml")
    try:
        content = yaml.safe_load(text)
        recipe = Recipe.model_validate(content)
    except (yaml.YAMLError, ValueError) as error:
        raise RegistryError(f"the recipe of {version.reference} cannot be read: {error}") from error
    if digest_of(content) != version.tags.get("vinoflow.recipe_digest"):
        raise RegistryError(f"the recipe.yaml that is kept with {version.reference} is not the one that it was made by")
    return recipe


def evidence_of(version: ModelVersion, *, deep: bool = True) -> Evidence:
    """Return a version's report, and what is wrong with report or files.

    Args:
        version: The version.
        deep: Hash every file of a store on this machine; otherwise names and sizes are looked at.
    """
    wrong = problem_of(version, deep=deep)
    problems = [wrong] if wrong else []
    try:
        text = _text(version, "report.json")
        report = _report(version, text)
    except RegistryError as error:
        return Evidence(version=version, report=None, problems=(*problems, str(error)))
    digest = digest_of(json.loads(text))
    problems += _unbound(version, report, digest)
    return Evidence(version=version, report=report, report_digest=digest, problems=tuple(problems))


def champion_of(name: str, alias: str = "champion") -> Champion | None:
    """Return the version that an alias names, with its report; None where there is none."""
    try:
        version = resolve(f"{name}@{alias}")
    except VersionNotFoundError:
        return None
    return Champion(reference=version.reference, report=report_of(version))


def _unbound(version: ModelVersion, report: ValidationReport, digest: str) -> Iterator[str]:
    """Yield how a report is not the one of this model, recipe and device."""
    tags = version.tags
    if "vinoflow.report_digest" not in tags:
        yield "it does not say which report it was registered with: run export-and-validate again"
    elif digest != tags["vinoflow.report_digest"]:
        yield "its report.json is not the one that it was registered with"
    for what, mine, registered in (
        ("model", report.model_digest, version.digest),
        ("recipe", report.recipe_digest, tags.get("vinoflow.recipe_digest", "")),
        ("checkpoint", report.checkpoint_digest, tags.get("vinoflow.checkpoint_digest", "")),
        ("device", report.device.used, tags.get("vinoflow.device", "")),
    ):
        if mine != registered:
            yield f"its report is about another {what}: {mine[:12]}, not {registered[:12] or 'none'}"


def _report(version: ModelVersion, text: str) -> ValidationReport:
    try:
        return ValidationReport.model_validate_json(text)
    except ValueError as error:
        raise RegistryError(f"the report of {version.reference} cannot be read: {error}") from error


def _text(version: ModelVersion, name: str) -> str:
    from mlflow.artifacts import load_text

    with translated():
        uri = evidence_uri(version.run_id)
        # a server says 500 of a file that its S3 lacks, and is asked again and again
        if not urlparse(uri).scheme or name in {entry.path for entry in connect().list_artifacts(version.run_id)}:
            return str(load_text(f"{uri}/{name}"))
    raise RegistryError(f"the {name} of {version.reference} is missing")
