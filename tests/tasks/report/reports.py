"""Validation reports as they come, made by code: what a 135M model at int4 gives, and what an attacker would."""
# ruff: noqa: RUF001 - letters of other scripts are the point

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from pathlib import Path

from tasks.config import Recipe
from tasks.metrics import BUILT_IN_GATES, PARTS, PERCENTILES
from tasks.records import (
    Answer,
    Band,
    Checkpoint,
    DeviceRecord,
    Divergence,
    ExportedModel,
    Fault,
    LatencyRound,
    Origin,
    PromptResult,
    ReferenceRecord,
    ScoredToken,
    ValidationReport,
    Verdict,
    Weights,
)

SCRIPT = "<script>alert(1)</script>"
IMAGE = '"><img src="https://example.com/x.png" onerror=alert(2)>'
ANSWERS = {
    "capital-france": "The capital of France is Paris.",
    "capital-japan": "The capital of Japan is Tokyo, which is also the largest city of the country.",
    "sum": "2 + 2 = 4.",
    "water": "The chemical symbol of water is H2O.\n\nIt has two hydrogen atoms and one oxygen atom.",
    "author": "Romeo and Juliet was written by William Shakespeare around 1595.",
    "week": "There are seven days in a week:\n\n1. Monday\n2. Tuesday\n3. Wednesday\n4. Thursday\n5. Friday",
    "python": "```python\ndef add(a, b):\n\t# adds two numbers\n\treturn a + b\n```\n\nCall it as `add(1, 2)`.",
    "json": '{"name": "Ada", "born": 1815, "tags": ["<b>bold</b>", "&amp;"]}',
    "hostile": f"Sure! {SCRIPT} {IMAGE} </span></div></style><style>*{{display:none}}</style> {{{{ 7 * 7 }}}} done.",
    "right-to-left": "السلام عليكم! هذا نص عربي مع English في الوسط و 123.\nשלום עולם, זה עובד.",
    "emoji": "Of course 😀👍🏽 👨‍👩‍👧‍👦 🏴‍☠️ — naïve café, Ελληνικά, 日本語のテキスト, हिन्दी.",
    "long-word": "Here: " + "Donaudampfschifffahrtsgesellschaft" * 12 + " and " + "/very/long/path" * 30,
    "invisible": "pass\u200bword\u00a0with \u202ereversed\u202c text,\x00 a bell\x07, \ufeffmark and \u2028 lines\r\n",
    "empty": "",
    "essay": " ".join(
        f"In sentence {number} the model goes on to explain how light becomes sugar in a leaf." for number in range(75)
    ),
    "loop": "I am a helpful assistant. " * 40,
}


def full_report(*, failed: bool = True) -> ValidationReport:
    """16 prompts, every curve, three parts of fidelity; with `failed`, faults and gates that were not met."""
    metrics, intervals = _metrics(failed=failed)
    return ValidationReport(
        model_digest="caa3d1c0" * 8,
        checkpoint_digest="ce1ac745" * 8,
        recipe_digest="0badcafe" * 8,
        device=DeviceRecord(
            requested="GPU.0" if failed else "CPU",
            used="CPU",
            full_name="AMD EPYC 9B45 128-Core Processor",
            execution_devices=("CPU",),
            ov_config={"PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": "1", "CACHE_DIR": ""},
            properties={"INFERENCE_PRECISION_HINT": "bf16", "KV_CACHE_PRECISION": "u8"},
        ),
        versions={"openvino": "2026.4.1", "openvino-genai": "2026.4.1.0", "transformers": "5.5.4"},
        metrics=metrics,
        intervals=intervals,
        reference=ReferenceRecord(
            precision="fp32", text_tokens=8190, text_digest="feed" * 16, prompts_digest="beef" * 16, cached=True
        ),
        champion="smollm2-135m-instruct/3",
        prompts=tuple(_prompt(name, text, failed=failed) for name, text in ANSWERS.items()),
        faults=_faults() if failed else (),
        kl_by_position=_bands(),
        kl_histogram=_histogram(),
        latency=tuple(_round(number, concurrency) for concurrency in (1, 8) for number in range(3)),
        seconds={"compile": 1.93, "source model": 9.2, "answers": 31.4, "concurrent rounds": 12.7, "text": 147.9},
        peak_rss_bytes={"engine": 912_000_000, "scoring": 1_480_000_000},
        verdicts=_verdicts(metrics, intervals, failed=failed),
    )


