"""What a pipeline run leaves in MLflow: the run with its evidence, and the version with its files."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from filelock import FileLock
from pydantic import Field

from tasks import locations, progress
from tasks.config import Recipe
from tasks.errors import RegistryError
from tasks.manifest import MANIFEST_NAME, digest_of, read_manifest
from tasks.records import ExportedModel, ModelVersion, Record, ValidationReport
from tasks.registry import trouble
from tasks.registry.files import MODEL_FOLDER
from tasks.registry.read import find_same, resolve
from tasks.registry.store import Locking, connect, experiment_id, locked, translated
from tasks.versions import RUN, versions

if TYPE_CHECKING:
    from mlflow import MlflowClient


_CHAT_MODEL = Path(__file__).with_name("chat_model.py")


class RunContext(Record):
    """What a run is beside its recipe and its results."""

    started_at: float = Field(description="When the pipeline began, seconds since the epoch.")
    inputs: str = Field(description="Digest of everything that decides the result: see `inputs_digest`.")
    flow_run_id: str = Field("", description="Prefect's id of the flow run.")
    git_commit: str = Field("", description="Commit of the repository that the recipe lies in.")


def record(
    recipe: Recipe, exported: ExportedModel, report: ValidationReport, context: RunContext, *, evidence: Path
) -> str:
    """Log one MLflow run with parameters, metrics, tags and evidence (a folder); return its id.

    Raises:
        RegistryError: MLflow does not answer, or refuses.
    """
    client = connect()
    experiment = experiment_id(client, recipe.registry.experiment)
    with progress.step("record"), translated():
        run_id = trouble.create_run(
            client,
            experiment,
            start_time=int(context.started_at * 1000),
            run_name=recipe.name,
            tags=_run_tags(recipe, exported, report, context),
        )
        try:
            trouble.ready(str(client.get_run(run_id).info.artifact_uri))
            _log(client, run_id, recipe, exported, report)
            client.log_artifacts(run_id, str(evidence))
        except BaseException:
            with contextlib.suppress(Exception):  # what went wrong first is what to tell
                client.set_terminated(run_id, "FAILED")
            raise
        client.set_terminated(run_id, "FINISHED")
    return run_id


def attach(run_id: str, name: str, text: str) -> None:
    """Add a file to a run's evidence."""
    with translated():
        connect().log_text(run_id, text, name)


def register(
    recipe: Recipe,
    exported: ExportedModel,
    report: ValidationReport,
    context: RunContext,
    *,
    run_id: str,
    locking: Locking = locked,
) -> ModelVersion:
    """Store the exported model's files once, as a logged model, and register it as the recipe's next version.

    The version is made last: whatever ends this early leaves no version behind. What is registered already, with the
    same files by the same recipe, is that version.

    Raises:
        RegistryError: MLflow does not answer, or refuses.
    """
    known = find_same(recipe.name, exported.digest, recipe.digest)
    if known:
        return known
    model_id = _store(recipe, exported, run_id)
    with locking(recipe.name), translated():
        known = find_same(recipe.name, exported.digest, recipe.digest)
        if known:  # another machine was faster; gc finds the files that no version came of
            return known
        version = trouble.surely(
            lambda: connect().create_model_version(
                recipe.name,
                source=f"models:/{model_id}",
                run_id=run_id,
                model_id=model_id,
                tags=_version_tags(recipe, exported, report, context),
            ),
            lambda: find_same(recipe.name, exported.digest, recipe.digest),
        )
    return resolve(f"{recipe.name}/{version.version}")


def _store(recipe: Recipe, exported: ExportedModel, run_id: str) -> str:
    """Upload the files of a logged model, which is READY then; return its id."""
    client = connect()
    experiment = experiment_id(client, recipe.registry.experiment)
    with translated():
        model = client.create_logged_model(
            experiment,
            name=recipe.name,
            source_run_id=run_id,
            tags={"vinoflow.digest": exported.digest},
            model_type="chat",
        )
        trouble.ready(str(model.artifact_location))
        try:
            with _staged(exported) as folder:
                _upload(client, model.model_id, folder)
        except BaseException:
            with contextlib.suppress(Exception):
                client.finalize_logged_model(model.model_id, "FAILED")
            raise
        client.finalize_logged_model(model.model_id, "READY")
        _ensure_registered_model(client, recipe.name)
    return str(model.model_id)


def _run_tags(recipe: Recipe, exported: ExportedModel, report: ValidationReport, context: RunContext) -> dict[str, str]:
    tags = _version_tags(recipe, exported, report, context) | {
        "vinoflow.passed": str(report.passed).lower(),
        "prefect.flow_run_id": context.flow_run_id,
        "mlflow.source.git.commit": context.git_commit,
        "mlflow.source.name": "vinoflow export-and-validate",
    }
    tags |= {f"version.{name}": number for name, number in (exported.versions | report.versions).items()}
    return {name: value for name, value in tags.items() if value}


