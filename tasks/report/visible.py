"""Text of a model, made so that a reader sees every character of it."""

from __future__ import annotations

import unicodedata

_HIDDEN = {"Cc", "Cf", "Co", "Cs", "Zl", "Zp", "Zs"}  # Unicode's categories of what leaves no ink
_BLANK_LETTERS = "\u115f\u1160\u2800\u3164\uffa0"
_QUOTED = 40
_JOINERS = "\u200c\u200d"


def pieces(text: str) -> list[tuple[str, str]]:
    """Return a text as (characters, "") where they show by themselves and (sign, name) where one does not.

    Line feeds and tabs follow their sign, so that the layout stays. A joiner inside a word or emoji stays as it is.
    """
    found: list[tuple[str, str]] = []
    shown = ""
    for index, char in enumerate(text):
        if not _is_hidden(char) or (char in _JOINERS and _joins(text, index)):
            shown += char
            continue
        if shown:
            found.append((shown, ""))
            shown = ""
        found.append((_sign(char), f"U+{ord(char):04X} {unicodedata.name(char, 'control character')}"))
    return [*found, (shown, "")] if shown else found


def quoted(text: str) -> str:
    """Return a token in one line and in quotes, cut if it is long, with the spaces at its ends as ␣."""
    if len(text) > _QUOTED:
        return f"{quoted(text[:_QUOTED])}…"
    inner = text.strip(" ")
    before = len(text) - len(text.lstrip(" "))
    after = len(text) - before - len(inner) if inner else 0
    line = "".join(part for part, _ in pieces(inner)).replace("\n", "").replace("\t", "")
    return f"“{'␣' * before}{line}{'␣' * after}”"


def _is_hidden(char: str) -> bool:
    return (char != " " and unicodedata.category(char) in _HIDDEN) or char in _BLANK_LETTERS


def _joins(text: str, index: int) -> bool:
    beside = text[max(0, index - 1) : index] + text[index + 1 : index + 2]
    return len(beside) == 2 and not beside.isascii() and not any(_is_hidden(char) for char in beside)


def _sign(char: str) -> str:
    return {"\n": "↵\n", "\t": "⇥\t"}.get(char, f"⟨U+{ord(char):04X}⟩")
