"""Per-position figures -> the statistics that llama.cpp's perplexity tool prints, with confidence intervals."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from tasks.metrics import PERCENTILES
from tasks.records import Band

Scores = Mapping[str, NDArray[np.float64]]
RESAMPLES = 1000
BLOCK = 64  # positions that are drawn together: neighbours resemble each other
_SEED = 20261122


def statistics(scores: Scores) -> dict[str, float]:
    """Return the statistics of some positions, by their names in `tasks.metrics` without the part's prefix.

    Args:
        scores: Arrays of shape (positions,): kl, nll, source_nll, dp, same_top.
    """
    kl, dp, nll, source_nll = (scores[name] for name in ("kl", "dp", "nll", "source_nll"))
    levels = list(PERCENTILES.values())
    log_ratio = nll.mean() - source_nll.mean()
    found = {
        "perplexity": math.exp(min(nll.mean(), 700.0)),
        "source_perplexity": math.exp(min(source_nll.mean(), 700.0)),
        "perplexity_ratio": math.exp(min(log_ratio, 700.0)),
        "nll_correlation": _correlation(nll, source_nll),
        "kl_mean": kl.mean(),
        "kl_median": np.median(kl),
        "kl_max": kl.max(),
        **dict(zip((f"kl_{name}" for name in PERCENTILES), np.percentile(kl, levels), strict=True)),
        "dp_mean": dp.mean(),
        "dp_rms": math.sqrt((dp * dp).mean()),
        **dict(zip((f"dp_{name}" for name in PERCENTILES), np.percentile(dp, levels), strict=True)),
        "same_top_share": scores["same_top"].mean(),
    }
    return {name: float(value) for name, value in found.items()}


def _correlation(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    one, other = one - one.mean(), other - other.mean()
    scale = math.sqrt((one @ one) * (other @ other))
    return float(one @ other) / scale if scale else math.nan


def summarise(
    part: str, scores: Scores, lengths: Sequence[int]
) -> tuple[dict[str, float], dict[str, tuple[float, float]]]:
    """Return a part's metrics and their 95 % intervals; what is not finite was not measured, and is left out.

    Args:
        part: The prefix of the metrics' names.
        scores: Arrays of shape (positions,): kl, nll, source_nll, dp, same_top.
        lengths: Positions of each passage, in order; a block of the bootstrap never reaches over its end.

    Source: percentile bootstrap over blocks (Künsch, 1989), 1,000 resamples with a fixed seed.
    """
    point = statistics(scores)
    metrics = {f"{part}_{name}": value for name, value in point.items() if math.isfinite(value)}
    metrics[f"{part}_tokens"] = float(sum(lengths))
    blocks = _blocks(lengths, min(BLOCK, max(1, sum(lengths) // 3)))  # smaller ones where there are few positions
    if len(metrics) <= len(point) or len(blocks) < 2:  # something is not finite, or there is nothing to draw from
        return metrics, {}
    random = np.random.default_rng(_SEED)
    drawn: dict[str, list[float]] = {name: [] for name in point}
    for _ in range(RESAMPLES):
        chosen = np.concatenate([blocks[index] for index in random.integers(len(blocks), size=len(blocks))])
        for name, value in statistics({key: values[chosen] for key, values in scores.items()}).items():
            drawn[name].append(value)
    return metrics, {f"{part}_{name}": _interval(values) for name, values in drawn.items()}


def _blocks(lengths: Sequence[int], size: int) -> list[NDArray[np.int64]]:
    """Return the positions of each block: passages cut into pieces of about `size`."""
    ends = np.cumsum(lengths)
    passages = [np.arange(end - length, end) for end, length in zip(ends, lengths, strict=True) if length]
    return [piece for passage in passages for piece in np.array_split(passage, math.ceil(len(passage) / size))]


def _interval(values: list[float]) -> tuple[float, float]:
    low, high = np.nanpercentile(values, [2.5, 97.5])
    return float(low), float(high)


def bands(kl: NDArray[np.float64], lengths: Sequence[int], *, bins: int = 32) -> tuple[Band, ...]:
    """Return the KL divergence by position in the window: mean, 10 % and 90 % percentile of each bin."""
    position = np.concatenate([np.arange(length) for length in lengths])
    edges = np.unique(np.linspace(0, max(lengths), bins + 1).astype(int))
    found = []
    for start, end in itertools.pairwise(edges):
        inside = kl[(position >= start) & (position < end)]
        p10, p90 = np.percentile(inside, [10, 90])
        found.append(Band(start=int(start), end=int(end), mean=float(inside.mean()), p10=float(p10), p90=float(p90)))
    return tuple(found)


def histogram(kl: NDArray[np.float64], *, bins: int = 40) -> tuple[tuple[float, float, int], ...]:
    """Return counts of KL divergences in bins of equal width on a logarithmic axis, from 1e-6 nats."""
    edges = np.geomspace(1e-6, max(10.0, float(kl.max()) * 1.001), bins + 1)
    counts, _ = np.histogram(np.maximum(kl, edges[0]), edges)
    return tuple((float(low), float(high), int(n)) for low, high, n in zip(edges[:-1], edges[1:], counts, strict=True))
