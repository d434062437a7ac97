"""OpenAI's own client makes every call of ours."""

from __future__ import annotations

import json
from collections.abc import Iterator

import openai
import pytest
from openai import OpenAI

from tests.serving import Served

NAME = "smollm2-135m-instruct"
PARIS = [{"role": "user", "content": "What is the capital of France?"}]


@pytest.fixture
def client(served: Served) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture
def tiny(tiny_served: Served) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{tiny_served.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_a_chat(client: OpenAI, served: Served) -> None:
    raw = client.chat.completions.with_raw_response.create(model=NAME, messages=PARIS, max_tokens=30)
    answer = raw.parse()
    assert "Paris" in (answer.choices[0].message.content or "")
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage and answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    digest = served.ready["digest"]
    assert answer.system_fingerprint == f"{NAME}/1-{digest[:12]}"
    assert raw.headers["x-vinoflow-version"] == f"{NAME}/1"
    assert raw.headers["x-vinoflow-digest"] == digest


def test_a_streamed_chat_says_the_same(client: OpenAI) -> None:
    whole = client.chat.completions.create(model=NAME, messages=PARIS, max_tokens=30)
    chunks = list(
        client.chat.completions.create(
            model=NAME, messages=PARIS, max_tokens=30, stream=True, stream_options={"include_usage": True}
        )
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage == whole.usage
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]][-1] == "stop"
    assert len(chunks) > 5


def test_raw_texts_and_tokens_are_continued(client: OpenAI) -> None:
    one = client.completions.create(model=NAME, prompt="The capital of France is", max_tokens=8, temperature=0)
    assert "Paris" in one.choices[0].text
    two = client.completions.create(
        model=NAME, prompt=["The capital of France is", "The capital of Italy is"], max_tokens=8, n=2, temperature=0
    )
    assert [choice.index for choice in two.choices] == [0, 1, 2, 3]
    assert "Paris" in two.choices[1].text and "Rome" in two.choices[2].text
    streamed = client.completions.create(
        model=NAME, prompt="The capital of France is", max_tokens=8, temperature=0, stream=True
    )
    assert "".join(chunk.choices[0].text for chunk in streamed) == one.choices[0].text
    by_tokens = client.completions.create(model=NAME, prompt=[504, 3575, 282, 4649, 314], max_tokens=4, temperature=0)
    assert "Paris" in by_tokens.choices[0].text
    assert by_tokens.usage and by_tokens.usage.prompt_tokens == 5


def test_models(client: OpenAI, served: Served) -> None:
    (model,) = client.models.list().data
    assert model.id == NAME
    assert model.model_extra and model.model_extra["alias"] == "champion"
    assert model.model_extra["digest"] == served.ready["digest"]
    assert client.models.retrieve(f"{NAME}/1").id == client.models.retrieve(f"{NAME}@champion").id == NAME


def test_an_answer_stops_before_a_stop_string(client: OpenAI) -> None:
    for stop in ("Paris", ["nothing of this", " Paris"]):
        answer = client.chat.completions.create(model=NAME, messages=PARIS, stop=stop, max_tokens=30)
        assert answer.choices[0].message.content.rstrip() == "The capital of France is"
        assert answer.choices[0].finish_reason == "stop"
        chunks = client.chat.completions.create(model=NAME, messages=PARIS, stop=stop, max_tokens=30, stream=True)
        assert "Paris" not in "".join(chunk.choices[0].delta.content or "" for chunk in chunks)


def test_max_tokens_by_both_names(client: OpenAI) -> None:
    for name in ("max_tokens", "max_completion_tokens"):
        answer = client.chat.completions.create(model=NAME, messages=PARIS, **{name: 3})
        assert answer.choices[0].finish_reason == "length"
        assert answer.usage and answer.usage.completion_tokens == 3


def test_sampling_repeats_with_its_seed_only(client: OpenAI) -> None:
    def ask(**settings: object) -> list[str]:
        answer = client.chat.completions.create(
            model=NAME, messages=[{"role": "user", "content": "Tell me a story."}], max_tokens=24, **settings
        )
        return [choice.message.content or "" for choice in answer.choices]

    hot = {"temperature": 1.5, "top_p": 0.95}
    assert ask(seed=7, **hot) == ask(seed=7, **hot)
    assert len({*ask(seed=1, **hot), *ask(seed=2, **hot), *ask(**hot)}) == 3
    several = ask(n=3, seed=7, **hot)
    assert len(set(several)) == 3
    assert ask(temperature=0) == ask(temperature=0) == ask()
    assert ask(temperature=1.0, extra_body={"top_k": 1}) == ask(temperature=0)


