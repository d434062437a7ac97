"""Versions that answer, and a server of them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import yaml

from flows.promotion import consider, promote
from tasks.config import Recipe
from tasks.engine import Engine, Request
from tasks.manifest import build_manifest, write_manifest
from tasks.records import ExportedModel, ModelVersion, PromptResult
from tasks.registry import RunContext, connect, record, register
from tasks.validate import reference_requests
from tests import small
from tests.conftest import ROOT
from tests.servers import stop

# the same answers whatever else is answered at the same time
EXACT = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}


def register_and_ask(
    model: ExportedModel,
    recipe: Recipe,
    folder: Path,
    *,
    ov_config: dict[str, str] | None = None,
    answering: Path | None = None,
    lies: bool = False,
    asked: Sequence[Request] = (),
) -> tuple[ModelVersion, list[str]]:
    """Register a model with a report that has the answers of a folder, its own unless another one is given.

    `lies`: the report has answers that the model does not give. Returns what it answers to `asked` too.
    """
    known = small.report(model, recipe)
    config = ov_config or {}
    with Engine(answering or model.path, device="CPU", ov_config=config) as engine:
        answers = dict(engine.answers(reference_requests(recipe.validation)))
        said = [done.answer.text for _, done in sorted(engine.answers(asked))] if asked else []
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
    return register(recipe, model, report, context, run_id=run_id), said


def register_version(model: ExportedModel, recipe: Recipe, folder: Path, **how: Any) -> ModelVersion:
    """Register a model as `register_and_ask` does, and ask nothing."""
    return register_and_ask(model, recipe, folder, **how)[0]


def variant(model: ExportedModel, folder: Path, seed: int) -> ExportedModel:
    """Return the model with some of its weights changed, so that it answers otherwise."""
    shutil.copytree(model.path, folder, ignore=shutil.ignore_patterns("*.lock"))
    layers = ElementTree.parse(folder / "openvino_model.xml").iter("data")
    constants = [(int(layer.get("size", 0)), int(layer.get("offset", 0))) for layer in layers if layer.get("offset")]
    size, offset = max(constants)  # the embedding
    weights = np.fromfile(folder / "openvino_model.bin", np.uint8)
    weights[offset + np.random.default_rng(seed).integers(0, size, size // 20)] ^= 0x11
    weights.tofile(folder / "openvino_model.bin")
    manifest = build_manifest(folder)
    write_manifest(folder, manifest)
    return model.model_copy(update={"path": folder, "digest": manifest.digest})


def point(version: ModelVersion, alias: str = "champion") -> None:
    """Move an alias as MLflow does, past everything that vinoflow would check."""
    connect().set_registered_model_alias(version.name, alias, str(version.version))


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
def home_of(folder: Path) -> Iterator[None]:
    """Have vinoflow's home and cache in a folder, for more than one test."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VINOFLOW_HOME", str(folder))
        patch.setenv("VINOFLOW_CACHE", str(folder / "cache"))
        patch.setenv("MLFLOW_TRACKING_URI", "")
        yield


@contextmanager
def serving(
    reference: str, folder: Path, *, environment: dict[str, str] | None = None, **settings: object
) -> Iterator[Served]:
    """Serve a reference on a free port, by these settings; the log goes to the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    log, told, config = folder / "serve.log", folder / "serve.out", folder / "settings.yaml"
    config.write_text(yaml.safe_dump({"port": 0, **settings}))
    command = [sys.executable, "-m", "flows.cli", "serve", reference, "--json", "--config", str(config)]
    with log.open("wb") as errors, told.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=output, stderr=errors, env={**os.environ, **(environment or {})}
        )
    try:
        deadline = time.monotonic() + 300
        while not told.read_text().strip():
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()[-3000:]
            time.sleep(0.1)
        ready = json.loads(told.read_text())
        yield Served(ready["url"], process, log, ready)
    finally:
        stop(process)
