"""What a validation found, as the page shows it: headline, notices, verdicts, faults, tables of figures."""

from __future__ import annotations

from itertools import groupby
from typing import Any, NamedTuple

from tasks.config import Recipe
from tasks.metrics import BUILT_IN_GATES, PARTS, PERCENTILES, definition
from tasks.records import ExportedModel, ValidationReport, Verdict
from tasks.report.quantities import interval, limit, quantity, significant
from tasks.summary import human_bytes

_FIDELITY = {
    "tokens": "Tokens compared",
    "perplexity": "Perplexity, exported",
    "source_perplexity": "Perplexity, source",
    "perplexity_ratio": "Ratio of the two",
    "nll_correlation": "Correlation of log-likelihoods",
    "same_top_share": "Same token ranked first",
    "kl_mean": "KL divergence in nats, mean",
    "kl_median": "KL divergence in nats, median",
    "kl_max": "KL divergence in nats, largest",
    "dp_mean": "Change of probability, mean",
    "dp_rms": "Change of probability, RMS",
}
_PERCENTILES = {
    f"{kind}_{name}": f"{words}, {level:g} %"
    for kind, words in (("kl", "KL divergence in nats"), ("dp", "Change of probability"))
    for name, level in PERCENTILES.items()
}
_ANSWERS = {
    "identical_answers_share": "Answers as the source model gives them",
    "fdt_median": "First divergent token, median",
    "fdt_min": "First divergent token, earliest",
    "fdt_share_median": "First divergent token / length, median",
    "worst_answer_perplexity": "Most absurd answer: perplexity under the source model",
    "engine_agreement_share": "Tokens that the compiled model ranks first outside the engine",
    "device_equal_answers_share": "Answers alike on device and CPU",
    "noise_floor_kl_mean": "Noise floor: KL divergence of the conversion alone, nats",
}
_SPEED = {
    "ttft_ms": "Time to first token",
    "tpot_ms": "Time per output token",
    "inter_token_p99_ms": "Between two tokens, 99 %",
    "decode_tokens_per_s": "Decode",
    "end_to_end_tokens_per_s": "End to end",
}
_LOAD = {
    "load_ms": "Load, no cache",
    "load_cold_ms": "Load, writing a cache",
    "load_warm_ms": "Load from that cache",
    "peak_rss_bytes": "Peak memory of the engine",
}


_STATES = ("failed", "off", "passed")


class Figure(NamedTuple):
    """A metric as it is shown."""

    metric: str
    text: str
    interval: str = ""
    exact: str = ""

    @property
    def description(self) -> str:
        """What the metric is."""
        return definition(self.metric)


class Judged(NamedTuple):
    """A row of the table of verdicts; `state` is failed, passed or off."""

    state: str
    figure: Figure
    limit: str
    built_in: bool


class Table(NamedTuple):
    """Figures in columns; what was not measured is None."""

    heads: tuple[str, ...]
    rows: list[tuple[str, list[Figure | None]]]


def sections(report: ValidationReport, recipe: Recipe, exported: ExportedModel) -> dict[str, Any]:
    """Return what the page's template shows, by name."""
    at_once = report.metrics.get("concurrent_prompts")
    columns = {"": "one at a time", "concurrent_": f"{significant(at_once)} at once" if at_once else "concurrent"}
    parts = {f"{part}_": part for part in PARTS}
    verdicts = _judged(report, recipe)
    return {
        "facts": _facts(report, exported),
        "headline": _headline(verdicts),
        "notices": _notices(report),
        "verdicts": verdicts,
        "faults": [
            (metric, definition(metric), list(found))
            for metric, found in groupby(sorted(report.faults, key=lambda one: one.metric), key=lambda one: one.metric)
        ],
        "part_meanings": PARTS,
        "fidelity": _table(report, _FIDELITY, parts),
        "percentiles": _table(report, _PERCENTILES, parts),
        "answers": _table(report, _ANSWERS, {"": ""}),
        "speed": _table(report, _SPEED, columns),
        "load": _table(report, _LOAD, {"": ""}),
        "compared": any(result.tokens for result in report.prompts),
        "every_metric": [_figure(report, name) for name in report.metrics],
    }


