"""Where a validated model came from, where it ran, what it was compared with, and by which recipe."""

from __future__ import annotations

import yaml

from tasks.config import Recipe
from tasks.manifest import digest_of
from tasks.records import DeviceRecord, ExportedModel, ReferenceRecord, ValidationReport
from tasks.report.quantities import significant
from tasks.summary import human_bytes

Rows = list[tuple[str, str]]


def recipe_yaml(recipe: Recipe) -> str:
    """Return what the recipe states, without defaults, and with its long text as a digest."""
    data = recipe.model_dump(mode="json", exclude_unset=True)
    if text := recipe.validation.text:
        data["validation"]["text"] = f"{len(text):,} characters, digest {digest_of(text)}"
    written: str = yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=100)
    return written


def provenance(report: ValidationReport, exported: ExportedModel) -> list[tuple[str, Rows]]:
    """Return titled groups of rows (name, text); what is empty is left out."""
    groups = {
        "Model": _model(report, exported),
        "Device": _device(report.device),
        "Compared with": _reference(report.reference, report.champion),
        "What the validation took": [
            *((part, _seconds(seconds)) for part, seconds in report.seconds.items()),
            *((f"peak memory, {name}", human_bytes(size)) for name, size in report.peak_rss_bytes.items()),
        ],
        "Versions that validated": sorted(report.versions.items()),
        "Versions that exported": sorted(exported.versions.items()),
    }
    filled = {title: [(name, text) for name, text in rows if text] for title, rows in groups.items()}
    return [(title, rows) for title, rows in filled.items() if rows]


def _model(report: ValidationReport, exported: ExportedModel) -> Rows:
    origin, weights = exported.checkpoint.origin, exported.weights
    return [
        ("source", f"{origin.kind}: {origin.location}"),
        ("revision", origin.revision),
        ("asked for as", origin.requested if origin.requested != origin.revision else ""),
        ("checkpoint digest", report.checkpoint_digest),
        ("exported model's digest", report.model_digest),
        ("recipe digest", report.recipe_digest),
        ("size", f"{human_bytes(exported.size_bytes)}, weights {human_bytes(weights.size_bytes)}"),
        ("weights", weights.bit_mix),
        ("group sizes", "; ".join(f"{kind}: {_groups(sizes)}" for kind, sizes in weights.group_sizes.items())),
        ("in floating point", ", ".join(weights.ignored_layers)),
        ("export took", f"{_seconds(exported.seconds)}, peak memory {human_bytes(exported.peak_rss_bytes)}"),
    ]


def _device(device: DeviceRecord) -> Rows:
    return [
        ("requested", device.requested),
        ("used", device.used + ("" if device.used == device.requested else f", since {device.requested} is not here")),
        ("full name", device.full_name),
        ("compiled for", ", ".join(device.execution_devices)),
        *((f"ov_config {name}", value or "empty") for name, value in device.ov_config.items()),
        *device.properties.items(),
    ]


def _reference(reference: ReferenceRecord, champion: str) -> Rows:
    if reference.precision == "none":
        source = "nothing: validation.reference is none"
    else:
        source = f"the source model in {reference.precision}, on the CPU"
    return [
        ("source model", source),
        ("its side of the text", "from an earlier run" if reference.cached else ""),
        ("text", f"{reference.text_tokens:,} tokens" if reference.text_tokens else ""),
        ("text digest", reference.text_digest),
        ("prompts digest", reference.prompts_digest),
        ("champion", champion),
    ]


def _groups(sizes: tuple[int, ...]) -> str:
    return ", ".join("one a channel" if size == -1 else str(size) for size in sizes)


def _seconds(seconds: float) -> str:
    return f"{significant(seconds)} s" if seconds < 120 else f"{seconds // 60:.0f} min {seconds % 60:.0f} s"
