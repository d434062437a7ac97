from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tasks.devices import resolve
from tasks.engine import Engine, Request
from tasks.errors import DeviceError
from tasks.records import DeviceRecord, ExportedModel
from tests.gpu_shim import build as shim
from tests.gpu_shim.ask import generated, logits

pytestmark = pytest.mark.slow
EXACT = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}


def compiled(model: ExportedModel, device: str = "GPU.0", **ov_config: str) -> DeviceRecord:
    return resolve(model.path, device=device, on_missing="fail", ov_config=ov_config)


def test_gpu_0_is_there_and_says_what_it_is(gpu: pytest.MonkeyPatch, tiny_export: ExportedModel) -> None:
    record = compiled(tiny_export, PERFORMANCE_HINT="LATENCY", NUM_STREAMS="1", CACHE_DIR="")
    assert (record.requested, record.used, record.execution_devices) == ("GPU.0", "GPU.0", ("GPU.0",))
    assert record.full_name == "TEST SHIM: the CPU in a GPU's name"


def test_there_is_no_second_gpu(gpu: pytest.MonkeyPatch, tiny_export: ExportedModel) -> None:
    with pytest.raises(DeviceError, match=r"no device GPU\.1 here .*CPU.*GPU \(TEST SHIM"):
        compiled(tiny_export, "GPU.1")


def test_without_the_environment_there_is_no_gpu_0(
    shim_environment: dict[str, str], tiny_export: ExportedModel
) -> None:
    try:
        record = compiled(tiny_export)
    except DeviceError as error:
        assert "TEST SHIM" not in str(error)
    else:  # a machine with a GPU
        assert "TEST SHIM" not in record.full_name


def test_optimum_generates_on_it_what_it_generates_on_the_cpu(
    gpu: pytest.MonkeyPatch, tiny_export: ExportedModel
) -> None:
    on_gpu, on_cpu = generated(tiny_export.path, "GPU.0", "CPU")
    assert len(on_gpu) == 20
    assert on_gpu == on_cpu


def test_the_engine_answers_on_it_what_it_answers_on_the_cpu(
    gpu: pytest.MonkeyPatch, tiny_export: ExportedModel
) -> None:
    requests = [Request(prompt="The quick brown fox " * count, max_new_tokens=24) for count in (1, 2, 5, 20)]
    said = []
    for device in ("CPU", "GPU.0"):
        with Engine(tiny_export.path, device=device, ov_config=EXACT, prefix_caching=False) as engine:
            answers = dict(engine.answers(requests))
            said.append([answers[index].answer.token_ids for index in range(len(requests))])
    assert said[0] == said[1]


def test_a_warm_start_still_says_gpu_0(gpu: pytest.MonkeyPatch, tiny_export: ExportedModel, tmp_path: Path) -> None:
    compiled(tiny_export, CACHE_DIR=str(tmp_path))
    blobs = [(path, path.stat().st_mtime_ns) for path in tmp_path.glob("*.blob")]
    assert blobs
    assert compiled(tiny_export, CACHE_DIR=str(tmp_path)).execution_devices == ("GPU.0",)
    assert blobs == [(path, path.stat().st_mtime_ns) for path in tmp_path.glob("*.blob")]


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("refuse", r"(?s)GPU\.0 refuses the model .*\[GPU\] ProgramBuilder build failed"),
        ("crash", r"GPU\.0 cannot be used: tasks\.devices was killed by SIGABRT"),
        ("elsewhere", r"asked for GPU\.0 and compiled for CPU"),
    ],
)
def test_a_fault_of_the_driver_is_a_device_error(
    fault: str, message: str, gpu: pytest.MonkeyPatch, tiny_export: ExportedModel
) -> None:
    gpu.setenv(shim.FAULT, fault)
    with pytest.raises(DeviceError, match=message):
        compiled(tiny_export)


def test_faults_of_the_logits(gpu: pytest.MonkeyPatch, tiny_export: ExportedModel) -> None:
    right = logits(tiny_export.path, "GPU.0", tokens=8)
    found = {}
    for fault in ("nan", "zero", "wrong", "drift", "overflow"):
        gpu.setenv(shim.FAULT, fault)
        found[fault] = logits(tiny_export.path, "GPU.0", tokens=8)
    assert np.isnan(found["nan"]).all()
    assert (found["zero"] == 0).all()
    np.testing.assert_allclose(found["wrong"], -right)
    change = found["drift"] / right
    assert 0.05 < change.std() < 0.2 and abs(change.mean() - 1) < 0.05
    np.testing.assert_array_equal(found["overflow"], right)
    assert np.isnan(logits(tiny_export.path, "GPU.0", tokens=1001)).all()


def test_every_fault_is_tested() -> None:
    assert set(shim.FAULTS) == {"refuse", "crash", "elsewhere", "nan", "zero", "wrong", "drift", "overflow"}


def test_another_openvino_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shim, "MADE_FOR", "2025.1")
    with pytest.raises(RuntimeError, match=r"made for OpenVINO 2025\.1 and this is 20"):
        shim.build(tmp_path)
