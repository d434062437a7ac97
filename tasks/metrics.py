"""Every metric of a validation by name, and the gates that hold for any model.

The statistics of fidelity are those of llama.cpp's perplexity tool (tools/perplexity, "KL divergence"), in nats;
latency and throughput are defined as in openvino.genai's PerfMetrics.
"""

from __future__ import annotations

from typing import Literal, NamedTuple


class Metric(NamedTuple):
    """What a metric is, and how to read it."""

    definition: str
    unit: Literal["nats", "tokens", "share", "prompts", "ms", "tokens/s", "bytes", "count", "number"]
    better: Literal["higher", "lower", "near 0", "near 1", "-"]  # -: it judges nothing
    source: str  # whose definition it is: a tool's, a publication's, or the module's that measures it


PARTS = {
    "text": "on the recipe's text",
    "answers": "on the exported model's own greedy answers to the reference prompts",
    "device": "on those answers, between the recipe's device and the CPU",
}
PERCENTILES = {"p99_9": 99.9, "p99": 99.0, "p95": 95.0, "p90": 90.0, "p10": 10.0, "p5": 5.0, "p1": 1.0}
_LLAMA = "llama.cpp, tools/perplexity"
_PERF = "openvino.genai, PerfMetrics"
_FDT = "Deiseroth et al. 2023, arXiv 2311.01544"
_ANSWERING, _COMPARING = "tasks/validate/answering.py", "tasks/validate/comparing.py"
_FINDINGS, _SANITY, _PARITY = "tasks/validate/findings.py", "tasks/validate/sanity.py", "tasks/validate/parity.py"
_ROUNDS = "tasks/validate/performance.py"

_STATISTICS: dict[str, Metric] = {
    "tokens": Metric("Tokens that were compared", "tokens", "-", _LLAMA),
    "perplexity": Metric("exp of the exported model's mean negative log-likelihood", "number", "lower", _LLAMA),
    "source_perplexity": Metric("exp of the source model's mean negative log-likelihood", "number", "-", _LLAMA),
    "perplexity_ratio": Metric("perplexity / source_perplexity", "number", "near 1", _LLAMA),
    "nll_correlation": Metric(
        "Pearson correlation of the two models' log-likelihoods of the actual tokens", "number", "higher", _LLAMA
    ),
    "kl_mean": Metric("Mean KL divergence source || exported, in nats a token", "nats", "lower", _LLAMA),
    "kl_median": Metric("Median KL divergence, in nats", "nats", "lower", _LLAMA),
    "kl_max": Metric("Largest KL divergence of a token, in nats", "nats", "lower", _LLAMA),
    **{
        f"kl_{name}": Metric(f"KL divergence, {value:g} % percentile, in nats", "nats", "lower", _LLAMA)
        for name, value in PERCENTILES.items()
    },
    "dp_mean": Metric(
        "Mean change of the actual token's probability, exported - source, -1 to 1", "number", "near 0", _LLAMA
    ),
    "dp_rms": Metric("Root mean square of that change", "number", "lower", _LLAMA),
    **{
        f"dp_{name}": Metric(f"That change, {value:g} % percentile", "number", "near 0", _LLAMA)
        for name, value in PERCENTILES.items()
    },
    "same_top_share": Metric(
        "Share of tokens where both models rank the same token first, 0 to 1", "share", "higher", _LLAMA
    ),
}

