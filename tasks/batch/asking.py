"""A row -> what the engine is asked, or why it cannot be."""

from __future__ import annotations

import asyncio
import hashlib
import json
from pathlib import PurePath
from typing import Any, NamedTuple

from pydantic import ValidationError

from tasks.batch.inputs import InputFile
from tasks.batch.job import Job, Result, added
from tasks.batch.rows import Row
from tasks.config import Batch
from tasks.engine import GrammarCheck, Request, Whole
from tasks.errors import BatchError, EngineError, RefusedError
from tasks.manifest import canonical_json
from tasks.records import ModelVersion
from tasks.serving import translate
from tasks.serving.observe import Seen
from tasks.serving.problems import ApiError, field_of, of_engine, of_validation
from tasks.serving.requests import ChatRequest, CompletionRequest
from tasks.serving.respond import Chat, Text
from tasks.serving.translate import Habits

DEFAULTS = {"max_tokens": 512, "temperature": 0.0}
# what a row may not set: it has one prompt, one version and one answer, which comes whole
_NOT_A_ROWS = {"model", "messages", "prompt", "stream", "stream_options", "n", "best_of", "echo", "user"}
_URLS = {"/v1/chat/completions": ChatRequest, "/v1/completions": CompletionRequest}


class Asked(NamedTuple):
    """What the engine is asked for a row: one request, or of OpenAI's rows one a choice."""

    row: Row
    id: str
    requests: list[Request]
    form: Chat | Text | None  # how the answers are told; None: in columns


