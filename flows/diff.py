"""Two versions beside each other: what made them, how they measured, what they said."""

from __future__ import annotations

from collections.abc import Mapping
from textwrap import shorten
from typing import Any

from pydantic import Field

from tasks.records import ModelVersion, Record, ValidationReport
from tasks.registry import flatten, libraries_of, recipe_of, report_of, resolve

_WIDTH = 60  # characters of a recipe's field that a person is shown: prompts and texts are long


class Value(Record):
    """A metric with its 95 % confidence interval, where it has one."""

    value: float
    low: float | None = None
    high: float | None = None


class Answers(Record):
    """What both said to a reference prompt; None: it was not asked."""

    id: str
    prompt: str
    a: str | None
    b: str | None


class Difference(Record):
    """What two versions do not have in common, by name: (of a, of b), None where one lacks it."""

    a: ModelVersion
    b: ModelVersion
    recipe: dict[str, tuple[str | None, str | None]] = Field(description="By the dotted name of the field.")
    metrics: dict[str, tuple[Value | None, Value | None]]
    libraries: dict[str, tuple[str | None, str | None]]
    answers: tuple[Answers, ...]


def diff(a: str, b: str) -> Difference:
    """Compare two versions.

    Raises:
        RegistryError: One of them, its report or its recipe is not there.
    """
    versions = resolve(a), resolve(b)
    reports = [report_of(version) for version in versions]
    said = [{result.id: result.answer.text for result in report.prompts} for report in reports]
    prompts = {result.id: result.prompt for report in reports for result in report.prompts}
    return Difference(
        a=versions[0],
        b=versions[1],
        recipe=_different(*(dict(flatten(recipe_of(version).model_dump(mode="json"))) for version in versions)),
        metrics=_different(*map(_values, reports)),
        libraries=_different(*map(libraries_of, versions)),
        answers=tuple(
            Answers(id=name, prompt=prompts[name], a=texts[0], b=texts[1]) for name, texts in _different(*said).items()
        ),
    )


def rows(difference: Difference) -> list[tuple[str, str, str]]:
    """Return what differs, but the answers, as rows, header first."""
    settings = {**difference.recipe, **difference.libraries}
    return [
        ("", difference.a.reference, difference.b.reference),
        *((name, _short(one), _short(other)) for name, (one, other) in settings.items()),
        *((name, _in_words(one), _in_words(other)) for name, (one, other) in difference.metrics.items()),
    ]


def _different(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    names = dict.fromkeys([*one, *other])
    return {name: (one.get(name), other.get(name)) for name in names if one.get(name) != other.get(name)}


def _values(report: ValidationReport) -> dict[str, Value]:
    spans = report.intervals
    return {
        name: Value(value=value, low=spans[name][0], high=spans[name][1]) if name in spans else Value(value=value)
        for name, value in sorted(report.metrics.items())
    }


def _short(text: str | None) -> str:
    return "-" if text is None else shorten(text, _WIDTH, placeholder=" ...")


def _in_words(measured: Value | None) -> str:
    if measured is None:
        return "-"
    spread = "" if measured.low is None else f" ({measured.low:.4g} to {measured.high:.4g})"
    return f"{measured.value:.4g}{spread}"
