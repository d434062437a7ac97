"""What a client may ask: OpenAI's requests, less what the engine cannot do. What is not here is refused by name."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

MOST_CHOICES = 16
_MOST_STOPS = 16
_LONGEST_STOP = 500

_DEEPEST = 64


def _shallow(value: dict[str, Any]) -> dict[str, Any]:
    """Return it, unless it is nested so deep that nobody means it."""
    level: list[Any] = [value]
    for _ in range(_DEEPEST):
        level = [
            inner
            for one in level
            if isinstance(one, dict | list)
            for inner in (one.values() if isinstance(one, dict) else one)
        ]
        if not level:
            return value
    raise ValueError(f"is nested more than {_DEEPEST} levels deep")


Schema = Annotated[dict[str, Any], AfterValidator(_shallow)]
Text = Annotated[str, Field(max_length=10_000_000)]
StopString = Annotated[str, Field(min_length=1, max_length=_LONGEST_STOP)]
TokenId = Annotated[int, Field(ge=0, lt=1 << 31)]


class Asked(BaseModel):
    """Strict: no other fields, no "1" for 1, no infinities."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)


class TextPart(Asked):
    """A part of a message; text is the only kind."""

    type: Literal["text"]
    text: Text


Content = Text | list[TextPart]


class SystemMessage(Asked):
    """What the model is told about its part; `developer` is another name for it."""

    role: Literal["system", "developer"]
    content: Content


class UserMessage(Asked):
    """What a person says."""

    role: Literal["user"]
    content: Content


class CalledFunction(Asked):
    """A function and its arguments, as JSON."""

    name: str = Field(min_length=1)
    arguments: str


class ToolCall(Asked):
    """A call that the model made."""

    id: str
    type: Literal["function"]
    function: CalledFunction


class AssistantMessage(Asked):
    """What the model said."""

    role: Literal["assistant"]
    content: Content | None = None
    tool_calls: Annotated[list[ToolCall], Field(min_length=1)] | None = None


class ToolMessage(Asked):
    """What a called function returned."""

    role: Literal["tool"]
    content: Content
    tool_call_id: str


Message = Annotated[SystemMessage | UserMessage | AssistantMessage | ToolMessage, Field(discriminator="role")]


class Function(Asked):
    """A function that the model may call."""

    name: str = Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")
    description: str | None = None
    parameters: Schema | None = Field(None, description="A JSON schema of an object.")
    strict: bool | None = Field(None, description="Accepted: calls that are asked for keep the schema in any case.")


class Tool(Asked):
    """A tool; functions are the only kind."""

    type: Literal["function"]
    function: Function


class NamedFunction(Asked):
    """A function's name."""

    name: str


class NamedTool(Asked):
    """The tool that the model has to call."""

    type: Literal["function"]
    function: NamedFunction


class NamedSchema(Asked):
    """A JSON schema with a name."""

    name: str = Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")
    description: str | None = None
    schema_: Schema | None = Field(None, alias="schema")
    strict: bool | None = Field(None, description="Accepted: answers keep the schema in any case.")


class AsText(Asked):
    """Any text."""

    type: Literal["text"]


class AsJsonObject(Asked):
    """A JSON object."""

    type: Literal["json_object"]


class AsJsonSchema(Asked):
    """JSON that keeps a schema."""

    type: Literal["json_schema"]
    json_schema: NamedSchema


class StreamOptions(Asked):
    """What a stream tells beside the answer."""

    include_usage: bool | None = Field(None, description="A last chunk with the numbers of tokens.")


class Sampling(Asked):
    """What both kinds of requests have. What is not given is the model's own default."""

    model: str = Field(description="As GET /v1/models names it.")
    stream: bool | None = None
    stream_options: StreamOptions | None = Field(None, description="Only with stream: true.")
    stop: StopString | Annotated[list[StopString], Field(max_length=_MOST_STOPS)] | None = None
    max_tokens: Annotated[int, Field(ge=1, lt=1 << 31)] | None = Field(None, description="Default: what fits.")
    temperature: Annotated[float, Field(ge=0, le=2)] | None = Field(
        None, description="0, or below 0.0001: the likeliest token."
    )
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=1, lt=1 << 31)] | None = Field(None, description="Not OpenAI's.")
    min_p: Annotated[float, Field(ge=0, lt=1)] | None = Field(None, description="Not OpenAI's.")
    seed: Annotated[int, Field(ge=-(1 << 63), lt=1 << 63)] | None = None
    n: Annotated[int, Field(ge=1, le=MOST_CHOICES)] | None = Field(None, description="How many answers.")
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    repetition_penalty: Annotated[float, Field(ge=0.01, le=10)] | None = Field(None, description="Not OpenAI's.")
    user: Annotated[str, Field(max_length=1000)] | None = Field(None, description="Is kept in the request log.")

    @model_validator(mode="after")
    def _stream_options_need_a_stream(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options needs stream: true")
        return self


class ChatRequest(Sampling):
    """A chat, to which the model adds a message."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1, lt=1 << 31)] | None = Field(
        None, description="OpenAI's newer name for max_tokens."
    )
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=0)] | None = Field(
        None, description="The engine tells the log-probability of the chosen token only."
    )
    response_format: Annotated[AsText | AsJsonObject | AsJsonSchema, Field(discriminator="type")] | None = None
    tools: Annotated[list[Tool], Field(min_length=1, max_length=128)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = Field(None, description="false: only the first call is handed on.")

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> Self:
        if self.max_tokens and self.max_completion_tokens and self.max_tokens != self.max_completion_tokens:
            raise ValueError("max_tokens and max_completion_tokens differ: give one of them")
        if not self.tools and (self.parallel_tool_calls is not None or self.tool_choice not in {None, "none"}):
            raise ValueError("tool_choice and parallel_tool_calls need tools")
        names = [tool.function.name for tool in self.tools or ()]
        if len(names) != len(set(names)):
            raise ValueError("two tools have the same name")
        if isinstance(self.tool_choice, NamedTool) and self.tool_choice.function.name not in names:
            raise ValueError(f"tool_choice names {self.tool_choice.function.name!r}, which is not among tools")
        if self.tools and self.response_format and self.response_format.type != "text":
            raise ValueError("response_format and tools cannot be had together: leave one out")
        return self


class CompletionRequest(Sampling):
    """Raw texts, which the model continues."""

    prompt: (
        Text
        | Annotated[list[Text], Field(min_length=1, max_length=MOST_CHOICES)]
        | Annotated[list[TokenId], Field(min_length=1)]
        | Annotated[list[Annotated[list[TokenId], Field(min_length=1)]], Field(min_length=1, max_length=MOST_CHOICES)]
    ) = Field(description="A text, several, or their tokens.")
    logprobs: Annotated[int, Field(ge=0, le=0)] | None = Field(
        None, description="0: the log-probability of each chosen token; the engine tells no others."
    )
    echo: Literal[False] | None = Field(None, description="The engine does not repeat the prompt.")
    best_of: Literal[1] | None = Field(None, description="Ask for n answers instead.")
