"""A whole validation on GPU.0, a CPU in a GPU's name: what it tells of a device that lies or computes wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from tasks.config import Recipe
from tasks.errors import DeviceError
from tasks.recipe_file import load_recipe
from tasks.records import ExportedModel
from tasks.validate import validate
from tests.conftest import write_tiny_recipe
from tests.gpu_shim.build import FAULT

pytestmark = pytest.mark.slow


@pytest.fixture
def on_gpu(tiny_checkpoint: Path, tmp_path: Path, home: Path) -> Recipe:
    path = write_tiny_recipe(tmp_path, tiny_checkpoint)
    data = yaml.safe_load(path.read_text())
    data["validation"]["device"] = "GPU.0"
    path.write_text(yaml.safe_dump(data))
    return load_recipe(path)


def test_a_sound_device_passes_and_is_called_what_it_is(
    gpu: pytest.MonkeyPatch, tiny_export: ExportedModel, on_gpu: Recipe
) -> None:
    report = validate(tiny_export, on_gpu)
    assert report.passed, [verdict for verdict in report.verdicts if not verdict.passed]
    assert (report.device.used, report.device.execution_devices) == ("GPU.0", ("GPU.0",))
    assert "TEST SHIM" in report.device.full_name  # never taken for a GPU's result
    assert report.metrics["device_equal_answers_share"] == 1
    assert report.metrics["device_kl_mean"] < 1e-6


@pytest.mark.parametrize(("fault", "told_by"), [("nan", "nonfinite_logits"), ("wrong", "device_kl_mean")])
def test_a_device_that_computes_wrong_is_refused(
    fault: str, told_by: str, gpu: pytest.MonkeyPatch, tiny_export: ExportedModel, on_gpu: Recipe
) -> None:
    gpu.setenv(FAULT, fault)
    report = validate(tiny_export, on_gpu)
    assert told_by in [verdict.metric for verdict in report.verdicts if not verdict.passed]


@pytest.mark.parametrize(
    ("fault", "words"), [("refuse", "refuses the model"), ("elsewhere", "compiled for CPU"), ("crash", "killed by")]
)
def test_a_device_that_does_not_do_as_it_is_told_is_an_error(
    fault: str, words: str, gpu: pytest.MonkeyPatch, tiny_export: ExportedModel, on_gpu: Recipe
) -> None:
    gpu.setenv(FAULT, fault)
    with pytest.raises(DeviceError, match=words):
        validate(tiny_export, on_gpu)
