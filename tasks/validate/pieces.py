"""Token ids -> text, token by token, with the tokenizer that the engine uses; in a child process of its own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tasks import child
from tasks.child import Message, Parent, serve_once
from tasks.records import Record

_CONTEXT = 8  # tokens before one that decide how it is written


class Pieces(Record):
    """An answer in pieces, and what the source model would have said at each."""

    tokens: tuple[str, ...]
    choices: tuple[str, ...]
    continuation: str


def read_pieces(
    folder: Path, answers: Sequence[tuple[Sequence[int], Sequence[int], Sequence[int]]], *, timeout_s: float
) -> list[Pieces]:
    """Return the texts of answers.

    Args:
        folder: The exported model.
        answers: Of each answer: its token ids, the source model's choice at each, and the source's continuation.
        timeout_s: The child process may take this many seconds.

    Raises:
        WorkerError: The tokenizer cannot be loaded.
    """
    request = {"folder": str(folder), "answers": [[list(part) for part in answer] for answer in answers]}
    result = child.run("tasks.validate.pieces", request, timeout_s=timeout_s)
    return [Pieces.model_validate(found) for found in result["answers"]]


def _read(request: Message, parent: Parent) -> Message:  # noqa: ARG001 - a second's work
    import openvino_genai

    tokenizer = openvino_genai.Tokenizer(request["folder"])

    def piece(ids: list[int], position: int, token: int) -> str:
        """Return what a token adds to the text: alone it might lack its blank."""
        before = ids[max(0, position - _CONTEXT) : position]
        known, longer = (
            tokenizer.decode(part, skip_special_tokens=False) if part else "" for part in (before, [*before, token])
        )
        return longer[len(known) :] if longer.startswith(known) else longer[len(known.rstrip("\ufffd")) :]

    answers: list[dict[str, Any]] = [
        {
            "tokens": [piece(ids, position, token) for position, token in enumerate(ids)],
            "choices": [piece(ids, position, token) for position, token in enumerate(choices)],
            "continuation": tokenizer.decode(way) if way else "",
        }
        for ids, choices, way in request["answers"]
    ]
    return {"answers": answers}


if __name__ == "__main__":
    serve_once(_read)
