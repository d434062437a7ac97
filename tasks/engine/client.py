"""The engine as the rest of vinoflow sees it: requests in, answers out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from pydantic import Field

from tasks.child import Child
from tasks.config import Message
from tasks.errors import DeviceError, EngineError, WorkerError
from tasks.records import Answer, Record


class Request(Record):
    """One prompt for the engine: a chat, a raw text, or its tokens. Greedy unless `generation` says otherwise."""

    messages: tuple[Message, ...] = ()
    prompt: str = ""
    token_ids: tuple[int, ...] = ()
    add_special_tokens: bool = True
    max_new_tokens: int = 256
    generation: dict[str, float | int | bool] = Field(
        {}, description="Other fields of openvino_genai.GenerationConfig."
    )


class Completion(Record):
    """What the engine made of one request."""

    prompt: str = Field(description="The text that went to the model, after the chat template.")
    prompt_ids: tuple[int, ...] = Field(description="Its tokens: what the model read.")
    token_ms: tuple[float, ...] = Field(description="When each token of the answer came, from the request on.")
    answer: Answer


class Engine:
    """A model loaded on a device, in a process of its own."""

    def __init__(
        self,
        folder: Path,
        *,
        device: str,
        ov_config: dict[str, str] | None = None,
        prefix_caching: bool = True,
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
                {
                    "folder": str(folder),
                    "device": device,
                    "ov_config": ov_config or {},
                    "prefix_caching": prefix_caching,
                }
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
            EngineError: The engine refused a request, died or went silent; names the request's index.
        """
        first = self._next_id
        self._next_id += len(requests)
        remaining = set(range(len(requests)))
        try:
            for index, request in enumerate(requests):
                self._child.send(_message(first + index, request))
            while remaining:
                event = self._child.receive(timeout_s=timeout_s)
                index = event["id"] - first
                if index not in remaining:  # of an earlier call that was given up
                    continue
                if event["event"] == "text":
                    on_text(index, event["text"])
                    continue
                remaining.remove(index)
                if event["event"] == "failed":
                    raise EngineError(f"request {index + 1} of {len(requests)} was not answered: {event['error']}")
                self.peak_rss_bytes = event["peak_rss_bytes"]
                yield index, Completion.model_validate(event["completion"])
        except WorkerError as error:
            remaining.clear()
            raise EngineError(f"the engine stopped: {error}") from error
        finally:
            for index in remaining:  # the caller gave up, or one request failed
                self._child.send({"op": "cancel", "id": first + index})

    def answer(self, request: Request, *, on_text: Callable[[str], None] = lambda _: None) -> Completion:
        """Answer one request."""
        return next(self.answers([request], on_text=lambda _, text: on_text(text)))[1]

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


def _message(number: int, request: Request) -> dict[str, object]:
    return {
        "op": "add",
        "id": number,
        "messages": [message.model_dump() for message in request.messages],
        "prompt": request.prompt,
        "token_ids": request.token_ids,
        "add_special_tokens": request.add_special_tokens,
        "generation": {"do_sample": False, **request.generation, "max_new_tokens": request.max_new_tokens},
    }
