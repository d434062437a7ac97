from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.config import Message
from tasks.engine import Engine, Request
from tasks.engine.client import start_message
from tasks.engine.text import Detokenizer, StopStrings, of_any_lengths, pieces
from tasks.engine.worker import EngineProcess
from tasks.errors import DeviceError, EngineError
from tasks.records import ExportedModel

pytestmark = pytest.mark.slow
EXACT = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}


@pytest.fixture(scope="module")
def engine(tiny_export: ExportedModel) -> Iterator[Engine]:
    with Engine(tiny_export.path, device="CPU", ov_config=EXACT) as loaded:
        yield loaded


def chat(text: str, tokens: int = 12) -> Request:
    return Request(messages=(Message(role="user", content=text),), max_new_tokens=tokens)


def test_a_chat_goes_through_the_template_and_text_streams(engine: Engine) -> None:
    pieces: list[str] = []
    completion = engine.answer(chat("Hello"), on_text=pieces.append)
    assert completion.prompt == "<|user|>Hello<|end|><|assistant|>"
    assert "".join(pieces) == completion.answer.text
    assert 1 <= len(completion.answer.token_ids) <= 12
    assert completion.answer.prompt_tokens > 3
    assert 0 < completion.answer.ttft_ms <= completion.answer.seconds * 1000


def test_a_raw_prompt_goes_as_it_is(engine: Engine) -> None:
    completion = engine.answer(
        Request(prompt="<|user|>Hello<|end|><|assistant|>", add_special_tokens=False, max_new_tokens=12)
    )
    assert completion.answer.token_ids == engine.answer(chat("Hello")).answer.token_ids


def test_many_at_once_are_the_same_as_one_by_one_in_exact_mode(engine: Engine) -> None:
    requests = [chat(f"Question number {number}") for number in range(20)]
    together = dict(engine.answers(requests))
    assert sorted(together) == list(range(20))
    for index in (0, 7, 19):
        assert together[index].answer.token_ids == engine.answer(requests[index]).answer.token_ids


def test_bad_requests_are_refused_in_words_and_the_engine_goes_on(engine: Engine) -> None:
    with pytest.raises(EngineError, match="prompt is empty"):
        engine.answer(Request(prompt=""))
    with pytest.raises(EngineError, match=r"has \d+ tokens, the model's context holds 256"):
        engine.answer(chat("many words " * 300))
    assert engine.answer(chat("Hello")).answer.token_ids


def test_an_answer_never_leaves_the_context(engine: Engine) -> None:
    answer = engine.answer(chat("a b c d e " * 20, tokens=4000)).answer
    assert answer.prompt_tokens + len(answer.token_ids) <= 256


def test_a_call_that_is_given_up_does_not_disturb_the_next(engine: Engine) -> None:
    answers = engine.answers([chat(f"Question {number}", tokens=100) for number in range(8)])
    next(answers)
    answers.close()
    assert engine.answer(chat("Hello")).prompt == "<|user|>Hello<|end|><|assistant|>"


def test_a_killed_engine_is_an_error_with_its_signal(tiny_export: ExportedModel) -> None:
    with Engine(tiny_export.path, device="CPU") as engine:
        os.kill(engine._child.pid, signal.SIGKILL)
        with pytest.raises(EngineError, match="SIGKILL"):
            engine.answer(chat("Hello"))


def test_a_device_that_refuses_is_a_device_error(tiny_export: ExportedModel) -> None:
    with pytest.raises(DeviceError, match=r"GPU\.5"):
        Engine(tiny_export.path, device="GPU.5")


def test_a_request_that_the_cache_cannot_hold_is_refused_not_cut_off(tiny_export: ExportedModel) -> None:
    import openvino_genai

    told: list[dict[str, object]] = []
    inbox = [chat("many words " * 5, tokens=100).message(0, told=False)]

    class Parent:
        def send(self, **message: object) -> None:
            told.append(message)

        def receive(self, *, timeout_s: float | None) -> dict[str, object] | None:
            if inbox:
                return inbox.pop()
            if timeout_s is None:  # nothing is under way
                return None
            raise TimeoutError

    process = EngineProcess(Parent(), start_message(tiny_export.path, device="CPU", ov_config={}))
    scheduler = openvino_genai.SchedulerConfig()
    scheduler.num_kv_blocks = 2  # of 32 tokens each
    process.pipeline = openvino_genai.ContinuousBatchingPipeline(str(tiny_export.path), scheduler, "CPU", {})
    process.serve()
    assert told[-1] == {
        "event": "failed",
        "id": 0,
        "refused": True,
        "error": "the key-value cache has no room for it: ask for fewer tokens",
    }


def test_stop_strings_end_an_answer_however_it_comes(engine: Engine) -> None:
    text = engine.answer(chat("Hello", tokens=40)).answer.text
    stop = text[len(text) // 2 : len(text) // 2 + 3]
    pieces: list[str] = []
    cut = engine.answer(chat("Hello", tokens=40).model_copy(update={"stop": (stop,)}), on_text=pieces.append)
    assert cut.answer.text == text[: text.index(stop)] == "".join(pieces)
    assert cut.answer.finish_reason == "stop"


@given(
    text=st.text("ab🎉", max_size=12),
    stops=st.lists(st.text("ab🎉", min_size=1, max_size=4), max_size=3),
    data=st.data(),
)
def test_what_may_become_a_stop_string_is_held_back(text: str, stops: list[str], data: st.DataObject) -> None:
    reader, said, place = StopStrings(stops), "", 0
    while place < len(text) and not reader.found:
        end = data.draw(st.integers(place + 1, len(text)))
        said, place = said + reader.add(text[place:end]), end
    said += reader.rest()
    assert text.startswith(said)
    assert not any(stop in said for stop in stops)
    assert said == text or any(text[len(said) :].startswith(stop) for stop in stops)


@pytest.mark.parametrize("padding", ["", "~"])
@given(texts=st.lists(st.text("a\u00e9\u4e2d\U0001f389", max_size=8), max_size=4), chance=st.randoms())
def test_pieces_of_answers_that_come_together(padding: str, texts: list[str], chance: Random) -> None:
    """A token is a byte here, and a decoder may fill short rows up with something that shows."""

    def decode(rows: list[list[int]]) -> list[str]:
        longest = max(map(len, rows))
        return [bytes(row).decode(errors="replace") + padding * (longest - len(row)) for row in rows]

    safe = of_any_lengths(decode, [97])
    answers, left = [Detokenizer() for _ in texts], [list(text.encode()) for text in texts]
    said = [""] * len(texts)
    while any(left):
        for answer, tokens in zip(answers, left, strict=True):
            count = chance.randint(0, 3)
            answer.add(tokens[:count])
            del tokens[:count]
        for place, piece in enumerate(pieces(answers, safe)):
            assert "\ufffd" not in piece and "~" not in piece
            said[place] += piece
    assert [text + answer.rest() for text, answer in zip(said, answers, strict=True)] == texts
