"""Where an export's loss comes from: one thing changed at a time, everything else as exact as it can be."""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import Field

from tasks.config import Recipe
from tasks.errors import EngineError
from tasks.records import Checkpoint, ExportedModel, Record
from tasks.validate.answering import Clock
from tasks.validate.comparing import EXACT
from tasks.validate.fidelity import Compiled, Job, compare_models
from tasks.validate.parity import check_parity
from tasks.validate.passages import Passage, windows
from tasks.validate.reference import Reference, score_source
from tasks.validate.statistics import summarise

REPORTED = ("kl_mean", "kl_p99", "same_top_share", "perplexity_ratio")


class Factor(Record):
    """What one change costs, on the recipe's text."""

    name: str
    settings: str = Field(description="What was run, against what.")
    metrics: dict[str, float] = Field(description="By their names in `tasks.metrics`, without the part.")
    intervals: dict[str, tuple[float, float]] = Field(description="None of a text of a few tokens.")


def attribute(
    checkpoint: Checkpoint,
    exported: ExportedModel,
    plain: ExportedModel,
    recipe: Recipe,
) -> list[Factor]:
    """Return what conversion, weights, KV cache, activation quantisation and arithmetic each cost, and all together.

    Every run is on the CPU with the KV cache's precision pinned; only the last one is the recipe's own, unpinned.

    Args:
        checkpoint: The source model.
        exported: Its compressed export.
        plain: Its fp32 export.
        recipe: Their recipe, which has a text.

    Raises:
        WorkerError: The source model cannot be run.
        EngineError: An export cannot.
    """
    settings = recipe.validation
    clock = Clock(settings.timeout_s)
    parity = check_parity(
        checkpoint.path,
        exported.path,
        settings.prompts,
        text=settings.text,
        trust_remote_code=recipe.export.trust_remote_code,
        timeout_s=clock.left_s("the text"),
    )
    text = tuple(windows(parity.text_ids, prefix=parity.prefix_ids))
    source = score_source(
        checkpoint,
        text,
        name="text",
        precision="fp32",
        trust_remote_code=recipe.export.trust_remote_code,
        timeout_s=clock.left_s("the source model"),
    )
    return [
        _factor(name, words, Compiled(folder=model.path, device="CPU", ov_config=ov_config), against, text, clock)
        for name, words, model, ov_config, against in _runs(exported, plain, source, settings.ov_config)
    ]


_Run = tuple[str, str, ExportedModel, dict[str, str], Reference | Compiled]  # name, words, what runs how, against what


def _runs(
    exported: ExportedModel, plain: ExportedModel, source: Reference, ov_config: dict[str, str]
) -> Iterator[_Run]:
    yield "conversion", "fp32 weights, exact, against torch", plain, EXACT, source
    yield "weights", "compressed weights, exact, against torch", exported, EXACT, source
    cache = EXACT | {"KV_CACHE_PRECISION": "u8"}
    yield "kv cache", "fp32 weights, KV cache u8, against torch", plain, cache, source
    words = "compressed weights, activations int8 by groups of 32, against the same without"
    exact = Compiled(folder=exported.path, device="CPU", ov_config=EXACT)
    yield "activations", words, exported, EXACT | {"DYNAMIC_QUANTIZATION_GROUP_SIZE": "32"}, exact
    bf16 = EXACT | {"INFERENCE_PRECISION_HINT": "bf16", "KV_CACHE_PRECISION": "bf16"}
    yield "arithmetic", "fp32 weights, bf16 arithmetic and KV cache, against torch", plain, bf16, source
    yield "all together", "compressed weights, the recipe's own settings", exported, ov_config, source


def _factor(
    name: str,
    words: str,
    candidate: Compiled,
    against: Reference | Compiled,
    text: tuple[Passage, ...],
    clock: Clock,
) -> Factor:
    job = Job(name=name, reference=against, passages=text)
    (found,) = compare_models(candidate, [job], timeout_s=clock.left_s(name))
    metrics, intervals = summarise("text", found.scores, found.lengths)
    if missing := [key for key in REPORTED if f"text_{key}" not in metrics]:
        raise EngineError(
            f"{name} ({words}): {', '.join(missing)} are not numbers, since logits of {candidate.folder} are not; "
            "`vinoflow export-and-validate` says more"
        )
    return Factor(
        name=name,
        settings=words,
        metrics={key: metrics[f"text_{key}"] for key in REPORTED},
        intervals={key: intervals[f"text_{key}"] for key in REPORTED if f"text_{key}" in intervals},
    )
