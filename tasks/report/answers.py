"""A reference prompt's answer beside the one that the source model would have given."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple

from tasks.records import Fault, PromptResult, ScoredToken, ValidationReport
from tasks.report.quantities import quantity, share, significant
from tasks.report.visible import quoted

_FOLDED_AFTER = 160  # tokens; of an answer that parts later, as many as lead there and some more
_BEFORE = 40  # tokens that lead to where the answers part, in the source model's column
_LISTED = 30


class Run(NamedTuple):
    """Tokens that are shown alike: `same`, `differs` from the source's choice, or where the answer `parts` from it."""

    text: str
    kind: str = "same"
    note: str = ""


class SideBySide(NamedTuple):
    """What the page shows of one reference prompt."""

    result: PromptResult
    faults: list[Fault]
    verdict: str
    facts: str
    first: list[Run]
    rest: list[Run]
    rest_size: str
    shared: str
    skipped: int
    differing: list[tuple[int, ScoredToken]]
    listed: list[tuple[int, ScoredToken]]


def side_by_side(report: ValidationReport) -> list[SideBySide]:
    """Return the reference prompts' answers, those first that something is wrong with."""
    found = [
        _beside(result, [fault for fault in report.faults if fault.subject == result.id]) for result in report.prompts
    ]
    return sorted(found, key=lambda prompt: not (prompt.result.failures or prompt.faults))


def _beside(result: PromptResult, faults: list[Fault]) -> SideBySide:
    """Return an answer cut into runs, and how the source model's own differs from it."""
    tokens = result.tokens
    parts = result.divergence.first_divergent_token if result.divergence else None
    if tokens:
        units = [_run(token, parts=number == parts) for number, token in enumerate(tokens)]
    else:
        units = [Run(word) for word in re.findall(r"\s*\S+|\s+", result.answer.text)]
    end = max(_FOLDED_AFTER, (parts or 0) + _BEFORE)
    if len(units) - end < _BEFORE:  # folding a few would hide more than it spares
        end = len(units)
    differing = [(number, token) for number, token in enumerate(tokens, start=1) if not token.agrees]
    skipped = max(0, (parts or 0) - _BEFORE)
    return SideBySide(
        result=result,
        faults=faults,
        verdict=_verdict(result),
        facts=_facts(result),
        first=_joined(units[:end]),
        rest=_joined(units[end:]),
        rest_size=f"{len(units) - end:,} more {'tokens' if tokens else 'words'}",
        shared="".join(token.text for token in tokens[skipped : parts or 0]),
        skipped=skipped,
        differing=differing,
        listed=differing[:_LISTED],
    )


def _run(token: ScoredToken, *, parts: bool) -> Run:
    if token.agrees and not parts:
        return Run(token.text)
    kl = "no number" if token.kl is None else f"{significant(token.kl)} nats"
    note = (
        f"The source model would say {quoted(token.source_choice)}; it gives this token "
        f"{share(token.source_probability)}. KL divergence {kl}."
    )
    return Run(token.text, "parts" if parts else "differs", note)


def _joined(units: Sequence[Run]) -> list[Run]:
    """Join neighbours that agree: a span for each would make the page several times as large."""
    found: list[Run] = []
    for same, group in groupby(units, key=lambda run: run.kind == "same"):
        neighbours = list(group)
        found += [Run("".join(run.text for run in neighbours))] if same else neighbours
    return found


def _verdict(result: PromptResult) -> str:
    if result.divergence is None:
        return "not compared"
    parts, length = result.divergence.first_divergent_token, len(result.answer.token_ids)
    if parts is None:
        return "the same as the source model's"
    return f"the source model's for {parts:,} of {length:,} tokens" if parts else "parts at the first token"


def tokens_in_words(count: int) -> str:
    """Return a number of tokens: `1 token`, `1,200 tokens`."""
    return f"{count:,} token" + ("" if count == 1 else "s")


def _facts(result: PromptResult) -> str:
    answer = result.answer
    ended = {"stop": "stopped by itself", "length": "cut off at its limit", "cancelled": "cancelled"}
    facts = [f"{tokens_in_words(len(answer.token_ids))}, {ended[answer.finish_reason]}"]
    facts.append(f"first token after {quantity('ttft_ms', answer.ttft_ms)}")
    if answer.tpot_ms is not None:
        facts.append(f"then {quantity('tpot_ms', answer.tpot_ms)} each")
    if result.divergence:
        facts.append(f"perplexity {significant(result.divergence.perplexity)} under the source model")
    return " · ".join(facts)
