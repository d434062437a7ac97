"""The engine as the rest of vinoflow sees it: requests in, answers out."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self, TypeVar

from pydantic import Field

from tasks.child import Child
from tasks.config import Message
from tasks.errors import DeviceError, EngineDiedError, EngineError, RefusedError, WorkerError
from tasks.records import Answer, Record

Key = TypeVar("Key")


class Grammar(Record):
    """What an answer must be: JSON that keeps a schema, between two fixed texts."""

    schema_text: str = Field(description="The JSON schema, as JSON.")
    before: str = ""
    after: str = ""

    def message(self) -> dict[str, str]:
        """Return it as the engine's processes read it."""
        return {"schema": self.schema_text, "before": self.before, "after": self.after}


class Request(Record):
    """One prompt for the engine: a chat, a raw text, or its tokens. Greedy unless `generation` says otherwise."""

    messages: tuple[Message | dict[str, Any], ...] = Field((), description="As the chat template takes them.")
    tools: tuple[dict[str, Any], ...] = Field((), description="As the chat template takes them.")
    prompt: str = ""
    token_ids: tuple[int, ...] = ()
    add_special_tokens: bool = True
    max_new_tokens: int = 256
    strict: bool = Field(False, description="Refuse, where the context has no room for max_new_tokens; else cut there.")
    stop: tuple[str, ...] = Field((), description="The answer ends before the first of these.")
    logprobs: bool = Field(False, description="Whether the log-probability of each token is told.")
    grammar: Grammar | None = None
    generation: dict[str, float | int | bool] = Field(
        {}, description="Other fields of openvino_genai.GenerationConfig."
    )

    def message(self, number: int, *, streams: bool = True, told: bool = False) -> dict[str, object]:
        """Return the request as the engine's process reads it.

        Args:
            number: Its id there.
            streams: Whether the answer comes in pieces, too.
            told: Whether the completion tells the prompt, its tokens and the time of each token.
        """
        return {
            "op": "add",
            "id": number,
            "sent": time.monotonic(),
            "messages": [one if isinstance(one, dict) else one.model_dump() for one in self.messages],
            "tools": self.tools,
            "prompt": self.prompt,
            "token_ids": self.token_ids,
            "add_special_tokens": self.add_special_tokens,
            "strict": self.strict,
            "stop": self.stop,
            "logprobs": self.logprobs,
            "grammar": self.grammar and self.grammar.message(),
            "streams": streams,
            "told": told,
            "generation": {"do_sample": False, **self.generation, "max_new_tokens": self.max_new_tokens},
        }


class Whole(NamedTuple):
    """One answer from its first to its last token."""

    answer: Answer
    logprobs: list[tuple[str, float]]  # each token as text with its log-probability, where the request asks for it


class Completion(Record):
    """What the engine made of one request."""

    prompt: str = Field(description="The text that went to the model, after the chat template.")
    prompt_ids: tuple[int, ...] = Field(description="Its tokens: what the model read.")
    token_ms: tuple[float, ...] = Field(description="When each token of the answer came, from the request on.")
    answer: Answer


def start_message(
    folder: Path,
    *,
    device: str,
    ov_config: dict[str, str],
    prefix_caching: bool = True,
    kv_cache_gb: int = 0,
    max_tokens: int | None = None,
) -> dict[str, object]:
    """Return the first message of an engine's process: what to load.

    Args:
        folder: The exported model.
        device: As OpenVINO names it.
        ov_config: Properties to compile with.
        prefix_caching: Whether prompts that begin alike share their keys and values.
        kv_cache_gb: Room for keys and values; 0: as much as the requests under way need.
        max_tokens: Of prompt and answer together; none: what the model's context holds.
    """
    return {
        "folder": str(folder),
        "device": device,
        "ov_config": ov_config,
        "prefix_caching": prefix_caching,
        "kv_cache_gb": kv_cache_gb,
        "max_tokens": max_tokens,
    }


