"""The engine's child process: one continuous-batching pipeline that all requests share.

It has a process of its own because `step()` holds the GIL; a thread takes requests in while it steps.
"""

from __future__ import annotations

import json
import queue
import resource
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tasks.child import Message, Parent, parent_from_arguments


@dataclass
class Running:
    """One request under way."""

    handle: Any
    streamer: Any
    prompt: str
    prompt_ids: list[int]
    started: float
    token_ids: list[int] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    finish_reason: str = ""
    cancelled: bool = False


class EngineProcess:
    """Loads a model and answers requests until its parent is gone."""

    def __init__(self, parent: Parent, start: Message) -> None:
        import openvino_genai

        self.genai = openvino_genai
        self.parent = parent
        scheduler = openvino_genai.SchedulerConfig()
        scheduler.max_num_batched_tokens = 512  # same throughput as more, better time to first token
        scheduler.enable_prefix_caching = start["prefix_caching"]
        folder = Path(start["folder"])
        started = time.perf_counter()
        self.pipeline = openvino_genai.ContinuousBatchingPipeline(
            str(folder), scheduler, start["device"], start["ov_config"]
        )
        self.tokenizer = self.pipeline.get_tokenizer()
        self.load_ms = (time.perf_counter() - started) * 1000
        config = json.loads((folder / "config.json").read_bytes())
        self.context = config.get("max_position_embeddings") or 1 << 30
        self.inbox: queue.SimpleQueue[Message | None] = queue.SimpleQueue()
        self.running: dict[int, Running] = {}

    def serve(self) -> None:
        """Step while there are requests, wait while there are none, end when the parent is gone."""
        threading.Thread(target=self._read, daemon=True).start()
        self.parent.send(event="ready", load_ms=self.load_ms, context=self.context)
        while True:
            while not self.running or not self.inbox.empty():
                message = self.inbox.get()
                if message is None:
                    return
                self._take(message)
            self.pipeline.step()
            now = time.perf_counter()
            for number in list(self.running):
                self._collect(number, now)

    def _read(self) -> None:
        while (message := self.parent.receive()) is not None:
            message["received"] = time.perf_counter()
            self.inbox.put(message)
        self.inbox.put(None)

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
            self.parent.send(event="failed", id=number, error=str(error).strip().splitlines()[-1])

    def _start(self, message: Message) -> Running:
        """Render, tokenize and submit one request.

        Raises:
            ValueError: The prompt is empty, or leaves no room in the model's context.
        """
        prompt, ids = self._encode(message)
        length = ids.shape[1]
        if length == 0:
            raise ValueError("the prompt is empty")
        if length >= self.context:
            raise ValueError(f"the prompt has {length} tokens, the model's context holds {self.context}: shorten it")
        generation = self.pipeline.get_config()
        for name, value in message["generation"].items():
            setattr(generation, name, value)
        generation.max_new_tokens = min(generation.max_new_tokens, self.context - length)
        number = message["id"]
        streamer = self.genai.TextStreamer(self.tokenizer, lambda text: self._stream(number, text))
        handle = self.pipeline.add_request(number, ids, generation)
        return Running(handle, streamer, prompt, ids.data[0].tolist(), message["received"])

    def _encode(self, message: Message) -> tuple[str, Any]:
        """Return a request's text and its tokens, shape (1, tokens)."""
        import openvino

        if message.get("token_ids"):
            ids = openvino.Tensor(np.array([message["token_ids"]], np.int64))
            return self.tokenizer.decode(message["token_ids"], skip_special_tokens=False), ids
        if message.get("messages"):
            prompt = self.tokenizer.apply_chat_template(message["messages"], True)
            special = False  # the template has written them
        else:
            prompt, special = message["prompt"], message["add_special_tokens"]
        return prompt, self.tokenizer.encode(prompt, add_special_tokens=special).input_ids

    def _stream(self, number: int, text: str) -> bool:
        if text:
            self.parent.send(event="text", id=number, text=text)
        return False

    def _collect(self, number: int, now: float) -> None:
        """Hand on what a request has generated, and end it when it is done."""
        request = self.running[number]
        while request.handle.can_read():
            for output in request.handle.read().values():
                request.token_ids += output.generated_ids
                request.times += [now] * len(output.generated_ids)
                request.streamer.write(list(output.generated_ids))
                if output.finish_reason != self.genai.GenerationFinishReason.NONE:
                    request.finish_reason = output.finish_reason.name.lower()
        status = request.handle.get_status()
        if status == self.genai.GenerationStatus.RUNNING and not request.cancelled:
            return
        del self.running[number]
        request.streamer.end()
        if request.cancelled:
            request.finish_reason = "cancelled"
        if status == self.genai.GenerationStatus.IGNORED or not request.finish_reason:
            self.parent.send(event="failed", id=number, error=f"the engine gave the request up ({status.name})")
        else:
            self.parent.send(event="done", id=number, completion=self._completion(request), **_memory())

    def _completion(self, request: Running) -> dict[str, object]:
        count = len(request.token_ids)
        times = [moment - request.started for moment in request.times] or [0.0]  # cancelled before its first token
        answer = {
            "text": self.tokenizer.decode(request.token_ids),
            "token_ids": request.token_ids,
            "finish_reason": request.finish_reason,
            "prompt_tokens": len(request.prompt_ids),
            "ttft_ms": times[0] * 1000,
            "tpot_ms": (times[-1] - times[0]) * 1000 / (count - 1) if count > 1 else None,
            "seconds": times[-1],
        }
        token_ms = [round(moment * 1000, 3) for moment in times]
        return {"prompt": request.prompt, "prompt_ids": request.prompt_ids, "token_ms": token_ms, "answer": answer}


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