def report_without_reference() -> ValidationReport:
    """The full report as it is with `reference: none`: answers and speed, and nothing to compare with."""
    report = full_report(failed=False)
    prompts = [result.model_copy(update={"divergence": None, "tokens": ()}) for result in report.prompts]
    compared = (*PARTS, "fdt", "noise", "identical", "worst", "engine_agreement", "device")
    kept = {name: value for name, value in report.metrics.items() if not name.startswith(compared)}
    return report.model_copy(
        update={
            "reference": ReferenceRecord(precision="none"),
            "prompts": tuple(prompts),
            "metrics": kept,
            "intervals": {name: bounds for name, bounds in report.intervals.items() if name in kept},
            "kl_by_position": (),
            "kl_histogram": (),
            "champion": "",
            "verdicts": tuple(verdict for verdict in report.verdicts if verdict.metric in kept),
        }
    )


def tiny_report() -> ValidationReport:
    """One prompt, one token, no curve, one gate, and that one not measured."""
    answer = Answer(
        text="Hi", token_ids=(1,), finish_reason="length", prompt_tokens=3, ttft_ms=12.0, tpot_ms=None, seconds=0.01
    )
    return ValidationReport(
        model_digest="1" * 64,
        checkpoint_digest="2" * 64,
        recipe_digest="3" * 64,
        device=DeviceRecord(
            requested="CPU", used="CPU", full_name="A processor", execution_devices=("CPU",), ov_config={}
        ),
        versions={},
        metrics={"ttft_ms": 12.0, "load_ms": math.nan},
        prompts=(PromptResult(id="hello", prompt="Hello", answer=answer, failures=()),),
        verdicts=(Verdict(metric="tpot_ms", value=None, limit="at most 10", passed=False),),
    )


def full_recipe() -> Recipe:
    """A recipe with a text, hostile words in it, and a built-in gate switched off."""
    prompts = [{"id": name, "messages": [{"role": "user", "content": f"{name}? {SCRIPT}"}]} for name in ANSWERS]
    return Recipe.model_validate(
        {
            "name": "smollm2-135m-instruct",
            "source": {"kind": "hub", "repository": "someone/smollm2", "revision": "main"},
            "export": {"weight_format": "int4", "group_size": 64, "ratio": 0.6, "sym": True},
            "validation": {
                "device": "GPU.0",
                "on_missing_device": "cpu",
                "prompts": prompts,
                "text": "It is a truth universally acknowledged. " * 200,
                "gates": {"text_kl_mean": {"max": 0.19}, "warm_start_mismatches": None},
            },
        }
    )


def exported_model(folder: Path) -> ExportedModel:
    origin = Origin(kind="hub", location="someone/smollm2", revision="a" * 40, requested="main")
    return ExportedModel(
        path=folder,
        digest="caa3d1c0" * 8,
        size_bytes=114_063_069,
        checkpoint=Checkpoint(path=folder, digest="ce1ac745" * 8, size_bytes=541_615_216, origin=origin),
        weights=Weights(
            size_bytes=105_444_165,
            share_by_type={"int4_sym": 0.46875, "int8_asym": 0.53125},
            group_sizes={"int4_sym": (64,), "int8_asym": (-1,)},
            ignored_layers=("model.layers.0.mlp.down_proj",),
            settings={},
        ),
        versions={"nncf": "3.4.0", "optimum-intel": "2.1.0"},
        seconds=65.16,
        peak_rss_bytes=1_575_337_984,
    )


