"""The engine's child process: one continuous-batching pipeline that all requests share.

It has a process of its own because `step()` holds the GIL. Requests are taken in between steps, and what one step made
for all of them goes out as one message.
"""

from __future__ import annotations

import json
import os
import resource
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tasks.child import Message, Parent, parent_from_arguments
from tasks.engine.text import Detokenizer, StopStrings, of_any_lengths, pieces

# What the CPU plugin compiles for each number of tokens that a step ever had: by default 5,000 such things, which take
# 25 times a small model's cache of keys and values; with 100 the speed is the same.
_KEPT_KERNELS = "100"
_SIGN_OF_LIFE_S = 10.0


@dataclass
class Running:
    """One request under way."""

    handle: Any
    detokenizer: Detokenizer
    stops: StopStrings
    logprobs: bool
    streams: bool  # whether pieces are wanted as they come
    told: bool  # whether the answer's prompt and times are wanted
    prompt: str
    prompt_ids: list[int]
    started: float  # when it was sent, by the clock that all processes share
    token_ids: list[int] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    text: str = ""
    kept: list[list[Any]] = field(default_factory=list)  # tokens with their log-probabilities, where nothing streams
    finish_reason: str = ""
    cancelled: bool = False

    @property
    def read_along(self) -> bool:
        """Whether the text must be known while it comes."""
        return self.streams or self.stops.some


