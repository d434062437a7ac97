"""The stages as Prefect tasks: names and retries, nothing else."""

from __future__ import annotations

from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.tasks import exponential_backoff

from flows.check import check_checkpoint
from flows.outcome import look
from tasks.download import download
from tasks.errors import ConflictError, RegistryError, SourceUnreachableError, VersionNotFoundError
from tasks.export import export
from tasks.registry import champion_of, find_by_inputs, record, register
from tasks.report import write_report
from tasks.serve import answer
from tasks.validate import validate


async def _is_away(task: Any, task_run: Any, state: Any) -> bool:  # noqa: ARG001 - Prefect's signature
    """Only a source or a registry that did not answer is worth another try."""
    error = await state.aresult(raise_on_failure=False)
    return isinstance(error, SourceUnreachableError | RegistryError) and not isinstance(error, _SAID)


_SAID = (VersionNotFoundError, ConflictError)  # by a registry that answered
# Skipping finished work is decided by digests inside the stages: Prefect's own cache forgets that files can go.
_PATIENT: dict[str, Any] = {
    "retries": 2,
    "retry_delay_seconds": exponential_backoff(10),  # 10 and 20 s
    "retry_condition_fn": _is_away,
    "cache_policy": NO_CACHE,
}
look_step = task(name="look for changes", **_PATIENT)(look)
download_step = task(name="download", **_PATIENT)(download)
preflight_step = task(name="preflight", cache_policy=NO_CACHE)(check_checkpoint)
find_step = task(name="find known version", cache_policy=NO_CACHE)(find_by_inputs)
export_step = task(name="export", cache_policy=NO_CACHE)(export)
champion_step = task(name="find champion", cache_policy=NO_CACHE)(champion_of)
validate_step = task(name="validate", cache_policy=NO_CACHE)(validate)
report_step = task(name="report", cache_policy=NO_CACHE)(write_report)
record_step = task(name="record", **_PATIENT)(record)  # behind a validation, which takes minutes
register_step = task(name="register", **_PATIENT)(register)
answer_step = task(name="answer", cache_policy=NO_CACHE)(answer)
