"""Is a JSON schema one that the engine can hold an answer to? Tried beside the engine, which a bad one would end."""

from __future__ import annotations

import hashlib
import json
import threading
from pathlib import Path
from typing import Any

from tasks.child import Child
from tasks.engine.client import Grammar
from tasks.errors import RefusedError, WorkerError

MOST_BYTES = 100_000
_COMPILES_WITHIN_S = 10.0  # while the engine compiles it, all its requests wait
_MOST_KNOWN = 10_000
# what xgrammar 0.1.2x passes over in silence: an answer might break it
_PASSED_OVER = {
    *("not", "if", "then", "else", "dependentRequired", "dependentSchemas", "uniqueItems", "contains"),
    *("minContains", "maxContains", "multipleOf", "unevaluatedProperties", "unevaluatedItems", "$dynamicRef"),
}
_WITHIN = ("items", "prefixItems", "additionalProperties", "anyOf", "oneOf", "allOf")
_OF_SCHEMAS = ("properties", "patternProperties", "$defs", "definitions")


class GrammarCheck:
    """Tries grammars in a process of its own, which starts when the first one comes."""

    def __init__(self, folder: Path) -> None:
        """Take the exported model, for its tokenizer."""
        self._folder = folder
        self._lock = threading.Lock()
        self._child: Child | None = None
        self._fine: set[str] = set()

    def check(self, grammar: Grammar) -> None:
        """Return if the engine can hold answers to it.

        Raises:
            RefusedError: It cannot; says why.
        """
        if len(grammar.schema_text) > MOST_BYTES:
            raise RefusedError(f"the JSON schema has more than {MOST_BYTES} bytes")
        _look(json.loads(grammar.schema_text), "schema")
        known = hashlib.sha256(grammar.model_dump_json().encode()).hexdigest()
        with self._lock:
            if known in self._fine:
                return
            if problem := self._try(grammar):
                raise RefusedError(f"the JSON schema is not supported: {problem}")
            if len(self._fine) >= _MOST_KNOWN:
                self._fine.clear()
            self._fine.add(known)

    def close(self) -> None:
        """End the process."""
        with self._lock:
            self._end()

    def _end(self) -> None:
        if self._child is not None:
            self._child.close(grace_s=0)
            self._child = None

    def _try(self, grammar: Grammar) -> str:
        try:
            if self._child is None:
                self._child = Child("tasks.engine.grammar_worker")
                self._child.send({"folder": str(self._folder)})
                self._child.receive(timeout_s=60)
            self._child.send(dict(grammar.message()))
            return str(self._child.receive(timeout_s=_COMPILES_WITHIN_S)["problem"])
        except WorkerError as error:
            self._end()
            return f"it is too large or too deep ({str(error).splitlines()[0]})"


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