METRICS: dict[str, Metric] = {
    "prompts": Metric("How many reference prompts were asked.", "prompts", "-", _FINDINGS),
    "prompts_passed": Metric("How many of them met every expectation.", "prompts", "higher", _FINDINGS),
    "prompts_passed_share": Metric(
        "Share of reference prompts that met every expectation, 0 to 1.", "share", "higher", _FINDINGS
    ),
    **{
        f"{part}_{name}": one._replace(definition=f"{one.definition}, {where}.")
        for part, where in PARTS.items()
        for name, one in _STATISTICS.items()
    },
    "noise_floor_kl_mean": Metric(
        "Mean KL divergence on the text's first quarter, torch's fp32 || OpenVINO's fp32 of the source model.",
        "nats",
        "lower",
        _LLAMA,
    ),
    "fdt_min": Metric(
        "The earliest first divergent token: where the source's greedy answer would part.", "tokens", "higher", _FDT
    ),
    "fdt_median": Metric(
        "Median of the first divergent tokens; an answer that never parts counts with its length.",
        "tokens",
        "higher",
        _FDT,
    ),
    "fdt_share_median": Metric(
        "Median of first divergent token / length of the answer, 0 to 1.", "share", "higher", _FDT
    ),
    "identical_answers_share": Metric(
        "Share of answers that the source model would have given token by token, 0 to 1.", "share", "higher", _COMPARING
    ),
    "worst_answer_perplexity": Metric(
        "Highest perplexity of an answer under the source model: how absurd it finds it.", "number", "lower", _COMPARING
    ),
    "engine_agreement_share": Metric(
        "Share of answer tokens that the compiled model ranks first outside the engine.", "share", "higher", _COMPARING
    ),
    "tokenizer_prompt_mismatches": Metric(
        "Reference prompts that OpenVINO's and Hugging Face's tokenizer encode differently.",
        "prompts",
        "lower",
        _PARITY,
    ),
    "tokenizer_stress_share": Metric(
        "Share of the stress texts whose token ids agree, 0 to 1.", "share", "higher", _PARITY
    ),
    "detokenizer_stress_share": Metric(
        "Share of the stress texts that decode to the same text, 0 to 1.", "share", "higher", _PARITY
    ),
    "template_mismatches": Metric(
        "Chats that the engine renders otherwise than Hugging Face's template.", "count", "lower", _PARITY
    ),
    "eos_mismatches": Metric(
        "Disagreements of configs, tokenizers, template and engine on what ends an answer.",
        "count",
        "lower",
        "tasks/validate/endings.py",
    ),
    "engine_failures": Metric(
        "How often the model failed to load, to answer or to be compared.",
        "count",
        "lower",
        "tasks/validate/validate.py",
    ),
    "nonfinite_weights": Metric(
        "Weights, scales and other constants of the exported model that hold NaN or infinity.",
        "count",
        "lower",
        "tasks/validate/constants.py",
    ),
    "nonfinite_logits": Metric(
        "NaN or infinite logits of the exported model.", "count", "lower", "tasks/validate/divergence.py"
    ),
    "empty_answers": Metric("Answers without any text.", "count", "lower", _SANITY),
    "looping_answers": Metric(
        "Answers that end in a loop into which the source model would not have gone.", "count", "lower", _SANITY
    ),
    "looping_share": Metric(
        "Share of answers that end in such a loop, 0 to 1: small models do at times, broken ones always.",
        "share",
        "lower",
        _FINDINGS,
    ),
    "missed_stops": Metric("Answers that ran on where the source model would have stopped.", "count", "lower", _SANITY),
    "malformed_answers": Metric(
        "Answers with control characters, broken characters, or tokens of the template.", "count", "lower", _SANITY
    ),
    "unrepeatable_answers": Metric(
        "Prompts whose greedy answer differs when they are asked again.", "count", "lower", _SANITY
    ),
    "long_prompt_faults": Metric(
        "What is wrong with the answers to a prompt of 1,500 tokens and to a very short one.",
        "count",
        "lower",
        _FINDINGS,
    ),
    "warm_start_mismatches": Metric(
        "Answers that differ, or starts that fail, from a compiled-model cache.", "count", "lower", _ANSWERING
    ),
    "device_equal_answers_share": Metric(
        "Share of prompts that device and CPU answer alike, token by token, 0 to 1.", "share", "higher", _ANSWERING
    ),
    "load_ms": Metric(
        "Median time to load and compile the model on the device, in milliseconds; no compiled-model cache.",
        "ms",
        "lower",
        _PERF,
    ),
    "load_cold_ms": Metric(
        "Time to load it and to write a compiled-model cache, in milliseconds.", "ms", "lower", _ANSWERING
    ),
    "load_warm_ms": Metric("Time to load it from that cache, in milliseconds.", "ms", "lower", _ANSWERING),
    "ttft_ms": Metric("Median time to first token, one prompt at a time, in milliseconds.", "ms", "lower", _PERF),
    "tpot_ms": Metric(
        "Median time per output token after the first, one prompt at a time, in milliseconds.", "ms", "lower", _PERF
    ),
    "inter_token_p99_ms": Metric(
        "99 % percentile of the time between two tokens, one prompt at a time, in milliseconds.", "ms", "lower", _ROUNDS
    ),
    "decode_tokens_per_s": Metric(
        "1000 / tpot_ms: tokens a second of one prompt once it flows.", "tokens/s", "higher", _PERF
    ),
    "end_to_end_tokens_per_s": Metric(
        "Generated tokens / time from request to last token, one prompt at a time.", "tokens/s", "higher", _ROUNDS
    ),
    "concurrent_prompts": Metric("How many prompts are in flight in the concurrent rounds.", "prompts", "-", _ROUNDS),
    "concurrent_ttft_ms": Metric(
        "Median time to first token with that many prompts in flight, in milliseconds.", "ms", "lower", _PERF
    ),
    "concurrent_tpot_ms": Metric("Median time per output token of one of them, in milliseconds.", "ms", "lower", _PERF),
    "concurrent_inter_token_p99_ms": Metric(
        "99 % percentile of the time between two tokens of one, in milliseconds.", "ms", "lower", _ROUNDS
    ),
    "concurrent_decode_tokens_per_s": Metric(
        "1000 / concurrent_tpot_ms: tokens a second of one of them once it flows.", "tokens/s", "higher", _PERF
    ),
    "concurrent_end_to_end_tokens_per_s": Metric(
        "Generated tokens of all / time from first request to last token.", "tokens/s", "higher", _ROUNDS
    ),
    "peak_rss_bytes": Metric(
        "Peak resident memory of the engine's process, in bytes.", "bytes", "lower", "tasks/engine/worker.py"
    ),
}


