"""The constants of an export's model, to be changed in place."""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.sabotage.registry import own

Arrays = dict[str, NDArray[Any]]
_TYPES = {"u8": np.uint8, "i8": np.int8, "f16": np.float16, "f32": np.float32, "i4": np.uint8, "u4": np.uint8}
_WEIGHT = re.compile(r"self\.model\.layers\.(\d+)\.(.+)\.weight(/scale|/zero_point|)")


def constants(folder: Path) -> Arrays:
    """Return the model's constants by name, as writable views of its .bin, which becomes a file of its own.

    4-bit weights are pairs in bytes, the first in the lower half. A constant without a name has that of its user.
    """
    graph = ET.parse(folder / "openvino_model.xml").getroot()
    layers = {layer.attrib["id"]: layer for layer in graph.iterfind("layers/layer")}
    users = {edge.attrib["from-layer"]: edge.attrib["to-layer"] for edge in graph.iterfind("edges/edge")}
    blob = np.memmap(own(folder / "openvino_model.bin"), np.uint8, "r+")
    found = {}
    for identity, layer in layers.items():
        data = layer.find("data")
        if layer.attrib["type"] != "Const" or data.attrib["element_type"] not in _TYPES:
            continue
        name, offset = layer.attrib["name"], int(data.attrib["offset"])
        if name.startswith("Constant_"):
            name = layers[users[identity]].attrib["name"]
        shape = [int(size) for size in data.attrib["shape"].split(",") if size]
        if data.attrib["element_type"] in ("i4", "u4"):
            shape[-1] //= 2
        size = math.prod(shape) * np.dtype(_TYPES[data.attrib["element_type"]]).itemsize
        found[name] = blob[offset : offset + size].view(_TYPES[data.attrib["element_type"]]).reshape(shape)
    return found


def decoder(arrays: Arrays) -> dict[int, Arrays]:
    """Return the decoder layers' weights, scales and zero points, by layer and by name inside it."""
    layers: dict[int, Arrays] = {}
    for name, array in arrays.items():
        if match := _WEIGHT.fullmatch(name):
            layers.setdefault(int(match[1]), {})[match[2] + match[3]] = array
    return dict(sorted(layers.items()))


def parts(layer: Arrays, name: str) -> list[NDArray[Any]]:
    """Return what makes up one weight (its values, scales, zero points), each as (rows, bytes a row)."""
    return [layer[key].view(np.uint8).reshape(len(layer[key]), -1) for key in layer if key.partition("/")[0] == name]
