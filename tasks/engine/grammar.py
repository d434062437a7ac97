"""Is a JSON schema one that the engine can hold an answer to? Tried beside the engine, which a bad one would end."""

from __future__ import annotations

import asyncio
import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tasks.child import Child
from tasks.engine.client import Grammar
from tasks.errors import RefusedError, WorkerError

MOST_BYTES = 100_000
# while the engine compiles it, all its requests wait. With a vocabulary of 49,152 tokens, objects 60 levels deep and
# of 300 fields with patterns take 1 s; what takes 3 s (repetitions of repetitions, 1,000 fields) goes on for minutes
_COMPILES_WITHIN_S = 3.0
_MOST_KNOWN = 10_000
_MOST_TRIED = 500  # by one process: the library keeps them all, 0.1 to 1 MB each
# what xgrammar 0.1.2x passes over in silence: an answer might break it
_PASSED_OVER = {
    *("not", "if", "then", "else", "dependentRequired", "dependentSchemas", "uniqueItems", "contains"),
    *("minContains", "maxContains", "multipleOf", "unevaluatedProperties", "unevaluatedItems", "$dynamicRef"),
}
_WITHIN = ("items", "prefixItems", "additionalProperties", "anyOf", "oneOf", "allOf")
_OF_SCHEMAS = ("properties", "patternProperties", "$defs", "definitions")


class GrammarCheck:
    """Tries grammars one after the other, in a process of its own, which starts when the first one comes."""

    def __init__(self, folder: Path) -> None:
        """Take the exported model, for its tokenizer."""
        self._folder = folder
        self._thread = ThreadPoolExecutor(1)
        self._child: Child | None = None
        self._tried = 0
        self._problems: dict[str, str] = {}  # of grammars that were tried, by digest; empty: none

    async def check(self, grammar: Grammar) -> None:
        """Return if the engine can hold answers to it. One that is known does not wait for those that are tried.

        Raises:
            RefusedError: It cannot; says why.
        """
        if len(grammar.schema_text) > MOST_BYTES:
            raise RefusedError(f"the JSON schema has more than {MOST_BYTES} bytes")
        _look(json.loads(grammar.schema_text), "schema")
        known = hashlib.sha256(grammar.model_dump_json().encode()).hexdigest()
        if known not in self._problems:
            problem = await asyncio.get_running_loop().run_in_executor(self._thread, self._try, grammar)
            if len(self._problems) >= _MOST_KNOWN:
                self._problems.clear()
            self._problems[known] = problem
        if problem := self._problems[known]:
            raise RefusedError(f"the JSON schema is not supported: {problem}")

    def close(self) -> None:
        """End the process."""
        self._thread.shutdown(cancel_futures=True)
        self._end()

    def _end(self) -> None:
        if self._child is not None:
            self._child.close(grace_s=0)
            self._child = None

    def _try(self, grammar: Grammar) -> str:
        """Return what is wrong with a grammar.

        Raises:
            RefusedError: It ends the process or takes too long, which another time it may not.
        """
        try:
            self._tried += 1
            if self._tried % _MOST_TRIED == 0:
                self._end()
            if self._child is None:
                self._child = Child("tasks.engine.grammar_worker")
                self._child.send({"folder": str(self._folder)})
                self._child.receive(timeout_s=60)
            self._child.send(dict(grammar.message()))
            return str(self._child.receive(timeout_s=_COMPILES_WITHIN_S)["problem"])
        except WorkerError as error:
            self._end()
            how = str(error).splitlines()[0]
            raise RefusedError(f"the JSON schema is not supported: it is too large or too deep ({how})") from error


def _look(schema: Any, path: str) -> None:
    """Refuse what the engine's grammars leave out, here and in all schemas within.

    Raises:
        RefusedError: A keyword is not supported; names it and where it stands.
    """
    if isinstance(schema, dict):
        if problem := _left_out(schema):
            raise RefusedError(f"the JSON schema is not supported: {path} has {problem}")
        for key, value in schema.items():
            if key in _OF_SCHEMAS and isinstance(value, dict):
                for name, one in value.items():
                    _look(one, f"{path}.{key}.{name}")
            elif key in _WITHIN:
                _look(value, f"{path}.{key}")
    elif isinstance(schema, list):
        for place, one in enumerate(schema):
            _look(one, f"{path}[{place}]")


def _left_out(schema: dict[str, Any]) -> str:
    if found := sorted(_PASSED_OVER & schema.keys()):
        return f"{found[0]!r}, which answers could not be held to"
    if isinstance(schema.get("allOf"), list) and len(schema["allOf"]) > 1:
        return "'allOf' of several schemas"
    if not str(schema.get("$ref", "#")).startswith("#"):
        return "a '$ref' to another document"
    return ""
