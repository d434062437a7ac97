"""Which tensors of a checkpoint become weights that NNCF compresses, and in which role."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from dataclasses import dataclass
from typing import Literal

from tasks.preflight.structure import Structure

Role = Literal["linear", "experts", "embedding", "head", "convolution"]

_EXPERT = re.compile(r"\.experts\.\d+\.")
_IN_BLOCK = re.compile(r"\.\d+\.")
_EMBEDDINGS = {"wte", "wpe", "embed_in", "shared"}
_HEADS = {"lm_head", "embed_out"}
_TRANSPOSED = {"gpt2", "imagegpt", "decision_transformer"}  # their linear layers store (inputs, outputs)
_FLOATING = {"F64", "F32", "F16", "BF16"}


@dataclass(frozen=True)
class Layer:
    """One weight as NNCF sees it: the experts of a layer are one."""

    name: str
    role: Role
    channels: int  # input channels: what a group size must divide
    rows: int  # rows of `channels` weights; of all experts together

    @property
    def count(self) -> int:
        """How many weights it has."""
        return self.rows * self.channels

    @property
    def is_linear(self) -> bool:
        """True for what NNCF may put in int4 without all_layers."""
        return self.role in ("linear", "experts")


@dataclass(frozen=True)
class Layers:
    """A checkpoint's weights."""

    compressible: tuple[Layer, ...]
    vectors: int  # elements of biases and norms, which no export compresses
    unknown: tuple[str, ...]  # tensors whose type is no floating point: already quantised


def find_layers(structure: Structure) -> Layers:
    """Return the weights of a checkpoint; an output layer that is tied to the embedding is left out.

    The rules are those of NNCF's OpenVINO backend: MatMul, embedding and convolution constants are weights. What
    MatMul, embedding or convolution is, a checkpoint says by names and shapes only.
    """
    found: dict[str, Layer] = {}
    experts: dict[str, list[Layer]] = defaultdict(list)
    vectors, unknown = 0, []
    for name, (dtype, shape) in structure.tensors.items():
        if dtype not in _FLOATING:
            unknown.append(name)
        elif len(shape) == 1 and name.endswith((".weight", ".bias")):
            vectors += shape[0]
        else:
            layer = _layer(structure, name, shape)
            if layer is not None and _EXPERT.search(name):
                experts[_EXPERT.sub(".experts.*.", layer.name)].append(layer)
            elif layer is not None:
                found[layer.name] = layer
    for fused, parts in experts.items():
        found[fused] = Layer(fused, "experts", parts[0].channels, sum(part.rows for part in parts))
    return Layers(tuple(sorted(_untie(structure, found), key=_forward_order)), vectors, tuple(unknown))


def _forward_order(layer: Layer) -> tuple[object, ...]:
    """Sort by block, then about as the model computes: q, k, v, o, gate, up, down."""
    numbers = [int(number) for number in re.findall(r"[0-9]{1,9}", layer.name)]
    return numbers, "attn" not in layer.name, "qkvogud".find(layer.name.rpartition(".")[2][:1]), layer.name


def _untie(structure: Structure, found: dict[str, Layer]) -> list[Layer]:
    """Leave out an output layer that the model replaces by its embedding."""
    tied = structure.text_config.get("tie_word_embeddings", structure.config.get("tie_word_embeddings"))
    if tied is True and any(layer.role == "embedding" for layer in found.values()):
        return [layer for layer in found.values() if layer.role != "head"]
    return list(found.values())


def _layer(structure: Structure, name: str, shape: tuple[int, ...]) -> Layer | None:
    module = name.removesuffix(".weight")
    packed_experts = len(shape) == 3 and ".experts." in name
    if len(shape) < 2 or math.prod(shape) == 0 or (module == name and not packed_experts):
        return None
    if packed_experts:
        return Layer(module, "experts", shape[-1], shape[0] * shape[1])
    if len(shape) > 2:
        return Layer(module, "convolution", math.prod(shape[1:]), shape[0])
    role = _role(structure, module, shape)
    if role == "linear" and structure.config.get("model_type") in _TRANSPOSED:
        return Layer(module, role, shape[0], shape[1])
    return Layer(module, role, shape[1], shape[0])


def _role(structure: Structure, module: str, shape: tuple[int, ...]) -> Role:
    last = module.rpartition(".")[2]
    if last in _HEADS:
        return "head"
    if last in _EMBEDDINGS or last.startswith("embed_") or "embedding" in last:
        return "embedding"
    outside = not _IN_BLOCK.search(module)
    return "head" if outside and shape[0] == structure.text_config.get("vocab_size") else "linear"
