from __future__ import annotations

import pytest

from tasks.devices import resolve
from tasks.errors import DeviceError
from tasks.records import ExportedModel

pytestmark = pytest.mark.slow
CONFIG = {"PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": "1", "CACHE_DIR": ""}


def test_what_openvino_compiled_for_is_read_back(tiny_export: ExportedModel) -> None:
    record = resolve(tiny_export.path, device="CPU", on_missing="fail", ov_config=CONFIG)
    assert (record.requested, record.used, record.execution_devices) == ("CPU", "CPU", ("CPU",))
    assert record.full_name
    assert record.ov_config == CONFIG


def test_a_missing_device_lists_what_there_is(tiny_export: ExportedModel) -> None:
    with pytest.raises(DeviceError, match=r"no device GPU\.7 here .*CPU.*on_missing_device: cpu"):
        resolve(tiny_export.path, device="GPU.7", on_missing="fail", ov_config={})


def test_falling_back_to_the_cpu_is_recorded(tiny_export: ExportedModel) -> None:
    record = resolve(tiny_export.path, device="GPU.7", on_missing="cpu", ov_config={})
    assert (record.requested, record.used, record.execution_devices) == ("GPU.7", "CPU", ("CPU",))


def test_a_model_that_does_not_compile_is_refused(tiny_export: ExportedModel) -> None:
    with pytest.raises(DeviceError, match="device CPU refuses the model"):
        resolve(tiny_export.path, device="CPU", on_missing="fail", ov_config={"NO_SUCH_PROPERTY": "1"})
