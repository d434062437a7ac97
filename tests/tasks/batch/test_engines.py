"""What becomes of a batch whose engines die: by real engines of a tiny model."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from flows.batching import Batched, Wanted, answer_here, run_batch
from tasks.batch import answering, engines, lasting
from tasks.batch.job import Job
from tasks.config import Batch
from tasks.engine import Engine
from tasks.errors import BatchError, DeviceError, EngineError, IntegrityError
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
    monkeypatch.setattr(lasting, "_MOST_IN_VAIN", 4)
    poison(monkeypatch, "Question")
    with pytest.raises(EngineError, match=r"4 engines ended one after the other, the last: .*SIGKILL"):
        answer(tmp_path, [f"Question {number}" for number in range(9)], window=8)


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Engine, dict[str, str]]]:
    """Each engine that is loaded, with its settings."""
    loaded: list[tuple[Engine, dict[str, str]]] = []
    original = Engine.__init__

    def init(self: Engine, folder: Path, *, ov_config: dict[str, str], **settings: Any) -> None:
        original(self, folder, ov_config=ov_config, **settings)
        loaded.append((self, ov_config))

    monkeypatch.setattr(Engine, "__init__", init)
    return loaded


@contextmanager
def cores_of(started: list[tuple[Engine, dict[str, str]]]) -> Iterator[set[frozenset[int]]]:
    """Look again and again which cores the threads of engines may run on."""
    found: set[frozenset[int]] = set()
    over = threading.Event()

    def look() -> None:
        while not over.wait(0.002):
            for engine, _ in list(started):
                with suppress(OSError):  # it has ended
                    threads = list(Path(f"/proc/{engine._child.pid}/task").iterdir())
                    found.update(frozenset(os.sched_getaffinity(int(thread.name))) for thread in threads)

    looking = threading.Thread(target=look)
    looking.start()
    try:
        yield found
    finally:
        over.set()
        looking.join()


def test_several_engines_share_rows_and_cores(
    tiny: None, tmp_path: Path, started: list[tuple[Engine, dict[str, str]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each would take the first cores, were it let: OpenVINO pins a thread for as long as it computes."""
    prompts = [f"Question {number} of many" for number in range(40)]
    answer(tmp_path, prompts, "alone.jsonl", engines=1, window=4)
    assert len(started) == 1
    all_loaded, stream = threading.Barrier(3), Engine.stream

    def begun(self: Engine, requests: Iterable[Any], *, window: int) -> Iterator[Any]:
        if window == 4:  # not the smoke test
            all_loaded.wait()
        return stream(self, requests, window=window)

    monkeypatch.setattr(Engine, "stream", begun)
    with cores_of(started) as cores:
        done = answer(tmp_path, prompts, engines=3, threads=3, window=4)
    assert len(started) == 4 and (done.run.rows, done.run.errors) == (40, 0)
    assert {config["INFERENCE_NUM_THREADS"] for _, config in started[1:]} == {"1"}
    assert cores == {frozenset(os.sched_getaffinity(0))}
    assert all(engine.peak_rss_bytes for engine, _ in started), "one answered nothing"
    assert [row["answer"] for row in found(tmp_path)] == [row["answer"] for row in found(tmp_path, "alone.jsonl")]


def test_an_engine_that_cannot_be_loaded_is_done_without(
    tiny: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    loads: list[int] = []
    original = Engine.__init__

    def init(self: Engine, folder: Path, **settings: Any) -> None:
        loads.append(1)
        if len(loads) == 2:
            raise DeviceError("no memory left")
        original(self, folder, **settings)

    monkeypatch.setattr(Engine, "__init__", init)
    done = answer(tmp_path, [f"Question {number}" for number in range(30)], engines=2, window=2)
    assert (done.run.rows, done.run.errors, len(loads)) == (30, 0, 2)
    assert "goes on with an engine less: no memory left" in caplog.text


def test_no_engine_outlives_a_batch_that_fails(
    tiny: None, tmp_path: Path, started: list[tuple[Engine, dict[str, str]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise BatchError("the disk is full")

    prompts = [f"Question {number}" for number in range(60)]
    with monkeypatch.context() as patch, pytest.raises(BatchError, match="the disk is full"):
        patch.setattr(answering, "keep", full)
        answer(tmp_path, prompts, engines=2, window=4, part_rows=5, settings={"max_tokens": 200})
    assert len(started) == 2 and all(engine._child.process.poll() is not None for engine, _ in started)
    assert answer(tmp_path, prompts, engines=2, window=8, settings={"max_tokens": 200}).run.rows == 60


@pytest.mark.parametrize(
    ("device", "rows", "free", "count"),
    [
        ("CPU", 9000, 1e12, 16),
        ("CPU", 300, 1e12, 2),
        ("CPU", 9000, 6e9, 2),
        ("CPU", 9000, 0, 1),
        ("GPU.0", 9000, 1e12, 1),
    ],
)
def test_how_many_engines_there_are(
    device: str, rows: int, free: float, count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SmolLM2's keys and values take 11.5 kB a token, 0.75 GB for 128 rows of 512."""
    config = {"num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3, "hidden_size": 576}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "openvino_model.bin").write_bytes(b"")
    monkeypatch.setattr(engines.psutil, "virtual_memory", lambda: SimpleNamespace(available=free))
    job = SimpleNamespace(device=device, rows=rows, settings=Batch())
    assert engines._count(cast(Job, job), tmp_path, threads=16) == count
    assert engines._memory(tmp_path, Batch()) == pytest.approx(0.5e9 + 0.75e9, rel=0.01)


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
