"""What an export needs of disk and memory: rules that were measured, not known."""

from __future__ import annotations

import math
from dataclasses import dataclass

from tasks.config import Export
from tasks.preflight.compression import float_bytes
from tasks.preflight.layers import Layers
from tasks.preflight.structure import Structure

_OTHER_FILES_BYTES = 64_000_000  # tokenizers, XML, config: 35 MB for the largest vocabularies there are
_LIBRARIES_BYTES = 900_000_000
_LEAST_LIBRARIES_BYTES = 400_000_000
_CONFIG_TYPES = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}
_TENSOR_TYPES = {"BF16": "bf16", "F16": "fp16", "F32": "fp32"}
_TENSOR_BYTES = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "BF16": 2, "F16": 2, "I16": 2}


@dataclass(frozen=True)
class Needs:
    """What an export needs, in bytes."""

    bin_bytes: int  # openvino_model.bin
    disk_bytes: int
    peak_memory_bytes: int  # resident
    least_memory_bytes: int  # the part of it that the system cannot take back


def estimate_needs(structure: Structure, layers: Layers, export: Export, *, weight_bytes: int) -> Needs:
    """Return what an export needs of disk and memory.

    Disk: the float model and the compressed one, side by side. Memory: libraries, and the larger of two phases.

    Converting maps the checkpoint's files, and copies the weights where it loads them in another type. Compressing
    maps the float model and holds the compressed one. Mapped files count as resident, yet the system can take them
    back; `least` leaves them out. Calibration (dataset, gptq, scale estimation) takes more, which is not estimated.

    Measured with optimum-intel 2.1.0, peak resident GB (and by this rule): 135 M weights, bf16 to int4 1.43 (1.27),
    to int8 1.21 (1.30), to fp16 1.18 (1.44), f32 to int4 1.51 (1.54); 1.1 G weights, bf16 to int4 3.63 (3.93), to
    int8 3.88 (4.20), to fp16 4.85 (5.30), f32 to int4 5.79 (6.13), to fp16 5.24 (5.30).

    Args:
        structure: The checkpoint.
        layers: Its weights.
        export: The settings.
        weight_bytes: Size of the exported weights, without biases and norms.
    """
    # the norms of 16-bit models are written in 32 bits, unless the export is fp16
    vector_bytes = layers.vectors * (2 if export.weight_format == "fp16" else 4)
    bin_bytes = weight_bytes + vector_bytes
    uncompressed = float_bytes(layers.compressible, export, float_type(structure, export)) + vector_bytes
    compressed = bin_bytes if export.weight_format in ("int4", "int8") else 0
    loaded = _loaded_type(structure, export)
    checkpoint, copied = 0, False
    for dtype, shape in structure.tensors.values():
        checkpoint += math.prod(shape) * _TENSOR_BYTES.get(dtype, 1)
        copied |= dtype in _TENSOR_TYPES and _TENSOR_TYPES[dtype] != loaded
    copy = uncompressed if copied else 0
    return Needs(
        bin_bytes=bin_bytes,
        disk_bytes=_OTHER_FILES_BYTES + uncompressed + compressed,
        peak_memory_bytes=_LIBRARIES_BYTES + max(checkpoint + copy, uncompressed + compressed),
        least_memory_bytes=_LEAST_LIBRARIES_BYTES + max(copy, compressed),
    )


def _own_type(structure: Structure) -> str:
    """Return the type that the checkpoint is meant for: its config's, else that of its first weight."""
    config = structure.text_config
    named = str(config.get("dtype", config.get("torch_dtype"))).removeprefix("torch.")
    if named in _CONFIG_TYPES:
        return _CONFIG_TYPES[named]
    found = (dtype for dtype, _ in structure.tensors.values() if dtype in _TENSOR_TYPES)
    return _TENSOR_TYPES[next(found, "F32")]


def float_type(structure: Structure, export: Export) -> str:
    """Return the type that the float model is written in."""
    return export.weight_format if export.weight_format in ("fp16", "fp32") else _own_type(structure)


def _loaded_type(structure: Structure, export: Export) -> str:
    """Return the type that the weights are loaded in: optimum converts only 16-bit models on loading."""
    own = _own_type(structure)
    return own if own == "fp32" else float_type(structure, export)