class Engine:
    """A model loaded on a device, in a process of its own."""

    def __init__(
        self,
        folder: Path,
        *,
        device: str,
        ov_config: dict[str, str] | None = None,
        prefix_caching: bool = True,
        kv_cache_gb: int = 0,
        load_timeout_s: float = 900,
    ) -> None:
        """Load a model folder.

        Raises:
            DeviceError: OpenVINO refuses the model on this device.
            WorkerError: The process crashed while it loaded.
        """
        self._child = Child("tasks.engine.worker")
        self.peak_rss_bytes = 0
        self._next_id = 0
        try:
            self._child.send(
                start_message(
                    folder,
                    device=device,
                    ov_config=ov_config or {},
                    prefix_caching=prefix_caching,
                    kv_cache_gb=kv_cache_gb,
                )
            )
            ready = self._child.receive(timeout_s=load_timeout_s)
            if ready["event"] != "ready":
                raise DeviceError(f"device {device} refuses the model in {folder}: {ready['error']}")
        except BaseException:
            self._child.close(grace_s=0)
            raise
        self.load_ms = float(ready["load_ms"])
        self.context = int(ready["context"])  # tokens of prompt and answer that the model can hold

    def answers(
        self,
        requests: Sequence[Request],
        *,
        on_text: Callable[[int, str], None] = lambda *_: None,
        timeout_s: float = 600,
    ) -> Iterator[tuple[int, Completion]]:
        """Answer requests together, and yield each with its index as it is done.

        Args:
            requests: What to answer; all are in flight at once.
            on_text: Is called with the index and each piece of text as it comes.
            timeout_s: The engine may be silent for this many seconds at most.

        Raises:
            RefusedError: The engine cannot answer a request; names its index.
            EngineError: The engine gave a request up, died or went silent.
        """
        first = self._next_id
        self._next_id += len(requests)
        remaining = set(range(len(requests)))
        try:
            for index, request in enumerate(requests):
                self._child.send(request.message(first + index, told=True))
            while remaining:
                event = self._child.receive(timeout_s=timeout_s)
                if event["event"] == "pieces":
                    for number, text, _ in event["pieces"]:
                        if text and number - first in remaining:
                            on_text(number - first, text)
                    continue
                index = event["id"] - first
                if index not in remaining:  # of an earlier call that was given up
                    continue
                remaining.remove(index)
                if event["event"] == "failed":
                    kind = RefusedError if event["refused"] else EngineError
                    raise kind(f"request {index + 1} of {len(requests)} was not answered: {event['error']}")
                self.peak_rss_bytes = event["peak_rss_bytes"]
                yield index, Completion.model_validate(event["completion"])
        except WorkerError as error:
            remaining.clear()
            raise EngineError(f"the engine stopped: {error}") from error
        finally:
            for index in remaining:  # the caller gave up, or one request failed
                self._child.send({"op": "cancel", "id": first + index})

    def stream(
        self, requests: Iterable[tuple[Key, Request]], *, window: int, timeout_s: float = 600
    ) -> Iterator[tuple[Key, Whole | EngineError]]:
        """Answer requests without end, and yield each with its key as it is done, an error where there is no answer.

        Requests are taken as places get free, so that their number does not matter: the batch never runs dry while
        there are some.

        Args:
            requests: What to answer.
            window: So many are in flight.
            timeout_s: The engine may be silent for this many seconds at most, while it answers something.

        Raises:
            EngineDiedError: The engine's process has ended, or went silent; what was in flight is not answered.
        """
        waiting: Iterator[tuple[Key, Request]] = iter(requests)
        in_flight: dict[int, Key] = {}
        try:
            while True:
                while len(in_flight) < window and (given := next(waiting, None)) is not None:
                    key, request = given
                    in_flight[self._next_id] = key
                    self._next_id += 1
                    self._child.send(request.message(self._next_id - 1, streams=False))
                if not in_flight:
                    return
                event = self._child.receive(timeout_s=timeout_s)
                if event.get("id") not in in_flight:  # a sign of life, or of an earlier call that was given up
                    continue
                key = in_flight.pop(event["id"])
                if event["event"] == "failed":
                    yield key, (RefusedError if event["refused"] else EngineError)(event["error"])
                else:
                    self.peak_rss_bytes = event["peak_rss_bytes"]
                    made = event["completion"]
                    yield key, Whole(Answer.model_construct(**made["answer"]), made["logprobs"])
        except WorkerError as error:
            in_flight.clear()
            raise EngineDiedError(f"the engine stopped: {error}") from error
        finally:
            for number in in_flight:  # the caller gave up
                self._child.send({"op": "cancel", "id": number})

    def answer(self, request: Request, *, on_text: Callable[[str], None] = lambda _: None) -> Completion:
        """Answer one request."""
        return next(self.answers([request], on_text=lambda _, text: on_text(text)))[1]

    def kill(self) -> None:
        """End the process at once, while another thread waits for its answers, which is told that it has died."""
        self._child.process.kill()

    def close(self) -> None:
        """End the process."""
        self._child.close()

    def __enter__(self) -> Self:
        """Return the engine itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the process."""
        self._child.close(grace_s=5.0 if kind is None else 0.0)
