"""Versions that answer, and a server of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from flows.promotion import consider, promote
from tasks.config import Recipe
from tasks.engine import Engine
from tasks.manifest import build_manifest, write_manifest
from tasks.records import ExportedModel, ModelVersion, PromptResult
from tasks.registry import RunContext, record, register
from tasks.validate import reference_requests
from tests import small
from tests.conftest import ROOT
from tests.servers import stop

# the same answers whatever else is answered at the same time
EXACT = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}


def register_version(
    model: ExportedModel, recipe: Recipe, folder: Path, *, ov_config: dict[str, str] | None = None, lies: bool = False
) -> ModelVersion:
    """Register a model with a report that has its own answers; `lies`: answers that it does not give."""
    known = small.report(model, recipe)
    config = ov_config or {}
    with Engine(model.path, device="CPU", ov_config=config) as engine:
        answers = dict(engine.answers(reference_requests(recipe.validation)))
    prompts = tuple(
        PromptResult(
            id=prompt.id,
            prompt=answers[place].prompt,
            answer=answers[place].answer.model_copy(update={"token_ids": (7, 7)} if lies else {}),
            failures=(),
        )
        for place, prompt in enumerate(recipe.validation.prompts)
    )
    device = known.device.model_copy(update={"ov_config": config})
    report = known.model_copy(update={"prompts": prompts, "device": device})
    evidence = folder / f"evidence-{model.digest[:8]}"
    evidence.mkdir(parents=True, exist_ok=True)
    (evidence / "report.json").write_text(report.model_dump_json(indent=1) + "\n")
    (evidence / "report.html").write_text("<p>A report</p>")
    context = RunContext(started_at=time.time(), inputs=f"inputs-{model.digest}")
    run_id = record(recipe, model, report, context, evidence=evidence)
    return register(recipe, model, report, context, run_id=run_id)


def variant(model: ExportedModel, folder: Path, seed: int) -> ExportedModel:
    """Return the model with some of its weights changed, so that it answers otherwise."""
    folder.mkdir(parents=True)
    for path in model.path.iterdir():
        if path.name == "openvino_model.bin":
            weights = np.fromfile(path, np.uint8)
            places = np.random.default_rng(seed).integers(0, len(weights) // 2, 200)
            weights[places] ^= 0x11
            weights.tofile(folder / path.name)
        elif path.is_file():
            (folder / path.name).write_bytes(path.read_bytes())
    manifest = build_manifest(folder)
    write_manifest(folder, manifest)
    return model.model_copy(update={"path": folder, "digest": manifest.digest})


def give(version: ModelVersion, alias: str = "champion") -> None:
    """Give a version an alias, whatever gates say."""
    promote(consider(version.reference, alias=alias), actor="test", force=True, reason="for a test")


@dataclass
class Served:
    """A running server."""

    url: str
    process: subprocess.Popen[bytes]
    log: Path
    ready: dict[str, str] = field(default_factory=dict)

    @property
    def requests(self) -> list[dict[str, object]]:
        """The request log."""
        return [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith('{"request"')]


@contextmanager
def serving(reference: str, folder: Path, **environment: str) -> Iterator[Served]:
    """Serve a reference on a free port; settings.yaml in the folder says how, where it is there."""
    folder.mkdir(parents=True, exist_ok=True)
    log, told = folder / "serve.log", folder / "serve.out"
    command = [sys.executable, "-m", "flows.cli", "serve", reference, "--port", "0", "--json"]
    if (folder / "settings.yaml").exists():
        command += ["--config", str(folder / "settings.yaml")]
    with log.open("wb") as errors, told.open("wb") as output:
        process = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=errors, env={**os.environ, **environment})
    try:
        deadline = time.monotonic() + 300
        while not told.read_text().strip():
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()[-3000:]
            time.sleep(0.1)
        ready = json.loads(told.read_text())
        yield Served(ready["url"], process, log, ready)
    finally:
        stop(process)
