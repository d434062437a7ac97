"""Whether an answer is what a reference prompt expects."""

from __future__ import annotations

import re

from tasks.config import Expectation
from tasks.records import Answer


def failures(answer: Answer, expect: Expectation) -> tuple[str, ...]:
    """Return what an answer lacks, in words; nothing where it meets every expectation."""
    text = answer.text.casefold()
    found = [f"does not contain {word!r}" for word in expect.contains if word.casefold() not in text]
    found += [f"contains {word!r}" for word in expect.not_contains if word.casefold() in text]
    if expect.regex is not None and not re.search(expect.regex, answer.text):
        found.append(f"does not match {expect.regex!r}")
    if expect.min_tokens is not None and len(answer.token_ids) < expect.min_tokens:
        found.append(f"has {len(answer.token_ids)} tokens, fewer than {expect.min_tokens}")
    stopped = answer.finish_reason == "stop"
    if expect.ends_with_eos is not None and stopped != expect.ends_with_eos:
        found.append("did not stop by itself" if expect.ends_with_eos else "stopped by itself")
    return tuple(found)
