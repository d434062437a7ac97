"""What an export will do and need, from config.json and the safetensors headers alone: no weight is read."""

from tasks.preflight.check import Preflight, preflight
from tasks.preflight.compression import LayerPlan
from tasks.preflight.findings import Finding
from tasks.preflight.structure import Structure, build_structure, read_header, read_structure

__all__ = [
    "Finding",
    "LayerPlan",
    "Preflight",
    "Structure",
    "build_structure",
    "preflight",
    "read_header",
    "read_structure",
]
