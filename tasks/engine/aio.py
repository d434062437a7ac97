"""The engine for an event loop: requests go in as they come, pieces of their answers come out."""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from tasks.child import Child
from tasks.engine.client import Request, start_message
from tasks.errors import DeviceError, EngineDiedError, EngineError, RefusedError, WorkerError
from tasks.records import Answer


class Piece(NamedTuple):
    """What came of an answer in one step."""

    place: int  # of the request in its group
    text: str
    logprobs: list[tuple[str, float]]  # each token as text with its log-probability, where the request asks for it


class Ended(NamedTuple):
    """The end of an answer."""

    place: int
    answer: Answer
    logprobs: list[tuple[str, float]]  # of its tokens, where the request asks for them and nothing streamed


class Group:
    """Requests that were sent together: an asynchronous iterator of what comes of them.

    It ends when all of them have. `close` frees what is not done.
    """

    def __init__(self, engine: AsyncEngine, first: int, count: int) -> None:
        """Wait for `count` requests from number `first` on."""
        self._engine = engine
        self._first = first
        self._open = set(range(first, first + count))
        self._events: deque[Piece | Ended | EngineError] = deque()
        self._wake = asyncio.Event()

    def put(self, event: Piece | Ended | EngineError) -> None:
        """Take in what the engine says."""
        self._events.append(event)
        self._wake.set()

    def place(self, number: int) -> int:
        """Return the place in the group of the request with a number."""
        return number - self._first

    def __aiter__(self) -> AsyncIterator[Piece | Ended]:
        """Return the group itself."""
        return self

    async def __anext__(self) -> Piece | Ended:
        """Return what comes next.

        Raises:
            RefusedError: The engine cannot answer a request.
            EngineDiedError: The engine's process has ended.
            EngineError: It gave a request up.
        """
        while not self._events:
            if not self._open:
                raise StopAsyncIteration
            self._wake.clear()
            await self._wake.wait()
        event = self._events.popleft()
        if isinstance(event, EngineError):
            self.close()
            raise event
        if isinstance(event, Ended):
            self._open.discard(self._first + event.place)
        return event

    def close(self) -> None:
        """Have the engine drop what is not done."""
        for number in self._open:
            self._engine.drop(number)
        self._open.clear()


class AsyncEngine(asyncio.Protocol):
    """A model loaded on a device, in a process of its own, driven by this thread's event loop."""

    def __init__(self, child: Child) -> None:
        """Take a process that has just started; `load` does that."""
        self._child = child
        self._buffer = b""
        self._groups: dict[int, Group] = {}
        self._next = 0
        self._sink: asyncio.WriteTransport | None = None
        loop = asyncio.get_running_loop()
        self._ready: asyncio.Future[dict[str, Any]] = loop.create_future()
        self.ended: asyncio.Future[WorkerError] = loop.create_future()  # once the process is gone, how it went
        self.context = 0  # tokens of prompt and answer that a request may have
        self.peak_rss_bytes = 0

    @classmethod
    async def load(
        cls,
        folder: Path,
        *,
        device: str,
        ov_config: dict[str, str],
        kv_cache_gb: int = 0,
        max_tokens: int | None = None,
        timeout_s: float = 900,
    ) -> AsyncEngine:
        """Load a model folder; the arguments are those of `start_message`.

        Raises:
            DeviceError: OpenVINO refuses the model on this device.
            EngineError: The process crashed while it loaded, or was not ready within `timeout_s` seconds.
        """
        loop = asyncio.get_running_loop()
        engine = cls(Child("tasks.engine.worker"))
        to_child, from_child = engine._child.detach()
        await loop.connect_read_pipe(lambda: engine, os.fdopen(from_child, "rb", 0))
        sink, _ = await loop.connect_write_pipe(asyncio.BaseProtocol, os.fdopen(to_child, "wb", 0))
        engine._sink = sink
        try:
            engine._send(
                start_message(
                    folder, device=device, ov_config=ov_config, kv_cache_gb=kv_cache_gb, max_tokens=max_tokens
                )
            )
            ready = await asyncio.wait_for(engine._ready, timeout_s)
            if ready["event"] != "ready":
                raise DeviceError(f"device {device} refuses the model in {folder}: {ready['error']}")
        except BaseException as error:
            await engine.close(grace_s=0)
            if isinstance(error, TimeoutError):
                raise EngineError(f"the engine was not ready within {timeout_s:.0f} s") from error
            raise
        engine.context = int(ready["context"])
        return engine

    @property
    def pid(self) -> int:
        """The process's id."""
        return self._child.pid

    def submit(self, requests: Sequence[Request], *, streams: bool) -> Group:
        """Send requests, and return what will tell of their answers, in pieces too where it `streams`."""
        group = Group(self, self._next, len(requests))
        for number, request in enumerate(requests, self._next):
            self._groups[number] = group
            self._send(request.message(number, streams=streams))
        self._next += len(requests)
        if self.ended.done():
            group.put(EngineDiedError(f"the engine stopped: {self.ended.result()}"))
        return group

    def drop(self, number: int) -> None:
        """Free the place of a request that nobody waits for any more."""
        if self._groups.pop(number, None) is not None:
            self._send({"op": "cancel", "id": number})

    def fail_all(self, error: EngineError) -> None:
        """Give up all requests under way."""
        for group in dict.fromkeys(self._groups.values()):
            group.put(error)

    async def close(self, *, grace_s: float = 5.0) -> None:
        """End the process."""
        if self._sink is not None:
            self._sink.close()
        await asyncio.to_thread(self._child.close, grace_s=grace_s)

    def data_received(self, data: bytes) -> None:
        """Hand on what the process says."""
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        for line in lines:
            self._handle(orjson.loads(line))

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        """Find out how the process ended, and tell all who wait."""
        asyncio.ensure_future(self._bury())  # noqa: RUF006 - `ended` is what others hold

    async def _bury(self) -> None:
        how = await asyncio.to_thread(self._child.ended)
        died = EngineDiedError(f"the engine stopped: {how}")
        self.ended.set_result(how)
        if not self._ready.done():
            self._ready.set_exception(died)
        self.fail_all(died)

    def _send(self, message: dict[str, object]) -> None:
        if self._sink is not None and not self._sink.is_closing():
            self._sink.write(orjson.dumps(message) + b"\n")

    def _handle(self, event: dict[str, Any]) -> None:
        kind = event["event"]
        if kind == "pieces":
            for number, text, logprobs in event["pieces"]:
                group = self._groups.get(number)
                if group is not None:
                    group.put(Piece(group.place(number), text, logprobs))
            return
        if kind not in {"done", "failed"}:
            self._ready.set_result(event)
            return
        group = self._groups.pop(event["id"], None)
        if group is None:  # it was dropped
            return
        if kind == "done":
            self.peak_rss_bytes = event["peak_rss_bytes"]
            made = event["completion"]
            group.put(Ended(group.place(event["id"]), Answer.model_construct(**made["answer"]), made["logprobs"]))
        else:
            group.put((RefusedError if event["refused"] else EngineError)(event["error"]))
