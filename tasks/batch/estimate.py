"""What a batch would cost, without answering anything: rows, rejects, tokens, time."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from statistics import mean
from typing import Any

from pydantic import Field

from tasks import progress
from tasks.batch.asking import Asked, Asker
from tasks.batch.inputs import InputFile, rows_of
from tasks.batch.job import Plan, Result
from tasks.engine import GrammarCheck, Request
from tasks.errors import BatchError
from tasks.records import Record
from tasks.registry import PulledModel, metrics_of, pull, report_of, speed_of
from tasks.serving.translate import habits_of

_SHOWN = 5  # reasons


class Estimate(Record):
    """What a batch would cost."""

    version: str
    rows: int
    rejected: dict[str, int] = Field(description="How many rows would be rejected, by the reason.")
    prompt_tokens: int
    longest_prompt: int = Field(description="In tokens.")
    most_completion_tokens: int = Field(description="Where every answer is as long as it may be.")
    completion_tokens: int = Field(description="Where answers are as long as those to the reference prompts.")
    tokens_per_s: float = Field(description="That this version generated when it was measured; 0: it was not.")
    measured: str = Field(description="By what.")
    seconds: float | None = Field(description="Predicted: completion_tokens at tokens_per_s.")


def estimate(plan: Plan) -> Estimate:
    """Read all rows, and predict what answering them takes, from what the version itself was measured at."""
    from openvino_genai import Tokenizer

    model = pull(plan.job.version)
    tokenizer = Tokenizer(str(model.path))
    context = int(json.loads((model.path / "config.json").read_bytes()).get("max_position_embeddings") or 1 << 30)
    usual = mean(len(result.answer.token_ids) for result in report_of(model.version).prompts)
    rejected: Counter[str] = Counter()
    prompts, longest, most, expected = 0, 0, 0, 0.0
    for _, asked in _walk(plan, model, "count"):
        if isinstance(asked, Result):
            rejected[asked.rejected or ""] += 1
            continue
        for request in asked.requests:
            length = _length(tokenizer, request)
            limit = min(request.max_new_tokens, max(0, context - length))
            prompts, longest = prompts + length, max(longest, length)
            most, expected = most + limit, expected + min(limit, usual)
    speed, run_id = speed_of(plan.job.version)
    measured = f"its last batch, MLflow run {run_id}"
    if not speed:
        metrics = metrics_of(model.version)
        speed = metrics.get("concurrent_end_to_end_tokens_per_s", 0.0)
        measured = f"its validation, {metrics.get('concurrent_prompts', 0):.0f} prompts at once"
    return Estimate(
        version=plan.job.version,
        rows=plan.job.rows,
        rejected=dict(rejected),
        prompt_tokens=prompts,
        longest_prompt=longest,
        most_completion_tokens=most,
        completion_tokens=round(expected),
        tokens_per_s=speed,
        measured=measured,
        seconds=expected / speed if speed else None,
    )


def refuse_bad_rows(plan: Plan) -> None:
    """Return if every row is one that can be asked.

    Raises:
        BatchError: Some are not; names the first of them.
    """
    bad = [
        f"{file.url}, line {asked.line}: {asked.rejected}"
        for file, asked in _walk(plan, pull(plan.job.version), "check")
        if isinstance(asked, Result)
    ]
    if bad:
        raise BatchError(
            f"{len(bad)} of {plan.job.rows} rows are bad, and nothing was answered (strict): {'; '.join(bad[:_SHOWN])}"
        )


def _walk(plan: Plan, model: PulledModel, what: str) -> Iterator[tuple[InputFile, Asked | Result]]:
    """Yield what would be asked for each row, or that it would be rejected."""
    grammars = GrammarCheck(model.path)
    asker = Asker(plan.job, model.version, habits_of(model.path), grammars)
    try:
        with progress.step(what, total=plan.job.rows, unit="steps") as step:
            for part in plan.parts:
                file = plan.job.files[part.file]
                for row in rows_of(file, part, plan.job.kind, plan.job.settings):
                    yield file, asker.ask(file, row)
                step.update(done=step.done + part.rows)
    finally:
        grammars.close()


def _length(tokenizer: Any, request: Request) -> int:
    """Return how many tokens a request's prompt has."""
    if request.token_ids:
        return len(request.token_ids)
    prompt, special = request.prompt, request.add_special_tokens
    if request.messages:
        messages = [one if isinstance(one, dict) else one.model_dump() for one in request.messages]
        prompt, special = tokenizer.apply_chat_template(messages, True, tools=list(request.tools) or None), False
    return int(tokenizer.encode(prompt, add_special_tokens=special).input_ids.shape[1])
