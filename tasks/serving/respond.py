"""What came of the answers -> OpenAI's responses, whole or as a stream of events."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from tasks.engine import Ended, Piece, Whole
from tasks.records import Answer
from tasks.serving.observe import Seen
from tasks.serving.requests import ChatRequest, CompletionRequest
from tasks.serving.tools import CallReader, Style

DONE = b"data: [DONE]\n\n"
Logprobs = Sequence[tuple[str, float]]


def event(content: object) -> bytes:
    """Return one event of a stream."""
    return b"data: " + orjson.dumps(content) + b"\n\n"


@dataclass
class Shape:
    """What all responses to one request have in common."""

    model: str
    kind: str
    prompts: int  # the answers are divided evenly among so many prompts
    seen: Seen
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    created: int = field(default_factory=lambda: int(time.time()))

    def around(self, fingerprint: str, kind: str | None = None) -> dict[str, Any]:
        """Return the fields that stand beside `choices`."""
        return {
            "id": f"{'chatcmpl' if 'chat' in self.kind else 'cmpl'}-{self.id}",
            "object": kind or self.kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": fingerprint,
        }

    def usage(self, answers: Sequence[Answer]) -> dict[str, int]:
        """Return the numbers of tokens; a prompt counts once, however many answers it has."""
        each = max(1, len(answers) // self.prompts)
        read = sum(answer.prompt_tokens for answer in answers[::each])
        made = sum(len(answer.token_ids) for answer in answers)
        self.seen.prompt_tokens, self.seen.completion_tokens = read, made
        self.seen.finish = [answer.finish_reason for answer in answers]
        self.seen.answers = [answer.text for answer in answers]
        return {"prompt_tokens": read, "completion_tokens": made, "total_tokens": read + made}


class Chat:
    """The responses to a chat."""

    def __init__(self, asked: ChatRequest, seen: Seen, style: Style | None) -> None:
        """Take the request, and how the model writes calls of tools."""
        self._asked = asked
        self._shape = Shape(asked.model, "chat.completion", prompts=1, seen=seen)
        self._style = style if asked.tools and asked.tool_choice != "none" else None

    def _reader(self) -> CallReader | None:
        if self._style is None:
            return None
        names = [tool.function.name for tool in self._asked.tools or ()]
        return CallReader(self._style, names, only_one=self._asked.parallel_tool_calls is False)

    def whole(self, answers: Sequence[Whole], fingerprint: str) -> dict[str, Any]:
        """Return the response."""
        choices = [self._choice(place, one) for place, one in enumerate(answers)]
        return {
            **self._shape.around(fingerprint),
            "choices": choices,
            "usage": self._shape.usage([one.answer for one in answers]),
        }

    def _choice(self, place: int, one: Whole) -> dict[str, Any]:
        text, calls = one.answer.text, []
        if reader := self._reader():
            text = reader.add(text)[0] + reader.rest()[0]
            calls = reader.calls
        message: dict[str, Any] = {"role": "assistant", "content": None if calls and not text else text}
        if calls:
            message["tool_calls"] = [call.told() for call in calls]
        return {
            "index": place,
            "message": message,
            "finish_reason": "tool_calls" if calls else one.answer.finish_reason,
            "logprobs": _chat_logprobs(one.logprobs) if self._asked.logprobs else None,
        }

    async def stream(self, events: AsyncIterator[Piece | Ended], fingerprint: str) -> AsyncIterator[bytes]:
        """Yield the response's events."""
        around = self._shape.around(fingerprint, "chat.completion.chunk")
        count = self._asked.n or 1
        readers = [self._reader() for _ in range(count)]
        answers: dict[int, Answer] = {}

        def chunk(place: int, delta: dict[str, Any], *, finish: str | None = None, logprobs: Logprobs = ()) -> bytes:
            choice: dict[str, Any] = {"index": place, "delta": delta, "finish_reason": finish}
            if logprobs:
                choice["logprobs"] = _chat_logprobs(logprobs)
            return event({**around, "choices": [choice]})

        for place in range(count):
            yield chunk(place, {"role": "assistant", "content": ""})
        async for came in events:
            reader = readers[came.place]
            text, calls = _read(reader, came)
            logprobs = came.logprobs if isinstance(came, Piece) else ()
            if text or logprobs:
                yield chunk(came.place, {"content": text}, logprobs=logprobs)
            for call in calls:
                yield chunk(came.place, {"tool_calls": [call]})
            if isinstance(came, Ended):
                answers[came.place] = came.answer
                called = reader is not None and reader.calls
                yield chunk(came.place, {}, finish="tool_calls" if called else came.answer.finish_reason)
        usage = self._shape.usage([answers[place] for place in range(count)])
        if self._asked.stream_options and self._asked.stream_options.include_usage:
            yield event({**around, "choices": [], "usage": usage})
        yield DONE


