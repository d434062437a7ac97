"""One client's requests under way: a place, an engine, a deadline, and another try where the engine's process ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Self

from tasks.engine import Ended, Group, Piece, Request, Whole
from tasks.errors import EngineDiedError, EngineError
from tasks.serving.admission import Admission
from tasks.serving.problems import ApiError, of_engine
from tasks.serving.replica import Replica

Choose = Callable[[], Awaitable[Replica]]
_TRIES = 3  # a request that ends the engine as often is not sent again


class Answering:
    """The answers to some requests, all from one version: a context in which they have their places."""

    def __init__(self, choose: Choose, admission: Admission, requests: Sequence[Request], *, deadline: float) -> None:
        """Take the requests.

        Args:
            choose: Returns what answers them now, when it is their turn; raises ApiError where nothing does.
            admission: Knows whether there is room.
            requests: What to answer.
            deadline: By the event loop's clock.
        """
        self._choose = choose
        self._admission = admission
        self._requests = requests
        self._deadline = deadline
        self._replica: Replica | None = None
        self._group: Group | None = None
        self._places = AsyncExitStack()

    @property
    def replica(self) -> Replica:
        """The version that answers; only once the requests were sent."""
        if self._replica is None:
            raise RuntimeError("nothing was sent yet")
        return self._replica

    async def __aenter__(self) -> Self:
        """Wait for places.

        Raises:
            ApiError: There are none (429), or not in time (504).
        """
        async with self._in_time():
            await self._places.enter_async_context(self._admission.place(len(self._requests)))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Free the places; what is not done is dropped by the engine."""
        self._drop()
        await self._places.aclose()

    async def events(self) -> AsyncIterator[Piece | Ended]:
        """Yield what comes of the answers. Where the engine's process ends before anything came, they are asked again.

        Raises:
            ApiError: They are not answered.
        """
        for again in reversed(range(_TRIES)):
            begun = False
            try:
                async with self._in_time():
                    group = await self._sent(streams=True)
                while True:
                    async with self._in_time():
                        event = await anext(group, None)
                    if event is None:
                        return
                    begun = True
                    yield event
            except EngineDiedError as error:
                self._drop()
                if begun or not again:
                    raise of_engine(error) from error
            except EngineError as error:
                raise of_engine(error) from error

    async def whole(self) -> list[Whole]:
        """Return all answers; where the engine's process ends, they are asked again from the start.

        Raises:
            ApiError: They are not answered.
        """
        for again in reversed(range(_TRIES)):
            answers: dict[int, Whole] = {}
            try:
                async with self._in_time():
                    async for event in await self._sent(streams=False):
                        if isinstance(event, Ended):
                            answers[event.place] = Whole(event.answer, event.logprobs)
                return [answers[place] for place in range(len(self._requests))]
            except EngineDiedError as error:
                self._drop()
                if not again:
                    raise of_engine(error) from error
            except EngineError as error:
                raise of_engine(error) from error
        raise AssertionError

    async def _sent(self, *, streams: bool) -> Group:
        self._replica = await self._choose()
        self._replica.in_flight += 1
        self._group = self._replica.submit(self._requests, streams=streams)
        return self._group

    def _drop(self) -> None:
        if self._group is not None:
            self._group.close()
            self._group = None
            self.replica.in_flight -= 1

    def _in_time(self) -> _InTime:
        return _InTime(self._deadline)


class _InTime:
    """`asyncio.timeout_at`, with a client's words for what it raises."""

    def __init__(self, deadline: float) -> None:
        self._timeout = asyncio.timeout_at(deadline)

    async def __aenter__(self) -> None:
        await self._timeout.__aenter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await self._timeout.__aexit__(kind, error, trace)
        except TimeoutError as late:
            raise ApiError(504, "the answer took longer than a request may", code="deadline_exceeded") from late
