"""A partner behind a server of OpenAI's API: ours, or of another make."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

import httpx
from pydantic import BaseModel, ValidationError

from tasks.chat.conversation import OnText, Reply, Served, Settings
from tasks.config import Message
from tasks.errors import EngineError

_CONNECT_S = 10
_SILENCE_S = 600  # a long prompt in a long queue says nothing for a while
_HERE = ("127.0.0.1", "localhost", "[::1]")


class Server:
    """A server of OpenAI's API. Ours tells with each answer which version gave it."""

    def __init__(self, client: httpx.Client, url: str) -> None:
        """Take a client whose base is the server's URL."""
        self._client = client
        self._url = url
        self._known = self.served()

    def served(self) -> Served:
        """Ask the server which version answers.

        Raises:
            EngineError: It does not answer, or serves nothing.
        """
        with self._in_words():
            response = self._client.get("/v1/models")
            _check(response)
            models = _Models.model_validate_json(response.content).data
        if not models:
            raise EngineError(f"{self._url} serves no model")
        model = models[0]
        self._model = model.id
        self._known = Served(
            reference=f"{model.id}/{model.version}" if model.version else model.id,
            digest=model.digest,
            device=model.device,
            context=model.context,
        )
        return self._known

    def answer(self, messages: Sequence[Message], settings: Settings, on_text: OnText) -> Reply:
        """Answer the last of the messages."""
        body = {
            "model": self._model,
            "messages": [message.model_dump() for message in messages],
            "temperature": settings.temperature,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if settings.max_new_tokens:
            body["max_completion_tokens"] = settings.max_new_tokens
        if settings.temperature:
            body["seed"] = settings.seed
        heard = _Heard(on_text)
        with self._in_words(), self._client.stream("POST", "/v1/chat/completions", json=body) as response:
            _check(response)
            served = self._named(response.headers)
            for line in response.iter_lines():
                if line.startswith("data:") and heard.take(line.removeprefix("data:").strip()):
                    break
        if not heard.finish_reason:
            raise EngineError(f"{self._url} stopped in the middle of an answer")
        return heard.reply(served)

    def _named(self, headers: httpx.Headers) -> Served:
        """Return the version that an answer's headers name; without: the one known."""
        reference = headers.get("x-vinoflow-version", self._known.reference)
        digest = headers.get("x-vinoflow-digest", self._known.digest)
        if (reference, digest) != (self._known.reference, self._known.digest):
            self._known = self._known.model_copy(update={"reference": reference, "digest": digest})
        return self._known

    @contextmanager
    def _in_words(self) -> Iterator[None]:
        try:
            yield
        except httpx.TimeoutException as error:
            raise EngineError(f"{self._url} said nothing in time") from error
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            told = str(error) or type(error).__name__
            raise EngineError(f"{self._url} does not answer: {told}; is `vinoflow serve` running there?") from error
        except ValidationError as error:
            raise EngineError(f"{self._url} does not speak OpenAI's API: {error.errors()[0]['msg']}") from error


@contextmanager
def server(url: str, *, api_key: str = "") -> Iterator[Server]:
    """Connect to a server, `http://127.0.0.1:8000` say.

    Raises:
        EngineError: It does not answer, serves nothing, or wants another key.
    """
    base = url.rstrip("/").removesuffix("/v1")
    try:
        parsed = httpx.URL(base)
    except httpx.InvalidURL as error:
        raise EngineError(f"{url} is not a URL: {error}") from error
    client = httpx.Client(
        base_url=parsed,
        headers={"Authorization": f"Bearer {api_key}"} if api_key else {},
        timeout=httpx.Timeout(_SILENCE_S, connect=_CONNECT_S),
        mounts={f"all://{host}": None for host in _HERE},  # a proxy of the environment does not know this machine
    )
    with client:
        yield Server(client, base)


class _Model(BaseModel):
    """What we read of a served model; a server that is not ours tells less."""

    id: str
    version: int | None = None
    digest: str = ""
    device: str = ""
    context: int | None = None


class _Models(BaseModel):
    data: tuple[_Model, ...]


class _Delta(BaseModel):
    content: str | None = None


class _Choice(BaseModel):
    delta: _Delta = _Delta()
    finish_reason: str | None = None


class _Usage(BaseModel):
    prompt_tokens: int
    completion_tokens: int


class _Told(BaseModel):
    message: str


class _Event(BaseModel):
    """What we read of an event of a stream."""

    choices: tuple[_Choice, ...] = ()
    usage: _Usage | None = None
    error: _Told | None = None


class _Heard:
    """An answer as it comes, event by event."""

    def __init__(self, on_text: OnText) -> None:
        self._on_text = on_text
        self._began = time.perf_counter()
        self._first = self._last = 0.0
        self._text: list[str] = []
        self._usage: _Usage | None = None
        self.finish_reason = ""

    def take(self, data: str) -> bool:
        """Take an event's data in; True: it was the last."""
        if data == "[DONE]":
            return True
        event = _Event.model_validate_json(data)
        if event.error:
            raise EngineError(event.error.message)
        self._usage = event.usage or self._usage
        for choice in event.choices:
            self.finish_reason = choice.finish_reason or self.finish_reason
            if choice.delta.content:
                self._last = time.perf_counter()
                self._first = self._first or self._last
                self._text.append(choice.delta.content)
                self._on_text(choice.delta.content)
        return False

    def reply(self, served: Served) -> Reply:
        tokens = self._usage.completion_tokens if self._usage else None
        took = self._last - self._first
        return Reply(
            text="".join(self._text),
            served=served,
            prompt_tokens=self._usage.prompt_tokens if self._usage else None,
            tokens=tokens,
            finish_reason=self.finish_reason,
            ttft_ms=(self._first - self._began) * 1000 if self._first else None,
            tokens_per_second=(tokens - 1) / took if tokens and tokens > 1 and took > 0 else None,
        )


def _check(response: httpx.Response) -> None:
    """Raise what a server's answer says when it is an error."""
    if response.is_success:
        return
    response.read()
    told = f"HTTP status {response.status_code}"
    with suppress(ValidationError):
        event = _Event.model_validate_json(response.content)
        told = event.error.message if event.error else told
    wait = response.headers.get("retry-after", "")
    if response.status_code == httpx.codes.UNAUTHORIZED:
        told = f"the server wants another key than VINOFLOW_API_KEY: {told}"
    raise EngineError(f"{told}; try again in {wait} s" if wait else told)
