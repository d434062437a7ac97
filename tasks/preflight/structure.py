"""A checkpoint's structure: its config, and the type and shape of every tensor, read from file headers."""

from __future__ import annotations

import json
import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from tasks.errors import PreflightError
from tasks.records import Record

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
_HEADER_LIMIT = 100_000_000  # the format's own
_BITS = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 64),
    **dict.fromkeys(("F32", "I32", "U32"), 32),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 16),
    **dict.fromkeys(("I8", "U8", "BOOL", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    "F4": 4,
}

Tensors = dict[str, tuple[str, tuple[int, ...]]]


class Structure(Record):
    """All that is known of a checkpoint before any of its weights is read."""

    source: str = Field(description="Where it comes from, for messages.")
    config: dict[str, Any] = Field(description="The content of config.json.")
    tensors: dict[str, tuple[str, tuple[int, ...]]] = Field(
        description="Each tensor's dtype, as safetensors names it, and shape."
    )

    @property
    def text_config(self) -> dict[str, Any]:
        """The language model's part of the config, which models of several parts keep apart."""
        nested = self.config.get("text_config")
        return nested if isinstance(nested, dict) else self.config


def build_structure(source: str, config: dict[str, Any], tensors: Tensors) -> Structure:
    """Return the structure of a checkpoint whose config and headers are at hand, from a hub for instance.

    Raises:
        PreflightError: The config names no model type, or there is no tensor, or a shape is not one.
    """
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or not model_type:
        raise PreflightError(
            f"config.json of {source} has no model_type, so nobody can tell what model this is: "
            "take a checkpoint that was saved with save_pretrained()"
        )
    if not tensors:
        raise PreflightError(f"{source} has no tensors: its safetensors files are empty")
    try:
        structure = Structure(source=source, config=config, tensors=tensors)
    except ValidationError as error:
        raise PreflightError(
            f"the tensors of {source} are not described properly: {error.errors()[0]['msg']}"
        ) from error
    for name, (_, shape) in structure.tensors.items():
        if any(size < 0 for size in shape):
            raise PreflightError(f"tensor {name} of {source} has the shape {list(shape)}: sizes cannot be negative")
    return structure


def read_structure(folder: Path) -> Structure:
    """Return the structure of a checkpoint folder; reads config.json and file headers, no weights.

    Raises:
        PreflightError: A file is missing, cut off or garbage; names it and says what to do.
    """
    config = _read_json(folder / "config.json", "save the model with save_pretrained(), or fetch it again")
    names = _weight_files(folder)
    with ThreadPoolExecutor(max_workers=8) as pool:  # hundreds of shards, maybe on a network disk
        headers = list(pool.map(lambda name: _read_file_header(folder / name), names))
    tensors: Tensors = {}
    for header in headers:
        tensors.update(header)
    return build_structure(str(folder), config, tensors)


def read_header(header: bytes, *, where: str, data_bytes: int | None = None) -> Tensors:
    """Return the tensors that a safetensors header names.

    Args:
        header: The header's JSON, without the eight bytes of its length.
        where: The file, for messages.
        data_bytes: How many bytes follow the header; none: not checked.

    Raises:
        PreflightError: The header is garbage, or describes more or less data than there is.

    Source: the safetensors format (github.com/huggingface/safetensors, README, "Format").
    """
    try:
        entries = json.loads(header)
        if not isinstance(entries, dict):
            raise TypeError(f"it is a {type(entries).__name__}")
        entries.pop("__metadata__", None)
        tensors: Tensors = {name: _read_entry(name, entry) for name, entry in entries.items()}
        end = max((entry["data_offsets"][1] for entry in entries.values()), default=0)
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise PreflightError(
            f"{where} is not a safetensors file, its header cannot be read ({error}): fetch it again"
        ) from error
    if data_bytes is not None and end != data_bytes:
        raise PreflightError(
            f"{where} is cut off or damaged: its header describes {end} bytes of weights, it has {data_bytes}"
        )
    return tensors


def _read_entry(name: str, entry: Any) -> tuple[str, tuple[int, ...]]:
    dtype, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
    sizes = [*shape, begin, end]
    if not isinstance(dtype, str) or not all(type(size) is int and size >= 0 for size in sizes):
        raise ValueError(f"tensor {name!r} is described as {str(entry)[:100]}")
    bits = _BITS.get(dtype)  # a type that is newer than this table is not checked
    if bits is not None and (end - begin) * 8 != math.prod(shape) * bits:
        raise ValueError(f"tensor {name!r} of type {dtype} and shape {shape} cannot have {end - begin} bytes")
    return dtype, tuple(shape)


def _read_file_header(path: Path) -> Tensors:
    try:
        with path.open("rb") as file:
            size_bytes = path.stat().st_size
            length = int.from_bytes(file.read(8), "little")
            if size_bytes < 8 or length > min(_HEADER_LIMIT, size_bytes - 8):
                raise PreflightError(
                    f"{path} is not a safetensors file: it has {size_bytes} bytes and claims a header of {length}; "
                    "fetch it again"
                )
            header = file.read(length)
    except OSError as error:
        raise PreflightError(f"{path} cannot be read: {error.strerror}; fetch it again") from error
    return read_header(header, where=str(path), data_bytes=size_bytes - 8 - length)


def _weight_files(folder: Path) -> list[str]:
    if (folder / SINGLE_FILE).is_file():  # transformers, too, prefers it to an index
        return [SINGLE_FILE]
    index = folder / INDEX_FILE
    if not index.is_file():
        others = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth", "*.gguf") for path in folder.glob(pattern))
        found = f"only {', '.join(others[:3])}, which vinoflow does not open" if others else "no weights at all"
        raise PreflightError(
            f"{folder} has neither {SINGLE_FILE} nor {INDEX_FILE} ({found}): save the model with save_pretrained(), "
            "which writes safetensors"
        )
    weight_map = _read_json(index, "fetch it again").get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise PreflightError(f"{index} has no weight_map of tensors and files: fetch it again")
    names = sorted(set(weight_map.values()))
    for name in names:
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise PreflightError(f"{index} names {name!r}, which is no safetensors file beside it: fetch it again")
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise PreflightError(
            f"{index} names {len(missing)} of {len(names)} files that are missing, the first is {missing[0]}: "
            "fetch the checkpoint again"
        )
    return names


def _read_json(path: Path, advice: str) -> dict[str, Any]:
    try:
        data = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise PreflightError(f"{path} is missing: {advice}") from error
    except OSError as error:
        raise PreflightError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise PreflightError(f"{path} is not JSON ({error}): {advice}") from error
    if not isinstance(data, dict):
        raise PreflightError(f"{path} must hold a JSON object, it holds a {type(data).__name__}: {advice}")
    return data
