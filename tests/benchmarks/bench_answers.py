"""Our engine against the notebook's loop and bare openvino-genai: same prompts, same number of tokens."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from tasks.config import Recipe
from tasks.records import ExportedModel
from tests.benchmarks.answer_ways import NEW_TOKENS, WAYS
from tests.benchmarks.measure import run
from tests.benchmarks.table import ratios, show

pytestmark = [pytest.mark.bench, pytest.mark.timeout(1800)]
ROUNDS = 2  # the one-at-a-time ways take a minute each
PROMPTS = 40


def test_answers_against_the_notebook_and_bare_genai(
    smollm2_export: ExportedModel, recipe: Recipe, tmp_path: Path
) -> None:
    given = tmp_path / "prompts.json"
    given.write_text(json.dumps(chats(recipe, smollm2_export.path)))
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in WAYS}
    for number in range(ROUNDS):
        for name in WAYS if number % 2 == 0 else reversed(WAYS):
            done = run([sys.executable, "-m", "tests.benchmarks.answer_ways", name, smollm2_export.path, given])
            found[name].append({**json.loads(done.stdout.splitlines()[-1]), "tree_mb": done.tree_mb})
    counts = {json.dumps(one["counts"]) for rounds in found.values() for one in rounds}
    assert len(counts) == 1, f"the ways did not do the same work: {counts}"
    counted = json.loads(counts.pop())
    assert [new for _, new in counted] == [NEW_TOKENS] * PROMPTS
    lengths = [tokens for tokens, _ in counted]
    show(
        f"{PROMPTS} prompts of {min(lengths)} to {max(lengths)} tokens, {NEW_TOKENS} new tokens each ({ROUNDS} rounds)",
        ("way", "tokens/s", "tokens/CPU-s", "TTFT median, ms", "tree RSS, MB"),
        [_row(name, rounds) for name, rounds in found.items()],
    )
    show(
        "Our engine against the others: ratios of speed, above 1 is faster (span of the rounds)",
        ("ours", "against", "tokens/s", "tokens/CPU-s"),
        [
            _against("engine_at_once", "notebook", found),
            _against("engine_at_once", "batching", found),
            _against("engine_at_once", "batching_as_ours", found),
            _against("engine_one_by_one", "notebook", found),
            _against("engine_one_by_one", "llm_pipeline", found),
        ],
    )


def chats(recipe: Recipe, folder: Path) -> list[str]:
    """Chats of many lengths, built of the reference prompts; each begins in its own way, so no prefix is shared."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    texts = [prompt.messages[-1].content for prompt in recipe.validation.prompts if prompt.messages]
    chats = []
    for number in range(PROMPTS):
        notes = " ".join(texts[(number + step) % len(texts)] for step in range(number))
        text = f"{number + 1}. {notes}\n{texts[number % len(texts)]}"
        chats.append([{"role": "system", "content": f"Chat {number + 1}."}, {"role": "user", "content": text}])
    return [tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True) for chat in chats]


def _row(name: str, rounds: list[dict[str, Any]]) -> tuple[str, ...]:
    tokens = PROMPTS * NEW_TOKENS
    return (
        name,
        f"{median(tokens / one['seconds'] for one in rounds):.0f}",
        f"{median(tokens / one['cpu_s'] for one in rounds):.0f}",
        f"{median(one['ttft_ms'] for one in rounds):.0f}",
        f"{median(one['tree_mb'] for one in rounds):.0f}",
    )


def _against(ours: str, theirs: str, found: dict[str, list[dict[str, Any]]]) -> tuple[str, ...]:
    # the same tokens: speeds are as the inverse of times
    speed = [
        ratios([one[key] for one in found[theirs]], [one[key] for one in found[ours]]) for key in ("seconds", "cpu_s")
    ]
    return (ours, theirs, *speed)
