"""Which device a model really runs on: asked of OpenVINO in a child process, never assumed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

import psutil

from tasks import child
from tasks.child import Message, Parent, serve_once
from tasks.config import one_device
from tasks.errors import DeviceError, WorkerError
from tasks.records import DeviceRecord

# what decides how a model computes, beside its weights
_TOLD = ("INFERENCE_PRECISION_HINT", "KV_CACHE_PRECISION", "DYNAMIC_QUANTIZATION_GROUP_SIZE", "INFERENCE_NUM_THREADS")


def cores() -> int:
    """Return how many of the machine's cores this process may use; two threads of a core count once."""
    return min(len(os.sched_getaffinity(0)), psutil.cpu_count(logical=False) or 1 << 16)


def chosen(device: str | None) -> str | None:
    """Return the device that somebody chose, if so.

    Raises:
        DeviceError: It names no single device, as AUTO does.
    """
    try:
        return one_device(device) if device else None
    except ValueError as error:
        raise DeviceError(f"device {error}") from error


def resolve(
    folder: Path,
    *,
    device: str,
    on_missing: Literal["fail", "cpu"],
    ov_config: dict[str, str],
    timeout_s: float = 900,
) -> DeviceRecord:
    """Compile a model on a device and return where OpenVINO put it.

    Args:
        folder: The exported model.
        device: As OpenVINO names it.
        on_missing: What to do where there is no such device.
        ov_config: Properties to compile with.
        timeout_s: Compiling may take this many seconds.

    Raises:
        DeviceError: The device is missing (the message lists what there is), refuses the model, or OpenVINO
            compiled for another one.
    """
    request = {"model": str(folder / "openvino_model.xml"), "ov_config": ov_config}
    try:
        result = child.run("tasks.devices", request | {"device": device}, timeout_s=timeout_s)
        if "available" in result and on_missing == "cpu" and device != "CPU":
            result = child.run("tasks.devices", request | {"device": "CPU"}, timeout_s=timeout_s)
    except WorkerError as error:
        raise DeviceError(f"device {device} cannot be used: {error}") from error
    if "available" in result:
        there = ", ".join(result["available"]) or "none"
        raise DeviceError(
            f"there is no device {device} here (OpenVINO finds: {there}); install its driver, set validation.device "
            f"to one of these, or validation.on_missing_device: cpu to run on the CPU and have every record say so"
        )
    if "refused" in result:
        raise DeviceError(f"device {device} refuses the model in {folder}: {result['refused']}")
    record = DeviceRecord(requested=device, ov_config=ov_config, **result)
    family = record.used.partition(".")[0]
    if any(executed.partition(".")[0] != family for executed in record.execution_devices):
        raise DeviceError(
            f"OpenVINO was asked for {record.used} and compiled for {', '.join(record.execution_devices)}: "
            f"such a result would not be one of {record.used}"
        )
    return record


def probe(request: Message, parent: Parent) -> Message:  # noqa: ARG001 - nothing to report while it compiles
    """Compile `model` on `device`; return what OpenVINO says of both."""
    import openvino

    core, device = openvino.Core(), request["device"]
    try:
        name = str(core.get_property(device, "FULL_DEVICE_NAME"))
    except RuntimeError:
        return {"available": [_described(core, found) for found in core.available_devices]}
    try:
        compiled = core.compile_model(request["model"], device, request["ov_config"])
        execution = [str(executed) for executed in compiled.get_property("EXECUTION_DEVICES")]
        known = set(compiled.get_property("SUPPORTED_PROPERTIES"))
        properties = {name: _written(compiled.get_property(name)) for name in _TOLD if name in known}
    except RuntimeError as error:
        return {"refused": str(error).strip()}
    return {"used": device, "full_name": name, "execution_devices": execution, "properties": properties}


def _written(value: object) -> str:
    """Return a property's value as OpenVINO writes it: `bf16`, `u8`, `32`."""
    return str(getattr(value, "get_type_name", lambda: value)())


def _described(core: object, device: str) -> str:
    name = core.get_property(device, "FULL_DEVICE_NAME")  # type: ignore[attr-defined]
    return f"{device} ({name.strip()})"


if __name__ == "__main__":
    serve_once(probe)
