"""May a version have an alias? Its evidence, the alias's policy, and the version that has the alias now decide."""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import Field

from tasks.config import AliasPolicy, Recipe
from tasks.gates import comparable, judge
from tasks.records import Champion, Evidence, ModelVersion, Record, ValidationReport, Verdict

# what a person compares two versions by, where no gate names it
_SHOWN = (
    "prompts_passed_share",
    "text_kl_mean",
    "text_same_top_share",
    "text_perplexity_ratio",
    "answers_kl_mean",
    "fdt_median",
    "ttft_ms",
    "decode_tokens_per_s",
    "concurrent_end_to_end_tokens_per_s",
    "peak_rss_bytes",
)


class Compared(Record):
    """One metric of the candidate beside that of the version that has the alias now."""

    metric: str
    candidate: float | None
    current: float | None
    limit: str = Field("", description="What a gate asks; empty: there is none.")
    passed: bool = True


class Assessment(Record):
    """Whether a version may have an alias."""

    version: ModelVersion
    alias: str
    current: str = Field("", description="The version that has it now; empty: none.")
    blocked: tuple[str, ...] = Field(description="What is wrong and cannot be overridden.")
    failed: tuple[str, ...] = Field(description="Gates that fail: `--force --reason` overrides them.")
    table: tuple[Compared, ...]
    report_digest: str
    manual: bool = Field(description="Whether the alias asks for approval.")

    @property
    def allowed(self) -> bool:
        """True where nothing speaks against it."""
        return not self.blocked and not self.failed


def assess(
    evidence: Evidence, recipe: Recipe, current: Champion | None, *, alias: str, unknown: str = ""
) -> Assessment:
    """Judge whether a version may have an alias.

    Args:
        evidence: The version and what is known of it.
        recipe: The recipe that it was made by, which says what the alias asks.
        current: The version that has the alias now, if any; the recipe's relative gates compare with it.
        alias: The alias.
        unknown: Why nothing is known of a version that has the alias now.
    """
    policy = recipe.registry.aliases.get(alias, AliasPolicy())
    report = evidence.report
    relative = _relative(report, recipe, current) if report else ()
    verdicts = [*(report.verdicts if report else ()), *relative]
    failed = [_in_words(verdict) for verdict in verdicts if not verdict.passed]
    if unknown:
        failed.append(f"it cannot be compared with the present {alias}: {unknown}")
    return Assessment(
        version=evidence.version,
        alias=alias,
        current=current.reference if current else "",
        blocked=(*evidence.problems, *_wrong_device(report, policy, alias)),
        failed=tuple(dict.fromkeys(failed)),
        table=tuple(_table(report, current, verdicts)) if report else (),
        report_digest=evidence.report_digest,
        manual=policy.approval == "manual",
    )


def _wrong_device(report: ValidationReport | None, policy: AliasPolicy, alias: str) -> Iterator[str]:
    if report and policy.device not in (None, report.device.used):
        yield (
            f"{alias} asks for a validation on {policy.device}, this one ran on {report.device.used}: run "
            f"export-and-validate where {policy.device} is"
        )


def _relative(report: ValidationReport, recipe: Recipe, current: Champion | None) -> tuple[Verdict, ...]:
    """Judge again what is relative to the champion: it may be another one than the validation compared with."""
    gates = {
        name: gate.model_copy(update={"min": None, "max": None})
        for name, gate in recipe.validation.all_gates.items()
        if gate.min_of_champion is not None or gate.max_of_champion is not None
    }
    return judge(
        report.metrics,
        {name: gate for name, gate in gates.items() if name in report.metrics},
        intervals=report.intervals,
        champion=current.reference if current else "",
        known=comparable(current, report.reference, report.device),
    )


def _table(report: ValidationReport, current: Champion | None, verdicts: list[Verdict]) -> Iterator[Compared]:
    """Yield the metrics that gates failed, that gates compare with the champion, and that people look at."""
    known = current.report.metrics if current else {}
    told = {one.metric: one for one in verdicts if not one.passed or (current and "'s" in one.limit)}
    for metric in dict.fromkeys([*told, *(name for name in _SHOWN if name in report.metrics)]):
        verdict = told.get(metric)
        yield Compared(
            metric=metric,
            candidate=report.metrics.get(metric),
            current=known.get(metric),
            limit=verdict.limit if verdict else "",
            passed=verdict.passed if verdict else True,
        )


def _in_words(verdict: Verdict) -> str:
    value = "not measured" if verdict.value is None else f"{verdict.value:.4g}"
    spread = "" if verdict.low is None else f" ({verdict.low:.4g} to {verdict.high:.4g})"
    return f"{verdict.metric} is {value}{spread}, must be {verdict.limit}"
