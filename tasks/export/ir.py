"""What an export really did to the weights, read from OpenVINO's IR.

The XML alone says it: element types, shapes and NNCF's own settings. It is parsed as XML and not through
`openvino.Core().read_model`: that needs no heavy import in a process that only looks, maps no weights, and a
model of 30 layers takes 0.1 s.
"""

from __future__ import annotations

import ast
import math
import xml.etree.ElementTree as ET
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from tasks.errors import ExportError
from tasks.records import Weights

MODEL_NAME = "openvino_model.xml"
_FLOATING = {"f64": "fp64", "f32": "fp32", "f16": "fp16", "bf16": "bf16"}
_SIGNED = {"i4": "int4_sym", "i8": "int8_sym", "i2": "int2_sym"}
_UNSIGNED = {"u4": "int4_asym", "u8": "int8_asym", "u2": "int2_asym"}
_OTHER = {"nf4", "f4e2m1", "f8e4m3", "f8e5m2"}
# What may stand between a weight and the operation that uses it: decompression, layout, nothing that computes.
_PASSES = {"Convert", "Subtract", "Multiply", "Reshape", "Transpose"}
_CONSUMERS = {"MatMul": (0, 1), "Gather": (0,), "GroupedMatMul": (1,)}


@dataclass(frozen=True)
class _Layer:
    kind: str
    name: str
    element_type: str = ""
    shape: tuple[int, ...] = ()
    end: int = 0  # where its data ends in the .bin


@dataclass
class _Graph:
    layers: dict[str, _Layer] = field(default_factory=dict)
    inputs: dict[str, dict[int, str]] = field(default_factory=lambda: defaultdict(dict))


@dataclass(frozen=True)
class _Weight:
    name: str
    element_type: str
    shape: tuple[int, ...]
    has_zero_point: bool = False
    scale: tuple[int, ...] | None = None  # shape of its scale
    grouped: bool = False  # reshaped after its scale: groups share one

    @property
    def count(self) -> int:
        return math.prod(self.shape)

    @property
    def type_name(self) -> str:
        if self.element_type in _UNSIGNED:
            return _UNSIGNED[self.element_type] if self.has_zero_point else f"uint{self.element_type[1:]}"
        return _FLOATING.get(self.element_type) or _SIGNED.get(self.element_type) or self.element_type

    @property
    def group_size(self) -> int:
        """Weights that share a scale along the input channels; -1: a scale a channel."""
        if not self.grouped or self.scale is None or len(self.scale) != len(self.shape):
            return -1
        shared = [size for size, scales in zip(self.shape, self.scale, strict=True) if scales == 1 and size > 1]
        return shared[-1] if shared else -1


def read_weights(folder: Path) -> Weights:
    """Return what the export did to the weights of `folder`'s model; a weight that is used twice counts once.

    Weights are what MatMuls and embeddings use; norms, biases and rotary frequencies are no weights here. Layers
    count as ignored only where the export compressed at all.

    Raises:
        ExportError: The model is missing, damaged or cut off, or has no weights; names the file.
    """
    path = folder / MODEL_NAME
    data_path = path.with_suffix(".bin")
    try:
        size_bytes = data_path.stat().st_size
        graphs, settings = _parse(path)
        weights = [weight for graph in graphs for weight in _weights(graph)]
    except FileNotFoundError as error:
        raise ExportError(f"{error.filename} is missing: the export in {folder} is not complete, repeat it") from error
    except OSError as error:
        raise ExportError(f"{error.filename} cannot be read: {error.strerror}") from error
    except (ET.ParseError, KeyError, ValueError, IndexError, RecursionError) as error:
        raise ExportError(f"{path} is not an OpenVINO model: {error!r}; repeat the export") from error
    end = max((layer.end for graph in graphs for layer in graph.layers.values()), default=0)
    if end > size_bytes:
        raise ExportError(
            f"{data_path} is cut off: it has {size_bytes} bytes, its model needs {end}; repeat the export"
        )
    if not weights:
        raise ExportError(f"{path} has no weights: no MatMul and no embedding has a constant input")
    return Weights(
        size_bytes=size_bytes,
        share_by_type=_shares(weights),
        group_sizes=_group_sizes(weights),
        ignored_layers=tuple(sorted(w.name for w in weights if w.element_type in _FLOATING)) if settings else (),
        settings=settings,
    )


def _shares(weights: list[_Weight]) -> dict[str, float]:
    counts: dict[str, int] = defaultdict(int)
    for weight in weights:
        counts[weight.type_name] += weight.count
    total = sum(counts.values())
    return {name: counts[name] / total for name in sorted(counts)}


