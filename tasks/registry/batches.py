"""Batches that were answered: what links an output to the version that made it, and a version to its outputs."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from datetime import datetime

from pydantic import Field

from tasks.records import ModelVersion, Record
from tasks.registry.files import model_id_of
from tasks.registry.read import pages
from tasks.registry.store import connect, experiment_id, translated
from tasks.registry.trouble import create_run

EXPERIMENT = "vinoflow-batch"
_ENOUGH_TOKENS = 10_000  # to tell how fast a version is
_RECORD, _OUTPUT, _SHA256, _VERSION, _REVISION = (
    f"vinoflow.batch{part}" for part in ("", ".output", ".output_sha256", ".version", ".source_revision")
)


class BatchRun(Record):
    """One finished batch, from its input to its output."""

    input: str
    input_sha256: tuple[str, ...] = Field(description="Of each file of the input.")
    output: str
    output_sha256: str
    version: str = Field(description="NAME/VERSION.")
    digest: str = Field(description="Of the version's files.")
    checkpoint_digest: str = Field("", description="Of the checkpoint that the version was exported from.")
    source: str = Field("", description="Where that came from: kind and location.")
    source_revision: str = Field("", description="Its commit or version.")
    device: str
    inputs: str = Field(description="Digest of all that decides the answers: input, version, settings.")
    rows: int
    rejected: int
    errors: int
    started_at: datetime
    ended_at: datetime
    flow_run_id: str = ""
    run_id: str = Field("", description="MLflow's id of the run that keeps this.")


def keep_batch(
    batch: BatchRun, version: ModelVersion, *, metrics: Mapping[str, float], settings: Mapping[str, str]
) -> BatchRun:
    """Keep a finished batch as an MLflow run, which names the logged model that answered; return it with the run's id.

    The same batch is kept once, however often its end is told.

    Raises:
        RegistryError: MLflow does not answer, or refuses.
    """
    from mlflow.entities import LoggedModelInput, Metric, Param

    for known in batches(output=batch.output, output_sha256=batch.output_sha256):
        if known.inputs == batch.inputs:
            return known
    client = connect()
    model_id = model_id_of(version)
    tags = {
        _RECORD: batch.model_dump_json(exclude={"run_id"}),
        _OUTPUT: _key(batch.output),
        _SHA256: batch.output_sha256,
        _VERSION: batch.version,
        _REVISION: _key(batch.source_revision),
        "prefect.flow_run_id": batch.flow_run_id,
        "mlflow.source.name": "vinoflow batch",
    }
    now = int(time.time() * 1000)
    with translated():
        run_id = create_run(
            client,
            experiment_id(client, EXPERIMENT),
            start_time=int(batch.started_at.timestamp() * 1000),
            run_name=f"{batch.version}: {batch.output.rpartition('/')[2]}",
            tags=tags,
        )
        client.log_batch(
            run_id,
            metrics=[Metric(name, value, now, 0) for name, value in sorted(metrics.items())],
            params=[Param(name, value[:6000]) for name, value in settings.items()][:100],
        )
        client.log_inputs(run_id, models=[LoggedModelInput(model_id)])
        client.set_terminated(run_id, "FINISHED", end_time=int(batch.ended_at.timestamp() * 1000))
    return batch.model_copy(update={"run_id": run_id})


def batches(
    *, version: str = "", output: str = "", output_sha256: str = "", source_revision: str = ""
) -> list[BatchRun]:
    """Return the batches that are kept, the newest first: all, or those that have what is given."""
    client = connect()
    given = {
        _VERSION: version,
        _OUTPUT: output and _key(output),
        _SHA256: output_sha256,
        _REVISION: source_revision and _key(source_revision),
    }
    wanted = [f"tags.`{tag}` = '{value}'" for tag, value in given.items() if value]
    with translated():
        found = pages(
            client.search_runs,
            experiment_ids=[experiment_id(client, EXPERIMENT)],
            filter_string=" AND ".join([*wanted, "attributes.status = 'FINISHED'"]),
            order_by=["attributes.start_time DESC"],
        )
    return [
        BatchRun.model_validate_json(run.data.tags[_RECORD]).model_copy(update={"run_id": run.info.run_id})
        for run in found
        if _RECORD in run.data.tags
    ]


def speed_of(version: str) -> tuple[float, str]:
    """Return the tokens a second of a version's newest batch of some length, and its run; 0: there is none."""
    client = connect()
    for batch in batches(version=version):
        with translated():
            metrics = client.get_run(batch.run_id).data.metrics
        if "tokens_per_s" in metrics and metrics["completion_tokens"] >= _ENOUGH_TOKENS:
            return float(metrics["tokens_per_s"]), batch.run_id
    return 0.0, ""


def _key(text: str) -> str:
    """Return what MLflow can search a text by, whatever is in it."""
    return hashlib.sha256(text.encode()).hexdigest()
