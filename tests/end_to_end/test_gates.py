"""The gates on a few sabotaged exports of the real model; `make bench` tries all, and the good ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from tasks.config import Recipe
from tasks.records import ExportedModel
from tasks.validate import validate
from tasks.validate.constants import check_constants
from tests.sabotage import sabotaged

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("name", "told_by", "words"),
    [
        ("rope_theta_of_llama", "text_kl_mean", ""),
        ("template_dropped", "engine_failures", "Chat template wasn't found"),
    ],
)
def test_a_sabotaged_export_is_refused(
    name: str,
    told_by: str,
    words: str,
    quick_recipe: Recipe,
    smollm2_export: ExportedModel,
    shared_cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("VINOFLOW_CACHE", str(shared_cache))
    report = validate(sabotaged(name, smollm2_export, tmp_path / name), quick_recipe)
    assert told_by in [verdict.metric for verdict in report.verdicts if not verdict.passed]
    assert not words or any(words in fault.message for fault in report.faults)


def test_a_nan_that_the_cpu_hides_is_found_among_the_weights(smollm2_export: ExportedModel, tmp_path: Path) -> None:
    damaged = sabotaged("nan_that_the_cpu_hides", smollm2_export, tmp_path / "damaged")
    (fault,) = check_constants(damaged.path, timeout_s=600)
    assert fault.metric == "nonfinite_weights" and "values are NaN or infinite" in fault.message
    assert not check_constants(smollm2_export.path, timeout_s=600)
