# ruff: noqa: RUF001 - signs and letters of other scripts are the point
from __future__ import annotations

import math
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.report.quantities import interval, limit, quantity, significant
from tasks.report.visible import pieces, quoted


@pytest.mark.parametrize(
    ("metric", "value", "words"),
    [
        ("ttft_ms", 34.149, "34.1 ms"),
        ("load_ms", 1934.0, "1.93 s"),
        ("peak_rss_bytes", 912e6, "912.0 MB"),
        ("text_same_top_share", 0.7741, "77.4 %"),
        ("engine_agreement_share", 0.99996, "99.996 %"),  # never 100 % for what is not
        ("engine_agreement_share", 0.0004, "0.04 %"),
        ("prompts_passed_share", 1.0, "100 %"),
        ("fdt_share_median", 0.0, "0 %"),
        ("decode_tokens_per_s", 96.24, "96.2 tokens/s"),
        ("text_tokens", 8190.0, "8,190"),
        ("fdt_median", 12.5, "12.5"),
        ("text_kl_mean", 0.18649, "0.186"),
        ("text_kl_p1", 1.23e-6, "1.23 × 10⁻⁶"),
        ("text_perplexity", 1.014e304, "1.01 × 10³⁰⁴"),
        ("text_dp_mean", -0.0213, "−0.0213"),
        ("tpot_ms", None, "not measured"),
        ("text_kl_max", math.nan, "NaN"),
        ("text_kl_max", math.inf, "infinite"),
    ],
)
def test_a_number_is_told_with_its_unit(metric: str, value: float | None, words: str) -> None:
    assert quantity(metric, value) == words


@given(st.floats(-1e300, 1e300))
def test_three_digits_are_within_half_a_percent(value: float) -> None:
    words = significant(value).replace("−", "-").replace(",", "")
    number, _, power = words.partition(" × 10")
    exponent = int(power.translate(str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789")) or 0)
    assert float(f"{number}e{exponent}") == pytest.approx(value, rel=0.0051)


def test_an_interval_names_its_unit_once_unless_it_changes() -> None:
    assert interval("tpot_ms", (9.88, 11.4)) == "9.88 to 11.4 ms"
    assert interval("load_ms", (990.0, 1020.0)) == "990 ms to 1.02 s"
    assert interval("text_kl_mean", (0.00001, 0.2)) == "1.00 × 10⁻⁵ to 0.200"
    assert interval("text_kl_mean", None) == ""


@pytest.mark.parametrize(
    ("metric", "words", "shown"),
    [
        ("prompts_passed_share", "at least 0.95", "at least 95.0 %"),
        ("tpot_ms", "at least 1 and at most 20", "at least 1 ms and at most 20 ms"),
        ("peak_rss_bytes", "at most 1.2e+09", "at most 1.2 GB"),
        ("tpot_ms", "at most 11 (1.1 of phi-3/3's 10)", "at most 11 ms (1.1 of phi-3/3's 10 ms)"),
        ("tpot_ms", "at most 1.1 of the champion's, and there is none", None),
    ],
)
def test_a_limit_has_the_unit_of_its_metric(metric: str, words: str, shown: str | None) -> None:
    assert limit(metric, words) == (shown or words)


@given(st.text())
def test_nothing_in_a_text_is_hidden_and_nothing_is_lost(text: str) -> None:
    shown = ""
    for part, name in pieces(text):
        if name:
            code = int(name.split()[0].removeprefix("U+"), 16)
            assert part.strip()
            shown += chr(code)
        else:
            shown += part
            joiners = part.replace("\u200c", "").replace("\u200d", "")
            assert all(char == " " or unicodedata.category(char)[0] not in "CZ" for char in joiners if char.isascii())
            assert not any(unicodedata.bidirectional(char) in ("RLO", "LRO", "RLE", "LRE", "RLI") for char in part)
    assert shown == text


def test_joiners_stay_where_they_join() -> None:
    family = "👨\u200d👩\u200d👧"
    persian = "می\u200cخواهم"
    assert pieces(family) == [(family, "")]
    assert pieces(persian) == [(persian, "")]
    assert pieces("pass\u200dword")[1] == ("⟨U+200D⟩", "U+200D ZERO WIDTH JOINER")


@pytest.mark.parametrize(
    ("token", "words"),
    [
        (" Paris", "“␣Paris”"),
        ("   ", "“␣␣␣”"),
        ("a b ", "“a b␣”"),
        ("\n\t", "“↵⇥”"),
        ("", "“”"),
        ("x" * 50, "“" + "x" * 40 + "”…"),
    ],
)
def test_a_quoted_token_is_one_line(token: str, words: str) -> None:
    assert quoted(token) == words
