"""How fast the answers came."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from tasks.records import Answer


def performance(answers: Sequence[Answer]) -> dict[str, float]:
    """Return latency and throughput over answers that were generated one at a time.

    Definitions as in openvino.genai's PerfMetrics: TTFT runs from the request to its first token, TPOT is the mean
    time of the tokens after it. A metric without data (no answer of two tokens) is left out.
    """
    metrics = {"ttft_ms": median(answer.ttft_ms for answer in answers)}
    tokens = sum(len(answer.token_ids) for answer in answers)
    metrics["end_to_end_tokens_per_s"] = tokens / sum(answer.seconds for answer in answers)
    steady = [answer.tpot_ms for answer in answers if answer.tpot_ms is not None]
    if steady:
        metrics["tpot_ms"] = median(steady)
        metrics["decode_tokens_per_s"] = 1000 / metrics["tpot_ms"]
    return metrics