class EngineProcess:
    """Loads a model and answers requests until its parent is gone."""

    def __init__(self, parent: Parent, start: Message) -> None:
        os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", _KEPT_KERNELS)
        import openvino_genai

        self.genai = openvino_genai
        self.parent = parent
        scheduler = openvino_genai.SchedulerConfig()
        scheduler.max_num_batched_tokens = 512  # same throughput as more, better time to first token
        scheduler.enable_prefix_caching = start["prefix_caching"]
        scheduler.cache_size = start["kv_cache_gb"]  # 0: as much as the requests under way need
        folder = Path(start["folder"])
        started = time.monotonic()
        config = {"CPU_RUNTIME_CACHE_CAPACITY": _KEPT_KERNELS} if start["device"] == "CPU" else {}
        unpinned = {"ENABLE_CPU_PINNING": "NO"}  # or the tokenizers of all engines run on the first core
        self.pipeline = openvino_genai.ContinuousBatchingPipeline(
            str(folder), scheduler, start["device"], config | start["ov_config"], unpinned
        )
        self.tokenizer = self.pipeline.get_tokenizer()
        known = self.tokenizer.encode("a", add_special_tokens=False).input_ids.data[0].tolist()
        self.decode = of_any_lengths(self.tokenizer.decode, known)
        self.load_ms = (time.monotonic() - started) * 1000
        config = json.loads((folder / "config.json").read_bytes())
        context = config.get("max_position_embeddings") or 1 << 30
        self.context = min(context, start["max_tokens"] or context)
        self.vocabulary = config.get("vocab_size") or 1 << 31
        self.running: dict[int, Running] = {}

    def serve(self) -> None:
        """Step while there are requests, wait while there are none, end when the parent is gone."""
        self.parent.send(event="ready", load_ms=self.load_ms, context=self.context)
        told = time.monotonic()
        while self._take_all():
            self.pipeline.step()
            now = time.monotonic()
            said = self._collect(now)
            if said or now - told > _SIGN_OF_LIFE_S:
                self.parent.send(event="pieces", pieces=said)
                told = now
            for number in [number for number, request in self.running.items() if request.finish_reason]:
                self._finish(number)

    def _take_all(self) -> bool:
        """Take what the parent has sent, and wait where there is nothing to do; return whether it is still there."""
        while True:
            try:
                message = self.parent.receive(timeout_s=0 if self.running else None)
            except TimeoutError:
                return True
            if message is None:
                return False
            self._take(message)

    def _take(self, message: Message) -> None:
        number = message["id"]
        if message["op"] == "cancel":
            if number in self.running:
                self.running[number].cancelled = True
                self.running[number].handle.cancel()
            return
        try:
            self.running[number] = self._start(message)
        except Exception as error:
            self.parent.send(event="failed", id=number, refused=True, error=str(error).strip().splitlines()[-1])

    def _start(self, message: Message) -> Running:
        """Render, tokenize and submit one request.

        Raises:
            ValueError: The prompt is empty, leaves no room in the model's context, or has a token that there is not.
        """
        prompt, ids = self._encode(message)
        length, wanted = ids.shape[1], message["generation"]["max_new_tokens"]
        if length == 0:
            raise ValueError("the prompt is empty")
        if length >= self.context:
            raise ValueError(f"the prompt has {length} tokens, the model's context holds {self.context}: shorten it")
        if message["strict"] and length + wanted > self.context:
            raise ValueError(
                f"the prompt has {length} tokens and {wanted} more are asked for, prompt and answer together may have "
                f"{self.context}: shorten the prompt, or ask for at most {self.context - length}"
            )
        generation = self.pipeline.get_config()
        for name, value in message["generation"].items():
            setattr(generation, name, value)
        generation.max_new_tokens = min(wanted, self.context - length)
        generation.logprobs = int(message["logprobs"])
        if message["grammar"]:
            generation.structured_output_config = structured(message["grammar"])
        number = message["id"]
        handle = self.pipeline.add_request(number, ids, generation)
        return Running(
            handle,
            Detokenizer(),
            StopStrings(message["stop"]),
            message["logprobs"],
            message["streams"],
            message["told"],
            prompt,
            ids.data[0].tolist(),
            message["sent"],
        )

    def _encode(self, message: Message) -> tuple[str, Any]:
        """Return a request's text and its tokens, shape (1, tokens)."""
        import openvino

        if message["token_ids"]:
            if (largest := max(message["token_ids"])) >= self.vocabulary:
                raise ValueError(
                    f"the prompt has token {largest}, the model's vocabulary ends at {self.vocabulary - 1}"
                )
            ids = openvino.Tensor(np.array([message["token_ids"]], np.int64))
            return self.tokenizer.decode(message["token_ids"], skip_special_tokens=False), ids
        if message["messages"]:
            prompt = self.tokenizer.apply_chat_template(message["messages"], True, tools=message["tools"] or None)
            special = False  # the template has written them
        else:
            prompt, special = message["prompt"], message["add_special_tokens"]
        return prompt, self.tokenizer.encode(prompt, add_special_tokens=special).input_ids

    def _collect(self, now: float) -> list[list[Any]]:
        """Take what a step made; return [id, text, log-probabilities] of each request where that is worth a message."""
        logprobs = {number: self._generated(request, now) for number, request in self.running.items()}
        made = [number for number, one in self.running.items() if one.read_along and one.times[-1:] == [now]]
        texts = pieces([self.running[number].detokenizer for number in made], self.decode)
        new = dict(zip(made, texts, strict=True))
        said = {number: self._said(request, new.get(number, "")) for number, request in self.running.items()}
        return [
            [number, said[number], logprobs[number]]
            for number, request in self.running.items()
            if request.streams and (said[number] or logprobs[number] or request.times[:1] == [now])
        ]

    def _said(self, request: Running, new: str) -> str:
        """Return what of a request's text is certain to stay; note whether it is over."""
        text = request.stops.add(new)
        request.finish_reason = self._end(request)
        if request.finish_reason and not request.stops.found:
            rest = request.detokenizer.rest() if request.read_along else self.decode([request.token_ids])[0]
            text += request.stops.add(rest) + request.stops.rest()
        request.text += text
        return text

    def _generated(self, request: Running, now: float) -> list[list[Any]]:
        """Take a request's new tokens; return each with its log-probability where that is wanted."""
        logprobs: list[list[Any]] = []
        while request.handle.can_read():
            for output in request.handle.read().values():
                ids = output.generated_ids
                request.token_ids += ids
                request.times += [now] * len(ids)
                if request.read_along:
                    request.detokenizer.add(ids)
                if request.logprobs:
                    pairs = zip(ids, output.generated_log_probs, strict=False)
                    logprobs += [[self.tokenizer.decode([token]), value] for token, value in pairs]
                if output.finish_reason != self.genai.GenerationFinishReason.NONE:
                    request.finish_reason = output.finish_reason.name.lower()
        if not request.streams:
            request.kept += logprobs
        return logprobs

    def _end(self, request: Running) -> str:
        """Return why a request is over; empty: it is not."""
        status = request.handle.get_status()
        running = status == self.genai.GenerationStatus.RUNNING
        if request.stops.found:
            if running:
                request.handle.cancel()
            return "stop"
        if request.cancelled:
            return "cancelled"
        if status == self.genai.GenerationStatus.IGNORED:
            return "ignored"
        return "" if running else request.finish_reason or status.name.lower()

    def _finish(self, number: int) -> None:
        request = self.running.pop(number)
        if request.finish_reason == "ignored":
            error = "the key-value cache has no room for it: ask for fewer tokens"
        elif request.finish_reason in {"stop", "length", "cancelled"}:
            self.parent.send(event="done", id=number, completion=self._completion(request), **_memory())
            return
        else:
            error = f"the engine gave the request up ({request.finish_reason})"
        self.parent.send(event="failed", id=number, refused=request.finish_reason == "ignored", error=error)

    def _completion(self, request: Running) -> dict[str, object]:
        count = len(request.token_ids)
        times = [moment - request.started for moment in request.times] or [0.0]  # cancelled before its first token
        answer = {
            "text": request.text,
            "token_ids": request.token_ids,
            "finish_reason": request.finish_reason,
            "prompt_tokens": len(request.prompt_ids),
            "ttft_ms": times[0] * 1000,
            "tpot_ms": (times[-1] - times[0]) * 1000 / (count - 1) if count > 1 else None,
            "seconds": times[-1],
        }
        if not request.told:
            return {"answer": answer, "logprobs": request.kept}
        token_ms = [round(moment * 1000, 3) for moment in times]
        return {"prompt": request.prompt, "prompt_ids": request.prompt_ids, "token_ms": token_ms, "answer": answer}


def structured(grammar: Message) -> Any:
    """Return openvino-genai's configuration of output that is `before`, JSON that keeps `schema`, and `after`."""
    from openvino_genai import StructuredOutputConfig

    if not grammar["before"]:
        return StructuredOutputConfig(json_schema=grammar["schema"])
    parts = StructuredOutputConfig
    whole = (
        parts.ConstString(grammar["before"]) + parts.JSONSchema(grammar["schema"]) + parts.ConstString(grammar["after"])
    )
    return StructuredOutputConfig(structural_tags_config=whole)


def _memory() -> dict[str, int]:
    return {"peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}


def main() -> None:
    """Load what the parent's first message names, and serve."""
    parent = parent_from_arguments()
    start = parent.receive()
    if start is None:
        return
    try:
        engine = EngineProcess(parent, start)
    except Exception as error:
        parent.send(event="unloadable", error=str(error).strip())
        return
    engine.serve()


if __name__ == "__main__":
    main()
