"""What the gates let through: sabotaged exports, of which none may pass, and good ones, which all must."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from time import perf_counter

import pytest

from tasks.config import Recipe
from tasks.errors import DeviceError
from tasks.export import export
from tasks.records import Checkpoint, ExportedModel, ValidationReport
from tasks.validate import validate
from tests.benchmarks.table import show
from tests.sabotage import GOOD, SABOTAGES, sabotaged

pytestmark = [pytest.mark.bench, pytest.mark.timeout(3 * 3600)]
HEADER = ("export", "told by", "mean KL", "same top", "ppl ratio", "answers' KL", "prompts", "worst answer", "s")
SHOWN = (
    "text_kl_mean",
    "text_same_top_share",
    "text_perplexity_ratio",
    "answers_kl_mean",
    "prompts_passed_share",
    "worst_answer_perplexity",
)
DEVICE_FAULTS = {
    "refuse": "",
    "elsewhere": "",
    "crash": "",
    "nan": "nonfinite_logits",
    "zero": "answers_kl_mean",
    "wrong": "answers_kl_mean",
    "drift": "device_kl_mean",
    "overflow": "long_prompt_faults",
}


@pytest.fixture(autouse=True)
def cached(shared_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VINOFLOW_CACHE", str(shared_cache))


@pytest.fixture
def quick(recipe: Recipe) -> Recipe:
    """The embedded model's recipe and gates with half of the prompts, a quarter of the text and no noise floor."""
    known = recipe.validation
    less = {
        "rounds": 2,
        "max_new_tokens": 64,
        "prompts": known.prompts[::2],
        "text": known.text[:9000],
        "noise_floor": False,
        "gates": {name: gate for name, gate in known.gates.items() if name != "noise_floor_kl_mean"},
    }
    return recipe.model_copy(update={"validation": known.model_copy(update=less)})


def test_good_exports_are_accepted(quick: Recipe, smollm2: Checkpoint) -> None:
    rows, refused = [], []
    for name, settings in GOOD.items():
        row, verdict = judged(name, quick, lambda settings=settings: export(smollm2, settings))
        rows.append(row)
        if verdict != "passed":
            refused.append(f"{name}: {verdict}")
        print(" | ".join(row), flush=True)
    show(f"Good exports: {len(rows) - len(refused)} of {len(rows)} accepted", HEADER, rows)
    assert not refused


def test_sabotaged_exports_are_refused(quick: Recipe, smollm2_export: ExportedModel, tmp_path: Path) -> None:
    rows, passed, misread = [], [], []
    for name, chosen in SABOTAGES.items():
        folder = tmp_path / name
        row, verdict = judged(name, quick, lambda name=name, folder=folder: sabotaged(name, smollm2_export, folder))
        shutil.rmtree(folder)
        rows.append(row)
        if verdict == "passed":
            passed.append(name)
        elif chosen.told_by and not set(chosen.told_by) & set(verdict.split(", ")):
            misread.append(f"{name}: {verdict}")
        print(" | ".join(row), flush=True)
    show(f"Sabotaged exports: {len(rows) - len(passed)} of {len(rows)} refused", HEADER, rows)
    assert not passed
    assert not misread


def judged(name: str, recipe: Recipe, make: Callable[[], ExportedModel]) -> tuple[tuple[str, ...], str]:
    """Validate an export; return a row of the table, and the gates that refused it, or `passed`."""
    exported = make()
    started = perf_counter()
    try:
        report = validate(exported, recipe)
    except DeviceError as error:
        seconds = f"{perf_counter() - started:.0f}"
        return (name, f"DeviceError: {str(error).splitlines()[-1][:60]}", *["-"] * len(SHOWN), seconds), "DeviceError"
    failing = ", ".join(verdict.metric for verdict in report.verdicts if not verdict.passed) or "passed"
    return (name, failing, *figures(report), f"{perf_counter() - started:.0f}"), failing


def figures(report: ValidationReport) -> Iterator[str]:
    for metric in (
        "text_kl_mean",
        "text_same_top_share",
        "text_perplexity_ratio",
        "prompts_passed_share",
        "worst_answer_perplexity",
    ):
        low, high = report.intervals.get(metric, (None, None))
        spread = f" ({low:.3g} to {high:.3g})" if low is not None else ""
        yield f"{report.metrics[metric]:.3g}{spread}" if metric in report.metrics else "-"
