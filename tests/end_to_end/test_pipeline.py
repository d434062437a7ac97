"""The main job through the command that users type; on the real model it is the README's."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tasks.records import ExportedModel
from tasks.serve import Answered
from tests import small
from tests.conftest import ROOT, Vinoflow, write_tiny_recipe
from tests.serving import register_version

pytestmark = pytest.mark.slow


def test_a_failed_gate_registers_nothing_keeps_its_report_and_ends_with_3(
    vinoflow: Vinoflow, home: Path, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = write_tiny_recipe(tmp_path, tiny_checkpoint, contains=["Paris"])
    done = vinoflow("export-and-validate", recipe, expect=3)
    assert "prompts_passed_share is 0, must be at least 1" in done.stderr
    assert "prompt hello: does not contain 'Paris'" in done.stderr
    assert "Traceback" not in done.stderr
    assert json.loads(vinoflow("list", "--json").stdout) == []

    from mlflow.artifacts import load_text

    from tasks.registry import connect

    client = connect()
    (run,) = client.search_runs([client.get_experiment_by_name("vinoflow").experiment_id])
    assert run.data.tags["vinoflow.passed"] == "false"
    assert json.loads(load_text(f"{run.info.artifact_uri}/report.json"))["verdicts"][0]["passed"] is False
    assert run.info.run_id in done.stderr

    data = yaml.safe_load(recipe.read_text())  # the gate is mended: the export is not made again
    data["validation"]["prompts"][0]["expect"] = {}
    recipe.write_text(yaml.safe_dump(data))
    mended = vinoflow("export-and-validate", recipe)
    assert "tiny/1" in mended.stdout
    assert "export " not in mended.stderr


def test_the_loss_is_explained(vinoflow: Vinoflow, tiny_checkpoint: Path, tmp_path: Path) -> None:
    recipe = write_tiny_recipe(tmp_path, tiny_checkpoint)
    refused = vinoflow("explain-loss", recipe, expect=1)
    assert "set validation.text" in refused.stderr

    data = yaml.safe_load(recipe.read_text())
    (tmp_path / "text.txt").write_text("The quick brown fox jumps over the lazy dog. " * 12)
    data["validation"] |= {"text": "text.txt", "reference": "fp32"}
    recipe.write_text(yaml.safe_dump(data))
    explained = json.loads(vinoflow("explain-loss", recipe, "--json").stdout)
    factors = {factor["name"]: factor["metrics"] for factor in explained}
    assert list(factors) == ["conversion", "weights", "kv cache", "activations", "arithmetic", "all together"]
    assert factors["conversion"]["kl_mean"] < 1e-9 < factors["weights"]["kl_mean"]
    assert factors["kv cache"]["kl_mean"] < factors["weights"]["kl_mean"]
    assert factors["all together"]["kl_mean"] == pytest.approx(factors["weights"]["kl_mean"], rel=0.5)


def test_a_missing_device_is_an_error_that_lists_devices(
    vinoflow: Vinoflow, tiny_recipe: Path, tiny_export: ExportedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VINOFLOW_CACHE", str(tiny_export.path.parents[1]))
    data = yaml.safe_load(tiny_recipe.read_text())
    data["validation"]["device"] = "GPU.7"
    tiny_recipe.write_text(yaml.safe_dump(data))
    done = vinoflow("export-and-validate", tiny_recipe, expect=1)
    assert "there is no device GPU.7 here (OpenVINO finds: CPU" in done.stderr
    assert "Traceback" not in done.stderr


ASKS = """
from flows.environment import prepare_prefect
prepare_prefect()
from prefect import flow
from flows.steps import answer_step
from tasks.config import Message
from tasks.engine import Request

@flow
def ask_twice():
    messages = [Message(role="user", content=text) for text in ("Hi", "Hello")]
    return answer_step("tiny@latest", [Request(messages=(message,), max_new_tokens=8) for message in messages])

print(ask_twice().model_dump_json())
"""


def test_a_flow_asks_a_model_without_a_server(
    home: Path, with_prefect: None, tiny_export: ExportedModel, tmp_path: Path
) -> None:
    register_version(tiny_export, small.recipe("tiny"), tmp_path)
    done = subprocess.run([sys.executable, "-c", ASKS], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    answered = Answered.model_validate_json(done.stdout)
    assert answered.version.reference == "tiny/1"
    assert [completion.prompt for completion in answered.completions] == [
        "<|user|>Hi<|end|><|assistant|>",
        "<|user|>Hello<|end|><|assistant|>",
    ]