def _version_tags(
    recipe: Recipe, exported: ExportedModel, report: ValidationReport, context: RunContext
) -> dict[str, str]:
    origin = exported.checkpoint.origin
    return recipe.registry.tags | {
        "vinoflow.digest": exported.digest,
        "vinoflow.inputs": context.inputs,
        "vinoflow.checkpoint_digest": exported.checkpoint.digest,
        "vinoflow.recipe_digest": recipe.digest,
        "vinoflow.report_digest": digest_of(report.model_dump(mode="json")),
        "vinoflow.source": f"{origin.kind}:{origin.location}",
        "vinoflow.source_revision": origin.revision,
        "vinoflow.device": report.device.used,
        "vinoflow.device_requested": report.device.requested,
        "vinoflow.ov_config": json.dumps(report.device.ov_config),
        "vinoflow.bit_mix": exported.weights.bit_mix,
        "vinoflow.size_bytes": str(exported.size_bytes),
    }


def _log(client: MlflowClient, run_id: str, recipe: Recipe, exported: ExportedModel, report: ValidationReport) -> None:
    from mlflow.entities import Metric, Param

    settings = recipe.model_dump(mode="json", exclude={"validation": {"text"}})  # which recipe.yaml has in full
    params = [Param(name, value[:6000]) for name, value in flatten(settings)]
    for start in range(0, len(params), 100):  # MLflow takes 100 at a time
        client.log_batch(run_id, params=params[start : start + 100])
    now = int(time.time() * 1000)
    metrics = report.metrics | {
        "export_seconds": exported.seconds,
        "export_peak_rss_bytes": float(exported.peak_rss_bytes),
        "size_bytes": float(exported.size_bytes),
    }
    client.log_batch(run_id, metrics=[Metric(name, value, now, 0) for name, value in sorted(metrics.items())])
    answers = "".join(result.model_dump_json() + "\n" for result in report.prompts)
    texts = {
        "answers.jsonl": answers,
        "recipe.yaml": yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True),
        "export.json": exported.model_dump_json(indent=1, exclude={"path": True, "checkpoint": {"path"}}),
        "requirements.txt": _requirements(exported.versions | report.versions),
    }
    for name, text in texts.items():
        client.log_text(run_id, text, name)


def flatten(value: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield the leaves of nested mappings and lists as dotted names and texts; what is empty or None is left out."""
    if isinstance(value, Mapping):
        for name, part in value.items():
            yield from flatten(part, f"{prefix}.{name}" if prefix else str(name))
    elif isinstance(value, list):
        for number, part in enumerate(value):
            yield from flatten(part, f"{prefix}.{number}")
    elif value is not None and value != "":
        yield prefix, str(value)


def _requirements(pins: Mapping[str, str]) -> str:
    return "".join(f"{name}=={number}\n" for name, number in sorted(pins.items()))


@contextmanager
def _staged(exported: ExportedModel) -> Iterator[Path]:
    """Lay out an MLflow model whose files are links to the export's own; what is in it goes when it is uploaded."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of mlflow's own types
        import mlflow.pyfunc

    folder = locations.cache() / "models" / f".upload-{exported.digest[:16]}"
    with FileLock(f"{folder}.lock"):
        shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed here
        try:
            mlflow.pyfunc.save_model(
                str(folder),
                python_model=str(_CHAT_MODEL),
                pip_requirements=_requirements(versions(("mlflow", *RUN))).split(),
            )
            link_files(exported.path, folder / MODEL_FOLDER)
            _name_artifacts(folder / "MLmodel")
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def link_files(source: Path, target: Path) -> None:
    """Link what a folder's manifest names, and the manifest, into another folder."""
    for name in [entry.name for entry in read_manifest(source).files] + [MANIFEST_NAME]:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(source / name, target / name)
        except OSError:  # a file system without links
            shutil.copy2(source / name, target / name)


def _name_artifacts(path: Path) -> None:
    """Tell MLflow of the linked files: save_model(artifacts=...) would have copied them."""
    description = yaml.safe_load(path.read_text(encoding="utf-8"))
    description["flavors"]["python_function"]["artifacts"] = {"model": {"path": MODEL_FOLDER, "uri": ""}}
    path.write_text(yaml.safe_dump(description), encoding="utf-8")


def _upload(client: MlflowClient, model_id: str, folder: Path) -> None:
    """Upload file by file, so that progress can be told; MLmodel, which makes it a model, comes last."""
    files = sorted((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.name == "MLmodel")
    with progress.step("upload", total=sum(path.stat().st_size for path in files), unit="bytes") as step:
        for path in files:
            step.update(note=path.name)
            parent = path.relative_to(folder).parent.as_posix()
            size = path.stat().st_size
            with trouble.time_for(size):
                client.log_model_artifact(model_id, str(path), None if parent == "." else parent)
            step.update(done=step.done + size, note="")


def _ensure_registered_model(client: MlflowClient, name: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise RegistryError(f"model {name!r} cannot be registered: {error}") from error