class Text:
    """The responses to raw prompts."""

    def __init__(self, asked: CompletionRequest, seen: Seen, prompts: int) -> None:
        """Take the request, and how many prompts it has."""
        self._asked = asked
        self._count = prompts * (asked.n or 1)
        self._shape = Shape(asked.model, "text_completion", prompts=prompts, seen=seen)

    def whole(self, answers: Sequence[Whole], fingerprint: str) -> dict[str, Any]:
        """Return the response."""
        choices = [
            self._choice(place, one.answer.text, finish=one.answer.finish_reason, logprobs=one.logprobs, offset=0)
            for place, one in enumerate(answers)
        ]
        return {
            **self._shape.around(fingerprint),
            "choices": choices,
            "usage": self._shape.usage([one.answer for one in answers]),
        }

    def _choice(self, place: int, text: str, *, finish: str | None, logprobs: Logprobs, offset: int) -> dict[str, Any]:
        told = _text_logprobs(logprobs, offset) if self._asked.logprobs is not None else None
        return {"index": place, "text": text, "finish_reason": finish, "logprobs": told}

    async def stream(self, events: AsyncIterator[Piece | Ended], fingerprint: str) -> AsyncIterator[bytes]:
        """Yield the response's events."""
        around = self._shape.around(fingerprint)
        answers: dict[int, Answer] = {}
        offsets = [0] * self._count
        async for came in events:
            if isinstance(came, Piece):
                place, text, logprobs = came
                choice = self._choice(place, text, finish=None, logprobs=logprobs, offset=offsets[place])
                offsets[place] += len(text)
                if text or logprobs:
                    yield event({**around, "choices": [choice]})
            else:
                answers[came.place] = came.answer
                end = self._choice(came.place, "", finish=came.answer.finish_reason, logprobs=(), offset=0)
                yield event({**around, "choices": [end]})
        usage = self._shape.usage([answers[place] for place in range(self._count)])
        if self._asked.stream_options and self._asked.stream_options.include_usage:
            yield event({**around, "choices": [], "usage": usage})
        yield DONE


def _read(reader: CallReader | None, came: Piece | Ended) -> tuple[str, list[dict[str, Any]]]:
    """Return the text and the calls of tools in what came of an answer."""
    if reader is None:
        return came.text if isinstance(came, Piece) else "", []
    known = len(reader.calls)
    text, calls = reader.add(came.text) if isinstance(came, Piece) else reader.rest()
    return text, [{"index": number, **call.told()} for number, call in enumerate(calls, known)]


def _chat_logprobs(logprobs: Logprobs) -> dict[str, Any]:
    content = [
        {"token": token, "logprob": value, "bytes": list(token.encode()), "top_logprobs": []}
        for token, value in logprobs
    ]
    return {"content": content}


def _text_logprobs(logprobs: Logprobs, offset: int) -> dict[str, Any]:
    tokens = [token for token, _ in logprobs]
    offsets = [offset + sum(len(token) for token in tokens[:place]) for place in range(len(tokens))]
    return {
        "tokens": tokens,
        "token_logprobs": [value for _, value in logprobs],
        "top_logprobs": None,
        "text_offset": offsets,
    }
