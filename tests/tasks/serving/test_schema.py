"""The OpenAPI document is exact: requests that it allows and forbids, and responses, by schemathesis."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
from jsonschema import Draft202012Validator
from schemathesis.specs.openapi.definitions import OPENAPI_31

from tests.serving import Served

CASES = 2000
SEED = 20261122
# left out: what a document cannot say (a prompt fits the context, a template carries tools) refuses requests that it
# allows (positive_data_acceptance), and this server asks for no key (ignored_auth)
CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
    "response_headers_conformance",
    "negative_data_rejection",
    "missing_required_header",
    "unsupported_method",
    "allow_header_conformance",
)
PARIS = {"model": "tiny", "messages": [{"role": "user", "content": "What is the capital of France?"}], "max_tokens": 8}
Document = dict[str, Any]


@pytest.fixture(scope="module")
def document(tiny_served: Served) -> Document:
    return httpx.get(f"{tiny_served.url}/openapi.json", timeout=30).raise_for_status().json()


def test_the_document_is_valid_openapi(document: Document) -> None:
    assert document["openapi"].startswith("3.1")
    Draft202012Validator(OPENAPI_31).validate(document)
    for schema in document["components"]["schemas"].values():
        Draft202012Validator.check_schema(schema)
    known = {f"#/components/schemas/{name}" for name in document["components"]["schemas"]}
    assert set(_references(document)) == known  # none is missing, none is left over


def _references(part: object) -> list[str]:
    inner = part.values() if isinstance(part, dict) else part if isinstance(part, list) else ()
    own = [part["$ref"]] if isinstance(part, dict) and isinstance(part.get("$ref"), str) else []
    return [*own, *(found for one in inner for found in _references(one))]


def test_no_fault_and_no_undocumented_answer_in_2000_cases(
    tiny_served: Served, document: Document, tmp_path: Path
) -> None:
    """The document as a client would use it: the name that is served, answers of a few tokens, and time for them."""
    for path in ("/v1/chat/completions", "/v1/completions"):
        document["paths"][path]["post"]["parameters"] = []  # a header: the string "8" is taken for what is no number
    for name in ("ChatRequest", "CompletionRequest"):
        properties = document["components"]["schemas"][name]["properties"]
        properties["model"] = {"enum": ["tiny"]}
        for limited in {"max_tokens", "max_completion_tokens"} & properties.keys():
            properties[limited] = {"type": "integer", "minimum": 1, "maximum": 8}
        properties["n"] = {"type": "integer", "minimum": 1, "maximum": 2}
    (tmp_path / "openapi.json").write_text(json.dumps(document))
    report = tmp_path / "report.json"
    command = [
        *(sys.executable, "-m", "schemathesis.cli", "run", "openapi.json", "--url", tiny_served.url, "--no-color"),
        *("-H", "x-vinoflow-within-s: 600"),
        *("--phases", "coverage,fuzzing", "--checks", ",".join(CHECKS), "--max-examples", "600"),
        *("--workers", "1"),  # Python 3.11's ast, which Hypothesis reads lambdas with, fails in two threads at once
        *("--seed", str(SEED), "--no-shrink", "--generation-database", "none", "--continue-on-failure"),
        *("--report", "json", "--report-json-path", str(report)),
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600, check=False)
    told = done.stdout[-8000:] + done.stderr[-2000:]
    assert done.returncode == 0, told
    found = json.loads(report.read_text())
    assert found["test_cases"]["generated"] >= CASES and not found["test_cases"]["errored"], told
    for path in ("/v1/chat/completions", "/v1/completions"):
        rates = found["valid_rates"][f"POST {path}"]["fuzzing"]
        assert rates["accepted"] > 100, f"{path} was hardly answered: {rates}"


@pytest.mark.parametrize(
    ("path", "asked", "kind"),
    [
        ("chat/completions", {**PARIS, "logprobs": True, "n": 2}, "ChatCompletionChunk"),
        ("chat/completions", {**PARIS, "response_format": {"type": "json_object"}}, "ChatCompletionChunk"),
        (
            "completions",
            {"model": "tiny", "prompt": ["Paris", "Rome"], "max_tokens": 8, "logprobs": 0},
            "TextCompletion",
        ),
        ("completions", {"model": "tiny", "prompt": [5, 7], "n": 2, "temperature": 1.5}, "TextCompletion"),
    ],
)
def test_each_chunk_of_a_stream_keeps_its_schema(
    tiny_served: Served, document: Document, path: str, asked: Document, kind: str
) -> None:
    schema = Draft202012Validator({**document, "$ref": f"#/components/schemas/{kind}"})
    asked = {**asked, "stream": True, "stream_options": {"include_usage": True}}
    answer = httpx.post(f"{tiny_served.url}/v1/{path}", json=asked, timeout=60).raise_for_status()
    assert answer.headers["content-type"].partition(";")[0] == "text/event-stream"
    *chunks, end, rest = answer.text.split("\n\n")
    assert (end, rest) == ("data: [DONE]", "")
    for chunk in chunks:
        schema.validate(json.loads(chunk.removeprefix("data: ")))
    assert len(chunks) > 3
    assert json.loads(chunks[-1].removeprefix("data: "))["usage"]["completion_tokens"] > 0
