"""An engine that answers at once, in the place of the real one: for what is about rows, not about models.

`python -m tests.stub_engine ARGUMENTS...` is `vinoflow ARGUMENTS...` with it, and prints the process's peak memory.
"""

from __future__ import annotations

import resource
import sys
from collections.abc import Iterable, Iterator
from typing import Any

import pytest

from tasks.batch import engines
from tasks.engine import Request, Whole
from tasks.errors import EngineError, RefusedError
from tasks.records import Answer


class StubEngine:
    """Answers "prompt -> length"; refuses prompts that begin with "refuse"."""

    def __init__(self, *_: object, **__: object) -> None:
        self.most_in_flight = 0

    def stream(
        self, requests: Iterable[tuple[Any, Request]], *, window: int
    ) -> Iterator[tuple[Any, Whole | EngineError]]:
        in_flight: list[tuple[Any, Request]] = []
        waiting = iter(requests)
        while True:
            while len(in_flight) < window and (given := next(waiting, None)) is not None:
                in_flight.append(given)
            if not in_flight:
                return
            self.most_in_flight = max(self.most_in_flight, len(in_flight))
            key, request = in_flight.pop(len(in_flight) // 2)
            yield key, self.answer(request)

    def answer(self, request: Request) -> Whole | EngineError:
        text = request.prompt or str(dict(request.messages[-1])["content"])
        if text.startswith("refuse"):
            return RefusedError("the prompt is empty")
        said = Answer(
            text=f"{text} -> {len(text)}",
            token_ids=(1, 2),
            finish_reason="stop",
            prompt_tokens=len(text),
            ttft_ms=1.0,
            tpot_ms=1.0,
            seconds=0.002,
        )
        return Whole(said, [])

    def kill(self) -> None:
        pass

    def close(self) -> None:
        pass


def in_place(patch: pytest.MonkeyPatch) -> None:
    """Have batches answered by it; nothing is smoke-tested."""
    patch.setattr(engines, "Engine", StubEngine)
    patch.setattr(engines.Loaded, "_try", lambda _: None)
    patch.setattr(engines, "_memory", lambda *_: 1.0)  # of a model that has no weights


def main() -> None:
    from flows import cli

    with pytest.MonkeyPatch.context() as patch:
        in_place(patch)
        try:
            cli.main()
        finally:
            sys.stderr.write(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss} kB\n")


if __name__ == "__main__":
    main()