def _facts(report: ValidationReport, exported: ExportedModel) -> str:
    facts = [report.device.used, exported.weights.bit_mix, human_bytes(exported.size_bytes), report.model_digest[:12]]
    return " · ".join(facts)


def _headline(verdicts: list[Judged]) -> str:
    failed, off, passed = ([row for row in verdicts if row.state == state] for state in _STATES)
    gates = len(failed) + len(passed)
    if failed:
        reasons = [_reason(row) for row in failed[:3]]
        more = [f"and {len(failed) - len(reasons)} more"] if len(failed) > len(reasons) else []
        found = f"{len(failed)} of {gates} gates failed: {'; '.join(reasons + more)}"
    else:
        found = f"All {gates} gates passed" if gates else "Nothing was judged"
    return f"{found}. Not judged: {len(off)}." if off else f"{found}."


def _reason(row: Judged) -> str:
    between = f" ({row.figure.interval})" if row.figure.interval else ""
    return f"{row.figure.metric} is {row.figure.text}{between}, limit {row.limit}"


def _notices(report: ValidationReport) -> list[tuple[str, str]]:
    """What a reader must not miss, as (what, what it means)."""
    device, found = report.device, []
    if device.used != device.requested:
        meaning = f"All answers and numbers come from {device.full_name}; nothing ran on {device.requested}."
        found.append((f"Ran on {device.used}: {device.requested} is not here.", meaning))
    if report.reference.precision == "none":
        meaning = "validation.reference is none: nothing here says how near the exported model is to its source."
        found.append(("Compared with nothing.", meaning))
    return found


def _judged(report: ValidationReport, recipe: Recipe) -> list[Judged]:
    """Return the failed gates, then those that were not judged, then those that passed."""
    found = [
        Judged(
            state="passed" if verdict.passed else "failed",
            figure=_value(verdict),
            limit=limit(verdict.metric, verdict.limit),
            built_in=verdict.built_in,
        )
        for verdict in report.verdicts
    ]
    gates = dict.fromkeys(BUILT_IN_GATES, "without a verdict") | {
        name: "without a verdict" if gate else "switched off by the recipe"
        for name, gate in recipe.validation.gates.items()
    }
    for verdict in report.verdicts:
        gates.pop(verdict.metric, None)
    if report.device.used == "CPU":
        gates.pop("device_kl_mean", None)  # there is nothing to compare the CPU with
    found += [Judged("off", _figure(report, name), words, name in BUILT_IN_GATES) for name, words in gates.items()]
    return sorted(found, key=lambda row: _STATES.index(row.state))


def _value(verdict: Verdict) -> Figure:
    return Figure(
        verdict.metric,
        quantity(verdict.metric, verdict.value),
        interval(verdict.metric, (verdict.low, verdict.high)),
        repr(verdict.value),
    )


def _figure(report: ValidationReport, metric: str) -> Figure:
    value = report.metrics.get(metric)
    return Figure(metric, quantity(metric, value), interval(metric, report.intervals.get(metric)), repr(value))


def _table(report: ValidationReport, labels: dict[str, str], columns: dict[str, str]) -> Table:
    """Return the rows and columns that have a figure; a column is a prefix of the metrics' names."""
    measured = [prefix for prefix in columns if any(f"{prefix}{name}" in report.metrics for name in labels)]
    rows = []
    for name, label in labels.items():
        names = [f"{prefix}{name}" for prefix in measured]
        if any(metric in report.metrics for metric in names):
            rows.append((label, [_figure(report, metric) if metric in report.metrics else None for metric in names]))
    return Table(tuple(columns[prefix] for prefix in measured), rows)
