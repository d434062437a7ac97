"""What the routes work with: requests are answered whole, or as a stream of events."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable
from functools import partial
from typing import Any, TypeVar

from fastapi import Request
from fastapi.responses import JSONResponse, Response

from tasks.engine import Ended, Grammar, Piece
from tasks.engine import Request as EngineRequest
from tasks.errors import RefusedError
from tasks.serving.admission import Admission
from tasks.serving.answering import Answering
from tasks.serving.follower import Follower
from tasks.serving.observe import Observer, Seen
from tasks.serving.problems import ApiError, ClientGoneError, of_engine
from tasks.serving.replica import Replica
from tasks.serving.respond import Chat, Text, event
from tasks.serving.responses import Health

T = TypeVar("T")
_SLOW_READER_S = 5.0  # after the deadline: for what was said in time to be read


class Service:
    """What the routes work with."""

    def __init__(self, follower: Follower, observer: Observer, admission: Admission, *, deadline_s: float) -> None:
        """Take the parts."""
        self.follower = follower
        self.observer = observer
        self.admission = admission
        self.deadline_s = deadline_s
        self.started = int(time.time())

    def health(self) -> Health:
        """Return how the server is now."""
        replica = self.follower.current
        return Health(
            ready=replica is not None and replica.answers,
            reference=self.follower.reference,
            version=replica and replica.version.reference,
            digest=replica and replica.version.digest,
            device=replica and replica.device,
            engine=replica.state if replica else "loading",
            restarts=replica.restarts if replica else 0,
            running=self.admission.running,
            waiting=self.admission.waiting,
            swap=self.follower.swap,
        )

    async def replica_for(self, model: str, seen: Seen) -> Replica:
        """Return what answers requests for a model.

        Raises:
            ApiError: It is not served here.
        """
        try:
            async with asyncio.timeout(self.deadline_s):
                replica = await self.follower.replica()
        except TimeoutError as error:
            raise ApiError(503, "no engine answers: GET /health/ready tells why", code="engine_stopped") from error
        seen.version = replica.version
        names = {replica.version.name, replica.version.reference, self.follower.reference}
        if model not in names:
            known = ", ".join(sorted(names))
            raise ApiError(
                404,
                f"model {model[:100]!r} is not served here; these names are: {known}",
                param="model",
                code="model_not_found",
            )
        return replica

    async def answer(
        self,
        request: Request,
        requests: list[EngineRequest],
        form: Chat | Text,
        replica: Replica,
        *,
        model: str,
        stream: bool,
        within_s: float | None = None,
    ) -> Response:
        """Answer a request whole, or begin to.

        Args:
            request: As it came.
            requests: What the engine is asked.
            form: How the answers are told.
            replica: What the requests were made for; where another version answers by then, that one does.
            model: As the client named it.
            stream: Whether answers go out as they come.
            within_s: How long the client gives us, where that is less than `deadline_s`.
        """
        seen: Seen = request.state.seen
        seen.prompt = str(requests[0].messages or requests[0].prompt or requests[0].token_ids)
        deadline = asyncio.get_running_loop().time() + min(self.deadline_s, within_s or self.deadline_s)
        if requests[0].grammar is not None:
            replica.in_flight += 1  # it is not closed meanwhile
            try:
                await _unless_gone(request.receive, _check(replica, requests[0].grammar, deadline))
            finally:
                replica.in_flight -= 1
        answering = Answering(partial(self.replica_for, model, seen), self.admission, requests, deadline=deadline)
        if stream:
            return await self._begun(request, answering, form, deadline)

        async def whole() -> Response:
            async with answering:
                answers = await answering.whole()
            if answers:
                seen.ttft_s = min(one.answer.ttft_ms for one in answers) / 1000
            return JSONResponse(form.whole(answers, answering.replica.fingerprint))

        return await _unless_gone(request.receive, whole())

    async def _begun(self, request: Request, answering: Answering, form: Chat | Text, deadline: float) -> Response:
        events = answering.events()

        async def first() -> Piece | Ended:
            await answering.__aenter__()
            return await anext(events)

        try:
            came = await _unless_gone(request.receive, first())
        except BaseException:
            await answering.__aexit__(None, None, None)
            raise
        request.state.seen.first_token()
        chunks = form.stream(_chained(came, events), answering.replica.fingerprint)
        return _EventStream(chunks, answering, request.state.seen, deadline)


async def _check(replica: Replica, grammar: Grammar, deadline: float) -> None:
    """Return if the engine can hold answers to a grammar.

    Raises:
        ApiError: It cannot (400), or others' grammars took too long (504).
    """
    try:
        async with asyncio.timeout_at(deadline):
            await replica.grammars.check(grammar)
    except RefusedError as error:
        raise of_engine(error) from error
    except TimeoutError as late:
        raise ApiError(504, "the JSON schema could not be tried in time", code="deadline_exceeded") from late


class _EventStream(Response):
    """A stream of events; when the client goes away, the engine drops what it would have got."""

    media_type = "text/event-stream"

    def __init__(self, chunks: AsyncIterator[bytes], answering: Answering, seen: Seen, deadline: float) -> None:
        super().__init__()
        del self.headers["content-length"]
        self._chunks = chunks
        self._answering = answering
        self._seen = seen
        self._deadline = deadline

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:  # noqa: ARG002 - ASGI's signature
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            async with asyncio.timeout_at(self._deadline + _SLOW_READER_S):
                await _unless_gone(receive, self._write(send))
        except (ClientGoneError, TimeoutError):  # gone, or too slow to read
            self._seen.gone()
        finally:
            await self._answering.__aexit__(None, None, None)

    async def _write(self, send: Any) -> None:
        try:
            async for chunk in self._chunks:
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
        except ApiError as error:
            self._seen.failed(error)
            await send({"type": "http.response.body", "body": event(error.body), "more_body": True})
        await send({"type": "http.response.body", "body": b""})


async def _chained(first: Piece | Ended, rest: AsyncIterator[Piece | Ended]) -> AsyncIterator[Piece | Ended]:
    yield first
    async for came in rest:
        yield came


async def _unless_gone(receive: Any, work: Awaitable[T]) -> T:
    """Return what the work gives, unless the client goes away first.

    Raises:
        ClientGoneError: It did; the work was cancelled.
    """
    working = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_gone(receive))
    try:
        await asyncio.wait({working, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientGoneError
        return working.result()
    finally:
        for task in (working, gone):
            task.cancel()
            with contextlib.suppress(BaseException):
                await task


async def _gone(receive: Any) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
