"""What a client gets: OpenAI's responses, and ours about the server's health."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class Told(BaseModel):
    """Exactly these fields."""

    model_config = ConfigDict(extra="forbid")


class Usage(Told):
    """Numbers of tokens."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class TokenLogprob(Told):
    """A token with its log-probability, in nats."""

    token: str
    logprob: float
    bytes: list[int] | None
    top_logprobs: list[None] = Field(description="Empty: the engine tells the chosen token only.")


class ChatLogprobs(Told):
    """The log-probabilities of an answer's tokens."""

    content: list[TokenLogprob]


class FunctionCall(Told):
    """A function and its arguments, as JSON."""

    name: str
    arguments: str


class CalledTool(Told):
    """A call of a tool."""

    id: str
    type: Literal["function"]
    function: FunctionCall


class ChatMessage(Told):
    """What the model said."""

    role: Literal["assistant"]
    content: str | None
    tool_calls: list[CalledTool] | None = None


Finish = Literal["stop", "length", "tool_calls"]


class ChatChoice(Told):
    """One of n answers."""

    index: int
    message: ChatMessage
    finish_reason: Finish
    logprobs: ChatLogprobs | None


class ChatCompletion(Told):
    """The answer to a chat."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    system_fingerprint: str = Field(
        description="The version that answered: NAME/VERSION-DIGEST, the latter's first 12."
    )
    choices: list[ChatChoice]
    usage: Usage


class ToolDelta(Told):
    """A call of a tool in a stream; it comes whole."""

    index: int
    id: str
    type: Literal["function"]
    function: FunctionCall


class Delta(Told):
    """What a chunk adds to a message."""

    role: Literal["assistant"] | None = None
    content: str | None = None
    tool_calls: list[ToolDelta] | None = None


class ChunkChoice(Told):
    """What a chunk adds to one of n answers."""

    index: int
    delta: Delta
    finish_reason: Finish | None
    logprobs: ChatLogprobs | None = None


class ChatCompletionChunk(Told):
    """One event of a chat's stream."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChunkChoice]
    usage: Usage | None = None


class Logprobs(Told):
    """The log-probabilities of a continuation's tokens."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: None
    text_offset: list[int]


class Choice(Told):
    """One continuation, or what a chunk adds to it."""

    index: int
    text: str
    finish_reason: Literal["stop", "length"] | None
    logprobs: Logprobs | None


class TextCompletion(Told):
    """Continuations of prompts, or one event of their stream."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[Choice]
    usage: Usage | None = None


class Model(Told):
    """What is served."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: Literal["vinoflow"]
    version: int
    digest: str
    alias: str | None = Field(description="Which alias of the registry is followed.")
    device: str
    context: int = Field(description="Tokens of prompt and answer together.")


class ModelList(Told):
    """All that is served: one."""

    object: Literal["list"]
    data: list[Model]


class Problem(Told):
    """What went wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(Told):
    """An error in OpenAI's shape."""

    error: Problem


class Swap(Told):
    """What became of following the alias."""

    state: Literal["following", "fixed", "loading", "failed", "unreachable"]
    target: str | None = Field(description="The version that is being loaded, or that failed.")
    error: str | None
    attempts: int
    next_try_s: float | None = Field(description="Seconds until the next try.")


class Health(Told):
    """Whether requests are answered now, by what, and whether the alias is followed."""

    ready: bool
    reference: str
    version: str | None
    digest: str | None
    device: str | None
    engine: Literal["loading", "ready", "restarting", "stopped"]
    restarts: int
    running: int
    waiting: int
    swap: Swap


class Alive(Told):
    """The process answers."""

    alive: Literal[True]
