"""Per-position figures against a plain NumPy computation that holds all logits at once."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from tasks.validate.divergence import compare

Logits = NDArray[np.float32]


def made(rows: int, vocabulary: int, *, seed: int, scale: float = 4.0) -> tuple[Logits, Logits, NDArray[np.int64]]:
    random = np.random.default_rng(seed)
    source = random.normal(scale=scale, size=(rows, vocabulary)).astype(np.float32)
    candidate = (source + random.normal(scale=0.5, size=source.shape)).astype(np.float32)
    return source, candidate, random.integers(vocabulary, size=rows)


def cut(source: Logits, candidate: Logits, width: int) -> Iterator[tuple[Logits, Logits]]:
    for first in range(0, source.shape[1], width):
        yield source[:, first : first + width], candidate[:, first : first + width]


def log_softmax(logits: Logits) -> NDArray[np.float64]:
    exact = logits.astype(np.longdouble)
    shifted = exact - exact.max(axis=1, keepdims=True)
    return (shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))).astype(np.float64)


@pytest.mark.parametrize("width", [1, 7, 64, 1000, 5000])
def test_every_figure_is_that_of_the_whole_distribution(width: int) -> None:
    source, candidate, actual = made(40, 1000, seed=width)
    found = compare(cut(source, candidate, width), actual, [3, 999])
    p, q = log_softmax(source), log_softmax(candidate)
    rows = np.arange(40)
    expected = {
        "kl": (np.exp(p) * (p - q)).sum(axis=1),
        "nll": -q[rows, actual],
        "source_nll": -p[rows, actual],
        "dp": np.exp(q[rows, actual]) - np.exp(p[rows, actual]),
        "stop_probability": np.exp(p[:, 3]) + np.exp(p[:, 999]),
    }
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=0, atol=1e-9, err_msg=name)
    assert (found["top"] == candidate.argmax(axis=1)).all()
    assert (found["source_top"] == source.argmax(axis=1)).all()
    assert not found["nonfinite"].any()


@given(st.integers(0, 2**32 - 1), st.floats(0.01, 300), st.integers(1, 50))
def test_kl_is_never_negative_and_blocks_change_nothing(seed: int, scale: float, width: int) -> None:
    source, candidate, actual = made(5, 50, seed=seed, scale=scale)
    found, whole = compare(cut(source, candidate, width), actual, []), compare([(source, candidate)], actual, [])
    assert (found["kl"] >= 0).all()
    for name in found:
        np.testing.assert_allclose(found[name].astype(float), whole[name].astype(float), rtol=1e-9, atol=1e-9)


def test_a_model_does_not_differ_from_itself() -> None:
    source, _, actual = made(10, 300, seed=1)
    found = compare(cut(source, source, 77), actual, [])
    assert found["kl"].max() < 1e-12
    assert not found["dp"].any()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_no_number_is_counted_and_spoils_only_its_row(bad: float) -> None:
    source, candidate, actual = made(6, 200, seed=2)
    candidate[2, 5] = candidate[2, 150] = bad
    found = compare(cut(source, candidate, 64), actual, [])
    assert found["nonfinite"].tolist() == [0, 0, 2, 0, 0, 0]
    assert np.isnan(found["kl"]).tolist() == [False, False, True, False, False, False]
    assert np.isfinite(found["source_nll"]).all()


def test_tokens_that_both_models_switch_off_count_for_nothing() -> None:
    source, candidate, actual = made(4, 100, seed=3)
    actual[:] = 1
    expected = compare([(source[:, :90], candidate[:, :90])], actual, [])
    source[:, 90:] = candidate[:, 90:] = -np.inf
    found = compare(cut(source, candidate, 30), actual, [])
    np.testing.assert_allclose(found["kl"], expected["kl"], atol=1e-12)
    assert not found["nonfinite"].any()


def test_memory_does_not_grow_with_the_vocabulary() -> None:
    import tracemalloc

    def blocks(count: int) -> Iterator[tuple[Logits, Logits]]:
        random = np.random.default_rng(0)
        for _ in range(count):
            block = random.normal(size=(64, 1024)).astype(np.float32)
            yield block, block + np.float32(0.1)

    peaks = []
    for count in (4, 200):  # vocabularies of 4,096 and 204,800
        tracemalloc.start()
        compare(blocks(count), np.zeros(64, np.int64), [2])
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0]
