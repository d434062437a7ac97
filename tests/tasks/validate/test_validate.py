from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.config import Expectation, Gate
from tasks.engine import Completion
from tasks.gates import comparable, judge
from tasks.metrics import BUILT_IN_GATES, METRICS, NEED_REFERENCE, OF_THE_MACHINE
from tasks.records import Answer, Champion, DeviceRecord, Fault, PromptResult, ReferenceRecord, ValidationReport
from tasks.validate.expectations import failures
from tasks.validate.findings import counts
from tasks.validate.performance import latency_round, performance


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


def completion(token_ms: list[float]) -> Completion:
    tokens, seconds = len(token_ms), token_ms[-1] / 1000
    return Completion(
        prompt="p",
        prompt_ids=(1, 2),
        token_ms=tuple(token_ms),
        answer=answer(tokens=tokens, ttft=token_ms[0], seconds=seconds),
    )


def test_a_round_by_hand() -> None:
    # 3 tokens in 0.3 s after 100 ms, 5 tokens in 1.2 s after 200 ms, the last one late
    found = latency_round(
        [completion([100, 150, 300]), completion([200, 300, 400, 500, 1200])], concurrency=2, seconds=2.0
    )
    assert found.ttft_ms == (100, 200)
    assert found.tpot_ms == pytest.approx((100, 250))
    assert found.inter_token_p50_ms == pytest.approx(100)  # of 50, 100, 100, 100, 150, 700
    assert found.inter_token_p99_ms == pytest.approx(672.5)
    assert found.end_to_end_tokens_per_s == 4


def test_performance_is_the_median_round_between_the_extremes() -> None:
    rounds = [
        latency_round([completion([first, first + 10, first + 10 + gap])], concurrency=1, seconds=1.0)
        for first, gap in ((100, 20), (300, 40), (200, 90))
    ]
    metrics, intervals = performance(rounds, prefix="concurrent_")
    assert (metrics["concurrent_ttft_ms"], intervals["concurrent_ttft_ms"]) == (200, (100, 300))
    assert metrics["concurrent_tpot_ms"] == pytest.approx(25)
    assert metrics["concurrent_decode_tokens_per_s"] == pytest.approx(40)
    assert metrics["concurrent_end_to_end_tokens_per_s"] == 3
    assert metrics.keys() <= METRICS.keys()


def test_performance_without_a_second_token_leaves_tpot_out() -> None:
    metrics, _ = performance([latency_round([completion([50])], concurrency=1, seconds=0.05)])
    assert set(metrics) == {"ttft_ms", "end_to_end_tokens_per_s"}


@given(st.floats(allow_nan=False), st.floats(allow_nan=False), st.floats(allow_nan=False))
def test_a_gate_passes_exactly_within_its_limits(value: float, low: float, high: float) -> None:
    (verdict,) = judge({"ttft_ms": value}, {"ttft_ms": Gate(min=low, max=high)})
    assert verdict.passed == (low <= value <= high)


def test_what_was_not_measured_or_is_no_number_fails() -> None:
    verdicts = judge({"tpot_ms": math.nan}, {"tpot_ms": Gate(max=10), "ttft_ms": Gate(max=10)})
    assert [verdict.passed for verdict in verdicts] == [False, False]
    assert verdicts[1].value is None
    assert verdicts[0].limit == "at most 10"


@pytest.mark.parametrize(
    ("gate", "passed"),
    [
        (Gate(max=0.2), True),
        (Gate(max=0.19), False),  # the point would pass, its upper bound does not
        (Gate(min=0.17), True),
        (Gate(min=0.18), False),
        (Gate(min=0.17, max=0.2), True),
    ],
)
def test_the_bound_decides_not_the_point(gate: Gate, passed: bool) -> None:
    (verdict,) = judge({"text_kl_mean": 0.185}, {"text_kl_mean": gate}, intervals={"text_kl_mean": (0.175, 0.195)})
    assert (verdict.passed, verdict.low, verdict.high) == (passed, 0.175, 0.195)


@pytest.mark.parametrize(
    ("gate", "known", "passed", "limit"),
    [
        (Gate(max_of_champion=1.1), 0.2, True, "at most 0.22 (1.1 of m/1's 0.2)"),
        (Gate(max_of_champion=1.1), 0.15, False, "at most 0.165 (1.1 of m/1's 0.15)"),
        (Gate(min_of_champion=0.9), 0.15, True, "at least 0.135 (0.9 of m/1's 0.15)"),
        (Gate(max=0.1, max_of_champion=1.1), 0.2, False, "at most 0.1 and at most 0.22 (1.1 of m/1's 0.2)"),
        (Gate(max_of_champion=1.1), None, True, "1.1 of the champion's (none to compare with)"),
    ],
)
def test_relative_gates(gate: Gate, known: float | None, passed: bool, limit: str) -> None:
    (verdict,) = judge(
        {"text_kl_mean": 0.185},
        {"text_kl_mean": gate},
        intervals={"text_kl_mean": (0.175, 0.195)},
        champion="m/1",
        known={} if known is None else {"text_kl_mean": known},
    )
    assert (verdict.passed, verdict.limit) == (passed, limit)


def test_only_what_was_measured_alike_is_compared() -> None:
    device = DeviceRecord(requested="CPU", used="CPU", full_name="one", execution_devices=("CPU",), ov_config={})
    reference = ReferenceRecord(precision="fp32", text_digest="t", prompts_digest="p")
    report = ValidationReport(
        model_digest="m",
        checkpoint_digest="c",
        recipe_digest="r",
        device=device,
        versions={},
        metrics={"text_kl_mean": 0.2, "ttft_ms": 50, "prompts": 16},
        reference=reference,
        prompts=(),
        verdicts=(),
    )
    champion = Champion(reference="m/1", report=report)
    assert comparable(champion, reference, device) == report.metrics
    other_text = reference.model_copy(update={"text_digest": "other"})
    assert comparable(champion, other_text, device).keys() == {"ttft_ms", "prompts"}
    other_device = device.model_copy(update={"full_name": "two"})
    assert comparable(champion, reference, other_device).keys() == {"text_kl_mean", "prompts"}
    assert comparable(None, reference, device) == {}


def test_answers_that_were_not_given_are_not_counted() -> None:
    failed = Fault(metric="engine_failures", subject="the engine", message="died")
    assert counts([], [failed]) == {"engine_failures": 1, "nonfinite_weights": 0}
    alone = counts([PromptResult(id="a", prompt="p", answer=answer(), failures=())], [])
    assert alone["prompts_passed_share"] == 1 and alone["empty_answers"] == 0
    assert "missed_stops" not in alone  # there was no source model to tell


def test_every_gate_and_group_names_metrics_that_exist() -> None:
    for names in (BUILT_IN_GATES, NEED_REFERENCE, OF_THE_MACHINE):
        assert set(names) <= METRICS.keys()
