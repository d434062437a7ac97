"""What the gates let through: sabotaged exports and lying devices, which must not pass, and good ones, which must."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from time import perf_counter

import pytest

from tasks.config import Recipe
from tasks.errors import DeviceError
from tasks.export import export
from tasks.records import Checkpoint, ExportedModel, ValidationReport
from tasks.validate import validate
from tests.benchmarks.table import show
from tests.gpu_shim.build import FAULT
from tests.sabotage import DEVICE_FAULTS, GOOD, SABOTAGES, sabotaged

pytestmark = [pytest.mark.bench, pytest.mark.timeout(3 * 3600)]
SHOWN = {
    "text_kl_mean": "mean KL",
    "text_same_top_share": "same top",
    "text_perplexity_ratio": "perplexity ratio",
    "answers_kl_mean": "answers' KL",
    "prompts_passed_share": "prompts",
    "worst_answer_perplexity": "worst answer",
}
HEADER = ("what", "refused by", *SHOWN.values(), "s")
Case = tuple[str, Sequence[str], Callable[[], ExportedModel]]  # its name, which metrics should tell, how it is made


@pytest.fixture(autouse=True)
def cached(shared_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VINOFLOW_CACHE", str(shared_cache))


def test_good_exports_are_accepted(quick_recipe: Recipe, smollm2: Checkpoint) -> None:
    cases = [(name, (), lambda settings=settings: export(smollm2, settings)) for name, settings in GOOD.items()]
    refused = {name: gates for name, gates, _ in judged("Good exports", cases, quick_recipe) if gates}
    assert not refused


def test_sabotaged_exports_are_refused(quick_recipe: Recipe, smollm2_export: ExportedModel, tmp_path: Path) -> None:
    def made(name: str) -> ExportedModel:
        shutil.rmtree(tmp_path / "copy", ignore_errors=True)  # 100 MB each
        return sabotaged(name, smollm2_export, tmp_path / "copy")

    cases = [(name, chosen.told_by, lambda name=name: made(name)) for name, chosen in SABOTAGES.items()]
    assert_refused(judged("Sabotaged exports", cases, quick_recipe))


def test_lying_devices_are_refused(
    gpu: pytest.MonkeyPatch, quick_recipe: Recipe, smollm2_export: ExportedModel
) -> None:
    def broken(fault: str) -> ExportedModel:
        gpu.setenv(FAULT, fault)
        return smollm2_export

    on_gpu = quick_recipe.validation.model_copy(update={"device": "GPU.0", "on_missing_device": "fail"})
    cases = [(fault, told_by, lambda fault=fault: broken(fault)) for fault, told_by in DEVICE_FAULTS.items()]
    recipe = quick_recipe.model_copy(update={"validation": on_gpu})
    assert_refused(judged("A CPU in a GPU's name, with a driver's faults", cases, recipe))


def assert_refused(found: Iterable[tuple[str, list[str], Sequence[str]]]) -> None:
    """Assert that each was refused, and by a gate that says what is wrong with it."""
    for name, gates, told_by in found:
        assert gates, name
        assert not told_by or set(told_by) & set(gates) or gates[0].startswith("DeviceError"), f"{name}: {gates}"


def judged(title: str, cases: Sequence[Case], recipe: Recipe) -> list[tuple[str, list[str], Sequence[str]]]:
    """Validate each case and print a table; return names, the gates that refused, and those that should."""
    found, rows = [], []
    for name, told_by, make in cases:
        exported, started = make(), perf_counter()
        try:
            report = validate(exported, recipe)
            gates = [verdict.metric for verdict in report.verdicts if not verdict.passed]
            figures = list(_figures(report))
        except DeviceError as error:
            gates, figures = [f"DeviceError: {str(error).splitlines()[-1][:60]}"], ["-"] * len(SHOWN)
        # the gates that say what is wrong first; many fail with them
        gates.sort(key=lambda gate: gate not in told_by)
        words = ", ".join(gates[:3]) + (f" and {len(gates) - 3} more" if len(gates) > 3 else "")
        rows.append((name, words or "accepted", *figures, f"{perf_counter() - started:.0f}"))
        found.append((name, gates, told_by))
        print(" | ".join(rows[-1]), flush=True)
    accepted = sum(not gates for _, gates, _ in found)
    show(f"{title}: {accepted} of {len(found)} accepted, {len(found) - accepted} refused", HEADER, rows)
    return found


def _figures(report: ValidationReport) -> Iterator[str]:
    for metric in SHOWN:
        low, high = report.intervals.get(metric, (None, None))
        spread = f" ({low:.3g} to {high:.3g})" if low is not None else ""
        yield f"{report.metrics[metric]:.3g}{spread}" if metric in report.metrics else "-"
