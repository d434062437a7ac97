"""Ways to answer the same prompts with the same model, each run in a process of its own.

`python -m tests.benchmarks.answer_ways WAY FOLDER PROMPTS.json`; prints JSON. Prompts are texts, already rendered with
the model's template; each answer has exactly NEW_TOKENS tokens, greedy, so that every way does the same work.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from tasks import telemetry
from tests.benchmarks.measure import tree_cpu_s

NEW_TOKENS = 96
DEVICE = "CPU"
OV_CONFIG = {"PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": "1", "CACHE_DIR": ""}  # the notebook's
Found = tuple[list[tuple[int, int]], list[float]]  # (prompt tokens, new tokens) and TTFT in ms, a prompt each
Way = Callable[[list[str]], Found]


def notebook(folder: Path) -> Way:
    """The recipe that vinoflow starts from: optimum, one prompt at a time."""
    from optimum.intel import OVModelForCausalLM
    from transformers import AutoConfig, AutoTokenizer
    from transformers.generation.streamers import BaseStreamer

    class Clock(BaseStreamer):  # type: ignore[misc] # generate() puts the prompt first, then each token
        def __init__(self) -> None:
            self.puts: list[float] = []

        def put(self, value: Any) -> None:
            self.puts.append(time.perf_counter())

        def end(self) -> None:
            pass

    config = AutoConfig.from_pretrained(folder)
    model = OVModelForCausalLM.from_pretrained(folder, device=DEVICE, ov_config=OV_CONFIG, config=config)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    # never stop early; min_new_tokens would do it too, but masks the whole vocabulary each step: half the speed
    model.generation_config.eos_token_id = None

    def answer(prompts: list[str]) -> Found:
        counts, first = [], []
        for prompt in prompts:
            clock, started = Clock(), time.perf_counter()
            tokens = tokenizer(prompt, return_tensors="pt", add_special_tokens=False)
            made = model.generate(**tokens, max_new_tokens=NEW_TOKENS, do_sample=False, streamer=clock)
            tokenizer.batch_decode(made, skip_special_tokens=True)
            given = tokens["input_ids"].shape[1]
            counts.append((given, made.shape[1] - given))
            first.append((clock.puts[1] - started) * 1000)
        return counts, first

    return answer


def llm_pipeline(folder: Path) -> Way:
    """Bare openvino-genai, one prompt at a time."""
    import openvino_genai

    pipeline = openvino_genai.LLMPipeline(folder, DEVICE, OV_CONFIG)
    tokenizer, generation = pipeline.get_tokenizer(), _greedy(pipeline.get_generation_config())

    def answer(prompts: list[str]) -> Found:
        counts, first = [], []
        for prompt in prompts:
            made = pipeline.generate(tokenizer.encode(prompt, add_special_tokens=False), generation)
            tokenizer.decode(made.tokens[0])
            metrics = made.perf_metrics
            counts.append((metrics.get_num_input_tokens(), metrics.get_num_generated_tokens()))
            first.append(metrics.get_ttft().mean)
        return counts, first

    return answer


def batching(folder: Path, **scheduling: Any) -> Way:
    """Bare openvino-genai, continuous batching in this process, all prompts at once."""
    import openvino_genai

    scheduler = openvino_genai.SchedulerConfig()
    for name, value in scheduling.items():
        setattr(scheduler, name, value)
    pipeline = openvino_genai.ContinuousBatchingPipeline(str(folder), scheduler, DEVICE, OV_CONFIG)
    tokenizer, generation = pipeline.get_tokenizer(), _greedy(pipeline.get_config())

    def answer(prompts: list[str]) -> Found:
        started = time.perf_counter()
        ids = [tokenizer.encode(prompt, add_special_tokens=False).input_ids for prompt in prompts]
        handles = [pipeline.add_request(number, tokens, generation) for number, tokens in enumerate(ids)]
        made: list[list[int]] = [[] for _ in prompts]
        first = [0.0] * len(prompts)
        while pipeline.has_non_finished_requests():
            pipeline.step()
            for number, handle in enumerate(handles):
                while handle.can_read():
                    first[number] = first[number] or (time.perf_counter() - started) * 1000
                    made[number] += next(iter(handle.read().values())).generated_ids
        for tokens in made:
            tokenizer.decode(tokens)
        return [(one.shape[1], len(other)) for one, other in zip(ids, made, strict=True)], first

    return answer


def batching_as_ours(folder: Path) -> Way:
    """The same with the settings of our engine: what is left is the price of its process and streaming."""
    return batching(folder, max_num_batched_tokens=512, enable_prefix_caching=True)


def engine_at_once(folder: Path) -> Way:
    """Our engine, all prompts at once."""
    return _engine(folder, lambda engine, requests: [done for _, done in sorted(engine.answers(requests))])


def engine_one_by_one(folder: Path) -> Way:
    """Our engine, one prompt at a time."""
    return _engine(folder, lambda engine, requests: [engine.answer(request) for request in requests])


def _engine(folder: Path, ask: Callable[[Any, list[Any]], list[Any]]) -> Way:
    from tasks.engine import Engine, Request

    engine = Engine(folder, device=DEVICE, ov_config=OV_CONFIG)
    settings = {"add_special_tokens": False, "max_new_tokens": NEW_TOKENS, "generation": {"ignore_eos": True}}

    def answer(prompts: list[str]) -> Found:
        done = ask(engine, [Request(prompt=prompt, **settings) for prompt in prompts])
        answers = [completion.answer for completion in done]
        return [(one.prompt_tokens, len(one.token_ids)) for one in answers], [one.ttft_ms for one in answers]

    return answer


def _greedy(generation: Any) -> Any:
    generation.do_sample, generation.ignore_eos, generation.max_new_tokens = False, True, NEW_TOKENS
    return generation


WAYS = {
    way.__name__: way for way in (notebook, llm_pipeline, engine_one_by_one, batching, batching_as_ours, engine_at_once)
}


def main() -> None:
    telemetry.turn_off()
    way, folder, prompts = WAYS[sys.argv[1]], Path(sys.argv[2]), json.loads(Path(sys.argv[3]).read_text())
    answer = way(folder)
    answer(["Hello"])  # what happens once a process is not what is measured
    cpu, started = tree_cpu_s(), time.perf_counter()
    counts, first = answer(prompts)
    seconds, cpu = time.perf_counter() - started, tree_cpu_s() - cpu
    print(json.dumps({"counts": counts, "ttft_ms": median(first), "seconds": seconds, "cpu_s": cpu}))


if __name__ == "__main__":
    main()
