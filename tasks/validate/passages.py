"""What two models are compared on: token sequences, and where in them the scored part begins."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from tasks.manifest import digest_of
from tasks.records import Record

WINDOW = 512  # tokens of the text that are read with one context


class Passage(Record):
    """Tokens that are fed to a model; those from `start` on are scored, each on what stands before it."""

    ids: tuple[int, ...]
    start: int = Field(ge=1, description="Index of the first token that is scored.")

    @property
    def scored(self) -> int:
        """How many tokens are scored."""
        return len(self.ids) - self.start


def windows(ids: Sequence[int], *, prefix: Sequence[int] = ()) -> list[Passage]:
    """Cut a text into windows that are read each from its own beginning; a rest of one token is left out.

    Args:
        ids: The text's tokens.
        prefix: What the model's tokenizer begins every text with, a begin-of-text token for instance.
    """
    size = WINDOW - len(prefix)
    pieces = [(*prefix, *ids[first : first + size]) for first in range(0, len(ids), size)]
    start = max(1, len(prefix))
    return [Passage(ids=piece, start=start) for piece in pieces if len(piece) > start]


def digest(passages: Sequence[Passage]) -> str:
    """Return the SHA-256 of passages."""
    return digest_of([passage.model_dump() for passage in passages])
