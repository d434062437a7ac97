"""Answers, and what comparing made of them -> results by prompt, faults, and how many there are of each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tasks.config import Validation
from tasks.engine import Completion
from tasks.records import Divergence, Fault, PromptResult, ScoredToken
from tasks.validate.answering import SHORT_PROBE, Asked
from tasks.validate.comparing import Compared
from tasks.validate.expectations import failures
from tasks.validate.parity import Parity
from tasks.validate.sanity import differing, said

ABSURD = 50.0  # perplexity under the source model: good answers stay below 4, gibberish is in the thousands
ALWAYS = ("engine_failures", "nonfinite_weights")
OF_ANSWERS = (
    "empty_answers",
    "looping_answers",
    "malformed_answers",
    "unrepeatable_answers",
    "long_prompt_faults",
    "warm_start_mismatches",
)


def results_of(asked: Asked, compared: Compared, settings: Validation) -> tuple[PromptResult, ...]:
    """Return the reference prompts with their answers, and with what comparing found of them."""
    return tuple(
        _result(prompt.id, completion, compared, number, expectations=failures(completion.answer, prompt.expect))
        for number, (prompt, completion) in enumerate(zip(settings.prompts, asked.prompts, strict=False))
    )


def _result(
    name: str, completion: Completion, compared: Compared, number: int, *, expectations: tuple[str, ...] = ()
) -> PromptResult:
    divergence: Divergence | None = None
    tokens: tuple[ScoredToken, ...] = ()
    if compared.divergences:
        divergence, tokens = compared.divergences[number], compared.tokens[number]
    return PromptResult(
        id=name,
        prompt=completion.prompt,
        answer=completion.answer,
        failures=expectations,
        divergence=divergence,
        tokens=tokens,
    )


def faults_of(asked: Asked, compared: Compared, parity: Parity, results: Sequence[PromptResult]) -> tuple[Fault, ...]:
    """Return what the tokenizer, the engine and its answers have wrong with them."""
    ids = {"stop_ids": parity.stop_ids, "template_ids": parity.template_ids}
    probes = [
        _result(name, completion, compared, number)
        for number, (name, completion) in enumerate(asked.probes.items(), start=len(results))
    ]
    repeated = differing(results, [completion.answer for completion in asked.again])
    about_probes = _about_probes(probes, said(probes, **ids))
    return (*parity.faults, *asked.faults, *said(results, **ids), *repeated, *about_probes)


def _about_probes(probes: Sequence[PromptResult], found: Sequence[Fault]) -> Iterator[Fault]:
    """Yield what is wrong with the answers to probes.

    The source model tells best whether one is absurd; without it, a loop does, but not after a single token, where the
    best models go round in circles.
    """
    compared = {probe.id for probe in probes if probe.divergence}
    for fault in found:
        if fault.metric != "looping_answers" or fault.subject not in compared | {SHORT_PROBE}:
            yield fault.model_copy(update={"metric": "long_prompt_faults"})
    for probe in probes:
        if probe.divergence and probe.divergence.perplexity > ABSURD:
            perplexity = f"perplexity {probe.divergence.perplexity:.0f}"
            message = f"the source model finds the answer absurd ({perplexity}): {probe.answer.text!r}"
            yield Fault(metric="long_prompt_faults", subject=probe.id, message=message)


def counts(results: Sequence[PromptResult], faults: Sequence[Fault]) -> dict[str, float]:
    """Return how many prompts were answered as they should, and how many faults of each kind there are.

    Nothing is counted of answers that were not given, and no missed stops without a source model to tell of them.
    """
    kinds = [*ALWAYS, *(OF_ANSWERS if results else ()), *(["missed_stops"] if _compared(results) else [])]
    found = {kind: float(sum(fault.metric == kind for fault in faults)) for kind in kinds}
    if not results:
        return found
    passed = sum(not result.failures for result in results)
    return found | {
        "prompts": float(len(results)),
        "prompts_passed": float(passed),
        "prompts_passed_share": passed / len(results),
        "looping_share": found["looping_answers"] / len(results),
    }


def _compared(results: Sequence[PromptResult]) -> bool:
    return any(result.divergence for result in results)
