"""Tool calls, as far as a model's chat template carries them: what is asked, and what was answered."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from tasks.engine import Grammar
from tasks.engine.text import overlap
from tasks.serving.requests import ChatRequest, NamedTool

# How a model writes a call: tagged as <tool_call>{...}</tool_call> (Hermes, Qwen, SmolLM3), or the whole answer is the
# JSON of one call or of a list of them (Llama 3, Mistral, Granite, Phi-4: their markers are special tokens).
Style = Literal["tagged", "json"]
_OPEN, _CLOSE = "<tool_call>", "</tool_call>"
_JSON_MARKS = ("<|python_tag|>", "[TOOL_CALLS]", "<|tool_call|>", '"parameters"')


class Call(NamedTuple):
    """One call of a tool."""

    id: str
    name: str
    arguments: str  # JSON

    def told(self) -> dict[str, Any]:
        """Return it in OpenAI's shape."""
        return {"id": self.id, "type": "function", "function": {"name": self.name, "arguments": self.arguments}}


def style_of(template: str) -> Style | None:
    """Return how a model with this chat template writes calls; None: it has no tools, or none that can be read."""
    if not re.search(r"\btools\b", template):
        return None
    if _OPEN in template:
        return "tagged"
    return "json" if any(mark in template for mark in _JSON_MARKS) else None


def forced(asked: ChatRequest, style: Style) -> Grammar | None:
    """Return what the answer must be where a call is asked for; None: the model may choose."""
    if not asked.tools or asked.tool_choice in {None, "auto", "none"}:
        return None
    wanted = asked.tool_choice.function.name if isinstance(asked.tool_choice, NamedTool) else None
    calls = [
        {
            "type": "object",
            "properties": {"name": {"const": tool.function.name}, key: tool.function.parameters or {"type": "object"}},
            "required": ["name", key],
            "additionalProperties": False,
        }
        for tool in asked.tools
        for key in ("arguments" if style == "tagged" else "parameters",)
        if wanted in {None, tool.function.name}
    ]
    schema = json.dumps(calls[0] if len(calls) == 1 else {"anyOf": calls})
    if style == "json":
        return Grammar(schema_text=schema)
    return Grammar(schema_text=schema, before=f"{_OPEN}\n", after=f"\n{_CLOSE}")


class CallReader:
    """Reads calls out of an answer's text as it comes; what may become a call is held back."""

    def __init__(self, style: Style, names: Sequence[str], *, only_one: bool) -> None:
        """Take how calls are written, and the tools that there are."""
        self._style = style
        self._names = set(names)
        self._only_one = only_one
        self._held = ""
        self._after_call = False
        self._begun = False  # whether text was handed on that is no call
        self.calls: list[Call] = []

    def add(self, piece: str) -> tuple[str, list[Call]]:
        """Return what is text, and what calls are whole now."""
        self._held += piece
        return self._tagged() if self._style == "tagged" else self._json(last=False)

    def rest(self) -> tuple[str, list[Call]]:
        """Return what was held back, once no more will come."""
        if self._style == "json":
            return self._json(last=True)
        text, self._held = self._held, ""
        return text, []

    def _tagged(self) -> tuple[str, list[Call]]:
        text = ""
        found: list[Call] = []
        while True:
            if self._after_call:  # blanks between calls, and behind the last one, say nothing
                self._held = self._held.lstrip()
                self._after_call = not self._held
            start = self._held.find(_OPEN)
            end = self._held.find(_CLOSE, start) + len(_CLOSE)
            if start < 0 or end < len(_CLOSE):
                break
            calls = self._kept(_parsed(self._held[start + len(_OPEN) : end - len(_CLOSE)], self._names))
            text += self._held[: end if calls is None else start]
            found += calls or []
            self._held, self._after_call = self._held[end:], calls is not None
        if start < 0:
            start = len(self._held) - overlap(self._held, _OPEN)
        text, self._held = text + self._held[:start], self._held[start:]
        return text, found

    def _json(self, *, last: bool) -> tuple[str, list[Call]]:
        start = self._held.lstrip()[:1]
        if not self._begun and start in {"", "{", "["} and not last:
            return "", []
        calls = None if self._begun else self._kept(_parsed(self._held, self._names))
        text, self._held, self._begun = ("" if calls else self._held), "", True
        return text, calls or []

    def _kept(self, calls: list[Call] | None) -> list[Call] | None:
        if calls is None:
            return None
        if self._only_one:
            calls = calls[: 1 - len(self.calls)] if not self.calls else []
        self.calls += calls
        return calls


def _parsed(text: str, names: set[str]) -> list[Call] | None:
    """Return the calls that a text is; None: it is none, or one of a tool that there is not."""
    try:
        said = json.loads(text)
    except (ValueError, RecursionError):
        return None
    calls = []
    for one in said if isinstance(said, list) else [said]:
        if not isinstance(one, dict) or one.get("name") not in names:
            return None
        arguments = one.get("arguments", one.get("parameters", {}))
        written = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
        calls.append(Call(f"call_{uuid.uuid4().hex[:24]}", one["name"], written))
    return calls or None
