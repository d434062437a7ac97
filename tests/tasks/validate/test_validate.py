from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.config import Expectation, Gate
from tasks.records import Answer
from tasks.validate.expectations import failures
from tasks.validate.gates import judge
from tasks.validate.performance import performance


def answer(
    text: str = "Paris", *, tokens: int = 3, stop: bool = True, ttft: float = 50, seconds: float = 0.25
) -> Answer:
    return Answer(
        text=text,
        token_ids=tuple(range(tokens)),
        finish_reason="stop" if stop else "length",
        prompt_tokens=5,
        ttft_ms=ttft,
        tpot_ms=(seconds * 1000 - ttft) / (tokens - 1) if tokens > 1 else None,
        seconds=seconds,
    )


@pytest.mark.parametrize(
    ("expect", "given_answer", "words"),
    [
        (Expectation(contains=("paris",)), answer("PARIS."), None),
        (Expectation(contains=("Paris", "France")), answer("Paris."), "does not contain 'France'"),
        (Expectation(not_contains=("lyon",)), answer("Lyon"), "contains 'lyon'"),
        (Expectation(regex=r"^\d+$"), answer("42"), None),
        (Expectation(regex=r"^\d+$"), answer("forty"), "does not match"),
        (Expectation(min_tokens=4), answer(tokens=3), "has 3 tokens, fewer than 4"),
        (Expectation(ends_with_eos=True), answer(stop=False), "did not stop"),
        (Expectation(ends_with_eos=False), answer(stop=True), "stopped by itself"),
        (Expectation(), answer(""), None),
    ],
)
def test_each_expectation(expect: Expectation, given_answer: Answer, words: str | None) -> None:
    found = failures(given_answer, expect)
    assert (not found) if words is None else (len(found) == 1 and words in found[0])


def test_all_failures_are_told() -> None:
    expect = Expectation(contains=("a",), not_contains=("b",), min_tokens=9, ends_with_eos=True)
    assert len(failures(answer("b", stop=False), expect)) == 4


def test_performance_by_hand() -> None:
    # two answers: 11 tokens in 1.1 s after 100 ms, 21 tokens in 1.2 s after 200 ms
    metrics = performance([answer(tokens=11, ttft=100, seconds=1.1), answer(tokens=21, ttft=200, seconds=1.2)])
    assert metrics["ttft_ms"] == 150
    assert metrics["tpot_ms"] == pytest.approx((100 + 50) / 2)
    assert metrics["decode_tokens_per_s"] == pytest.approx(1000 / 75)
    assert metrics["end_to_end_tokens_per_s"] == pytest.approx(32 / 2.3)


def test_performance_without_a_second_token_leaves_tpot_out() -> None:
    assert set(performance([answer(tokens=1)])) == {"ttft_ms", "end_to_end_tokens_per_s"}


@given(st.floats(allow_nan=False), st.floats(allow_nan=False), st.floats(allow_nan=False))
def test_a_gate_passes_exactly_within_its_limits(value: float, low: float, high: float) -> None:
    (verdict,) = judge({"ttft_ms": value}, {"ttft_ms": Gate(min=low, max=high)})
    assert verdict.passed == (low <= value <= high)


def test_what_was_not_measured_or_is_no_number_fails() -> None:
    verdicts = judge({"tpot_ms": math.nan}, {"tpot_ms": Gate(max=10), "ttft_ms": Gate(max=10)})
    assert [verdict.passed for verdict in verdicts] == [False, False]
    assert verdicts[1].value is None
    assert verdicts[0].limit == "at most 10"
