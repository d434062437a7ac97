"""A batch that is stopped and begun again, by an engine that answers at once."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from flows.lineage import trace
from tasks.batch import Job, Part, Tally, answer_parts
from tasks.batch.job import Job as TheJob
from tasks.batch.job import begun
from tasks.errors import BatchError, IntegrityError
from tasks.records import ModelVersion
from tasks.registry import batches
from tests import stub_engine
from tests.serving import point
from tests.tasks.batch.conftest import Run, registered


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "in.jsonl"
    path.write_text("".join(json.dumps({"n": number, "prompt": f"q{number}"}) + "\n" for number in range(20)))
    return path


def stop_after(patch: pytest.MonkeyPatch, parts: int) -> None:
    """Have the next batch interrupted when so many parts are kept."""
    kept = 0

    def keep(job: TheJob, part: Part, results: Any) -> None:
        nonlocal kept
        if kept == parts:
            raise KeyboardInterrupt
        kept += 1
        original(job, part, results)

    from tasks.batch.job import keep as original

    patch.setattr("tasks.batch.answering.keep", keep)


def answered(folder: Path, name: str = "out.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def test_it_goes_on_where_it_was_with_the_version_it_began_with(
    run: Run, rows: Path, tmp_path: Path, version: ModelVersion, monkeypatch: pytest.MonkeyPatch
) -> None:
    point(version)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_after(patch, 2)
        run("in.jsonl", "out.jsonl", reference="small@champion", part_rows=3)
    parts = tmp_path / "out.jsonl.parts"
    kept = sorted(int(path.stem.rpartition("-")[2]) for path in parts.glob("part-*"))
    assert len(kept) == 2 and not (tmp_path / "out.jsonl").exists()
    point(registered(tmp_path, "second"))
    asked: list[str] = []
    patched = stub_engine.StubEngine.answer

    def answer(self: Any, request: Any) -> Any:
        asked.append(dict(request.messages[-1])["content"])
        return patched(self, request)

    monkeypatch.setattr(stub_engine.StubEngine, "answer", answer)
    done = run("in.jsonl", "out.jsonl", reference="small@champion", part_rows=99, window=2)
    assert sorted(asked) == sorted(f"q{number}" for number in range(20) if number // 3 not in kept)
    assert [row["n"] for row in answered(tmp_path)] == list(range(20))
    assert {row["version"] for row in answered(tmp_path)} == {1} and done.run.version == "small/1"
    assert not parts.exists()
    assert run("in.jsonl", "other.jsonl", reference="small@champion").run.version == "small/2"


def test_a_finished_batch_is_not_done_again(run: Run, rows: Path, tmp_path: Path) -> None:
    first = run("in.jsonl", "out.jsonl")
    again = run("in.jsonl", "out.jsonl", window=1, workers=7)
    assert again.reused and again.run == first.run
    assert len(batches()) == 1
    with pytest.raises(BatchError, match=r"out\.jsonl is there already, by small/1 on .*: choose another, or"):
        run("in.jsonl", "out.jsonl", system="Be brief.")
    (tmp_path / "out.jsonl").write_text("changed")
    with pytest.raises(BatchError, match="is there already"):
        run("in.jsonl", "out.jsonl")
    (tmp_path / "mine.jsonl").write_text("precious")
    with pytest.raises(BatchError, match=r"mine\.jsonl is there already: choose another"):
        run("in.jsonl", "mine.jsonl")
    run("in.jsonl", "mine.jsonl", overwrite=True)
    assert len(answered(tmp_path, "mine.jsonl")) == 20


def test_what_was_begun_otherwise_is_not_mixed(
    run: Run, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_after(patch, 1)
        run("in.jsonl", "out.jsonl", part_rows=3)
    with pytest.raises(BatchError, match=r"begun with other settings \(system '', now 'Be brief\.'\).*--restart"):
        run("in.jsonl", "out.jsonl", part_rows=3, system="Be brief.")
    shutil.copy(rows, tmp_path / "other.jsonl")
    with pytest.raises(BatchError, match=r"input .*in\.jsonl, now .*other\.jsonl"):
        run("other.jsonl", "out.jsonl", part_rows=3)
    with pytest.raises(BatchError, match=r"model small/1, now small@latest"):
        run("in.jsonl", "out.jsonl", reference="small@latest", part_rows=3)
    os.utime(rows)  # touched, and the same
    known = begun(str(tmp_path / "out.jsonl"))
    assert known and len(known.missing()) == 6
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_after(patch, 1)
        run("in.jsonl", "out.jsonl", part_rows=3)
    rows.write_text(rows.read_text().replace("q0", "q-"))
    with pytest.raises(BatchError, match="has changed since it was begun: give it back as it was"):
        run("in.jsonl", "out.jsonl", part_rows=3)
    done = run("in.jsonl", "out.jsonl", part_rows=3, restart=True)
    assert done.run.rows == 20 and answered(tmp_path)[0]["answer"] == "q- -> 2"


def test_an_input_that_changes_under_way_is_told(
    run: Run, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answer(job: Job, parts: Sequence[Part], **_: object) -> Tally:
        tally = answer_parts(job, parts)
        rows.write_text(rows.read_text() + '{"prompt": "one more"}\n')
        return tally

    monkeypatch.setattr("flows.batching.answer_parts", answer)
    with pytest.raises(BatchError, match=r"in\.jsonl has changed since the batch began"):
        run("in.jsonl", "out.jsonl")
    assert not (tmp_path / "out.jsonl").exists()


@pytest.mark.parametrize("content", [b"", b'{"line": 1}\n', b"rubbish\n" * 3])
def test_a_damaged_journal_is_told(
    run: Run, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_after(patch, 2)
        run("in.jsonl", "out.jsonl", part_rows=3)
    part = tmp_path / "out.jsonl.parts" / "part-000001.jsonl"
    part.write_bytes(content)
    with pytest.raises(IntegrityError, match=r"part-000001\.jsonl .*: delete it and run again"):
        run("in.jsonl", "out.jsonl", part_rows=3)
    part.unlink()
    assert run("in.jsonl", "out.jsonl", part_rows=3).run.rows == 20
    assert len({row["n"] for row in answered(tmp_path)}) == len(answered(tmp_path)) == 20


def test_a_journal_of_rubbish_is_told(run: Run, rows: Path, tmp_path: Path) -> None:
    (tmp_path / "out.jsonl.parts").mkdir()
    (tmp_path / "out.jsonl.parts" / "job.json").write_text("{}")
    with pytest.raises(IntegrityError, match=r"out\.jsonl\.parts cannot be read .*--restart begins anew"):
        run("in.jsonl", "out.jsonl")
    assert run("in.jsonl", "out.jsonl", restart=True).run.rows == 20


@pytest.mark.parametrize("point_of", ["flows.batching.write", "flows.batching.keep_batch", "flows.batching.discard"])
def test_an_end_that_is_interrupted_is_ended_once(
    run: Run, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, point_of: str
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(point_of, interrupted)
        run("in.jsonl", "out.jsonl", part_rows=3)
    done = run("in.jsonl", "out.jsonl", part_rows=3)
    assert [row["n"] for row in answered(tmp_path)] == list(range(20))
    assert [one.run_id for one in batches()] == [done.run.run_id]
    assert not (tmp_path / "out.jsonl.parts").exists()


def test_strict_answers_nothing_where_a_row_is_bad(run: Run, rows: Path, tmp_path: Path) -> None:
    rows.write_text(rows.read_text() + "rubbish\n")
    with pytest.raises(
        BatchError, match=r"1 of 21 rows are bad, and nothing was answered .*in\.jsonl, line 21: is not"
    ):
        run("in.jsonl", "out.jsonl", strict=True)
    assert not (tmp_path / "out.jsonl").exists() and not (tmp_path / "out.jsonl.parts").exists()


def test_lineage_goes_both_ways(run: Run, rows: Path, tmp_path: Path, version: ModelVersion) -> None:
    done = run("in.jsonl", "out.jsonl")
    moved = tmp_path / "renamed.jsonl"
    (tmp_path / "out.jsonl").rename(moved)
    (chain,) = trace(str(moved))
    assert (chain.version, chain.digest, chain.source_revision) == ("small/1", version.digest, "local")
    assert [one.run_id for one in chain.outputs] == [done.run.run_id]
    assert chain.outputs[0].input_sha256 == done.run.input_sha256
    run("in.jsonl", "second.jsonl", system="x")
    assert [len(one.outputs) for one in trace("small/1")] == [2]
    assert [len(one.outputs) for one in trace("local")] == [2]
    assert [one.version for one in trace("c" * 12)] == ["small/1"]
    moved.write_text(moved.read_text().replace("q0", "q1"))
    with pytest.raises(BatchError, match="is no output of a batch that is kept here"):
        trace(str(moved))
    with pytest.raises(BatchError, match="is no file, no version, and no checkpoint's revision"):
        trace("unheard-of")
