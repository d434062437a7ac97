"""The batch as a flow: one task run a range of rows, wherever it is answered. `flows.batching` has the steps."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import PurePath
from typing import Any

from prefect import flow, task
from prefect.artifacts import create_progress_artifact, create_table_artifact, update_progress_artifact
from prefect.cache_policies import NO_CACHE
from prefect.futures import as_completed
from prefect.runtime import flow_run
from prefect.states import Completed

from flows.batching import Batched, Wanted, in_words, run_batch
from flows.environment import leave, prefect_api
from flows.locking import lease
from flows.runners import one_prefect, task_runner, threads_of_worker
from tasks import progress
from tasks.batch import Job, Part, Tally, answer_parts, ranges, release
from tasks.config import Batch
from tasks.errors import BatchError, DeviceError, IntegrityError

_RANGES_A_WORKER = 4  # so that a fast worker takes over from a slow one
_MOST_PARTS = 64  # of a range: what is asked again of Prefect when its worker is gone; parts that are done are kept
_TOLD_EVERY_S = 2.0
_DEFAULT = Batch()
_HOPELESS = (BatchError, DeviceError, IntegrityError)


async def _may_help(task: Any, task_run: Any, state: Any) -> bool:  # noqa: ARG001 - Prefect's signature
    """A registry that does not answer or an engine that died may be worth another try, a bad input is not."""
    return not isinstance(await state.aresult(raise_on_failure=False), _HOPELESS)


@task(
    name="answer rows",
    task_run_name="rows from part {parts[0].number} on",
    retries=2,
    retry_delay_seconds=[5, 30],
    retry_condition_fn=_may_help,
    cache_policy=NO_CACHE,
)
def answer_range(job: Job, parts: Sequence[Part], on_part: Callable[[Tally], None] = lambda _: None) -> Tally:
    """Answer the parts of a range; those that are in the journal already are left alone."""
    return answer_parts(job, parts, threads=threads_of_worker(job.settings), on_part=on_part)


@flow(name="batch-inference")
def batch_inference(
    source: str,
    output: str,
    model: str,
    settings: Batch = _DEFAULT,
    overwrite: bool = False,
    restart: bool = False,
) -> Batched:
    """Answer a file of prompts: every row once, however often it is stopped and begun again.

    Args:
        source: A file, a folder or a pattern: .jsonl, .csv, .tsv or .parquet, of this machine or s3://...
        output: The file to write.
        model: NAME@ALIAS, NAME@latest or NAME/VERSION; an alias means the version that it has when the batch begins.
        settings: How; `runner` says where.
        overwrite: Write over an output that is there.
        restart: Throw away what an unfinished run of this output has answered.
    """
    told = _Told(output)
    wanted = Wanted(
        source=source, output=output, reference=model, settings=settings, overwrite=overwrite, restart=restart
    )
    run_id = str(flow_run.id or "")
    with lease(f"vinoflow.{wanted.key}") if prefect_api() else nullcontext():
        done = run_batch(wanted, answer=lambda job, parts: _answer(job, parts, told), flow_run_id=run_id)
    told.end(done)
    return Completed(message=in_words(done), data=done)  # type: ignore[return-value] # Prefect hands the data on


def _answer(job: Job, parts: Sequence[Part], told: _Told) -> Tally:
    """Answer parts here, as one range, or on a cluster, as several."""
    total = sum(part.rows for part in parts)
    if job.settings.runner == "local":
        try:
            return answer_range(job, parts, on_part=lambda tally: told.rows(tally.rows, total))
        finally:
            release()
    count = max(_RANGES_A_WORKER * job.settings.workers, -(-len(parts) // _MOST_PARTS))
    runner = task_runner(job.settings)
    try:
        with one_prefect(job.settings):
            return _on_cluster.with_options(task_runner=runner)(job, ranges(parts, count=count), told)
    except ConnectionError as error:
        why = str(error).partition("\n")[0]
        raise BatchError(
            f"the cluster at {job.settings.address} does not let us in: {why}; see its logs, and "
            "of Ray's whether ~/.ray/auth_token is the same here and there"
        ) from error


@flow(name="answer-on-cluster", validate_parameters=False)
def _on_cluster(job: Job, given: Sequence[Sequence[Part]], told: _Told) -> Tally:
    """Have a cluster answer ranges: placing them, and placing them anew when a worker dies, is its own business."""
    total = sum(part.rows for parts in given for part in parts)
    tally = Tally()
    with progress.step("answer", total=total, unit="steps") as step:
        for future in as_completed([answer_range.submit(job, list(parts)) for parts in given]):
            tally += future.result()
            step.update(done=tally.rows)
            told.rows(tally.rows, total)
    return tally


class _Told:
    """What Prefect's page shows of a batch: how far it is, and at its end what it came to."""

    def __init__(self, output: str) -> None:
        self._key = "batch-" + (re.sub(r"[^a-z0-9]+", "-", PurePath(output).name.lower()).strip("-") or "output")
        self._artifact: Any = None
        self._next = 0.0

    def rows(self, done: int, total: int) -> None:
        share = 100.0 * done / total
        if self._artifact is None:
            about = f"{total} rows to answer"
            key = f"{self._key}-progress"
            self._artifact = leave(create_progress_artifact, progress=share, key=key, description=about)
        elif time.monotonic() >= self._next or done == total:
            leave(update_progress_artifact, artifact_id=self._artifact, progress=share)
        else:
            return
        self._next = time.monotonic() + _TOLD_EVERY_S

    def end(self, done: Batched) -> None:
        run = done.run
        row = {
            "output": run.output,
            "rows": run.rows,
            "rejected": run.rejected,
            "not answered": run.errors,
            "version": run.version,
            "digest": run.digest[:12],
            "tokens": done.completion_tokens,
            "tokens/s": round(done.tokens_per_s, 1),
            "MLflow run": run.run_id,
        }
        leave(create_table_artifact, key=self._key, table=[row], description=in_words(done))
