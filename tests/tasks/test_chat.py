from __future__ import annotations

import json
from collections.abc import Sequence

import httpx
import pytest

from tasks.chat import Conversation, OnText, Reply, Served, Server, Settings, server
from tasks.config import Message
from tasks.errors import EngineError


class Echo:
    """Repeats the last question; ends in the middle where it is told to."""

    def __init__(self) -> None:
        self.asked: list[list[tuple[str, str]]] = []
        self.seeds: list[int] = []
        self.fails: BaseException | None = None
        self.after = ""

    def served(self) -> Served:
        return Served(reference="echo/1")

    def answer(self, messages: Sequence[Message], settings: Settings, on_text: OnText) -> Reply:
        self.asked.append([(message.role, message.content) for message in messages])
        self.seeds.append(settings.seed)
        if self.fails:
            if self.after:
                on_text(self.after)
            raise self.fails
        text = f"{messages[-1].content}!"
        on_text(text)
        return Reply(
            text=text,
            served=self.served(),
            prompt_tokens=1,
            tokens=1,
            finish_reason="stop",
            ttft_ms=1,
            tokens_per_second=None,
        )


def said(talk: Conversation) -> list[str]:
    return [turn.content for turn in talk.turns]


def test_a_conversation_goes_on_and_begins_anew() -> None:
    echo = Echo()
    talk = Conversation(echo, settings=Settings(seed=7), system="Be brief")
    heard: list[str] = []
    talk.ask("a", heard.append)
    talk.ask("b", heard.append)
    assert heard == ["a!", "b!"]
    assert echo.asked[1] == [("system", "Be brief"), ("user", "a"), ("assistant", "a!"), ("user", "b")]
    assert echo.seeds == [7, 8]
    talk.system = ""
    talk.reset()
    talk.ask("c", heard.append)
    assert echo.asked[2] == [("user", "c")]


def test_retry_asks_the_last_question_again() -> None:
    echo = Echo()
    talk = Conversation(echo, settings=Settings())
    assert talk.retry(lambda _: None) is None
    talk.ask("a", lambda _: None)
    talk.ask("b", lambda _: None)
    assert talk.retry(lambda _: None) is not None
    assert echo.asked[2] == echo.asked[1]
    assert said(talk) == ["a", "a!", "b", "b!"]
    echo.fails = EngineError("gone")
    with pytest.raises(EngineError):
        talk.retry(lambda _: None)
    assert said(talk) == ["a", "a!", "b", "b!"], "the answer that there was stays"
    with pytest.raises(EngineError):
        talk.ask("c", lambda _: None)
    assert said(talk) == ["a", "a!", "b", "b!"]
    echo.fails = None
    talk.retry(lambda _: None)
    assert said(talk)[-2:] == ["c", "c!"], "the question that was not answered is asked again"


def test_what_was_said_before_a_stop_stays() -> None:
    echo = Echo()
    talk = Conversation(echo, settings=Settings())
    echo.fails = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        talk.ask("a", lambda _: None)
    assert said(talk) == [], "two questions in a row are no conversation"
    echo.after = "Well, a"
    with pytest.raises(KeyboardInterrupt):
        talk.retry(lambda _: None)
    assert said(talk) == ["a", "Well, a"]
    echo.after = "No, "
    with pytest.raises(KeyboardInterrupt):
        talk.retry(lambda _: None)
    assert said(talk) == ["a", "No, "]


MODELS = {"object": "list", "data": [{"id": "other", "object": "model", "created": 0, "owned_by": "somebody"}]}
PIECE = {"choices": [{"index": 0, "delta": {"role": "assistant", "content": "Hi"}, "finish_reason": None}]}
END = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}


def told_by(answer: httpx.Response) -> Conversation:
    """A conversation with a server of another make, which answers so: what ours cannot be made to do."""

    def handle(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, json=MODELS) if request.url.path == "/v1/models" else answer

    client = httpx.Client(base_url="http://other", transport=httpx.MockTransport(handle))
    return Conversation(Server(client, "http://other"), settings=Settings())


def events(*chunks: object) -> httpx.Response:
    return httpx.Response(200, text="".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks))


def test_a_server_of_another_make_tells_less() -> None:
    talk = told_by(events(PIECE, END))
    reply = talk.ask("Hello", lambda _: None)
    assert (reply.text, reply.finish_reason, reply.tokens, reply.served.reference) == ("Hi", "stop", None, "other")


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (events(PIECE), "stopped in the middle"),
        (events(PIECE, {"error": {"message": "the engine died", "type": "server_error"}}), "the engine died"),
        (httpx.Response(429, headers={"retry-after": "3"}, json={"error": {"message": "full"}}), "full; try again in"),
        (httpx.Response(502, text="<html>Bad gateway</html>"), "HTTP status 502"),
        (httpx.Response(200, text="data: [1, 2]\n\n"), "does not speak OpenAI's API"),
        (httpx.Response(200, text="data: {\n\n"), "does not speak OpenAI's API"),
    ],
)  # fmt: skip
def test_what_goes_wrong_is_told_in_words(answer: httpx.Response, words: str) -> None:
    talk = told_by(answer)
    with pytest.raises(EngineError, match=words):
        talk.ask("Hello", lambda _: None)
    assert talk.turns == []


def test_not_a_server_of_models() -> None:
    with pytest.raises(EngineError, match="serves no model"):
        Server(
            httpx.Client(
                base_url="http://other", transport=httpx.MockTransport(lambda _: httpx.Response(200, json={"data": []}))
            ),
            "http://other",
        )
    with pytest.raises(EngineError, match="does not answer"), server("http://127.0.0.1:1"):
        pass
