"""A client's request -> what the engine is asked."""

from __future__ import annotations

import json
import secrets
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from tasks.engine import Grammar, Request
from tasks.serving.problems import ApiError
from tasks.serving.requests import (
    AsJsonObject,
    AsJsonSchema,
    AssistantMessage,
    ChatRequest,
    CompletionRequest,
    Content,
    Message,
    Sampling,
    ToolMessage,
)
from tasks.serving.tools import Style, forced, style_of

_COLDEST = 1e-4  # below, numbers divided by the temperature leave the range of a float32: noise in place of an answer
_ENDLESS = 1 << 30  # tokens: as many as the context holds
_JSON_OBJECT = Grammar(schema_text='{"type": "object"}')


class Habits(NamedTuple):
    """What a model does of itself."""

    style: Style | None  # how its chat template writes calls of tools; None: it has none
    samples: bool  # where a request does not say


def habits_of(folder: Path) -> Habits:
    """Return what the files of a model say of its habits."""
    return Habits(style_of(_template(folder)), bool(_json(folder / "generation_config.json").get("do_sample")))


def _template(folder: Path) -> str:
    path = folder / "chat_template.jinja"
    if path.is_file():
        return path.read_text(encoding="utf-8")
    found = _json(folder / "tokenizer_config.json").get("chat_template") or ""
    return found if isinstance(found, str) else json.dumps(found)


def _json(path: Path) -> dict[str, object]:
    return dict(json.loads(path.read_bytes())) if path.is_file() else {}


def of_chat(asked: ChatRequest, habits: Habits) -> list[Request]:
    """Return one request for each of the n answers to a chat.

    Raises:
        ApiError: The model cannot do what is asked; names the field.
    """
    style = habits.style
    tools = asked.tools if asked.tool_choice != "none" else None
    if tools and style is None:
        raise ApiError(400, "tools: the chat template of this model carries none that can be read", param="tools")
    for place, message in enumerate(asked.messages):
        if style is None and (isinstance(message, ToolMessage) or getattr(message, "tool_calls", None)):
            raise ApiError(
                400, f"messages[{place}]: the chat template of this model carries no tools", param="messages"
            )
    grammar = forced(asked, style) if tools and style else _grammar(asked)
    messages = tuple(_message(message, place) for place, message in enumerate(asked.messages))
    limit = asked.max_completion_tokens or asked.max_tokens
    return [
        Request(
            messages=messages,
            tools=tuple(tool.model_dump(exclude_none=True) for tool in tools or ()),
            max_new_tokens=limit or _ENDLESS,
            strict=limit is not None,
            stop=_stops(asked),
            logprobs=bool(asked.logprobs),
            grammar=grammar,
            generation=generation,
        )
        for generation in _generations(asked, samples=habits.samples)
    ]


def of_completion(asked: CompletionRequest, habits: Habits) -> list[Request]:
    """Return one request for each prompt and each of its n continuations."""
    return [
        Request(
            prompt=prompt if isinstance(prompt, str) else "",
            token_ids=() if isinstance(prompt, str) else tuple(prompt),
            max_new_tokens=asked.max_tokens or _ENDLESS,
            strict=asked.max_tokens is not None,
            stop=_stops(asked),
            logprobs=asked.logprobs is not None,
            generation=generation,
        )
        for prompt in _prompts(asked)
        for generation in _generations(asked, samples=habits.samples)
    ]


def _prompts(asked: CompletionRequest) -> list[Any]:
    prompt = asked.prompt
    return [prompt] if isinstance(prompt, str) or isinstance(prompt[0], int) else list(prompt)


def _stops(asked: Sampling) -> tuple[str, ...]:
    return (asked.stop,) if isinstance(asked.stop, str) else tuple(asked.stop or ())


def _generations(asked: Sampling, *, samples: bool) -> list[dict[str, float | int | bool]]:
    """Return the generation settings of each of n answers: they differ by their seeds."""
    named = ("temperature", "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty")
    given = {name: value for name in named if (value := getattr(asked, name)) is not None}
    chosen = {"temperature", "top_p", "top_k", "min_p"} & given.keys()
    given["do_sample"] = given["temperature"] >= _COLDEST if "temperature" in given else bool(chosen) or samples
    if not given["do_sample"]:
        given = {name: value for name, value in given.items() if name not in chosen}
    first = asked.seed if asked.seed is not None else secrets.randbits(63)
    return [{**given, "rng_seed": (first + choice) % (1 << 63)} for choice in range(asked.n or 1)]


def _grammar(asked: ChatRequest) -> Grammar | None:
    match asked.response_format:
        case AsJsonObject():
            return _JSON_OBJECT
        case AsJsonSchema(json_schema=named):
            if named.schema_ is None:
                return _JSON_OBJECT
            return Grammar(schema_text=json.dumps(named.schema_))
    return None


def _message(message: Message, place: int) -> dict[str, Any]:
    """Return a message as chat templates take it.

    Raises:
        ApiError: The arguments of a call are no JSON object.
    """
    role = "system" if message.role == "developer" else message.role
    told: dict[str, Any] = {"role": role, "content": _text(message.content)}
    if isinstance(message, ToolMessage):
        told["tool_call_id"] = message.tool_call_id
    if isinstance(message, AssistantMessage) and message.tool_calls:
        told["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.function.name, "arguments": _arguments(call.function.arguments, place)},
            }
            for call in message.tool_calls
        ]
    return told


def _arguments(text: str, place: int) -> dict[str, Any]:
    """Return a call's arguments as an object, as chat templates take them."""
    try:
        found = orjson.loads(text or "{}")
        orjson.dumps(found)  # which takes less depth than it reads
    except (ValueError, TypeError):
        found = None
    if not isinstance(found, dict):
        where = f"messages[{place}].tool_calls"
        raise ApiError(400, f"{where}: the arguments {text[:80]!r} are not the JSON of an object", param=where)
    return found


def _text(content: Content | None) -> str:
    if content is None:
        return ""
    return content if isinstance(content, str) else "".join(part.text for part in content)
