"""The preflight: what an export will do with the weights, what it needs, and what stands in its way."""

from __future__ import annotations

import shutil
from pathlib import Path

import psutil
from pydantic import Field

from tasks.config import Export
from tasks.errors import PreflightError
from tasks.preflight import findings
from tasks.preflight.compression import LayerPlan, plan_compression
from tasks.preflight.findings import Finding
from tasks.preflight.layers import find_layers
from tasks.preflight.needs import estimate_needs, float_type
from tasks.preflight.structure import Structure
from tasks.records import Record


class Preflight(Record):
    """What the export will do and need, as far as shapes tell."""

    layers: tuple[LayerPlan, ...] = Field(description="The layers that the group size does not divide.")
    bin_bytes: int = Field(description="Predicted size of openvino_model.bin, in bytes.")
    share_by_type: dict[str, float] = Field(description="Predicted share of the weights per element type.")
    disk_needed_bytes: int = Field(description="At the export's peak: the float model and the compressed one.")
    disk_free_bytes: int
    memory_needed_bytes: int = Field(description="Estimated peak resident memory of the export's process.")
    memory_available_bytes: int
    findings: tuple[Finding, ...]

    @property
    def errors(self) -> tuple[str, ...]:
        """The messages of what will make the export fail."""
        return tuple(finding.message for finding in self.findings if finding.level == "error")

    def raise_on_error(self) -> None:
        """Raise what will make the export fail.

        Raises:
            PreflightError: There is at least one error; the message holds them all.
        """
        if self.errors:
            raise PreflightError("; ".join(self.errors))


def preflight(structure: Structure, export: Export, *, work_folder: Path) -> Preflight:
    """Return what exporting this checkpoint with these settings will do and need; reads no weight.

    Args:
        structure: The checkpoint.
        export: The settings.
        work_folder: Where the export will be staged; it need not exist yet.

    Raises:
        PreflightError: The checkpoint has no weights that an export could use.
    """
    layers = find_layers(structure)
    if not layers.compressible and not layers.unknown:
        raise PreflightError(f"{structure.source} has no linear layer and no embedding: it is no language model")
    plan = plan_compression(layers.compressible, export, float_type=float_type(structure, export))
    needs = estimate_needs(structure, layers, export, weight_bytes=plan.weight_bytes)
    disk_free = shutil.disk_usage(_existing(work_folder)).free
    memory_available = psutil.virtual_memory().available
    found = (
        *findings.on_checkpoint(structure, layers),
        *([findings.on_groups(structure, layers, export, plan)] if export.weight_format == "int4" else []),
        findings.on_size(needs.bin_bytes, plan),
        findings.on_disk(needs.disk_bytes, disk_free, work_folder),
        findings.on_memory(needs, memory_available, swap_free=psutil.swap_memory().free),
    )
    return Preflight(
        layers=plan.unfit,
        bin_bytes=needs.bin_bytes,
        share_by_type=plan.share_by_type,
        disk_needed_bytes=needs.disk_bytes,
        disk_free_bytes=disk_free,
        memory_needed_bytes=needs.peak_memory_bytes,
        memory_available_bytes=memory_available,
        findings=found,
    )


def _existing(folder: Path) -> Path:
    """Return the folder itself, or the nearest one above it that exists."""
    folder = folder.absolute()
    return next(path for path in (folder, *folder.parents) if path.is_dir())
