"""Weights that are no numbers: a device may well swallow a NaN scale, and answer a little worse for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from tasks import child
from tasks.child import Message, Parent, serve_once
from tasks.errors import WorkerError
from tasks.records import Fault

_EXPONENT = {
    "f32": (np.uint32, 0x7F800000),
    "f16": (np.uint16, 0x7C00),
    "bf16": (np.uint16, 0x7F80),
}
_BYTES = 64 << 20  # that are looked at a time


def check_constants(folder: Path, *, timeout_s: float) -> list[Fault]:
    """Return the weights, scales and other constants of an exported model that hold NaN or infinity.

    Raises:
        WorkerError: The model cannot be read.
    """
    model = folder / "openvino_model.xml"
    try:
        found = child.run("tasks.validate.constants", {"model": str(model)}, timeout_s=timeout_s)
    except WorkerError as error:
        raise WorkerError(f"{model} cannot be read: {error}") from error
    return [
        Fault(metric="nonfinite_weights", subject=name, message=f"{count} of its {size} values are NaN or infinite")
        for name, count, size in found["constants"]
    ]


def _inspect(request: Message, parent: Parent) -> Message:  # noqa: ARG001 - it takes a second
    import openvino

    model = openvino.Core().read_model(request["model"])
    constants = []
    for node in model.get_ops():
        kind = node.get_output_element_type(0).get_type_name()
        if node.get_type_name() != "Constant" or kind not in _EXPONENT:
            continue
        if count := _broken(node, *_EXPONENT[kind]):
            constants.append((node.get_friendly_name(), count, int(np.prod(node.get_output_shape(0)))))
    return {"constants": constants}


def _broken(node: Any, bits: Any, exponent: int) -> int:
    """Return how many values of a constant have an exponent of all ones, which NaN and the infinities have."""
    values = node.data.reshape(-1).view(bits)
    step = _BYTES // values.itemsize
    return sum(
        int(((values[first : first + step] & exponent) == exponent).sum()) for first in range(0, len(values), step)
    )


if __name__ == "__main__":
    serve_once(_inspect)
