"""A batch from its input to its output, step by step, without Prefect."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime

from pydantic import Field, field_validator

from tasks.batch import (
    Estimate,
    Job,
    Part,
    Plan,
    Tally,
    absolute,
    answer_parts,
    begin,
    discard,
    estimate,
    exists,
    plan,
    refuse_bad_rows,
    release,
    sha256_of,
)
from tasks.batch import write_output as write
from tasks.config import Batch
from tasks.errors import BatchError
from tasks.manifest import digest_of
from tasks.records import Record
from tasks.registry import BatchRun, batches, flatten, keep_batch, one_at_a_time, resolve

Answer = Callable[[Job, Sequence[Part]], Tally]  # answers the parts that are missing, wherever; returns what it did


class Batched(Record):
    """A batch that is done."""

    run: BatchRun
    rejects: str | None = Field(description="Where the rows are that were none.")
    prompt_tokens: int
    completion_tokens: int
    seconds: float = Field(description="That answering took, this time.")
    tokens_per_s: float = Field(description="Generated in it; 0 where nothing was left to answer.")
    reused: bool = Field(description="Whether it was done before, and nothing was answered now.")


class Wanted(Record):
    """What somebody asks for."""

    source: str = Field(description="A file, a folder or a pattern, of this machine or of what fsspec opens.")
    output: str = Field(description="The file to write.")
    reference: str = Field(description="The version that answers; of an alias the one that it has at the beginning.")
    settings: Batch = Batch()
    overwrite: bool = Field(False, description="Write over an output that is there.")
    restart: bool = Field(False, description="Throw away what an unfinished run of this output has answered.")

    @field_validator("source", "output")
    @classmethod
    def _in_full(cls, url: str) -> str:
        return absolute(url)

    @property
    def key(self) -> str:
        """What two batches for the same output have in common."""
        return f"batch-{digest_of(self.output)[:16]}"


def run_batch(wanted: Wanted, *, answer: Answer, flow_run_id: str = "") -> Batched:
    """Answer all rows of an input, each exactly once, and keep what was done in MLflow.

    Args:
        wanted: Input, output, version and settings.
        answer: Answers parts.
        flow_run_id: Of Prefect's run.

    Raises:
        BatchError: Input, output or settings are not what they should be.
    """
    with one_at_a_time(wanted.key):
        planned = plan(wanted.source, wanted.output, wanted.reference, wanted.settings, restart=wanted.restart)
        if known := _done(planned, overwrite=wanted.overwrite):
            return known
        if wanted.settings.strict:
            refuse_bad_rows(planned)
        begin(planned)
        missing = planned.missing()
        started = time.perf_counter()
        tally = answer(planned.job, missing) if missing else Tally()
        seconds = tally.seconds if wanted.settings.runner == "local" else time.perf_counter() - started
        return _finished(planned, tally, seconds, flow_run_id)


def predict(wanted: Wanted) -> Estimate:
    """Return what a batch would cost; answers and writes nothing."""
    return estimate(plan(wanted.source, wanted.output, wanted.reference, wanted.settings, restart=True))


def answer_here(job: Job, parts: Sequence[Part]) -> Tally:
    """Answer parts by the engines of this process."""
    try:
        return answer_parts(job, parts, threads=job.settings.threads)
    finally:
        release()


def _done(planned: Plan, *, overwrite: bool) -> Batched | None:
    """Return what an output is, where it is this batch's own; None: there is something to do.

    Raises:
        BatchError: It is something else, which is not to be lost.
    """
    job = planned.job
    if exists(f"{job.journal}/job.json") or not exists(job.output):
        return None
    kept = batches(output=job.output)
    same = next((one for one in kept if one.inputs == job.inputs and one.output_sha256 == sha256_of(job.output)), None)
    if same:
        rejects = job.rejects if same.rejected else None
        return Batched(
            run=same,
            rejects=rejects,
            prompt_tokens=0,
            completion_tokens=0,
            seconds=0,
            tokens_per_s=0,
            reused=True,
        )
    if overwrite:
        return None
    whose = f", by {kept[0].version} on {kept[0].ended_at:%Y-%m-%d %H:%M}" if kept else ""
    raise BatchError(f"output {job.output} is there already{whose}: choose another, or write over it with --overwrite")


def _finished(planned: Plan, tally: Tally, seconds: float, flow_run_id: str) -> Batched:
    job = planned.job
    sha256, whole = write(planned)
    version = resolve(job.version)
    speed = tally.completion_tokens / seconds if tally.completion_tokens else 0.0
    batch = BatchRun(
        input=job.input,
        input_sha256=tuple(file.sha256 for file in job.files),
        output=job.output,
        output_sha256=sha256,
        version=job.version,
        digest=job.digest,
        checkpoint_digest=version.tags.get("vinoflow.checkpoint_digest", ""),
        source=version.tags.get("vinoflow.source", ""),
        source_revision=version.tags.get("vinoflow.source_revision", ""),
        device=job.device,
        inputs=job.inputs,
        rows=whole.rows,
        rejected=whole.rejected,
        errors=whole.errors,
        started_at=datetime.fromtimestamp(job.started_at, UTC),
        ended_at=datetime.now(UTC),
        flow_run_id=flow_run_id,
    )
    metrics = {name: float(value) for name, value in whole.model_dump().items()}
    if speed:
        metrics |= {"tokens_per_s": speed, "answering_seconds": seconds}
    settings = dict(flatten(job.settings.model_dump(mode="json"))) | {"input": job.input, "output": job.output}
    kept = keep_batch(batch, version, metrics=metrics, settings=settings)
    discard(job.journal)
    return Batched(
        run=kept,
        rejects=job.rejects if whole.rejected else None,
        prompt_tokens=whole.prompt_tokens,
        completion_tokens=whole.completion_tokens,
        seconds=seconds,
        tokens_per_s=speed,
        reused=False,
    )


def in_words(done: Batched) -> str:
    """Return what a batch came to, in a line."""
    run = done.run
    if done.reused:
        return f"these rows were answered by {run.version} already, on {run.ended_at:%Y-%m-%d %H:%M}: nothing was done"
    answered = run.rows - run.rejected - run.errors
    return f"{run.rows} rows: {answered} answered, {run.errors} not answered, {run.rejected} rejected"
