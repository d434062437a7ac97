"""The gates on sabotaged exports of the real model, a few of each kind; `make bench` tries all, and the good ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from tasks.config import Recipe
from tasks.records import ExportedModel
from tasks.validate import validate
from tests.sabotage import sabotaged

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("name", "told_by", "words"),
    [
        ("rope_theta_of_llama", "text_kl_mean", ""),
        ("nan_that_the_cpu_hides", "nonfinite_weights", "values are NaN or infinite"),
        ("template_dropped", "engine_failures", "Chat template wasn't found"),
        ("eos_wrong", "eos_mismatches", ""),
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
