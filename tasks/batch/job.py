"""A batch from its plan to its end: which version answers which rows, and which parts of them are done.

Beside the output lies its journal, `OUTPUT.parts/`: `job.json` pins the version and tells the input's files by their
SHA-256, `plan.json` has the parts, and `part-000017.jsonl` has what was answered to one. Each is whole or not there, so
whoever begins anew, after whatever end, goes on where the last one was.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

from pydantic import Field, ValidationError

from tasks.batch import places
from tasks.batch.inputs import InputFile, Part
from tasks.config import Batch, BatchKind
from tasks.errors import BatchError, IntegrityError
from tasks.manifest import digest_of
from tasks.records import Record


class Job(Record):
    """Everything that decides what a batch ends with, but its parts."""

    input: str
    output: str
    reference: str = Field(description="The model as it was asked for: NAME/VERSION, NAME@ALIAS or NAME@latest.")
    version: str = Field(description="NAME/VERSION: what that was when the batch began, and what answers to its end.")
    digest: str = Field(description="Of the version's files.")
    device: str
    kind: BatchKind
    files: tuple[InputFile, ...]
    settings: Batch
    started_at: float = Field(description="Seconds since the epoch.")

    @property
    def rows(self) -> int:
        """How many rows the input has."""
        return sum(file.rows for file in self.files)

    @property
    def inputs(self) -> str:
        """The digest of what decides the answers: rows, version, settings."""
        files = [file.sha256 for file in self.files]
        return digest_of({"files": files, "digest": self.digest, "settings": self.settings.decides})

    @property
    def rejects(self) -> str:
        """Where the rows go that are none."""
        return f"{self.output}.rejects.jsonl"

    @property
    def journal(self) -> str:
        """The folder of its journal."""
        return journal_of(self.output)


# The columns that an output has beside the input's.
ADDED = (
    "id",
    "answer",
    "finish_reason",
    "prompt_tokens",
    "completion_tokens",
    "latency_s",
    "error",
    "model",
    "version",
    "digest",
)


def added(settings: Batch) -> tuple[str, ...]:
    """Return the names of the columns that an output adds."""
    return tuple(settings.output_prefix + name for name in ADDED)


class Result(Record):
    """What became of one row."""

    line: int = Field(description="Where the row begins in its file.")
    id: str = ""
    rejected: str | None = Field(None, description="Why it is no row that can be asked; none: it was asked.")
    error: str | None = Field(None, description="Why it was asked and not answered.")
    answer: str | None = None
    finish_reason: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    latency_s: float | None = Field(None, description="From its turn to its last token.")
    body: dict[str, Any] | None = Field(None, description="The response to a row of OpenAI's batch files.")


class Plan(Record):
    """A job and its parts."""

    job: Job
    parts: tuple[Part, ...]
    begun: bool = Field(False, description="Whether it is the journal's.")

    def missing(self) -> list[Part]:
        """Return the parts that are not answered yet."""
        done = places.names_in(self.job.journal)
        return [part for part in self.parts if _name(part) not in done]


def journal_of(output: str) -> str:
    """Return the folder of an output's journal."""
    return f"{output}.parts"


def begin(plan: Plan) -> None:
    """Write a plan down: from now on it is what is carried out. The journal of another one goes."""
    folder = plan.job.journal
    if not plan.begun:
        places.remove(folder)
    places.write(f"{folder}/plan.json", json.dumps(plan.parts).encode())
    places.write(f"{folder}/job.json", plan.job.model_dump_json(indent=1).encode())  # last: with it there is a journal


def begun(output: str) -> Plan | None:
    """Return the plan that an output's journal has; none where nothing was begun.

    Raises:
        IntegrityError: It cannot be read.
    """
    folder = journal_of(output)
    if "job.json" not in places.names_in(folder):
        return None
    try:
        job = Job.model_validate_json(places.read(f"{folder}/job.json"))
        parts = [Part(*part) for part in json.loads(places.read(f"{folder}/plan.json"))]
    except (ValidationError, ValueError, TypeError) as error:
        raise IntegrityError(
            f"{folder} cannot be read ({_words(error)}): it is damaged, or another vinoflow's; --restart begins anew"
        ) from error
    return Plan(job=job, parts=tuple(parts), begun=True)


def unchanged(job: Job) -> None:
    """Return if the input is the one that was scanned.

    Raises:
        BatchError: A file has changed.
    """
    for file in job.files:
        if places.mark(file.url) != file.mark:
            raise BatchError(
                f"{file.url} has changed since the batch began (it was {file.mark}): give it back as it was, or "
                "begin anew with --restart"
            )


def keep(job: Job, part: Part, results: Iterable[Result]) -> None:
    """Write down what was answered to a part."""
    lines = b"".join(result.model_dump_json(exclude_none=True).encode() + b"\n" for result in results)
    places.write(f"{job.journal}/{_name(part)}", lines)


def kept(job: Job, part: Part) -> list[Result]:
    """Return what was answered to a part.

    Raises:
        IntegrityError: It is not whole.
    """
    url = f"{job.journal}/{_name(part)}"
    try:
        results = [Result.model_validate_json(line) for line in places.read(url).splitlines()]
    except ValidationError as error:
        raise IntegrityError(f"{url} is damaged ({_words(error)}): delete it and run again") from error
    if len(results) != part.rows:
        raise IntegrityError(f"{url} has {len(results)} of {part.rows} rows: delete it and run again")
    return results


def ranges(parts: Sequence[Part], *, count: int) -> list[list[Part]]:
    """Return parts in so many runs of neighbours, or in fewer, which differ by one part at most."""
    count = min(count, len(parts))
    edges = [place * len(parts) // count for place in range(count + 1)] if count else [0]
    return [list(parts[one:other]) for one, other in pairwise(edges)]


def _name(part: Part) -> str:
    return f"part-{part.number:06d}.jsonl"


def _words(error: Exception) -> str:
    if isinstance(error, ValidationError):
        problem = error.errors()[0]
        return f"{'.'.join(map(str, problem['loc'])) or 'a line'}: {problem['msg']}"
    return str(error)
