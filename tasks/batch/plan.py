"""What is to be done for an output: begin a batch, go on with one, or nothing, because it was done already."""

from __future__ import annotations

import time

from tasks import devices
from tasks.batch import asking, places
from tasks.batch.inputs import input_kind, kind_of, rows_of, scan
from tasks.batch.job import Job, Plan, added, begun
from tasks.config import Batch
from tasks.errors import BatchError
from tasks.registry import resolve


def plan(source: str, output: str, reference: str, settings: Batch, *, restart: bool = False) -> Plan:
    """Return the plan that an output's journal has, or a new one, which is not written down yet.

    Args:
        source: A file, a folder or a pattern, in full, of this machine or of what fsspec opens.
        output: The file to write, in full.
        reference: NAME/VERSION, NAME@ALIAS or NAME@latest; which version that is now is pinned.
        settings: How.
        restart: Throw away what a journal has.

    Raises:
        BatchError: The input or a setting is wrong, or the output was begun otherwise; says how.
        VersionNotFoundError: There is no such version.
    """
    places.refuse_secrets(source, output)
    asking.check(settings)
    known = None if restart else begun(output)
    if known:
        return _resumed(known, source, reference, settings)
    version = resolve(reference)
    urls = places.found(source)
    if output in urls:
        raise BatchError(f"output {output} is a file of the input: choose another")
    kind = input_kind(urls, settings)
    if kind_of(output, what="output") != "jsonl" and kind == "openai":
        raise BatchError(f"output {output}: answers to OpenAI's batch files are JSON Lines, name it .jsonl")
    files, parts = scan(urls, kind, settings)
    job = Job(
        input=source,
        output=output,
        reference=reference,
        version=version.reference,
        digest=version.digest,
        device=devices.chosen(settings.device) or version.tags["vinoflow.device"],
        kind=kind,
        files=files,
        settings=settings,
        started_at=time.time(),
    )
    planned = Plan(job=job, parts=parts)
    if kind != "openai":
        _clashes(planned)
    return planned


def _clashes(planned: Plan) -> None:
    """Return if no column of the input has the name of one that is added; of JSON Lines the first row is looked at.

    Raises:
        BatchError: One has.
    """
    job = planned.job
    columns = {name for file in job.files for name in file.columns}
    if job.kind == "jsonl" and planned.parts:
        rows = rows_of(job.files[0], planned.parts[0], job.kind, job.settings)
        columns = set(next((row.values for row in rows if row.values), {}))
    if found := sorted(columns & (set(added(job.settings)) - {job.settings.columns.id})):
        raise BatchError(
            f"the input has columns that the output adds ({', '.join(found)}): choose a prefix for ours with "
            "--output-prefix, for instance vinoflow_"
        )


def _resumed(known: Plan, source: str, reference: str, settings: Batch) -> Plan:
    """Return a plan that was begun, if it is of this batch.

    Raises:
        BatchError: It is of another one.
    """
    job = known.job
    mine, other = settings.decides, job.settings.decides
    differences = [f"{name} {other[name]!r}, now {mine[name]!r}" for name in mine if mine[name] != other[name]]
    if job.input != source:
        differences.insert(0, f"input {job.input}, now {source}")
    if job.reference != reference:
        differences.insert(0, f"model {job.reference}, now {reference}")
    if differences:
        raise BatchError(
            f"{job.output} was begun with other settings ({'; '.join(differences)}): run it as it was begun, choose "
            f"another output, or throw away with --restart what {job.journal} has"
        )
    files = job.files
    if any(places.mark(file.url) != file.mark for file in files):
        files, _ = scan([file.url for file in files], job.kind, job.settings)
        if [file.sha256 for file in files] != [file.sha256 for file in job.files]:
            raise BatchError(
                f"the input of {job.output} has changed since it was begun: give it back as it was, or begin anew with "
                "--restart"
            )
    how = settings.model_copy(update={"part_rows": job.settings.part_rows})
    return Plan(job=job.model_copy(update={"files": files, "settings": how}), parts=known.parts, begun=True)
