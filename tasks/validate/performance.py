"""How fast the answers came: latency and throughput over rounds, as openvino.genai's PerfMetrics defines them."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

import numpy as np

from tasks.engine import Completion
from tasks.records import LatencyRound


def latency_round(completions: Sequence[Completion], *, concurrency: int, seconds: float) -> LatencyRound:
    """Return what one round took.

    Args:
        completions: The answers of the round.
        concurrency: How many prompts were in flight.
        seconds: From the first request to the last token.

    Definitions: TTFT runs from the request to its first token; TPOT is the mean time of the tokens after it.
    """
    answers = [completion.answer for completion in completions]
    gaps = np.concatenate([np.diff(completion.token_ms) for completion in completions])
    p50, p99 = np.percentile(gaps, [50, 99]) if len(gaps) else (0.0, 0.0)
    return LatencyRound(
        concurrency=concurrency,
        ttft_ms=tuple(answer.ttft_ms for answer in answers),
        tpot_ms=tuple(answer.tpot_ms for answer in answers if answer.tpot_ms is not None),
        inter_token_p50_ms=float(p50),
        inter_token_p99_ms=float(p99),
        end_to_end_tokens_per_s=sum(len(answer.token_ids) for answer in answers) / seconds,
    )


def performance(
    rounds: Sequence[LatencyRound], *, prefix: str = ""
) -> tuple[dict[str, float], dict[str, tuple[float, float]]]:
    """Return metrics over rounds of one concurrency: the median round, and the smallest and largest as its interval.

    A metric without data (no answer of two tokens) is left out.
    """
    series = {
        "ttft_ms": [median(found.ttft_ms) for found in rounds],
        "end_to_end_tokens_per_s": [found.end_to_end_tokens_per_s for found in rounds],
    }
    if all(found.tpot_ms for found in rounds):
        series["tpot_ms"] = [median(found.tpot_ms) for found in rounds]
        series["inter_token_p99_ms"] = [found.inter_token_p99_ms for found in rounds]
        series["decode_tokens_per_s"] = [1000 / value for value in series["tpot_ms"]]
    metrics = {f"{prefix}{name}": median(values) for name, values in series.items()}
    return metrics, {f"{prefix}{name}": (min(values), max(values)) for name, values in series.items()}
