"""What NNCF will do with each weight: its rules (3.4.0), applied to shapes.

Source: nncf/quantization/algorithms/weight_compression, algorithm.py (get_weight_compression_parameters,
validate_group_size, the two group size fallbacks) and mixed_precision.py (MixedPrecisionCriterion.apply).
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Literal

from pydantic import Field

from tasks.config import Export
from tasks.preflight.layers import Layer
from tasks.records import Record

DEFAULT_GROUP_SIZE = 128  # NNCF's
_SMALLEST_ADJUSTED = 32  # NNCF's min_adjusted_group_size
_SMALLEST_SUGGESTED = 16
_LORA_RANK = 8  # NNCF's LoraCorrection adapter_rank
_FLOAT_BYTES = {"fp32": 4, "fp16": 2, "bf16": 2}

Outcome = Literal["refused", "floating", "adjusted", "backup"]


class LayerPlan(Record):
    """A layer whose input channels the group size does not divide, and what becomes of it."""

    name: str
    channels: int = Field(description="Input channels.")
    outcome: Outcome = Field(
        description="refused: the export fails; floating: it stays as it is; adjusted: a smaller group; "
        "backup: backup_precision."
    )
    group_size: int | None = Field(description="The adjusted group size.")


@dataclass(frozen=True)
class Plan:
    """What the whole model will look like."""

    unfit: tuple[LayerPlan, ...]
    refused: bool  # True: NNCF certainly refuses; False with refused layers: it depends on the weights
    share_by_type: dict[str, float]
    weight_bytes: int


@dataclass(frozen=True)
class _Choice:
    """One layer's types: primary with a chance of `primary_share`, else backup."""

    layer: Layer
    backup: str
    primary: str = ""
    primary_share: float = 0.0
    group_size: int = -1


def plan_compression(layers: tuple[Layer, ...], export: Export, *, float_type: str) -> Plan:
    """Return what `export` makes of these weights.

    With ratio < 1, NNCF takes layers in the order of their sensitivity, which needs the weights, into int4 until
    the next one would reach the ratio. What is certain is the ratio less about half a layer: for any order that has
    nothing to do with the sizes, E[w^2] / 2 E[w] is missing (the mean undershoot of a renewal process).

    Args:
        layers: The weights.
        export: The settings.
        float_type: fp32, fp16 or bf16: the type of the weights before compression.
    """
    if export.weight_format != "int4":
        kind = ("int8_sym" if export.sym else "int8_asym") if export.weight_format == "int8" else "none"
        choices = [_Choice(layer, _backup(layer, kind, export, float_type)) for layer in layers]
        return _finish(choices, (), refused=False, lora=False)
    candidates = [layer for layer in layers if _may_be_primary(layer, export)]
    group_size = export.group_size or DEFAULT_GROUP_SIZE
    unfit = [_fallback(layer, export) for layer in candidates if group_size != -1 and layer.channels % group_size]
    by_name = {plan.name: plan for plan in unfit}
    out = {plan.name for plan in unfit if plan.outcome in ("floating", "backup")}
    candidates = [layer for layer in candidates if layer.name not in out]
    share = _primary_share([layer.count for layer in candidates], export.ratio or 1.0)
    names = {layer.name for layer in candidates}
    choices = []
    for layer in layers:
        plan = by_name.get(layer.name)
        ignored = plan is not None and plan.outcome == "floating"
        backup = _backup(layer, "none" if ignored else export.backup_precision or "int8_asym", export, float_type)
        if layer.name in names:
            size = plan.group_size if plan is not None and plan.group_size else group_size
            choices.append(_Choice(layer, backup, "int4_sym" if export.sym else "int4_asym", share, size))
        else:
            choices.append(_Choice(layer, backup))
    refused = _certainly_refused(candidates, {p.name for p in unfit if p.outcome == "refused"}, export.ratio or 1.0)
    return _finish(choices, tuple(unfit), refused=refused, lora=export.lora_correction)


