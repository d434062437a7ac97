"""Tokens of an answer -> its text, piece by piece."""

from __future__ import annotations

from collections.abc import Callable, Sequence

_BROKEN = "\ufffd"  # what a decoder writes for the first bytes of a character whose last ones are not there yet
Decode = Callable[[Sequence[int]], str]


class Detokenizer:
    """Decodes tokens as they come, each with the few before it, since what a token says depends on its neighbours.

    Source: text-generation-inference and vLLM, incremental detokenization by two offsets.
    """

    def __init__(self, decode: Decode) -> None:
        """Take the tokenizer's own decoding of a whole sequence."""
        self._decode = decode
        self._ids: list[int] = []
        self._prefix = self._read = 0  # text up to `_read` was given; decoding begins at `_prefix`
        self._before = ""  # the text of the tokens from `_prefix` to `_read`

    def add(self, ids: Sequence[int]) -> str:
        """Return the text that these tokens complete."""
        self._ids += ids
        text = self._decode(self._ids[self._prefix :])
        if len(text) <= len(self._before) or text.endswith(_BROKEN):
            return ""
        piece = text[len(self._before) :]
        self._prefix, self._read = self._read, len(self._ids)
        self._before = self._decode(self._ids[self._prefix : self._read])
        return piece

    def rest(self) -> str:
        """Return what was held back, a broken character too."""
        return self._decode(self._ids[self._prefix :])[len(self._before) :]


class StopStrings:
    """Ends a text at the first of some strings; what may be the beginning of one is held back."""

    def __init__(self, stops: Sequence[str]) -> None:
        """Take the strings; none of them is empty."""
        self._stops = stops
        self._held = ""
        self.found = False

    def add(self, piece: str) -> str:
        """Return what of the text so far is certain to stay."""
        text, self._held = self._held + piece, ""
        places = [place for stop in self._stops if (place := text.find(stop)) >= 0]
        if places:
            self.found = True
            return text[: min(places)]
        longest = max((overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - longest :]
        return text[: len(text) - longest]

    def rest(self) -> str:
        """Return what was held back, once no more will come."""
        return "" if self.found else self._held


def overlap(text: str, stop: str) -> int:
    """Return how many of the last characters of a text are the first of a string, which is not in it whole."""
    return next((size for size in range(min(len(text), len(stop) - 1), 0, -1) if stop.startswith(text[-size:])), 0)
