"""Tool calls: how they are read out of an answer, and asked of a model whose template carries them."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai import OpenAI

from tasks.config import Export, LocalSource
from tasks.download import download
from tasks.engine import Engine, Request
from tasks.export import export
from tasks.records import ExportedModel
from tasks.serving.tools import CallReader, Style, style_of
from tests import small
from tests.serving import EXACT, give, home_of, register_version, serving
from tests.tiny import TEMPLATE, make_tiny

HERMES = """{% if tools %}<|system|>Tools:{% for tool in tools %} {{ tool | tojson }}{% endfor %}
Call one as <tool_call>{"name": ..., "arguments": ...}</tool_call><|end|>{% endif %}
{%- for message in messages %}<|{{ message.role }}|>{{ message.content }}
{%- if message.tool_calls %}{% for call in message.tool_calls %}<tool_call>{{ call.function | tojson }}</tool_call>
{%- endfor %}{% endif %}<|end|>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"""
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Paris", "Rome"]}, "days": {"enum": [1, 2, 3]}},
            "required": ["city", "days"],
            "additionalProperties": False,
        },
    },
}
CLOCK = {"type": "function", "function": {"name": "clock", "parameters": {"type": "object", "properties": {}}}}
CALL = '{"name": "weather", "arguments": {"city": "Paris"}}'


def read(text: str, cuts: list[int], style: Style, *, only_one: bool = False) -> tuple[str, list[tuple[str, str]]]:
    reader, said = CallReader(style, ["weather", "clock"], only_one=only_one), ""
    places = sorted({0, *(cut % (len(text) + 1) for cut in cuts), len(text)})
    for start, end in itertools.pairwise(places):
        said += reader.add(text[start:end])[0]
    said += reader.rest()[0]
    return said, [(call.name, call.arguments) for call in reader.calls]


@given(cuts=st.lists(st.integers(0, 400), max_size=30))
@pytest.mark.parametrize(
    ("text", "said", "calls"),
    [
        ("Plain words, and a < b.", "Plain words, and a < b.", 0),
        (f"Let me see. <tool_call>\n{CALL}\n</tool_call>", "Let me see. ", 1),
        (f"<tool_call>{CALL}</tool_call>\n<tool_call>{CALL}</tool_call>", "", 2),
        (f"<tool_call>{CALL}</tool_call>\nThat was it.", "That was it.", 1),
        ("<tool_call>not JSON</tool_call>", "<tool_call>not JSON</tool_call>", 0),
        ('<tool_call>{"name": "unknown"}</tool_call>', '<tool_call>{"name": "unknown"}</tool_call>', 0),
        (f"<tool_call>{CALL[:20]}", f"<tool_call>{CALL[:20]}", 0),
        ("<tool_ca", "<tool_ca", 0),
    ],
)
def test_tagged_calls_are_read_however_the_text_is_cut(text: str, said: str, calls: int, cuts: list[int]) -> None:
    assert read(text, cuts, "tagged") == (said, [("weather", '{"city": "Paris"}')] * calls)


@given(cuts=st.lists(st.integers(0, 400), max_size=30))
@pytest.mark.parametrize(
    ("text", "said", "calls"),
    [
        ("Plain words.", "Plain words.", 0),
        (CALL, "", 1),
        (f" [{CALL}, {CALL}]", "", 2),
        (CALL.replace("arguments", "parameters"), "", 1),
        ('{"name": "unknown"}', '{"name": "unknown"}', 0),
        ('{"a": 1', '{"a": 1', 0),
        ("[" * 5000, "[" * 5000, 0),
        ("", "", 0),
    ],
)
def test_answers_that_are_the_json_of_calls_are_read(text: str, said: str, calls: int, cuts: list[int]) -> None:
    assert read(text, cuts, "json") == (said, [("weather", '{"city": "Paris"}')] * calls)


def test_only_the_first_call_where_they_may_not_be_parallel() -> None:
    _, calls = read(f"<tool_call>{CALL}</tool_call><tool_call>{CALL}</tool_call>", [3], "tagged", only_one=True)
    assert len(calls) == 1


def test_templates_tell_how_calls_are_written() -> None:
    assert style_of(TEMPLATE) is None
    assert style_of(HERMES) == "tagged"
    assert style_of('{% if tools %}{"name": n, "parameters": p}{% endif %}') == "json"
    assert style_of("{% if tools %}something else{% endif %}") is None


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ExportedModel:
    """A tiny model whose template carries tools."""
    folder = tmp_path_factory.mktemp("tools-model")
    with home_of(folder):
        source = make_tiny("llama", folder / "checkpoint", context=1024, template=HERMES)
        settings = Export(weight_format="int4", group_size=32, ratio=0.6, sym=True)
        return export(download(LocalSource(kind="local", path=source)), settings)


@pytest.fixture(scope="module")
def client(model: ExportedModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenAI]:
    """The same behind the server."""
    folder = tmp_path_factory.mktemp("tools")
    with home_of(folder):
        give(register_version(model, small.recipe("tools"), folder, ov_config=EXACT))
        with (
            serving("tools@champion", folder) as server,
            OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client,
        ):
            yield client


@pytest.mark.slow
def test_the_template_gets_tools_calls_and_their_results(model: ExportedModel) -> None:
    call = {"function": {"name": "weather", "arguments": {"days": 1}}}
    messages = (
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "Sunny", "tool_call_id": "1"},
    )
    with Engine(model.path, device="CPU") as engine:
        prompt = engine.answer(Request(messages=messages, tools=(WEATHER,), max_new_tokens=1)).prompt
    (described,) = re.findall(r"<\|system\|>Tools: (.*)Call one", prompt)
    assert json.loads(described) == WEATHER
    (written,) = re.findall(r"<\|assistant\|><tool_call>(.*)</tool_call><\|end\|>", prompt)
    assert json.loads(written) == call["function"]
    assert "<|tool|>Sunny<|end|>" in prompt


@pytest.mark.slow
def test_a_call_that_is_asked_for_keeps_its_schema(client: OpenAI) -> None:
    for choice in ("required", {"type": "function", "function": {"name": "weather"}}):
        answer = client.chat.completions.create(
            model="tools",
            messages=[{"role": "user", "content": "x"}],
            tools=[WEATHER],
            tool_choice=choice,
            max_tokens=500,  # JSON may have blanks anywhere, and the model's choices are noise
            seed=3,
            temperature=1,
        ).choices[0]
        assert answer.finish_reason == "tool_calls"
        (call,) = answer.message.tool_calls
        assert call.id.startswith("call_") and call.function.name == "weather"
        assert answer.message.content is None
        arguments = json.loads(call.function.arguments)
        assert arguments.keys() == {"city", "days"} and arguments["city"] in {"Paris", "Rome"}


@pytest.mark.slow
def test_a_streamed_call_comes_whole(client: OpenAI) -> None:
    chunks = list(
        client.chat.completions.create(
            model="tools",
            messages=[{"role": "user", "content": "x"}],
            tools=[WEATHER, CLOCK],
            tool_choice={"type": "function", "function": {"name": "weather"}},
            max_tokens=500,
            seed=3,
            temperature=1,
            stream=True,
        )
    )
    calls = [call for chunk in chunks for call in chunk.choices[0].delta.tool_calls or ()]
    assert [(call.index, call.function.name) for call in calls] == [(0, "weather")]
    assert json.loads(calls[0].function.arguments).keys() == {"city", "days"}
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == ""
    assert chunks[-1].choices[0].finish_reason == "tool_calls"


@pytest.mark.slow
def test_a_conversation_with_results_goes_on(client: OpenAI) -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Rome"}'}}
    answer = client.chat.completions.create(
        model="tools",
        messages=[
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "content": "Sunny", "tool_call_id": "call_1"},
        ],
        tools=[CLOCK],
        tool_choice="none",
        max_tokens=5,
    )
    assert answer.choices[0].finish_reason in {"stop", "length"}
    assert answer.choices[0].message.tool_calls is None
