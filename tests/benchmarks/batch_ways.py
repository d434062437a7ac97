"""Ways to answer the same rows of prompts with the same model, each in a process of its own.

`python -m tests.benchmarks.batch_ways WAY FOLDER PROMPTS.json TOKENS` answers texts that were rendered with the model's
template, greedily, at most so many tokens each, and prints JSON.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tasks import telemetry

Answer = Callable[[list[str]], tuple[int, int]]  # texts -> tokens read and made


def bare(folder: str, new_tokens: int) -> Answer:
    """openvino-genai's continuous batching with our engine's scheduling, given all at once."""
    import openvino_genai

    scheduler = openvino_genai.SchedulerConfig()
    scheduler.max_num_batched_tokens, scheduler.enable_prefix_caching = 512, True
    pipeline = openvino_genai.ContinuousBatchingPipeline(folder, scheduler, "CPU", {})
    tokenizer, generation = pipeline.get_tokenizer(), pipeline.get_config()
    generation.do_sample, generation.max_new_tokens = False, new_tokens

    def answer(prompts: list[str]) -> tuple[int, int]:
        ids = [tokenizer.encode(prompt, add_special_tokens=False).input_ids for prompt in prompts]
        running = {number: pipeline.add_request(number, one, generation) for number, one in enumerate(ids)}
        made: dict[int, list[int]] = {number: [] for number in running}
        while running:
            pipeline.step()
            for number, handle in list(running.items()):
                while handle.can_read():
                    made[number] += next(iter(handle.read().values())).generated_ids
                if handle.get_status() != openvino_genai.GenerationStatus.RUNNING:
                    tokenizer.decode(made[number])
                    del running[number]
        return sum(one.shape[1] for one in ids), sum(map(len, made.values()))

    return answer


def notebook(folder: str, new_tokens: int) -> Answer:
    """The recipe that vinoflow starts from: optimum, one prompt at a time."""
    from optimum.intel import OVModelForCausalLM
    from transformers import AutoConfig, AutoTokenizer

    config = AutoConfig.from_pretrained(folder)
    settings = {"PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": "1", "CACHE_DIR": ""}
    model = OVModelForCausalLM.from_pretrained(folder, device="CPU", ov_config=settings, config=config)
    tokenizer = AutoTokenizer.from_pretrained(folder)

    def answer(prompts: list[str]) -> tuple[int, int]:
        read = made = 0
        for prompt in prompts:
            tokens: Any = tokenizer(prompt, return_tensors="pt", add_special_tokens=False)
            ids = model.generate(**tokens, max_new_tokens=new_tokens, do_sample=False)
            tokenizer.batch_decode(ids, skip_special_tokens=True)
            given = tokens["input_ids"].shape[1]
            read, made = read + given, made + ids.shape[1] - given
        return read, made

    return answer


WAYS = {"bare": bare, "notebook": notebook}


def main() -> None:
    telemetry.turn_off()
    answer = WAYS[sys.argv[1]](sys.argv[2], int(sys.argv[4]))
    answer(["Hello"])
    cpu, started = time.process_time(), time.perf_counter()
    read, made = answer(json.loads(Path(sys.argv[3]).read_text()))
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    print(json.dumps({"read": read, "made": made, "seconds": seconds, "cpu_s": cpu}))


if __name__ == "__main__":
    main()
