from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest

from tasks.batch.asking import Asked, Asker, check
from tasks.batch.inputs import InputFile, input_kind, rows_of, scan
from tasks.batch.job import Job, Result
from tasks.config import Batch
from tasks.engine import GrammarCheck, Request, Whole
from tasks.errors import BatchError, RefusedError
from tasks.records import Answer, ModelVersion
from tasks.serving.translate import Habits

GREEDY = {"do_sample": False}


def asker(tmp_path: Path, path: Path, settings: Batch) -> tuple[Asker, list[tuple[InputFile, Any]]]:
    kind = input_kind([str(path)], settings)
    files, parts = scan([str(path)], kind, settings)
    job = Job(
        input=str(path),
        output=str(tmp_path / "out.jsonl"),
        reference="small@champion",
        version="small/3",
        digest="d" * 64,
        device="CPU",
        kind=kind,
        files=files,
        settings=settings,
        started_at=1.7e9,
    )
    version = ModelVersion(name="small", version=3, digest="d" * 64, run_id="")
    rows = [(files[part.file], row) for part in parts for row in rows_of(files[part.file], part, kind, settings)]
    return Asker(job, version, Habits(style=None, samples=True), GrammarCheck(tmp_path)), rows


def ask(tmp_path: Path, text: str, *, name: str = "in.jsonl", **settings: object) -> list[Asked | Result]:
    path = tmp_path / name
    path.write_text(text)
    reader, rows = asker(tmp_path, path, Batch.model_validate(settings))
    return [reader.ask(file, row) for file, row in rows]


def one(tmp_path: Path, row: dict[str, Any], **settings: object) -> Request:
    (found,) = ask(tmp_path, json.dumps(row) + "\n", **settings)
    assert isinstance(found, Asked), found
    (request,) = found.requests
    return request


def contents(request: Request) -> list[tuple[str, str]]:
    messages = [message if isinstance(message, dict) else message.model_dump() for message in request.messages]
    return [(message["role"], message["content"]) for message in messages]


def reason(tmp_path: Path, row: dict[str, Any], **settings: object) -> str:
    (found,) = ask(tmp_path, json.dumps(row) + "\n", **settings)
    assert isinstance(found, Result) and found.rejected and found.line == 1
    return found.rejected


def test_a_prompt_is_a_users_message_and_greedy(tmp_path: Path) -> None:
    request = one(tmp_path, {"prompt": "Hi"})
    assert contents(request) == [("user", "Hi")]
    assert (request.max_new_tokens, request.generation["do_sample"]) == (512, False)
    asked = one(tmp_path, {"prompt": "Hi", "system": "Be brief."}, system="Be kind.")
    assert contents(asked) == [("system", "Be brief."), ("user", "Hi")]
    assert contents(one(tmp_path, {"prompt": "Hi"}, system="Be kind."))[0] == ("system", "Be kind.")


def test_raw_prompts_and_chats(tmp_path: Path) -> None:
    raw = one(tmp_path, {"prompt": "Once upon"}, raw=True)
    assert (raw.prompt, raw.messages) == ("Once upon", ())
    chat = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    expected = [("user", "a"), ("assistant", "b"), ("user", "c")]
    assert contents(one(tmp_path, {"messages": chat})) == expected
    text = io.StringIO()
    csv.writer(text).writerows([["messages"], [json.dumps(chat)]])
    (found,) = ask(tmp_path, text.getvalue(), name="in.csv")
    assert isinstance(found, Asked) and contents(found.requests[0]) == expected


def test_settings_of_a_row_come_before_those_of_the_batch(tmp_path: Path) -> None:
    row = {"prompt": "Hi", "settings": {"temperature": 0.5, "stop": "."}, "limit": 1, "max_tokens": 7}
    request = one(tmp_path, row, settings={"temperature": 0.9, "top_p": 0.5, "max_tokens": 9})
    assert (request.max_new_tokens, request.stop) == (9, (".",))
    assert request.generation["temperature"] == 0.5 and request.generation["top_p"] == 0.5
    assert one(tmp_path, row, columns={"overrides": ["max_tokens"]}).max_new_tokens == 7
    assert one(tmp_path, {"prompt": "x", "settings": {"max_completion_tokens": 5}}).max_new_tokens == 5
    assert one(tmp_path, {"prompt": "x", "settings": {"temperature": None}}).generation["do_sample"] is True


def test_settings_in_cells_of_csv(tmp_path: Path) -> None:
    text = 'prompt,settings,temperature,seed\na,,0.5,3\nb,"{""max_tokens"": 4}",,\nc,not json,,\nd,,warm,\n'
    found = ask(tmp_path, text, name="in.csv", columns={"overrides": ["temperature", "seed"]})
    first, second = (row.requests[0] for row in found[:2] if isinstance(row, Asked))
    assert (first.generation["temperature"], first.generation["rng_seed"]) == (0.5, 3)
    assert (second.max_new_tokens, second.generation["do_sample"]) == (4, False)
    assert [row.rejected[:20] for row in found[2:] if isinstance(row, Result) and row.rejected] == [
        "settings is not JSON",
        "temperature: Input s",
    ]


