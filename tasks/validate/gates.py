"""Whether metrics keep their limits."""

from __future__ import annotations

import math
from collections.abc import Mapping

from tasks.config import Gate
from tasks.records import Verdict


def judge(metrics: Mapping[str, float], gates: Mapping[str, Gate]) -> tuple[Verdict, ...]:
    """Return a verdict a gate; a metric that was not measured, or is NaN, fails its gate."""
    return tuple(_judge(name, metrics.get(name), gate) for name, gate in gates.items())


def _judge(metric: str, value: float | None, gate: Gate) -> Verdict:
    limits = [("at least", gate.min), ("at most", gate.max)]
    passed = value is not None and (
        (gate.min is None or value >= gate.min) and (gate.max is None or value <= gate.max) and not math.isnan(value)
    )
    return Verdict(
        metric=metric,
        value=value,
        limit=" and ".join(f"{word} {limit:g}" for word, limit in limits if limit is not None),
        passed=passed,
    )
