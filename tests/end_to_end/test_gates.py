"""The gates on two sabotaged exports of the real model; `make bench` tries all, and the good ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from tasks.config import Recipe
from tasks.records import ExportedModel
from tasks.validate import validate
from tasks.validate.constants import check_constants
from tests.sabotage import sabotaged

pytestmark = pytest.mark.slow


def test_an_export_without_its_chat_template_is_refused(
    quick_recipe: Recipe,
    smollm2_export: ExportedModel,
    shared_cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("VINOFLOW_CACHE", str(shared_cache))
    report = validate(sabotaged("template_dropped", smollm2_export, tmp_path / "damaged"), quick_recipe)
    assert "engine_failures" in [verdict.metric for verdict in report.verdicts if not verdict.passed]
    assert any("Chat template wasn't found" in fault.message for fault in report.faults)


def test_a_nan_that_the_cpu_hides_is_found_among_the_weights(smollm2_export: ExportedModel, tmp_path: Path) -> None:
    damaged = sabotaged("nan_that_the_cpu_hides", smollm2_export, tmp_path / "damaged")
    (fault,) = check_constants(damaged.path, timeout_s=600)
    assert fault.metric == "nonfinite_weights" and "values are NaN or infinite" in fault.message
    assert not check_constants(smollm2_export.path, timeout_s=600)
