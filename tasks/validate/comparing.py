"""The exported model against the source model: on a text, on its own answers, and on another device."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import numpy as np

from tasks import locations
from tasks.config import Recipe
from tasks.engine import Completion
from tasks.manifest import digest_of
from tasks.records import Band, Checkpoint, DeviceRecord, Divergence, ExportedModel, ScoredToken
from tasks.validate.answering import Asked, Clock
from tasks.validate.fidelity import Comparison, Compiled, Job, compare_models
from tasks.validate.passages import Passage, digest
from tasks.validate.pieces import Pieces, read_pieces
from tasks.validate.reference import Reference, score_source
from tasks.validate.statistics import bands, histogram, summarise
from tasks.versions import RUN, versions

# rounding that does not depend on the batch: for what is compared beside the serving mode (see ARCHITECTURE.md)
EXACT = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}


@dataclass
class Compared:
    """What comparing found."""

    metrics: dict[str, float] = field(default_factory=dict)
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    bands: tuple[Band, ...] = ()
    histogram: tuple[tuple[float, float, int], ...] = ()
    divergences: list[Divergence] = field(default_factory=list)  # of the answers, in their order
    tokens: list[tuple[ScoredToken, ...]] = field(default_factory=list)
    cached: bool = False
    peak_rss_bytes: dict[str, int] = field(default_factory=dict)

    def add(self, metrics: Mapping[str, float], intervals: Mapping[str, tuple[float, float]]) -> None:
        """Take up the statistics of a part."""
        self.metrics |= metrics
        self.intervals |= intervals

    def curves(self, found: Comparison) -> None:
        """Take up what a report draws, where there are numbers to draw."""
        if np.isfinite(found.arrays["kl"]).all():
            self.bands = bands(found.arrays["kl"], found.lengths)
            self.histogram = histogram(found.arrays["kl"])


def compare_with_source(
    exported: ExportedModel,
    recipe: Recipe,
    device: DeviceRecord,
    *,
    asked: Asked,
    text: Sequence[Passage],
    stop_ids: Sequence[int],
    clock: Clock,
) -> Compared:
    """Compare with the source model on a text and on answers, and with the CPU where the device is another.

    Args:
        exported: The exported model.
        recipe: Its recipe.
        device: Where it runs.
        asked: What it answered; the answers to probes are scored, and count in no statistic.
        text: The recipe's text; may be empty.
        stop_ids: The tokens that end an answer.
        clock: What is left of the time.

    Raises:
        WorkerError: The source model cannot be run.
        EngineError: The exported model cannot.
    """
    compared, counted = Compared(), len(asked.prompts)
    answers = tuple(_passage(completion) for completion in (*asked.prompts, *asked.probes.values()))
    parts = {name: passages for name, passages in (("answers", answers), ("text", tuple(text))) if passages}
    if not parts:
        return compared
    sources = _sources(exported.checkpoint, recipe, parts, clock)
    side = Compiled(folder=exported.path, device=device.used, ov_config=device.ov_config)
    jobs = _jobs(side, sources, parts)
    found = compare_models(side, jobs, stop_ids=stop_ids, timeout_s=clock.left_s("comparing"))
    comparisons = {job.name: comparison for job, comparison in zip(jobs, found, strict=True)}
    compared.peak_rss_bytes = {
        "source": max((source.peak_rss_bytes for source in sources.values()), default=0),
        "compare": found[0].peak_rss_bytes,
    }
    for name, comparison in comparisons.items():
        if name != "itself":
            part = comparison if name == "text" else comparison.of(0, counted)
            compared.add(*summarise(name, part.scores, part.lengths))
    compared.metrics["nonfinite_logits"] = float(sum(one.arrays["nonfinite"].sum() for one in found))
    if counted:
        said = next(comparison for name, comparison in comparisons.items() if name != "text").of(0, counted)
        compared.metrics["engine_agreement_share"] = said.agreement
    if "answers" in sources:
        ways = json.loads((sources["answers"].folder / "ways.json").read_text(encoding="utf-8"))
        _tell_answers(compared, comparisons["answers"], ways, exported, clock=clock)
        _tell_divergence(compared, comparisons["answers"].of(0, counted).lengths)
    if sources:
        compared.curves(comparisons["text"] if text else comparisons["answers"].of(0, counted))
        compared.cached = bool(text) and sources["text"].cached
    return compared


def _jobs(side: Compiled, sources: Mapping[str, Reference], parts: Mapping[str, tuple[Passage, ...]]) -> list[Job]:
    """Return what an exported model is compared with: the source model, and the CPU where it runs elsewhere."""
    jobs = [Job(name=name, reference=found, passages=parts[name]) for name, found in sources.items()]
    if "answers" in parts and side.device != "CPU":
        on_cpu = side.model_copy(update={"device": "CPU"})
        jobs.append(Job(name="device", reference=on_cpu, passages=parts["answers"]))
    if not jobs:  # against itself, with nothing to learn but whether its logits are numbers
        jobs.append(Job(name="itself", reference=side, passages=next(iter(parts.values()))))
    return jobs


def _sources(
    checkpoint: Checkpoint, recipe: Recipe, parts: Mapping[str, tuple[Passage, ...]], clock: Clock
) -> dict[str, Reference]:
    """Return the source model's side of each part; nothing where the recipe wants no comparison with it."""
    precision = recipe.validation.reference
    if precision == "none":
        return {}
    return {
        name: score_source(
            checkpoint,
            passages,
            name=name,
            precision=precision,
            trust_remote_code=recipe.export.trust_remote_code,
            timeout_s=clock.left_s(f"the source model's side of the {name}"),
        )
        for name, passages in parts.items()
    }


