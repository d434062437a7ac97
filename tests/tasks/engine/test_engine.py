from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from tasks.config import Message
from tasks.engine import Engine, Request
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