def float_bytes(layers: tuple[Layer, ...], export: Export, float_type: str) -> int:
    """Return the size of the weights before compression, as optimum writes them."""
    return sum(layer.count * _FLOAT_BYTES[_backup(layer, "none", export, float_type)] for layer in layers)


def _backup(layer: Layer, kind: str, export: Export, float_type: str) -> str:
    if kind != "none":
        return kind
    # optimum widens the experts of 16-bit models, unless it exports to fp16 at once
    widened = layer.role == "experts" and export.weight_format in ("int4", "int8")
    return "fp32" if widened else float_type


def suggest_group_size(layers: tuple[Layer, ...], export: Export) -> int:
    """Return the largest power of two, up to the group size asked for, that divides all channels; else -1."""
    size = 1 << ((export.group_size or DEFAULT_GROUP_SIZE).bit_length() - 1)
    channels = [layer.channels for layer in layers if _may_be_primary(layer, export)]
    while size >= _SMALLEST_SUGGESTED:
        if all(count % size == 0 for count in channels):
            return size
        size //= 2
    return -1


def _may_be_primary(layer: Layer, export: Export) -> bool:
    return layer.is_linear or (export.all_layers and layer.role in ("embedding", "head"))


def _fallback(layer: Layer, export: Export) -> LayerPlan:
    adjusted = layer.channels & -layer.channels  # the largest power of two that divides it
    outcome: Outcome
    if export.group_size_fallback == "adjust":
        outcome = "adjusted" if adjusted >= _SMALLEST_ADJUSTED else "backup"
    else:
        outcome = "floating" if export.group_size_fallback == "ignore" else "refused"
    size = adjusted if outcome == "adjusted" else None
    return LayerPlan(name=layer.name, channels=layer.channels, outcome=outcome, group_size=size)


def _primary_share(counts: list[int], ratio: float) -> float:
    total = sum(counts)
    if ratio >= 1 or total == 0:
        return 1.0
    undershoot = sum(count * count for count in counts) / (2 * total)
    return max(0.0, ratio - undershoot / total)


def _certainly_refused(candidates: list[Layer], unfit: set[str], ratio: float) -> bool:
    """True where no order of layers lets NNCF reach the ratio before it meets a layer that does not fit."""
    bad = [layer.count for layer in candidates if layer.name in unfit]
    good = sum(layer.count for layer in candidates if layer.name not in unfit)
    return bool(bad) and (ratio >= 1 or good + max(bad) < ratio * sum((good, *bad)))


def _finish(choices: list[_Choice], unfit: tuple[LayerPlan, ...], *, refused: bool, lora: bool) -> Plan:
    counts: dict[str, float] = defaultdict(float)
    size = 0.0
    for choice in choices:
        layer, share = choice.layer, choice.primary_share
        if share:
            counts[choice.primary] += share * layer.count
            size += share * _bytes(layer, choice.primary, choice.group_size)
            if lora and layer.is_linear:  # two int8_asym adapters, with a scale and a zero point a row
                size += share * (_LORA_RANK * (layer.rows + layer.channels) + 3 * (layer.rows + _LORA_RANK))
        if share < 1:
            counts[choice.backup] += (1 - share) * layer.count
            size += (1 - share) * _bytes(layer, choice.backup, -1)
    total = sum(counts.values()) or 1
    return Plan(unfit, refused, {name: counts[name] / total for name in sorted(counts)}, round(size))


def _bytes(layer: Layer, kind: str, group_size: int) -> float:
    """Size of a weight: scales are fp16, zero points have the type of the weights."""
    if kind in _FLOAT_BYTES:
        return layer.count * _FLOAT_BYTES[kind]
    bits = 4 if kind.startswith("int4") else 8
    scales = layer.rows * (1 if group_size == -1 else layer.channels // group_size)
    zero_points = scales * bits / 8 if kind.endswith("asym") else 0
    return layer.count * bits / 8 + 2 * scales + zero_points
