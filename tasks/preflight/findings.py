"""What the preflight has to say, in words."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Literal

from tasks.config import Export
from tasks.preflight.compression import DEFAULT_GROUP_SIZE, Plan, suggest_group_size
from tasks.preflight.layers import Layers
from tasks.preflight.needs import Needs
from tasks.preflight.structure import Structure
from tasks.records import Record

_CONFIG_KEYS = ("hidden_size", "n_embd", "d_model", "intermediate_size", "ffn_dim", "moe_intermediate_size", "n_inner")


class Finding(Record):
    """One thing that the preflight looked at."""

    level: Literal["ok", "warning", "error"]
    message: str


def on_checkpoint(structure: Structure, layers: Layers) -> list[Finding]:
    """Say what is odd about a checkpoint."""
    findings = []
    if layers.unknown or "quantization_config" in structure.config:
        kinds = ", ".join(sorted({structure.tensors[name][0] for name in layers.unknown}))
        how = f"tensors of type {kinds}" if kinds else "quantization_config in config.json"
        message = (
            f"{structure.source} is already quantised ({how}): the sizes here leave that out, and the export may "
            "refuse; take the original checkpoint"
        )
        findings.append(Finding(level="warning", message=message))
    if not structure.config.get("architectures"):
        message = (
            f"config.json of {structure.source} has no architectures: the model's class is guessed from model_type"
        )
        findings.append(Finding(level="warning", message=message))
    return findings


def on_groups(structure: Structure, layers: Layers, export: Export, plan: Plan) -> Finding:
    """Say whether the group size divides the input channels, and if not, what happens and what to set."""
    size = export.group_size or DEFAULT_GROUP_SIZE
    if not plan.unfit:
        fits = "one scale a channel fits" if size == -1 else f"export.group_size {size} divides the input channels of"
        return Finding(level="ok", message=f"{fits} every layer")
    which = " nor ".join(_name_channels(structure, plan, channels) for channels in _channels(plan))
    problem = f"export.group_size {size} does not divide {which}"
    suggested = suggest_group_size(layers.compressible, export)
    instead = "-1 (one scale a channel)" if suggested == -1 else str(suggested)
    advice = f"set export.group_size_fallback: adjust, or export.group_size: {instead}"
    if plan.refused:
        return Finding(level="error", message=f"{problem}; {advice}")
    if export.group_size_fallback == "error":
        unsure = "the export fails where one of them is chosen for int4, which depends on the weights"
        return Finding(level="warning", message=f"{problem}; {unsure}: {advice}")
    return Finding(level="warning", message=f"{problem}; {_consequence(plan, export)}")


def _channels(plan: Plan) -> list[int]:
    return list(dict.fromkeys(layer.channels for layer in plan.unfit))


def _name_channels(structure: Structure, plan: Plan, channels: int) -> str:
    names = [layer.name for layer in plan.unfit if layer.channels == channels]
    config = structure.text_config
    key = next((key for key in _CONFIG_KEYS if config.get(key) == channels), None)
    of = f"{key} of {structure.source}" if key else f"input channels in {structure.source}"
    return f"{channels} ({of}; {len(names)} layers, the first is {names[0]})"


def _consequence(plan: Plan, export: Export) -> str:
    counts = Counter((layer.outcome, layer.group_size) for layer in plan.unfit)
    backup = export.backup_precision or "int8_asym"
    words = {
        "floating": "stay in floating point",
        "adjusted": "get group size {size}",
        "backup": f"stay in {'floating point' if backup == 'none' else backup}, no group of 32 or more divides them",
    }
    return ", ".join(f"{count} layers {words[outcome].format(size=size)}" for (outcome, size), count in counts.items())


def on_size(bin_bytes: int, plan: Plan) -> Finding:
    """State the predicted size and bit mix."""
    return Finding(level="ok", message=f"weights: about {_size(bin_bytes)}, {_mix(plan.share_by_type)}")


def on_disk(needed: int, free: int, folder: Path) -> Finding:
    """Compare the disk that the export needs with what is free."""
    if needed > free:
        message = (
            f"the export needs {_size(needed)} of disk in {folder} and {_size(free)} are free: make room, or move it"
        )
        return Finding(level="error", message=f"{message} (VINOFLOW_CACHE)")
    return Finding(level="ok", message=f"disk: {_size(needed)} needed in {folder}, {_size(free)} free")


def on_memory(needs: Needs, available: int, *, swap_free: int) -> Finding:
    """Compare the memory that the export needs with what is there: an estimate warns, only its least part refuses."""
    advice = "end other programs, or export on a larger machine"
    if needs.least_memory_bytes > available + swap_free:
        least = f"the export needs at least {_size(needs.least_memory_bytes)} of memory"
        return Finding(level="error", message=f"{least} and {_size(available)} are available: {advice}")
    message = f"memory: about {_size(needs.peak_memory_bytes)} needed, {_size(available)} available"
    if needs.peak_memory_bytes > available:
        return Finding(level="warning", message=f"{message}: the export will be slow, or killed: {advice}")
    return Finding(level="ok", message=message)


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


def _mix(shares: dict[str, float]) -> str:
    return ", ".join(f"{name} {100 * share:.0f} %" for name, share in sorted(shares.items(), key=lambda item: -item[1]))