def _group_sizes(weights: list[_Weight]) -> dict[str, tuple[int, ...]]:
    found: dict[str, set[int]] = defaultdict(set)
    for weight in weights:
        if weight.element_type not in _FLOATING:
            found[weight.type_name].add(weight.group_size)
    return {name: tuple(sorted(found[name])) for name in sorted(found)}


def _parse(path: Path) -> tuple[list[_Graph], dict[str, str]]:
    """Return the model's graphs (its own, and those inside If and Loop) and NNCF's settings."""
    finished: list[_Graph] = []
    open_graphs: list[_Graph] = []
    settings: dict[str, str] = {}
    with path.open("rb") as file:
        # S314: expat refuses the attacks that are meant here (entity expansion, since 2.4.1); the file is our own
        for event, element in ET.iterparse(file, events=("start", "end")):  # noqa: S314
            if event == "start":
                if element.tag == "layers":
                    open_graphs.append(_Graph())
                continue
            if element.tag == "layer":
                open_graphs[-1].layers[element.attrib["id"]] = _layer(element)
                element.clear()
            elif element.tag == "edge":
                ports = open_graphs[-1].inputs[element.attrib["to-layer"]]
                ports[int(element.attrib["to-port"])] = element.attrib["from-layer"]
                element.clear()
            elif element.tag == "edges":
                finished.append(open_graphs.pop())
            elif element.tag == "weight_compression":
                settings = dict(_flatten(element))
    return finished + open_graphs, settings  # a graph of one layer may have no edges


def _layer(element: ET.Element) -> _Layer:
    kind, name = element.attrib["type"], element.attrib["name"]
    data = element.find("data")
    if kind != "Const" or data is None:
        return _Layer(kind, name)
    shape = tuple(int(size) for size in data.attrib["shape"].split(",") if size.strip())
    end = int(data.attrib["offset"]) + int(data.attrib["size"])
    return _Layer(kind, name, data.attrib["element_type"], shape, end)


def _flatten(element: ET.Element, prefix: str = "") -> Iterator[tuple[str, str]]:
    for child in element:
        name = f"{prefix}{child.tag}"
        value = child.attrib.get("value")
        if value is None:
            yield from _flatten(child, f"{name}.")
        elif value.startswith("{"):  # NNCF writes its advanced parameters as a Python dict
            yield from _flatten_literal(name, value)
        else:
            yield name, value


def _flatten_literal(name: str, text: str) -> Iterator[tuple[str, str]]:
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        yield name, text
        return
    stack: list[tuple[str, object]] = [(name, value)]
    while stack:
        key, item = stack.pop()
        if isinstance(item, Mapping):
            stack.extend((f"{key}.{part}", inner) for part, inner in item.items())
        else:
            yield key, str(item)


def _weights(graph: _Graph) -> Iterator[_Weight]:
    found: dict[str, _Weight] = {}
    for identity, layer in graph.layers.items():
        for port in _CONSUMERS.get(layer.kind, ()):
            source = graph.inputs[identity].get(port)
            if source is None:
                continue
            constant, weight = _trace(graph, source)
            if weight is not None and constant not in found and _is_weight(weight):
                found[constant] = weight
    yield from found.values()


def _is_weight(weight: _Weight) -> bool:
    if weight.element_type in _FLOATING:
        return sum(size > 1 for size in weight.shape) > 1  # a vector is a rotary frequency or a scale
    return weight.element_type in _SIGNED or weight.element_type in _UNSIGNED or weight.element_type in _OTHER


def _trace(graph: _Graph, identity: str) -> tuple[str, _Weight | None]:
    """Follow a weight back to its constant; None where the value is computed from the model's input."""
    layer = graph.layers[identity]
    if layer.kind == "Const":
        return identity, _Weight(layer.name, layer.element_type, layer.shape)
    if layer.kind not in _PASSES:
        return identity, None
    inputs = graph.inputs[identity]
    constant, weight = _trace(graph, inputs[0])
    if weight is not None and layer.kind == "Reshape":
        weight = replace(weight, grouped=weight.scale is not None)
    elif weight is not None and layer.kind in ("Subtract", "Multiply"):
        _, other = _trace(graph, inputs[1])
        if other is None:
            return constant, None
        weight = (
            replace(weight, has_zero_point=True) if layer.kind == "Subtract" else replace(weight, scale=other.shape)
        )
    return constant, weight
