"""Whether metrics keep their limits: decided by the confidence bound on the bad side, not by the measured point."""

from __future__ import annotations

import math
from collections.abc import Mapping

from tasks.config import Gate
from tasks.metrics import BUILT_IN_GATES, NEED_REFERENCE, OF_THE_MACHINE
from tasks.records import Champion, DeviceRecord, ReferenceRecord, Verdict

Intervals = Mapping[str, tuple[float, float]]


def comparable(champion: Champion | None, reference: ReferenceRecord, device: DeviceRecord) -> dict[str, float]:
    """Return those of a champion's metrics that were measured on the same texts, and as to speed on the same device."""
    if champion is None:
        return {}
    known = champion.report.reference
    same_texts = (known.precision, known.text_digest, known.prompts_digest) == (
        reference.precision,
        reference.text_digest,
        reference.prompts_digest,
    )
    same_device = champion.report.device.full_name == device.full_name
    return {
        name: value
        for name, value in champion.report.metrics.items()
        if (same_texts or name not in NEED_REFERENCE) and (same_device or name not in OF_THE_MACHINE)
    }


def judge(
    metrics: Mapping[str, float],
    gates: Mapping[str, Gate],
    *,
    intervals: Intervals | None = None,
    champion: str = "",
    known: Mapping[str, float] | None = None,
) -> tuple[Verdict, ...]:
    """Return a verdict a gate; a metric that was not measured, or is NaN, fails its gate.

    Args:
        metrics: The measured points.
        gates: Limits by metric.
        intervals: Confidence intervals; a metric without one is judged by its point.
        champion: The version that relative limits compare with.
        known: Its metrics; where one is not there, a relative limit limits nothing.
    """
    return tuple(
        _judge(name, gate, metrics, intervals or {}, (champion, (known or {}).get(name)))
        for name, gate in gates.items()
    )


def _judge(
    metric: str,
    gate: Gate,
    metrics: Mapping[str, float],
    intervals: Intervals,
    champion: tuple[str, float | None],
) -> Verdict:
    value = metrics.get(metric)
    low, high = intervals.get(metric, (value, value))
    lower = [(gate.min, ""), _relative(gate.min_of_champion, champion)]
    upper = [(gate.max, ""), _relative(gate.max_of_champion, champion)]
    passed = value is not None and low is not None and high is not None and not math.isnan(value)
    passed = passed and all(limit is None or low >= limit for limit, _ in lower)  # type: ignore[operator]
    passed = passed and all(limit is None or high <= limit for limit, _ in upper)  # type: ignore[operator]
    words = [
        f"{word} {limit:.6g}{source}" if limit is not None else source
        for word, limits in (("at least", lower), ("at most", upper))
        for limit, source in limits
    ]
    return Verdict(
        metric=metric,
        value=value,
        low=low if metric in intervals else None,
        high=high if metric in intervals else None,
        limit=" and ".join(filter(None, words)),
        passed=passed,
        built_in=gate.model_dump(exclude_none=True) == BUILT_IN_GATES.get(metric),
    )


def _relative(factor: float | None, champion: tuple[str, float | None]) -> tuple[float | None, str]:
    """Return a relative limit as an absolute one, and where it comes from."""
    name, known = champion
    if factor is None:
        return None, ""
    if known is None:
        return None, f"{factor:g} of the champion's (none to compare with)"
    return factor * known, f" ({factor:g} of {name}'s {known:.4g})"