class Asker:
    """Turns the rows of a job into requests."""

    def __init__(self, job: Job, version: ModelVersion, habits: Habits, grammars: GrammarCheck) -> None:
        """Take what decides how rows are read."""
        self._job = job
        self._settings = job.settings
        self._columns = job.settings.columns
        self._version = version
        self._habits = habits
        self._grammars = grammars
        self._several = len(job.files) > 1
        self._taken = set(added(job.settings)) - {job.settings.columns.id}

    def ask(self, file: InputFile, row: Row) -> Asked | Result:
        """Return what the engine is asked, or that the row is rejected."""
        if row.values is None:
            return Result(line=row.line, rejected=row.problem)
        place = f"{PurePath(file.url).name}:{row.line}" if self._several else str(row.line)
        try:
            if self._job.kind == "openai":
                name, asked = self._openai(row.values)
            else:
                name, asked = self._id(row, place), self._plain(row.values, place)
            return self._translated(row, name, asked)
        except ValidationError as error:
            problem = error.errors()[0]
            body = row.values.get("body") if self._job.kind == "openai" else row.values
            told = of_validation(problem, field_of(problem["loc"], body))
            return Result(line=row.line, rejected=told.message)
        except ApiError as error:
            return Result(line=row.line, rejected=error.message)
        except (BatchError, RefusedError) as error:
            return Result(line=row.line, rejected=str(error))

    def _translated(self, row: Row, name: str, asked: ChatRequest | CompletionRequest) -> Asked:
        form: Chat | Text | None = None
        seen = Seen(name, "POST", "")
        if isinstance(asked, ChatRequest):
            requests = translate.of_chat(asked, self._habits)
            form = Chat(asked, seen, self._habits.style)
        else:
            requests = translate.of_completion(asked, self._habits)
            form = Text(asked, seen, prompts=len(requests) // (asked.n or 1))
        if grammar := requests[0].grammar:
            asyncio.run(self._grammars.check(grammar))
        return Asked(row, name, requests, form if self._job.kind == "openai" else None)

    def _plain(self, values: dict[str, Any], place: str) -> ChatRequest | CompletionRequest:
        """Return the request that a row of prompts or chats makes."""
        columns, given = self._columns, self._given
        if clash := sorted(self._taken & values.keys()):
            raise BatchError(f"has {clash[0]}, which the output adds: choose an output_prefix")
        settings = {"seed": self._seed(place), **self._generation(values)}
        prompt, messages = given(values, columns.prompt), given(values, columns.messages)
        if (prompt is None) == (messages is None):
            which = "both" if prompt is not None else "neither"
            raise BatchError(f"has {which} of {columns.prompt} and {columns.messages}: one of them is asked")
        if messages is not None:
            if self._settings.raw:
                raise BatchError(f"has {columns.messages}, which cannot be asked raw")
            messages = _from_json(messages, columns.messages)
        else:
            text = _text(prompt, columns.prompt)
            if self._settings.raw:
                return CompletionRequest(model=self._job.version, prompt=text, **settings)
            system = _text(given(values, columns.system) or self._settings.system, columns.system)
            messages = [*([{"role": "system", "content": system}] if system else []), _user(text)]
        return ChatRequest(model=self._job.version, messages=messages, **settings)

    def _generation(self, values: dict[str, Any]) -> dict[str, Any]:
        """Return a row's generation settings: its own before the batch's, and those before the defaults."""
        own = self._given(values, self._columns.settings)
        own = {} if own is None else _from_json(own, self._columns.settings)
        if not isinstance(own, dict):
            raise BatchError(f"{self._columns.settings} is not an object")
        for name in self._columns.overrides:
            if (value := self._given(values, name)) is not None:
                own[name] = _number(value)
        return chosen(self._settings.settings, own)

    def _given(self, values: dict[str, Any], column: str) -> Any:
        """Return what a row has in a column; an empty cell of CSV is nothing."""
        value = values.get(column)
        return None if self._job.kind == "csv" and value == "" else value

    def _id(self, row: Row, place: str) -> str:
        given = self._given(row.values or {}, self._columns.id)
        if given is None:
            content = row.raw.encode() or canonical_json(
                {name: str(value) for name, value in (row.values or {}).items()}
            )
            return f"{place}-{hashlib.sha256(content).hexdigest()[:8]}"
        if not isinstance(given, str | int):
            raise BatchError(f"{self._columns.id} is neither a text nor a whole number")
        return str(given)

    def _seed(self, place: str) -> int:
        return int.from_bytes(hashlib.sha256(f"{self._settings.seed} {place}".encode()).digest()[:7])

    def _openai(self, values: dict[str, Any]) -> tuple[str, ChatRequest | CompletionRequest]:
        """Return custom_id and request of a row of OpenAI's batch files. Whatever model it names, ours answers."""
        name, url, body = values.get("custom_id"), values.get("url"), values.get("body")
        if not isinstance(name, str) or not name:
            raise BatchError("custom_id is missing or no text")
        if values.get("method", "POST") != "POST":
            raise BatchError("method must be POST")
        if url not in _URLS:
            raise BatchError(f"url {str(url)[:80]!r} is not supported: {' and '.join(_URLS)} are")
        if not isinstance(body, dict):
            raise BatchError("body is missing or no object")
        if body.get("stream"):
            raise BatchError("body.stream is not for a batch: leave it out")
        content = {"seed": self._seed(name), **self._settings.settings, **body, "model": self._job.version}
        return name, _URLS[url](**content)

    def answered(self, asked: Asked, answers: list[Whole | EngineError]) -> Result:
        """Return what became of a row."""
        failed = next((one for one in answers if isinstance(one, EngineError)), None)
        whole = [one for one in answers if isinstance(one, Whole)]
        body = None
        if asked.form is not None:
            body = of_engine(failed).body if failed else self._told(asked, asked.form, whole)
        if failed:
            return Result(line=asked.row.line, id=asked.id, error=str(failed), body=body)
        return Result(
            line=asked.row.line,
            id=asked.id,
            answer=whole[0].answer.text,
            finish_reason=whole[0].answer.finish_reason,
            prompt_tokens=whole[0].answer.prompt_tokens,
            completion_tokens=sum(len(one.answer.token_ids) for one in whole),
            latency_s=round(max(one.answer.seconds for one in whole), 3),
            body=body,
        )

    def _told(self, asked: Asked, form: Chat | Text, answers: list[Whole]) -> dict[str, Any]:
        body = form.whole(answers, self._version.fingerprint)
        unique = hashlib.sha256(f"{self._job.inputs} {asked.id}".encode()).hexdigest()[:32]
        return body | {"id": f"{body['id'].partition('-')[0]}-{unique}", "created": int(self._job.started_at)}


def check(settings: Batch) -> None:
    """Return if the generation settings of a batch are ones.

    Raises:
        BatchError: One is none, or has a value that it cannot have.
    """
    given = chosen(settings.settings, {})
    try:
        if settings.raw:
            CompletionRequest(model="", prompt="", **given)
        else:
            ChatRequest.model_validate({"model": "", "messages": [_user("")], **given})
    except ValidationError as error:
        problem = error.errors()[0]
        raise BatchError(f"settings: {of_validation(problem, field_of(problem['loc'], given)).message}") from error


def chosen(batch: dict[str, Any], row: dict[str, Any]) -> dict[str, Any]:
    """Return generation settings: the row's, then the batch's, then the defaults; null takes a setting back.

    Raises:
        BatchError: One is none that a row may have.
    """
    for name in (batch.keys() | row.keys()) & _NOT_A_ROWS:
        raise BatchError(f"setting {name} is not for a row, which has one prompt and one answer")
    limited = "max_completion_tokens" in batch.keys() | row.keys()
    defaults = {name: value for name, value in DEFAULTS.items() if not (limited and name == "max_tokens")}
    return {name: value for name, value in {**defaults, **batch, **row}.items() if value is not None}


def _text(value: Any, column: str) -> str:
    if not isinstance(value, str):
        raise BatchError(f"{column} is no text")
    return value


def _user(prompt: str) -> dict[str, Any]:
    return {"role": "user", "content": prompt}


def _from_json(value: Any, column: str) -> Any:
    """Return what a cell of CSV holds as JSON; what is no text is there already."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise BatchError(f"{column} is not JSON: {error}") from error


def _number(value: Any) -> Any:
    """Return the number or list that a cell's text is, else the text; a whole float as an integer."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return value
    return int(value) if isinstance(value, float) and value.is_integer() else value
