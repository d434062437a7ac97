"""What becomes of a batch whose engines die: by real engines of a tiny model."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from flows.batching import Batched, Wanted, answer_here, run_batch
from tasks.batch import engines
from tasks.config import Batch
from tasks.engine import Engine
from tasks.errors import EngineError, IntegrityError
from tasks.records import ExportedModel
from tests import small
from tests.serving import EXACT, register_version

pytestmark = pytest.mark.slow


@pytest.fixture
def tiny(with_store: None, home: Path, tmp_path: Path, tiny_export: ExportedModel) -> None:
    register_version(tiny_export, small.recipe("tiny"), tmp_path, ov_config=EXACT)


def answer(tmp_path: Path, prompts: list[str], output: str = "out.jsonl", **settings: Any) -> Batched:
    path = tmp_path / "in.jsonl"
    path.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))
    settings = {"settings": {"max_tokens": 12}, **settings}
    wanted = Wanted(
        source=str(path), output=str(tmp_path / output), reference="tiny/1", settings=Batch.model_validate(settings)
    )
    return run_batch(wanted, answer=answer_here)


def found(tmp_path: Path, output: str = "out.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (tmp_path / output).read_text().splitlines()]


def poison(patch: pytest.MonkeyPatch, word: str, *, most: int = 1000) -> list[int]:
    """Have engines killed that are asked what has a word in it, so many of them at most; return those that were."""
    killed: list[int] = []
    original = Engine.stream

    def stream(self: Engine, requests: Iterable[Any], *, window: int, timeout_s: float = 600) -> Iterator[Any]:
        def watched() -> Iterator[Any]:
            for key, request in requests:
                if word in str(request.messages) and len(killed) < most:
                    killed.append(self._child.pid)
                    os.kill(self._child.pid, signal.SIGKILL)
                yield key, request

        return original(self, watched(), window=window, timeout_s=timeout_s)

    patch.setattr(Engine, "stream", stream)
    return killed


def test_rows_in_flight_are_asked_again_when_an_engine_is_killed(
    tiny: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = [f"Question {number} of many" for number in range(30)]
    answer(tmp_path, prompts, "plain.jsonl")
    with monkeypatch.context() as patch:
        assert len(poison(patch, "Question 17", most=1)) == 0
        done = answer(tmp_path, prompts, window=8)
    assert (done.run.rows, done.run.errors) == (30, 0)
    assert [row["answer"] for row in found(tmp_path)] == [row["answer"] for row in found(tmp_path, "plain.jsonl")]


def test_a_row_that_ends_every_engine_is_found_and_left(
    tiny: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed = poison(monkeypatch, "poison")
    done = answer(tmp_path, [*(f"Question {number}" for number in range(20)), "poison", "Question x"], window=8)
    assert (done.run.errors, len(killed)) == (1, 3)
    rows = found(tmp_path)
    assert [row["prompt"] for row in rows if row["error"]] == ["poison"]
    assert rows[20]["error"] == "the engine ended 3 times while it answered this row"
    assert all(row["answer"] for row in rows if row["prompt"] != "poison")


def test_engines_that_answer_nothing_end_the_batch(tiny: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "_MOST_IN_VAIN", 4)
    poison(monkeypatch, "Question")
    with pytest.raises(EngineError, match=r"4 engines ended one after the other, the last: .*SIGKILL"):
        answer(tmp_path, [f"Question {number}" for number in range(9)], window=8)


def test_what_the_engine_refuses_is_told_in_its_row(tiny: None, tmp_path: Path) -> None:
    answer(tmp_path, ["a", "many words " * 300, "b"], window=1)
    errors = [row["error"] for row in found(tmp_path)]
    assert errors[0] is None and "the model's context holds 256" in errors[1] and errors[2] is None


def test_a_version_that_does_not_answer_as_validated_answers_no_batch(
    with_store: None, home: Path, tmp_path: Path, tiny_export: ExportedModel
) -> None:
    register_version(tiny_export, small.recipe("tiny"), tmp_path, ov_config=EXACT, lies=True)
    with pytest.raises(EngineError, match=r"tiny/1 does not answer as when it was validated: 0 of 1 answers begin"):
        answer(tmp_path, ["a"])


def test_files_that_are_not_those_of_the_beginning_answer_no_batch(tiny: None, tmp_path: Path, home: Path) -> None:
    (weights,) = (home / "mlruns" / "artifacts").rglob("openvino_model.bin")
    data = bytearray(weights.read_bytes())
    data[100] ^= 1
    weights.write_bytes(data)
    with pytest.raises(IntegrityError, match=r"openvino_model\.bin is damaged"):
        answer(tmp_path, ["a"])
