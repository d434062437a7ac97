"""Numbers for people: three significant digits, with the unit that the metric's name tells."""

from __future__ import annotations

import math
import re

from tasks.summary import human_bytes

_MINUS, _TIMES = "\N{MINUS SIGN}", "\N{MULTIPLICATION SIGN}"
_DIGITS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
# a bound, or a champion's value; not a factor ("at most 1.1 of the champion's")
_BOUND = re.compile(r"(at least|at most|'s) (-?\d[\d.]*+(?:e[+-]?\d+)?+)(?! of)")


def quantity(metric: str, value: float | None) -> str:
    """Return a metric's value with its unit: `34.1 ms`, `77.4 %`, `114.1 MB`."""
    if value is None or not math.isfinite(value):
        return "not measured" if value is None else significant(value)
    if metric.endswith("_bytes"):
        return human_bytes(value)
    if "_share" in metric:
        return share(value)
    if metric.endswith("_ms"):
        return f"{significant(value)} ms" if abs(value) < 1000 else f"{significant(value / 1000)} s"
    return significant(value) + (" tokens/s" if metric.endswith("_tokens_per_s") else "")


def interval(metric: str, bounds: tuple[float | None, float | None] | None) -> str:
    """Return a confidence interval, `33.1 to 35.0 ms`; nothing where there is none."""
    if bounds is None or None in bounds:
        return ""
    low, high = (quantity(metric, bound) for bound in bounds)
    unit = re.search(r" \D+$", high)
    return f"{low.removesuffix(unit.group()) if unit else low} to {high}"


def limit(metric: str, words: str) -> str:
    """Return a verdict's limit with its bounds in the metric's unit."""
    return _BOUND.sub(lambda found: f"{found[1]} {quantity(metric, float(found[2]))}", words)


def significant(value: float) -> str:
    """Return a number with three significant digits, whole ones in full: 0.186, 12.3, 1,234."""
    if not math.isfinite(value):
        return {math.inf: "infinite", -math.inf: f"{_MINUS}infinite"}.get(value, "NaN")
    size = abs(value)
    if size and not 1e-4 <= size < 1e7:
        mantissa, exponent = f"{value:.2e}".split("e")
        text = f"{mantissa} {_TIMES} {power_of_ten(int(exponent))}"
    elif size >= 100 or value == round(value):
        text = f"{value:,.0f}"
    else:
        text = f"{value:.{2 - math.floor(math.log10(size))}f}"
    return text.replace("-", _MINUS)


def power_of_ten(exponent: int) -> str:
    """Return 10 with a raised exponent."""
    return f"10{str(exponent).translate(_DIGITS)}"


def share(value: float) -> str:
    """Return a share in percent; never 0 or 100 % for what is only near it."""
    if value in (0, 1) or not math.isfinite(value):
        return f"{significant(value * 100)} %"
    for digits in range(1, 6):
        text = f"{value * 100:.{digits}f}"
        if float(text) not in (0, 100):
            break
    return f"{text} %".replace("-", _MINUS)
