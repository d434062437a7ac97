"""The statistics of fidelity against a plain NumPy computation, and their intervals against what they promise."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from tasks.metrics import METRICS
from tasks.validate.passages import windows
from tasks.validate.statistics import bands, histogram, statistics, summarise

Scores = dict[str, NDArray[np.float64]]
LENGTHS = [511, 511, 300]


def made(lengths: list[int], *, seed: int = 0) -> Scores:
    random = np.random.default_rng(seed)
    count = sum(lengths)
    source_nll = random.gamma(1.5, size=count)
    return {
        "kl": random.gamma(0.5, 0.3, size=count),
        "nll": np.abs(source_nll + random.normal(scale=0.2, size=count)),
        "source_nll": source_nll,
        "dp": random.normal(scale=0.08, size=count),
        "same_top": (random.random(count) < 0.8).astype(float),
    }


def test_each_figure_is_that_of_numpy() -> None:
    scores = made(LENGTHS)
    metrics, intervals = summarise("text", scores, LENGTHS)
    kl, dp, nll, source = scores["kl"], scores["dp"], scores["nll"], scores["source_nll"]
    levels = {"p99_9": 0.999, "p99": 0.99, "p95": 0.95, "p90": 0.9, "p10": 0.1, "p5": 0.05, "p1": 0.01}
    expected = {
        "tokens": 1322,
        "perplexity": np.exp(np.mean(nll)),
        "source_perplexity": np.exp(np.mean(source)),
        "perplexity_ratio": np.exp(np.mean(nll)) / np.exp(np.mean(source)),
        "nll_correlation": np.corrcoef(nll, source)[0, 1],
        "kl_mean": np.sum(kl) / len(kl),
        "kl_median": np.quantile(kl, 0.5),
        "kl_max": np.sort(kl)[-1],
        "dp_mean": np.sum(dp) / len(dp),
        "dp_rms": np.linalg.norm(dp) / np.sqrt(len(dp)),
        "same_top_share": np.count_nonzero(scores["same_top"]) / len(kl),
        **{f"kl_{name}": np.quantile(kl, level) for name, level in levels.items()},
        **{f"dp_{name}": np.quantile(dp, level) for name, level in levels.items()},
    }
    assert metrics.keys() == {f"text_{name}" for name in expected}
    for name, value in expected.items():
        assert metrics[f"text_{name}"] == pytest.approx(value, abs=1e-6), name
    assert metrics.keys() <= METRICS.keys()
    assert intervals.keys() == metrics.keys() - {"text_tokens"}
    for name, (low, high) in intervals.items():
        assert low <= metrics[name] <= high, name


def test_the_interval_is_the_bootstrap_s() -> None:
    scores = made([128, 64])  # three blocks of 64: all draws of them can be written down
    _, intervals = summarise("text", scores, [128, 64])
    blocks = scores["kl"].reshape(3, 64).mean(axis=1)
    every = [np.mean([blocks[i], blocks[j], blocks[k]]) for i in range(3) for j in range(3) for k in range(3)]
    low, high = intervals["text_kl_mean"]
    assert min(every) <= low < high <= max(every)
    assert any(low == pytest.approx(value, abs=1e-12) for value in every)


def test_most_intervals_hold_the_truth() -> None:
    # neighbours resemble each other, as positions of a text do; the true mean is 0
    held = 0
    for seed in range(40):
        noise = np.random.default_rng(seed).normal(size=2048 + 3)
        values = np.convolve(noise, np.ones(4) / 4, mode="valid")
        scores = made([2048], seed=seed) | {"dp": values}
        low, high = summarise("text", scores, [2048])[1]["text_dp_mean"]
        held += low <= 0 <= high
    assert 33 <= held <= 40


def test_the_same_scores_give_the_same_bits() -> None:
    assert summarise("text", made(LENGTHS), LENGTHS) == summarise("text", made(LENGTHS), LENGTHS)


def test_what_is_not_finite_was_not_measured() -> None:
    scores = made(LENGTHS)
    scores["kl"][7] = scores["nll"][7] = scores["dp"][7] = np.nan
    metrics, intervals = summarise("text", scores, LENGTHS)
    assert "text_kl_mean" not in metrics and "text_perplexity" not in metrics
    assert metrics["text_same_top_share"] == statistics(scores)["same_top_share"]
    assert not intervals


@pytest.mark.parametrize("positions", [2, 3, 7, 63])
def test_few_positions_have_intervals_too(positions: int) -> None:
    metrics, intervals = summarise("text", made([positions]), [positions])
    low, high = intervals["text_kl_mean"]
    assert low < metrics["text_kl_mean"] < high


def test_one_position_has_none() -> None:
    assert summarise("text", made([1]), [1])[1] == {}


def test_curves_hold_every_position() -> None:
    kl = made(LENGTHS)["kl"]
    found = bands(kl, LENGTHS)
    assert (found[0].start, found[-1].end) == (0, 511)
    position = np.concatenate([np.arange(length) for length in LENGTHS])
    inside = kl[(position >= found[3].start) & (position < found[3].end)]
    assert found[3].mean == pytest.approx(inside.mean())
    assert found[3].p10 <= found[3].mean
    assert sum(count for _, _, count in histogram(kl)) == len(kl)


def test_windows_hold_every_token_once_after_what_the_tokenizer_begins_with() -> None:
    found = windows(list(range(1200)), prefix=[9999])
    assert [len(passage.ids) for passage in found] == [512, 512, 179]
    assert all(passage.ids[0] == 9999 and passage.start == 1 for passage in found)
    assert [token for passage in found for token in passage.ids[1:]] == list(range(1200))
    plain = windows(list(range(513)))
    assert [(len(passage.ids), passage.scored) for passage in plain] == [(512, 511)]  # one token alone has no past
