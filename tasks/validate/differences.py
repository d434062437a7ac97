"""Where two token sequences or texts part, and what stands around that place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def parted(one: Sequence[Any], other: Sequence[Any]) -> int:
    """Return the first position at which two sequences differ; the length of the shorter where it begins the other."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((position for position, (a, b) in pairs if a != b), min(len(one), len(other)))


def around(text: str, position: int) -> str:
    """Return a text's surroundings of a position, quoted, with `...` where something was left out."""
    start, end = max(0, position - 30), position + 50
    return f"{'...' if start else ''}{text[start:end]!r}{'...' if end < len(text) else ''}"
