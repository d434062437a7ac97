"""Checks of what was said: empty, broken or endless answers, stops that were missed, answers that don't repeat."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Sequence

from pydantic import Field

from tasks.records import Answer, Fault, PromptResult, Record
from tasks.validate.differences import around, parted

STOP_PROBABILITY = 0.9  # the source model is sure that the answer ends here

# Measured with SmolLM2's tokenizer on 5,017 files (13.1 million tokens) of Python's standard library, of packages'
# documentation and of their data, cut at every position: a loop is found in 28 files, all of them tables, matrices or
# test data with one row or number over and over. With 32 tokens in place of 64 it would be 88 files, with 128 still 10.
_LONGEST_PERIOD = 64
_ENDLESS = 64  # tokens of a loop, at least 3 times around
_ENDLESS_ALONE = 24  # ... at least 8 times around, where it is nearly the whole answer: not one more file

_ENTRY = 16  # tokens of a loop, at least, of which the source model must have said each
_LISTED = 5

# Blanks and line ends as byte-level and SentencePiece vocabularies write them, where a blank would stand: not Maltese
# letters, which follow a blank, a hyphen or another capital, and not the bars of a drawing.
_BLANKS = re.compile(r"(?:^|(?<=[^\W_A-ZĠĊ])|(?<=[.,:;!?)\]]))[ĠĊ▁](?=\w)")
_BYTES = re.compile(r"<0x[0-9A-F]{2}>|âĢ")
_TEMPLATE = re.compile(r"<\|[A-Za-z]\w{2,}\|>|<(?:start|end)_of_turn>|\[/?INST\]|<</?SYS>>|<\uff5c[^\uff5c]+\uff5c>")
_CHARACTERS = {"Cc": "control character", "Cs": "lone surrogate", "Co": "private use character"}


class Loop(Record):
    """The same tokens over and over at the end of an answer."""

    period: int = Field(description="Tokens that are repeated.")
    length: int = Field(description="Tokens of the whole loop.")


def find_loop(token_ids: Sequence[int]) -> Loop | None:
    """Return the loop that a sequence of tokens ends in, with the shortest period; None: it ends in none."""
    size = len(token_ids)
    for period in range(1, min(_LONGEST_PERIOD, size // 3) + 1):
        length = period
        while length < size and token_ids[-length - 1] == token_ids[-length - 1 + period]:
            length += 1
        long = length >= max(_ENDLESS, 3 * period)
        if long or (length >= max(_ENDLESS_ALONE, 8 * period) and 4 * length >= 3 * size):
            return Loop(period=period, length=length)
    return None


def said(
    results: Sequence[PromptResult], *, stop_ids: Collection[int], template_ids: Collection[int]
) -> tuple[Fault, ...]:
    """Return what is wrong with answers as such, at most one fault an answer and metric.

    Args:
        results: The answers; what the source model makes of their tokens is used where it is there.
        stop_ids: The tokens that end an answer.
        template_ids: Special tokens that no answer may say.
    """
    faults = []
    for result in results:
        found = {
            "empty_answers": _empty(result.answer),
            "malformed_answers": _malformed(result.answer, stop_ids, template_ids),
            "looping_answers": _looping(result),
            "missed_stops": _missed_stop(result),
        }
        faults += [Fault(metric=name, subject=result.id, message=text) for name, text in found.items() if text]
    return tuple(faults)


def differing(results: Sequence[PromptResult], again: Sequence[Answer]) -> tuple[Fault, ...]:
    """Return the prompts whose greedy answer was another one when they were asked again."""
    return tuple(
        Fault(metric="unrepeatable_answers", subject=result.id, message=_difference(result.answer, answer))
        for result, answer in zip(results, again, strict=True)
        if result.answer.token_ids != answer.token_ids
    )


def _difference(one: Answer, other: Answer) -> str:
    at = parted(one.text, other.text)
    return (
        f"asked again, the answer is another one from token {parted(one.token_ids, other.token_ids)} on: "
        f"{around(one.text, at)}, then {around(other.text, at)}"
    )


def _empty(answer: Answer) -> str:
    if answer.text.strip():
        return ""
    return f"the answer has no text: {len(answer.token_ids)} tokens, {list(answer.token_ids[:8])}, read {answer.text!r}"


def _malformed(answer: Answer, stop_ids: Collection[int], template_ids: Collection[int]) -> str:
    """Return what is in an answer that is in no good one."""
    text, ids = answer.text, answer.token_ids
    if answer.finish_reason == "length":
        text = text.rstrip("\ufffd")  # cut in the middle of a character
    found = []
    special = [token for token in ids if token in template_ids] + [token for token in ids[:-1] if token in stop_ids]
    if special:
        found.append(f"special tokens {_some(special)}")
    if markers := _TEMPLATE.findall(text):
        found.append(f"template markers {_some(markers)}")
    kinds: dict[str, list[str]] = {}
    for character in text:
        if kind := _kind(character):
            kinds.setdefault(kind, []).append(f"U+{ord(character):04X}")
    found += [f"{kind} {_some(points)}" for kind, points in kinds.items()]
    blanks = _BLANKS.findall(text)
    if len(blanks) > 1 or (blanks and not re.search(r"\s", text)):  # a text may name such a character, once
        found.append(f"a vocabulary's signs for blanks {_some(blanks)}")
    if left := _BYTES.findall(text):
        found.append(f"a vocabulary's signs for bytes {_some(left)}")
    return f"the answer has {'; '.join(found)}: {around(answer.text, 0)}" if found else ""


def _kind(character: str) -> str:
    """Return what is wrong with a character, or nothing.

    Unassigned characters may be newer than this Python's tables, as new emoji are; planes 4 to 13 and the
    noncharacters never will be text. Private use characters were in none of 2,700 files of documentation.
    """
    code = ord(character)
    if character == "\ufffd":
        return "replacement character"
    if code & 0xFFFE == 0xFFFE or 0xFDD0 <= code <= 0xFDEF or 0x40000 <= code < 0xE0000:
        return "character that does not exist"
    return "" if character in "\n\t\r" else _CHARACTERS.get(unicodedata.category(character), "")


def _some(found: Sequence[object]) -> str:
    distinct = list(dict.fromkeys(found))
    more = f" and {len(distinct) - _LISTED} more" if len(distinct) > _LISTED else ""
    return f"{', '.join(map(str, distinct[:_LISTED]))}{more} ({len(found)} times)"


def _looping(result: PromptResult) -> str:
    """Return what is repeated without end, unless the source model would have gone into the same loop.

    It would where it ranks first each of the tokens of the first two rounds: the first leads into the loop, and in
    the second it repeats instead of going on.
    """
    ids, tokens = result.answer.token_ids, result.tokens
    loop = find_loop(ids)
    if loop is None:
        return ""
    start = len(ids) - loop.length
    entry = tokens[start : start + max(2 * loop.period, _ENTRY)]
    if entry and all(token.agrees for token in entry):
        return ""
    said_at = f" ({''.join(token.text for token in entry[: loop.period])!r})" if entry else ""
    return (
        f"from token {start} of {len(ids)} on, {loop.period} tokens{said_at} are said over and over, "
        f"{loop.length / loop.period:.1f} times: ...{result.answer.text[-80:]!r}"
    )


def _missed_stop(result: PromptResult) -> str:
    if result.answer.finish_reason != "length":
        return ""
    for position, token in enumerate(result.tokens):
        if token.stop_probability > STOP_PROBABILITY:
            before = "".join(one.text for one in result.tokens[:position])
            return (
                f"the source model ends its answer at token {position} with probability {token.stop_probability:.3f} "
                f"after {before[-60:]!r}; the model goes on with {token.text!r} up to its {len(result.tokens)} tokens"
            )
    return ""
