"""What is wrong with the registry, and mending it."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator, Sequence
from datetime import timedelta
from functools import partial

from pydantic import Field

from tasks import locations, progress
from tasks.errors import VinoflowError
from tasks.records import ModelVersion, Record
from tasks.registry import gc, leftovers
from tasks.registry.alias_checks import check_aliases
from tasks.registry.finding import Case, Finding
from tasks.registry.ledger import EXPERIMENT, HEAD, Entry
from tasks.registry.moved_home import embedded_database, move_in, moved_home
from tasks.registry.read import list_versions, pages
from tasks.registry.store import Locking, connect, locked, translated
from tasks.registry.version_checks import check_version


class Diagnosis(Record):
    """What was found."""

    mended: tuple[Finding, ...]
    wrong: tuple[Finding, ...] = Field(description="What stays.")
    moved: tuple[Entry, ...] = Field((), description="The moves of aliases that mended something.")


def examine(*, fix: bool = False, actor: str = "", locking: Locking = locked) -> Diagnosis:
    """Look for what is wrong with the registry; mend what can be mended, if that is asked for.

    Args:
        fix: Mend.
        actor: Who does it: the ledger keeps that.
        locking: Keeps those away who move aliases.
    """
    mended: list[Finding] = []
    wrong: list[Finding] = []
    moved: list[Entry] = []
    with progress.step("look") as step:
        for case in _cases(actor, locking, step):
            try:
                if fix and case.mend:
                    moved += case.mend() or ()
                    mended.append(case.finding)
                    continue
            except (VinoflowError, sqlite3.Error, OSError) as error:
                case = case._replace(message=f"{case.message}; it could not be mended: {error}")  # noqa: PLW2901
            wrong.append(case.finding)
        step.update(note="")
    return Diagnosis(mended=tuple(mended), wrong=tuple(wrong), moved=tuple(moved))


def _cases(actor: str, locking: Locking, step: progress.Step) -> Iterator[Case]:
    """Yield what is wrong; what comes later relies on what was mended before."""
    step.update(note="addresses")
    yield from _moved()
    if moved_home():
        return
    step.update(note="runs")
    yield from _killed()
    versions = list_versions()
    for name in _models(versions):
        step.update(note=f"ledger of {name}")
        yield from check_aliases(name, {one.version for one in versions if one.name == name}, actor, locking)
    step.update(note="")
    mine = [version for version in versions if version.digest]
    sizes = [float(version.tags.get("vinoflow.size_bytes", 0)) for version in mine]
    with progress.step("verify", total=sum(sizes), unit="bytes") as verifying:
        for version, size in zip(mine, sizes, strict=True):
            verifying.update(note=version.reference)
            yield from check_version(version)
            verifying.update(done=verifying.done + size, note="")


def _moved() -> Iterator[Case]:
    addresses = moved_home()
    for home in sorted({one.home for one in addresses}):
        there = [one for one in addresses if one.home == home]
        message = (
            f"{len(there)} addresses in mlflow.db name this folder, and what they mean is in {locations.home()}: it "
            "was moved or copied. --fix rewrites them and keeps a copy of mlflow.db; the rest is looked at after that"
        )
        yield Case(home, message, partial(move_in, there))


def _killed() -> Iterator[Case]:
    """Yield runs and logged models of processes that were killed."""
    embedded = embedded_database() is not None
    client, age = connect(), timedelta(0) if embedded else gc.DAY
    limit = (time.time() - age.total_seconds()) * 1000
    with translated():
        experiments = [one.experiment_id for one in pages(client.search_experiments) if one.name != EXPERIMENT]
        running = pages(client.search_runs, experiment_ids=experiments, filter_string="attributes.status = 'RUNNING'")
    for run in running:
        inputs = run.data.tags.get("vinoflow.inputs", "")
        if inputs and run.info.start_time <= limit and not leftovers.at_work(inputs):
            run_id = run.info.run_id
            message = f"the run of {run.info.run_name} is RUNNING, but nobody works on it: its process was killed"
            yield Case(f"run {run_id}", message, partial(_end, run_id))
    for model in gc.abandoned(older_than=age):
        message = f"a logged model of {model.model} is {model.why}"
        yield Case(f"logged model {model.name}", message, partial(gc.delete_logged_model, model))


def _end(run_id: str) -> None:
    with translated():
        connect().set_terminated(run_id, "KILLED")


def _models(versions: Sequence[ModelVersion]) -> list[str]:
    """Return the registered models that are vinoflow's."""
    with translated():
        moved = {model.name for model in pages(connect().search_registered_models) if HEAD in model.tags}
    return sorted(moved | {version.name for version in versions if version.digest})