def _prompt(name: str, text: str, *, failed: bool) -> PromptResult:
    random_ = random.Random(name)
    words = _tokens(text)
    parts = None if name in ("sum", "empty", "author") else {"essay": 700, "water": 0}.get(name, len(words) // 3)
    tokens = tuple(_token(word, number, parts, random_) for number, word in enumerate(words))
    bad = {
        "hostile": (f"contains {SCRIPT!r}",),
        "empty": ("has 1 tokens, fewer than 10", "does not match '(?i)light|carbon'"),
        "loop": ("did not stop by itself",),
    }
    return PromptResult(
        id=name,
        prompt=f"<|im_start|>system\nYou are helpful.<|im_end|>\n<|im_start|>user\n{name}?\t{SCRIPT}<|im_end|>\n",
        answer=Answer(
            text=text,
            token_ids=tuple(range(len(words))),
            finish_reason="length" if name == "loop" else "stop",
            prompt_tokens=34,
            ttft_ms=random_.uniform(25, 60),
            tpot_ms=random_.uniform(9, 12),
            seconds=0.05 + 0.01 * len(words),
        ),
        failures=bad.get(name, ()) if failed else (),
        divergence=Divergence(
            first_divergent_token=parts,
            source_continuation="" if parts is None else f" and so the source says {SCRIPT}\notherwise, for a while.",
            perplexity=random_.uniform(1.2, 6),
        ),
        tokens=tokens,
    )


def _tokens(text: str) -> list[str]:
    """Cut a text as a tokenizer does: a word with the space before it, long ones in pieces; then the stop token."""
    words = [piece for word in text.split(" ") for piece in (word[:12], word[12:])]
    return [f" {word}"[number == 0 :] for number, word in enumerate(filter(None, words))] + ["<|im_end|>"]


def _token(text: str, number: int, parts: int | None, random_: random.Random) -> ScoredToken:
    agrees = parts is None or number < parts or (number > parts and random_.random() < 0.8)
    return ScoredToken(
        text=text,
        kl=random_.lognormvariate(-3, 1.5),
        source_probability=random_.uniform(0.5, 1) if agrees else random_.uniform(0, 0.4),
        source_choice=text if agrees else f" other{SCRIPT}",
        agrees=agrees,
        stop_probability=random_.uniform(0, 0.01),
    )


def _metrics(*, failed: bool) -> tuple[dict[str, float], dict[str, tuple[float, float]]]:
    metrics: dict[str, float] = {"prompts": 16, "prompts_passed": 13 if failed else 16}
    metrics["prompts_passed_share"] = metrics["prompts_passed"] / 16
    intervals: dict[str, tuple[float, float]] = {}
    for part, scale in zip(PARTS, (1.0, 0.3, 0.001), strict=True):
        found = {"kl_mean": 0.186, "kl_median": 0.0512, "kl_max": 7.31, "dp_mean": -0.0213, "dp_rms": 0.111}
        found |= {f"kl_{name}": level / 50 for name, level in PERCENTILES.items()}
        found |= {f"dp_{name}": (level - 50) / 200 for name, level in PERCENTILES.items()}
        found = {name: value * scale for name, value in found.items()}
        found |= {"source_perplexity": 16.69, "perplexity": 16.69 + 2.75 * scale, "perplexity_ratio": 1 + 0.165 * scale}
        found |= {"nll_correlation": 0.958, "same_top_share": 0.95 - 0.1759 * scale}
        metrics |= {f"{part}_tokens": 8190} | {f"{part}_{name}": value for name, value in found.items()}
        intervals |= {
            f"{part}_{name}": (value - abs(value) * 0.06, value + abs(value) * 0.04) for name, value in found.items()
        }
    metrics |= {"noise_floor_kl_mean": 3.1e-7, "fdt_min": 0, "fdt_median": 12.5, "fdt_share_median": 0.33}
    metrics |= {"identical_answers_share": 3 / 16, "worst_answer_perplexity": 5.87, "engine_agreement_share": 0.9995}
    metrics |= {name: limit for name, gate in BUILT_IN_GATES.items() for limit in gate.values() if name not in metrics}
    metrics |= {"malformed_answers": 1, "empty_answers": 1, "looping_answers": 1} if failed else {}
    for prefix, factor in (("", 1), ("concurrent_", 4)):
        speed = {"ttft_ms": 34.1, "tpot_ms": 10.4, "inter_token_p99_ms": 17.9}
        metrics |= {f"{prefix}{name}": value * factor for name, value in speed.items()}
        metrics |= {f"{prefix}decode_tokens_per_s": 96.2 / factor, f"{prefix}end_to_end_tokens_per_s": 88.0 * factor}
        intervals |= {f"{prefix}{name}": (value * factor * 0.95, value * factor * 1.1) for name, value in speed.items()}
    metrics |= {"concurrent_prompts": 8, "load_ms": 812.0, "load_cold_ms": 1930.0, "load_warm_ms": 402.0}
    return metrics | {"peak_rss_bytes": 912_000_000.0}, intervals


def _verdicts(
    metrics: dict[str, float], intervals: dict[str, tuple[float, float]], *, failed: bool
) -> tuple[Verdict, ...]:
    limits = [(name, " and ".join(_words(gate)), True) for name, gate in BUILT_IN_GATES.items()]
    limits += [("text_kl_mean", f"at most {0.19 if failed else 0.21} (1.1 of smollm2-135m-instruct/3's 0.1727)", False)]
    limits += [("tpot_ms", "at most 20", False), ("peak_rss_bytes", "at most 1.2e+09", False)]
    broken = {"prompts_passed_share", "empty_answers", "malformed_answers", "text_kl_mean"} if failed else set()
    return tuple(
        Verdict(
            metric=name,
            value=metrics[name],
            low=intervals[name][0] if name in intervals else None,
            high=intervals[name][1] if name in intervals else None,
            limit=words,
            passed=name not in broken,
            built_in=built_in,
        )
        for name, words, built_in in limits
        if name != "warm_start_mismatches"  # which the recipe switches off
    )


def _words(gate: dict[str, float]) -> Sequence[str]:
    return [f"at {'least' if side == 'min' else 'most'} {value:g}" for side, value in gate.items()]


def _faults() -> tuple[Fault, ...]:
    stress = [
        Fault(metric="tokenizer_stress_share", subject=f"stress text {number}", message=f"{number} of 20 ids differ")
        for number in range(14)
    ]
    return (
        Fault(metric="empty_answers", subject="empty", message="the answer has no text"),
        Fault(metric="looping_answers", subject="loop", message="repeats 'I am a helpful\u202e assistant. ' 39 times"),
        Fault(metric="malformed_answers", subject="hostile", message=f"holds {SCRIPT}\n{IMAGE}"),
        *stress,
    )


def _bands() -> tuple[Band, ...]:
    found = []
    for start in range(0, 512, 16):
        mean = 0.15 + 0.3 * math.exp(-start / 40) + 0.02 * math.sin(start)
        found.append(Band(start=start, end=start + 16, mean=mean, p10=mean / 30, p90=mean * 2.2))
    return tuple(found)


def _histogram() -> tuple[tuple[float, float, int], ...]:
    edges = [10 ** (-6 + 7 * index / 40) for index in range(41)]
    counts = [round(900 * math.exp(-(((index - 27) / 7) ** 2))) for index in range(40)]
    return tuple(zip(edges[:-1], edges[1:], counts, strict=True))


def _round(number: int, concurrency: int) -> LatencyRound:
    random_ = random.Random(f"{number} {concurrency}")
    factor = 1 + (concurrency - 1) * 0.4
    return LatencyRound(
        concurrency=concurrency,
        ttft_ms=tuple(random_.uniform(25, 60) * factor**1.5 for _ in ANSWERS),
        tpot_ms=tuple(random_.uniform(9, 12) * factor for _ in ANSWERS),
        inter_token_p50_ms=10 * factor,
        inter_token_p99_ms=18 * factor,
        end_to_end_tokens_per_s=88.0 * concurrency / factor,
    )
