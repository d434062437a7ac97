"""A stage of ours in a process of its own, timed by the progress that it announces anyway.

`python -m tests.benchmarks.stages export CHECKPOINT.json RECIPE` or `ask REFERENCE PROMPT TOKENS`; prints JSON:
`marks`, a list of (what began, seconds since the process was started), and what was made.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tasks.progress import Step, listening

STARTED = float(os.environ["BENCH_STARTED"])


class Timeline:
    """Listens to a stage's steps and notes when each began and ended."""

    def __init__(self) -> None:
        self.marks: list[tuple[str, float]] = []

    def mark(self, name: str) -> None:
        if name not in dict(self.marks):
            self.marks.append((name, time.monotonic() - STARTED))

    def began(self, step: Step) -> None:
        self.mark(f"{step.name} began")

    def moved(self, step: Step) -> None:
        self.mark(f"{step.name}: {step.note}")

    def ended(self, step: Step, *, failed: bool) -> None:
        self.mark(f"{step.name} ended")


def export_stage(timeline: Timeline, checkpoint: str, recipe: str) -> dict[str, object]:
    from tasks.export import export
    from tasks.recipe_file import load_recipe
    from tasks.records import Checkpoint

    found, settings = Checkpoint.model_validate_json(Path(checkpoint).read_text()), load_recipe(Path(recipe)).export
    timeline.mark("imported")
    return {"folder": str(export(found, settings).path)}


def ask_stage(timeline: Timeline, reference: str, prompt: str, tokens: str) -> dict[str, object]:
    from tasks.config import Message
    from tasks.engine import Request
    from tasks.serve import answer

    timeline.mark("imported")
    request = Request(messages=(Message(role="user", content=prompt),), max_new_tokens=int(tokens))
    answered = answer(reference, [request], on_text=lambda *_: timeline.mark("first text"))
    return {"tokens": len(answered.completions[0].answer.token_ids)}


def main() -> None:
    timeline = Timeline()
    stages: dict[str, Callable[..., dict[str, object]]] = {"export": export_stage, "ask": ask_stage}
    with listening(timeline):
        made = stages[sys.argv[1]](timeline, *sys.argv[2:])
    timeline.mark("returned")
    print(json.dumps({"marks": timeline.marks, **made}))


if __name__ == "__main__":
    main()
