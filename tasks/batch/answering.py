"""A range of parts -> their answers in the journal: what one worker does."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field

from pydantic import Field

from tasks import progress
from tasks.batch import engines
from tasks.batch.asking import Asked, Asker
from tasks.batch.inputs import Part, rows_of
from tasks.batch.job import Job, Plan, Result, keep, unchanged
from tasks.engine import Request, Whole
from tasks.errors import EngineError
from tasks.records import Record
from tasks.serving.translate import habits_of

Key = tuple[int, int, int]  # part, row in it, choice of an OpenAI row that has several


class Tally(Record):
    """What some rows came to."""

    rows: int = 0
    rejected: int = 0
    errors: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = Field(0.0, description="That engines answered; loading is not counted.")

    def __add__(self, other: Tally) -> Tally:
        """Return both together."""
        return Tally(**{name: getattr(self, name) + getattr(other, name) for name in Tally.model_fields})


def tally_of(results: Sequence[Result]) -> Tally:
    """Return what rows came to."""
    return Tally(
        rows=len(results),
        rejected=sum(one.rejected is not None for one in results),
        errors=sum(one.error is not None for one in results),
        prompt_tokens=sum(one.prompt_tokens or 0 for one in results),
        completion_tokens=sum(one.completion_tokens or 0 for one in results),
    )


def answer_parts(
    job: Job, parts: Sequence[Part], *, threads: int | None = None, on_part: Callable[[Tally], None] = lambda _: None
) -> Tally:
    """Answer the parts of a range that are not in the journal yet; each is there, whole, when its last row is answered.

    All rows share one engine and one window, across parts. Parts are read as places get free, so that memory does
    not depend on their number.

    Args:
        job: The batch.
        parts: The range.
        threads: Of the engine; none: OpenVINO's own choice.
        on_part: Is called with what was done so far, when another part is.

    Raises:
        BatchError: The input has changed, or cannot be read.
        DeviceError: OpenVINO refuses the model on this device.
        EngineError: Engines die again and again.
        IntegrityError: The version is not what the batch was begun with.
    """
    unchanged(job)
    waiting = Plan(job=job, parts=tuple(parts)).missing()
    if not waiting:
        return Tally()
    with engines.loaded(job, threads=threads) as engine:
        asker = Asker(job, engine.model.version, habits_of(engine.model.path), engine.grammars)
        answering = _Range(job, asker)
        with progress.step("answer", total=sum(part.rows for part in waiting), unit="steps") as step:
            with closing(engine.answers(answering.requests(waiting))) as answers:
                for key, answer in answers:
                    answering.take(key, answer)
                    if answering.tally.rows > step.done:
                        step.update(done=answering.tally.rows, note=_note(answering.tally, step.seconds))
                        on_part(answering.tally)
            step.update(done=answering.tally.rows, note=_note(answering.tally, step.seconds))
            return answering.tally + Tally(seconds=step.seconds)


@dataclass
class _Open:
    """A part whose rows are being answered."""

    part: Part
    results: list[Result | None]
    asked: dict[int, Asked] = field(default_factory=dict)  # by row: what has no result yet
    answers: dict[int, list[Whole | EngineError | None]] = field(default_factory=dict)


class _Range:
    """Parts under way."""

    def __init__(self, job: Job, asker: Asker) -> None:
        self.tally = Tally()
        self._job = job
        self._asker = asker
        self._open: dict[int, _Open] = {}

    def requests(self, parts: Sequence[Part]) -> Iterator[tuple[Key, Request]]:
        """Yield what the engine is asked, part by part."""
        for part in parts:
            opened = self._open[part.number] = self._read(part)
            if not opened.asked:
                self._finished(opened)
            for place, asked in list(opened.asked.items()):
                for choice, request in enumerate(asked.requests):
                    yield (part.number, place, choice), request

    def take(self, key: Key, answer: Whole | EngineError) -> None:
        """Take an answer; with a part's last one the part is kept."""
        number, place, choice = key
        opened = self._open[number]
        given = opened.answers[place]
        given[choice] = answer
        if None not in given:
            del opened.answers[place]
            opened.results[place] = self._asker.answered(opened.asked.pop(place), [one for one in given if one])
            if not opened.asked:
                self._finished(opened)

    def _read(self, part: Part) -> _Open:
        file = self._job.files[part.file]
        rows = rows_of(file, part, self._job.kind, self._job.settings)
        opened = _Open(part, [None] * len(rows))
        for place, row in enumerate(rows):
            asked = self._asker.ask(file, row)
            if isinstance(asked, Result):
                opened.results[place] = asked
            else:
                opened.asked[place] = asked
                opened.answers[place] = [None] * len(asked.requests)
        return opened

    def _finished(self, opened: _Open) -> None:
        results = [result for result in opened.results if result]
        keep(self._job, opened.part, results)
        del self._open[opened.part.number]
        self.tally += tally_of(results)


def _note(tally: Tally, seconds: float) -> str:
    rejected = f", {tally.rejected} rejected" if tally.rejected else ""
    errors = f", {tally.errors} not answered" if tally.errors else ""
    return f"{tally.completion_tokens / max(seconds, 1e-9):.0f} tokens/s{rejected}{errors}"
