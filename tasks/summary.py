"""A version in a few words: the rows that the command line and Prefect show."""

from __future__ import annotations

from collections.abc import Mapping

from tasks.records import ModelVersion


def summarise(version: ModelVersion, metrics: Mapping[str, float]) -> list[tuple[str, str]]:
    """Return what a version is and how it did, as (name, text) rows."""
    tags = version.tags
    device = tags["vinoflow.device"]
    if tags["vinoflow.device_requested"] != device:
        device += f" ({tags['vinoflow.device_requested']} is not here)"
    speed = "-"
    if "decode_tokens_per_s" in metrics:
        speed = f"{metrics['decode_tokens_per_s']:.0f} tokens/s ({metrics['end_to_end_tokens_per_s']:.0f} end to end)"
    return [
        ("version", version.reference),
        ("digest", version.digest[:12]),
        ("size", human_bytes(float(tags["vinoflow.size_bytes"]))),
        ("bit mix", tags["vinoflow.bit_mix"]),
        ("device", device),
        ("first token", f"{metrics['ttft_ms']:.0f} ms"),
        ("speed", speed),
        *_fidelity(metrics),
        ("prompts passed", f"{metrics['prompts_passed']:.0f} of {metrics['prompts']:.0f}"),
    ]


def _fidelity(metrics: Mapping[str, float]) -> list[tuple[str, str]]:
    """Return how near a version is to its source model; nothing where it was compared with none."""
    part = next((part for part in ("text", "answers") if f"{part}_kl_mean" in metrics), None)
    if part is None:
        return []
    kl, top, mine, source = (
        metrics[f"{part}_{name}"] for name in ("kl_mean", "same_top_share", "perplexity", "source_perplexity")
    )
    rows = [
        (
            "fidelity",
            f"KL {kl:.3f} nats a token, same top token {100 * top:.0f} %, perplexity {mine:.1f} for {source:.1f}",
        )
    ]
    return [*rows, ("divergence", f"answers part from the source's after {metrics['fdt_median']:.0f} tokens (median)")]


def human_bytes(count: float) -> str:
    """Return a size in decimal units: 105.4 MB."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