def test_seeds_differ_by_row_and_are_the_same_another_time(tmp_path: Path) -> None:
    text = '{"prompt": "a"}\n{"prompt": "a"}\n'

    def seeds(**settings: object) -> list[object]:
        rows = ask(tmp_path, text, settings={"temperature": 1.0}, **settings)
        return [row.requests[0].generation["rng_seed"] for row in rows if isinstance(row, Asked)]

    assert seeds() == seeds() and len(set(seeds())) == 2
    assert seeds() != seeds(seed=1)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({}, "has neither of prompt and messages"),
        ({"prompt": "a", "messages": []}, "has both of prompt and messages"),
        ({"prompt": 7}, "prompt is no text"),
        ({"prompt": "a", "system": ["x"]}, "system is no text"),
        ({"prompt": None}, "has neither of prompt and messages"),
        ({"messages": []}, "messages: has 0 items, at least 1 must be given"),
        ({"messages": "Hello"}, "messages is not JSON"),
        ({"messages": [{"role": "robot", "content": "a"}]}, "messages[0]: Input tag 'robot'"),
        ({"messages": [{"role": "user"}]}, "messages[0].content is missing"),
        ({"prompt": "a", "settings": 7}, "settings is not an object"),
        ({"prompt": "a", "settings": {"n": 2}}, "setting n is not for a row"),
        ({"prompt": "a", "settings": {"stream": True}}, "setting stream is not for a row"),
        ({"prompt": "a", "settings": {"temprature": 1}}, "temprature is not supported"),
        ({"prompt": "a", "settings": {"max_tokens": 0}}, "max_tokens: Input should be greater than or equal to 1"),
        ({"prompt": "a", "id": [1]}, "id is neither a text nor a whole number"),
        ({"prompt": "a", "id": 1.5}, "id is neither a text nor a whole number"),
        ({"prompt": "a", "settings": {"tools": [{"type": "function", "function": {"name": "f"}}]}}, "tools: the chat"),
        (
            {"prompt": "a", "settings": {"response_format": {"type": "json_schema", "json_schema": {
                "name": "s", "schema": {"not": {}}}}}},
            "the JSON schema is not supported",
        ),
    ],
)  # fmt: skip
def test_rows_that_cannot_be_asked_are_told_in_words(tmp_path: Path, row: dict[str, Any], words: str) -> None:
    assert reason(tmp_path, row).startswith(words)


def test_settings_of_the_batch_are_looked_at_first() -> None:
    check(Batch(settings={"temperature": 1.0, "stop": ["a"], "max_tokens": 3}))
    check(Batch(settings={"top_p": 0.5}, raw=True))
    for settings, words in (
        ({"temperature": "warm"}, r"settings: temperature: Input should be a valid number"),
        ({"max_token": 1}, r"settings: max_token is not supported"),
        ({"n": 3}, r"setting n is not for a row"),
    ):
        with pytest.raises(BatchError, match=words):
            check(Batch(settings=settings))


def openai(url: str = "/v1/chat/completions", **body: object) -> dict[str, Any]:
    content = {"model": "gpt-x", "messages": [{"role": "user", "content": "Hi"}], **body}
    return {"custom_id": "r1", "method": "POST", "url": url, "body": content}


def test_rows_of_openai(tmp_path: Path) -> None:
    request = one(tmp_path, openai(max_tokens=5))
    assert (request.max_new_tokens, request.generation["do_sample"]) == (5, True)  # the model's own way
    row = openai("/v1/completions", prompt=["a", "b"], n=2)
    del row["body"]["messages"]
    (found,) = ask(tmp_path, json.dumps(row) + "\n")
    assert isinstance(found, Asked) and [request.prompt for request in found.requests] == ["a", "a", "b", "b"]
    for broken, words in (
        (openai() | {"custom_id": 7}, "custom_id is missing or no text"),
        (openai() | {"method": "GET"}, "method must be POST"),
        (openai("/v1/embeddings"), "url '/v1/embeddings' is not supported"),
        (openai() | {"body": []}, "body is missing or no object"),
        (openai(stream=True), "body.stream is not for a batch"),
        (openai(messages=[]), "messages: has 0 items"),
        (openai(logit_bias={}), "logit_bias is not supported"),
    ):
        assert reason(tmp_path, broken, format="openai").startswith(words)


def test_answers_to_rows_of_openai(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_text(json.dumps(openai(n=2, logprobs=True)) + "\n")
    reader, [(file, row)] = asker(tmp_path, path, Batch())
    asked = reader.ask(file, row)
    assert isinstance(asked, Asked) and len(asked.requests) == 2
    said = Answer(
        text="Yes", token_ids=(5,), finish_reason="stop", prompt_tokens=3, ttft_ms=1, tpot_ms=None, seconds=0.5
    )
    found = reader.answered(asked, [Whole(said, [("Yes", -0.5)])] * 2)
    body = found.body
    assert body and body["object"] == "chat.completion" and body["model"] == "small/3"
    assert body["system_fingerprint"] == f"small/3-{'d' * 12}"
    assert body["usage"] == {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
    assert [choice["index"] for choice in body["choices"]] == [0, 1]
    assert body["choices"][0]["logprobs"]["content"][0]["logprob"] == -0.5
    assert reader.answered(asked, [Whole(said, [("Yes", -0.5)])] * 2) == found  # ids and times among it
    failed = reader.answered(asked, [Whole(said, []), RefusedError("the prompt has 9 tokens, too many")])
    assert failed.error and failed.body and failed.body["error"]["code"] == "context_length_exceeded"
