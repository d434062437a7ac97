from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from flows.batching import Batched, Wanted, answer_here, run_batch
from tasks.config import Batch
from tasks.records import ModelVersion
from tasks.registry import RunContext, record, register
from tests import small, stub_engine

Run = Callable[..., Batched]


@pytest.fixture
def version(with_store: None, home: Path, tmp_path: Path) -> ModelVersion:
    """A registered version of a few bytes."""
    return registered(tmp_path, "first")


def registered(folder: Path, content: str) -> ModelVersion:
    recipe, model = small.recipe(), small.exported(folder / content, content)
    evidence = folder / f"evidence-{content}"
    evidence.mkdir()
    report = small.report(model, recipe)
    (evidence / "report.json").write_text(report.model_dump_json())
    context = RunContext(started_at=1.0, inputs=content)
    run_id = record(recipe, model, report, context, evidence=evidence)
    return register(recipe, model, report, context, run_id=run_id)


@pytest.fixture
def run(version: ModelVersion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Answer a file of the test's folder by an engine that answers at once."""
    stub_engine.in_place(monkeypatch)

    def run(source: str, output: str, *, reference: str = "small/1", **settings: object) -> Batched:
        how = {name: settings.pop(name) for name in ("overwrite", "restart") if name in settings}
        wanted = Wanted(
            source=str(tmp_path / source),
            output=str(tmp_path / output),
            reference=reference,
            settings=Batch.model_validate(settings),
            **how,
        )
        return run_batch(wanted, answer=answer_here)

    return run