def test_penalties_change_the_answer(client: OpenAI) -> None:
    def ask(**settings: object) -> str:
        answer = client.completions.create(model=NAME, prompt="a a a a a a a a", max_tokens=24, **settings)
        return answer.choices[0].text

    plain = ask()
    assert plain.count("#") > 5  # it repeats itself
    assert ask(frequency_penalty=2.0) != plain
    assert ask(presence_penalty=2.0) != plain
    assert ask(extra_body={"repetition_penalty": 1.5}) != plain


def test_log_probabilities_of_the_chosen_tokens(client: OpenAI) -> None:
    answer = client.chat.completions.create(model=NAME, messages=PARIS, max_tokens=6, logprobs=True, temperature=0)
    told = answer.choices[0].logprobs.content
    assert "".join(one.token for one in told) == answer.choices[0].message.content
    assert all(-5 < one.logprob <= 0 for one in told)
    raw = client.completions.create(model=NAME, prompt="The capital of France is", max_tokens=4, logprobs=0)
    assert "".join(raw.choices[0].logprobs.tokens) == raw.choices[0].text
    assert raw.choices[0].logprobs.text_offset[0] == 0
    with pytest.raises(openai.BadRequestError, match="top_logprobs"):
        client.chat.completions.create(model=NAME, messages=PARIS, logprobs=True, top_logprobs=3)


def test_json_that_keeps_a_schema(client: OpenAI) -> None:
    schema = {
        "type": "object",
        "properties": {"city": {"enum": ["Paris", "Rome"]}, "people": {"type": "integer"}},
        "required": ["city", "people"],
        "additionalProperties": False,
    }
    answer = client.chat.completions.create(
        model=NAME,
        messages=[{"role": "user", "content": "Which city is the capital of France, and how many people live there?"}],
        response_format={"type": "json_schema", "json_schema": {"name": "city", "schema": schema}},
        max_tokens=60,
    )
    found = json.loads(answer.choices[0].message.content or "")
    assert found["city"] in {"Paris", "Rome"} and isinstance(found["people"], int)
    free = client.chat.completions.create(
        model=NAME,
        messages=[{"role": "user", "content": "A person's name and age, as JSON."}],
        response_format={"type": "json_object"},
        max_tokens=200,
    )
    if free.choices[0].finish_reason == "stop":
        assert isinstance(json.loads(free.choices[0].message.content or ""), dict)


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"type": "nonsense"}, "Unsupported type"),
        ({"type": "string", "pattern": "(a"}, "parenthesis"),
        ({"type": "object", "properties": {"a": {"not": {"type": "string"}}}}, "schema.properties.a has 'not'"),
        ({"$ref": "https://example.org/schema"}, "another document"),
    ],
)
def test_a_schema_that_cannot_be_kept_is_refused_and_the_engine_goes_on(
    client: OpenAI, schema: dict[str, object], words: str
) -> None:
    with pytest.raises(openai.BadRequestError, match=words.replace("(", r"\(")):
        client.chat.completions.create(
            model=NAME,
            messages=PARIS,
            response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": schema}},
        )
    assert client.chat.completions.create(model=NAME, messages=PARIS, max_tokens=2)


def test_errors_are_of_openais_shape(client: OpenAI) -> None:
    def refused(kind: type[openai.APIStatusError], **request: object) -> openai.APIStatusError:
        with pytest.raises(kind) as caught:
            client.chat.completions.create(**{"model": NAME, "messages": PARIS, **request})
        assert caught.value.body
        return caught.value

    assert "model" in str(refused(openai.NotFoundError, model="gpt-4"))
    assert refused(openai.BadRequestError, messages=[]).param == "messages"
    assert refused(openai.BadRequestError, max_tokens=0).param == "max_tokens"
    assert refused(openai.BadRequestError, temperature=3).param == "temperature"
    assert refused(openai.BadRequestError, logit_bias={"1": 2}).code == "unsupported_parameter"
    assert refused(openai.BadRequestError, messages=[{"role": "user", "content": "x", "name": "y"}]).param == (
        "messages[0].name"
    )
    long = refused(openai.BadRequestError, messages=[{"role": "user", "content": "word " * 9000}])
    assert long.code == "context_length_exceeded" and "8192" in str(long)
    much = refused(openai.BadRequestError, max_tokens=9000)
    assert much.code == "context_length_exceeded" and "ask for at most" in str(much)
    image = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}]
    assert refused(openai.BadRequestError, messages=image)
    tool = {"type": "function", "function": {"name": "f"}}
    assert "chat template" in str(refused(openai.BadRequestError, tools=[tool]))


def test_parts_of_text_and_a_developer_are_understood(client: OpenAI) -> None:
    answer = client.chat.completions.create(
        model=NAME,
        messages=[
            {"role": "developer", "content": "You answer briefly."},
            {
                "role": "user",
                "content": [{"type": "text", "text": "What is the capital "}, {"type": "text", "text": "of France?"}],
            },
        ],
        max_tokens=30,
    )
    assert "Paris" in (answer.choices[0].message.content or "")
