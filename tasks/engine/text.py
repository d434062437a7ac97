"""Tokens of an answer -> its text, piece by piece."""

from __future__ import annotations

from collections.abc import Callable, Sequence

_BROKEN = "\ufffd"  # what a decoder writes for the first bytes of a character whose last ones are not there yet
Decode = Callable[[list[list[int]]], list[str]]


class Detokenizer:
    """One answer's tokens as they come, each read with the few before it, since what it says depends on its neighbours.

    Source: text-generation-inference and vLLM, incremental detokenization by two offsets.
    """

    def __init__(self) -> None:
        """Begin with nothing."""
        self._ids: list[int] = []
        self._prefix = self._read = 0  # text up to `_read` was given; decoding begins at `_prefix`
        self._held = ""

    def add(self, ids: Sequence[int]) -> None:
        """Take new tokens; `pieces` tells what they say."""
        self._ids += ids

    @property
    def rows(self) -> tuple[list[int], list[int]]:
        """The tokens to decode: those whose text was given, and the same with those that came since."""
        return self._ids[self._prefix : self._read], self._ids[self._prefix :]

    def piece(self, before: str, text: str) -> str:
        """Return what the new tokens complete, from the texts of the rows."""
        self._held = text[len(before) :]
        if not self._held or text.endswith(_BROKEN):
            return ""
        self._prefix, self._read = self._read, len(self._ids)
        return self.rest()

    def rest(self) -> str:
        """Return what was held back, a broken character too."""
        held, self._held = self._held, ""
        return held


def pieces(answers: Sequence[Detokenizer], decode: Decode) -> list[str]:
    """Return what the new tokens of each answer complete; one call of the decoder, which hardly asks for how many."""
    texts = decode([row for answer in answers for row in answer.rows]) if answers else []
    return [answer.piece(*texts[2 * place : 2 * place + 2]) for place, answer in enumerate(answers)]


def of_any_lengths(decode: Decode, known: list[int]) -> Decode:
    """Return a decoder for rows of different lengths.

    That is the given one where the token that fills short rows up says nothing; else it is called once a length.

    Args:
        decode: Decodes rows of tokens.
        known: Some tokens to try it with.
    """
    short, long = known[:1], 3 * known
    if decode([short, long]) == [*decode([short]), *decode([long])]:
        return decode

    def by_length(rows: list[list[int]]) -> list[str]:
        texts = [""] * len(rows)
        for length in {len(row) for row in rows if row}:
            places = [place for place, row in enumerate(rows) if len(row) == length]
            for place, text in zip(places, decode([rows[place] for place in places]), strict=True):
                texts[place] = text
        return texts

    return by_length


class StopStrings:
    """Ends a text at the first of some strings; what may be the beginning of one is held back."""

    def __init__(self, stops: Sequence[str]) -> None:
        """Take the strings; none of them is empty."""
        self._stops = stops
        self.some = bool(stops)
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