def definition(name: str) -> str:
    """Return what a metric is; nothing of one that an older version of vinoflow knew."""
    return METRICS[name].definition if name in METRICS else ""


# What cannot be measured where there is no source model to compare with.
NEED_REFERENCE = {name for name in METRICS if name.startswith(("text_", "answers_", "fdt_"))} | {
    "noise_floor_kl_mean",
    "identical_answers_share",
    "worst_answer_perplexity",
    "missed_stops",
}

# What says as much of the machine as of the model.
OF_THE_MACHINE = {name for name in METRICS if name.endswith(("_ms", "_tokens_per_s"))} | {"peak_rss_bytes"}

# What any export of any model must meet. A recipe may set its own limit by the same name, or null to switch one off.
BUILT_IN_GATES: dict[str, dict[str, float]] = {
    "prompts_passed_share": {"min": 1.0},
    "engine_failures": {"max": 0},
    "nonfinite_weights": {"max": 0},
    "nonfinite_logits": {"max": 0},
    "tokenizer_prompt_mismatches": {"max": 0},
    "tokenizer_stress_share": {"min": 0.98},
    "detokenizer_stress_share": {"min": 0.98},
    "template_mismatches": {"max": 0},
    "eos_mismatches": {"max": 0},
    "empty_answers": {"max": 0},
    "looping_share": {"max": 0.25},
    "worst_answer_perplexity": {"max": 50},
    "missed_stops": {"max": 0},
    "malformed_answers": {"max": 0},
    "unrepeatable_answers": {"max": 0},
    "long_prompt_faults": {"max": 0},
    "warm_start_mismatches": {"max": 0},
    "device_kl_mean": {"max": 0.05},  # where the device is not the CPU; bf16 against fp32 differ by 0.001
}
