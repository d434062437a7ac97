"""Every metric of a validation by name, and the gates that hold for any model.

The statistics of fidelity are those of llama.cpp's perplexity tool (tools/perplexity, "KL divergence"), in nats;
latency and throughput are defined as in openvino.genai's PerfMetrics.
"""

from __future__ import annotations

PARTS = {
    "text": "on the recipe's text",
    "answers": "on the exported model's own greedy answers to the reference prompts",
    "device": "on those answers, between the recipe's device and the CPU",
}
PERCENTILES = {"p99_9": 99.9, "p99": 99.0, "p95": 95.0, "p90": 90.0, "p10": 10.0, "p5": 5.0, "p1": 1.0}
_STATISTICS = {
    "tokens": "Tokens that were compared",
    "perplexity": "exp of the exported model's mean negative log-likelihood",
    "source_perplexity": "exp of the source model's mean negative log-likelihood",
    "perplexity_ratio": "perplexity / source_perplexity",
    "nll_correlation": "Pearson correlation of the two models' log-likelihoods of the actual tokens",
    "kl_mean": "Mean KL divergence source || exported, in nats a token",
    "kl_median": "Median KL divergence, in nats",
    "kl_max": "Largest KL divergence of a token, in nats",
    **{f"kl_{name}": f"KL divergence, {value:g} % percentile, in nats" for name, value in PERCENTILES.items()},
    "dp_mean": "Mean change of the actual token's probability, exported - source, -1 to 1",
    "dp_rms": "Root mean square of that change",
    **{f"dp_{name}": f"That change, {value:g} % percentile" for name, value in PERCENTILES.items()},
    "same_top_share": "Share of tokens where both models rank the same token first, 0 to 1",
}

METRICS = {
    "prompts": "How many reference prompts were asked.",
    "prompts_passed": "How many of them met every expectation.",
    "prompts_passed_share": "Share of reference prompts that met every expectation, 0 to 1.",
    **{f"{part}_{name}": f"{text}, {where}." for part, where in PARTS.items() for name, text in _STATISTICS.items()},
    "noise_floor_kl_mean": "Mean KL divergence on the text, torch's fp32 || OpenVINO's fp32 of the source model.",
    "fdt_min": "The earliest first divergent token: where the source's greedy answer would part.",
    "fdt_median": "Median of the first divergent tokens; an answer that never parts counts with its length.",
    "fdt_share_median": "Median of first divergent token / length of the answer, 0 to 1.",
    "identical_answers_share": "Share of answers that the source model would have given token by token, 0 to 1.",
    "worst_answer_perplexity": "Highest perplexity of an answer under the source model: how absurd it finds it.",
    "engine_agreement_share": "Share of answer tokens that the compiled model ranks first outside the engine.",
    "tokenizer_prompt_mismatches": "Reference prompts that OpenVINO's and Hugging Face's tokenizer encode differently.",
    "tokenizer_stress_share": "Share of the stress texts whose token ids agree, 0 to 1.",
    "detokenizer_stress_share": "Share of the stress texts that decode to the same text, 0 to 1.",
    "template_mismatches": "Chats that the engine renders otherwise than Hugging Face's template.",
    "eos_mismatches": "Disagreements of configs, tokenizers, template and engine on what ends an answer.",
    "engine_failures": "How often the model failed to load, to answer or to be compared.",
    "nonfinite_weights": "Weights, scales and other constants of the exported model that hold NaN or infinity.",
    "nonfinite_logits": "NaN or infinite logits of the exported model.",
    "empty_answers": "Answers without any text.",
    "looping_answers": "Answers that end in a loop into which the source model would not have gone.",
    "looping_share": "Share of answers that end in such a loop, 0 to 1: small models do at times, broken ones always.",
    "missed_stops": "Answers that ran on where the source model would have stopped.",
    "malformed_answers": "Answers with control characters, broken characters, or tokens of the template.",
    "unrepeatable_answers": "Prompts whose greedy answer differs when they are asked again.",
    "long_prompt_faults": "What is wrong with the answers to a prompt of 1,500 tokens and to a very short one.",
    "warm_start_mismatches": "Answers that differ, or starts that fail, from a compiled-model cache.",
    "device_equal_answers_share": "Share of prompts that device and CPU answer alike, token by token, 0 to 1.",
    "load_ms": "Median time to load and compile the model on the device, in milliseconds; no compiled-model cache.",
    "load_cold_ms": "Time to load it and to write a compiled-model cache, in milliseconds.",
    "load_warm_ms": "Time to load it from that cache, in milliseconds.",
    "ttft_ms": "Median time to first token, one prompt at a time, in milliseconds.",
    "tpot_ms": "Median time per output token after the first, one prompt at a time, in milliseconds.",
    "inter_token_p99_ms": "99 % percentile of the time between two tokens, one prompt at a time, in milliseconds.",
    "decode_tokens_per_s": "1000 / tpot_ms: tokens a second of one prompt once it flows.",
    "end_to_end_tokens_per_s": "Generated tokens / time from request to last token, one prompt at a time.",
    "concurrent_prompts": "How many prompts are in flight in the concurrent rounds.",
    "concurrent_ttft_ms": "Median time to first token with that many prompts in flight, in milliseconds.",
    "concurrent_tpot_ms": "Median time per output token of one of them, in milliseconds.",
    "concurrent_inter_token_p99_ms": "99 % percentile of the time between two tokens of one, in milliseconds.",
    "concurrent_decode_tokens_per_s": "1000 / concurrent_tpot_ms: tokens a second of one of them once it flows.",
    "concurrent_end_to_end_tokens_per_s": "Generated tokens of all / time from first request to last token.",
    "peak_rss_bytes": "Peak resident memory of the engine's process, in bytes.",
}

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