def _passage(completion: Completion) -> Passage:
    """Return an answer with its prompt: the very tokens that the engine read and wrote, never tokenised again."""
    ids = (*completion.prompt_ids, *completion.answer.token_ids)
    return Passage(ids=ids, start=len(completion.prompt_ids))


def _tell_answers(
    compared: Compared, comparison: Comparison, ways: Sequence[dict[str, Any]], exported: ExportedModel, *, clock: Clock
) -> None:
    """Say of each answer where it parts from the source model's, and how the source model sees its tokens."""
    each = [comparison.of(number, number + 1) for number in range(len(comparison.passages))]
    said = [list(one.passages[0].ids[one.passages[0].start :]) for one in each]
    choices = [one.arrays["source_top"].astype(int).tolist() for one in each]
    pieces = read_pieces(
        exported.path,
        [(ids, tops, way["ids"]) for ids, tops, way in zip(said, choices, ways, strict=True)],
        timeout_s=clock.left_s("reading the answers"),
    )
    for one, ids, tops, way, words in zip(each, said, choices, ways, pieces, strict=True):
        parted = next((position for position, token in enumerate(ids) if token != tops[position]), None)
        compared.divergences.append(
            Divergence(
                first_divergent_token=parted,
                source_continuation=words.continuation if way["position"] == parted else "",
                perplexity=math.exp(min(float(one.arrays["source_nll"].mean()), 700.0)),
            )
        )
        compared.tokens.append(_scored_tokens(one, ids, tops, words))


def _tell_divergence(compared: Compared, lengths: Sequence[int]) -> None:
    """Sum up where the answers to the reference prompts part from the source model's."""
    told = compared.divergences[: len(lengths)]
    first = [
        length if found.first_divergent_token is None else found.first_divergent_token
        for found, length in zip(told, lengths, strict=True)
    ]
    compared.metrics |= {
        "fdt_min": float(min(first)),
        "fdt_median": float(median(first)),
        "fdt_share_median": float(median(at / length for at, length in zip(first, lengths, strict=True))),
        "identical_answers_share": sum(found.first_divergent_token is None for found in told) / len(told),
        "worst_answer_perplexity": max(found.perplexity for found in told),
    }


def _scored_tokens(one: Comparison, ids: Sequence[int], tops: Sequence[int], words: Pieces) -> tuple[ScoredToken, ...]:
    kl, probability, stop = one.arrays["kl"], np.exp(-one.arrays["source_nll"]), one.arrays["stop_probability"]
    return tuple(
        ScoredToken(
            text=words.tokens[position],
            kl=round(float(kl[position]), 6) if np.isfinite(kl[position]) else None,
            source_probability=round(float(probability[position]), 6),
            source_choice=words.choices[position],
            agrees=token == tops[position],
            stop_probability=round(float(stop[position]), 6),
        )
        for position, token in enumerate(ids)
    )


def noise_floor(
    checkpoint: Checkpoint, floor: ExportedModel, text: Sequence[Passage], *, clock: Clock
) -> tuple[dict[str, float], dict[str, tuple[float, float]]]:
    """Return the mean KL divergence of the source model's own fp32 conversion, and its interval; kept in the cache.

    A quarter of the text shows it: a right conversion differs by some 10^-11 nats, a faulty one in every window.

    Raises:
        WorkerError: The source model cannot be run.
        EngineError: Its conversion cannot.
    """
    some = text[: math.ceil(len(text) / 4)]
    inputs = {"noise_floor": floor.digest, "text": digest(some), "versions": versions(RUN)}
    kept = locations.cache() / "references" / f"{digest_of(inputs)}.json"
    if not kept.exists():
        source = score_source(
            checkpoint, text, name="text", precision="fp32", timeout_s=clock.left_s("the source model")
        )
        side = Compiled(folder=floor.path, device="CPU", ov_config=EXACT)
        job = Job(name="noise floor", reference=source, passages=tuple(some))
        (found,) = compare_models(side, [job], timeout_s=clock.left_s("the noise floor"))
        summary = summarise("noise_floor", found.scores, found.lengths)
        partial = kept.with_suffix(".partial")
        name = "noise_floor_kl_mean"
        partial.write_text(json.dumps([{name: part[name]} if name in part else {} for part in summary]), "utf-8")
        partial.replace(kept)
    metrics, intervals = json.loads(kept.read_text(encoding="utf-8"))
    return metrics, {name: (low, high) for name, (low, high) in intervals.items()}
