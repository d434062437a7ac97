"""Where an export's loss comes from: one thing changed at a time, everything else as exact as it can be."""

from __future__ import annotations

from pydantic import Field

from tasks.config import Recipe
from tasks.records import Checkpoint, ExportedModel, Record
from tasks.validate.answering import Clock
from tasks.validate.comparing import EXACT
from tasks.validate.fidelity import Compiled, Job, compare_models
from tasks.validate.parity import check_parity
from tasks.validate.passages import windows
from tasks.validate.reference import score_source
from tasks.validate.statistics import summarise

REPORTED = ("kl_mean", "kl_p99", "same_top_share", "perplexity_ratio")


class Factor(Record):
    """What one change costs, on the recipe's text."""

    name: str
    settings: str = Field(description="What was run, against what.")
    metrics: dict[str, float] = Field(description="By their names in `tasks.metrics`, without the part.")
    intervals: dict[str, tuple[float, float]]


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
    exact_export = Compiled(folder=exported.path, device="CPU", ov_config=EXACT)
    runs = [
        ("conversion", "fp32 weights, exact, against torch", plain, EXACT, source),
        ("weights", "compressed weights, exact, against torch", exported, EXACT, source),
        ("kv cache", "fp32 weights, KV cache u8, against torch", plain, EXACT | {"KV_CACHE_PRECISION": "u8"}, source),
        (
            "activations",
            "compressed weights, activations int8 by groups of 32, against the same without",
            exported,
            EXACT | {"DYNAMIC_QUANTIZATION_GROUP_SIZE": "32"},
            exact_export,
        ),
        (
            "arithmetic",
            "fp32 weights, bf16 arithmetic and KV cache, against torch",
            plain,
            EXACT | {"INFERENCE_PRECISION_HINT": "bf16", "KV_CACHE_PRECISION": "bf16"},
            source,
        ),
        ("all together", "compressed weights, the recipe's own settings", exported, settings.ov_config, source),
    ]
    found = []
    for name, words, model, ov_config, reference in runs:
        side = Compiled(folder=model.path, device="CPU", ov_config=ov_config)
        job = Job(name=name, reference=reference, passages=text)
        (comparison,) = compare_models(side, [job], timeout_s=clock.left_s(name))
        metrics, intervals = summarise("text", comparison.scores, comparison.lengths)
        found.append(
            Factor(
                name=name,
                settings=words,
                metrics={key: metrics[f"text_{key}"] for key in REPORTED},
                intervals={key: intervals[f"text_{key}"] for key in REPORTED},
            )
        )
    return found
