from __future__ import annotations

import csv
import datetime
import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from tasks.errors import BatchError
from tests.tasks.batch.conftest import Run

OURS = ["answer", "finish_reason", "prompt_tokens", "completion_tokens", "latency_s", "error", "model", "version"]


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif path.suffix == ".csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def read(path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".parquet":
        return list(pyarrow.parquet.read_table(path).to_pylist())
    if path.suffix == ".csv":
        with path.open(newline="") as file:
            return list(csv.DictReader(file))
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("to", ["jsonl", "csv", "parquet"])
@pytest.mark.parametrize("of", ["jsonl", "csv", "parquet"])
def test_each_kind_becomes_each_other(run: Run, tmp_path: Path, of: str, to: str) -> None:
    rows = [{"number": number, "prompt": f'Question "{number}",\nof many: é'} for number in range(20)]
    write(tmp_path / f"in.{of}", rows)
    done = run(f"in.{of}", f"out.{to}", part_rows=7)
    found = read(tmp_path / f"out.{to}")
    assert [str(row["number"]) for row in found] == [str(number) for number in range(20)]
    assert [row["prompt"] for row in found] == [row["prompt"] for row in rows]
    assert [row["answer"] for row in found] == [f"{row['prompt']} -> {len(row['prompt'])}" for row in rows]
    assert [list(row)[:3] for row in found] == [["number", "prompt", "id"]] * 20
    assert {str(row["version"]) for row in found} == {"1"} and {row["digest"] for row in found} == {done.run.digest}
    assert (done.run.rows, done.run.rejected, done.rejects) == (20, 0, None)
    assert sorted(path.name for path in tmp_path.glob("out*")) == [f"out.{to}"]


def test_columns_of_parquet_keep_their_types(run: Run, tmp_path: Path) -> None:
    table = pyarrow.table(
        {
            "prompt": ["a", None, "c"],
            "id": pyarrow.array([7, 8, None], pyarrow.int16()),
            "when": pyarrow.array(
                [datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)] * 3, pyarrow.timestamp("us", "UTC")
            ),
            "price": pyarrow.array([Decimal("1.10")] * 3, pyarrow.decimal128(10, 2)),
            "bytes": pyarrow.array([b"\xff"] * 3),
            "kind": pyarrow.array(["x", "y", "x"]).dictionary_encode(),
            "nested": [{"a": [1, 2]}] * 3,
        }
    )
    pyarrow.parquet.write_table(table, tmp_path / "in.parquet")
    done = run("in.parquet", "out.parquet")
    found = pyarrow.parquet.read_table(tmp_path / "out.parquet")
    assert found.select(table.column_names).equals(pyarrow.parquet.read_table(tmp_path / "in.parquet").take([0, 2]))
    assert [str(found.schema.field(name).type) for name in OURS] == [
        "string", "string", "int64", "int64", "double", "string", "string", "int64",
    ]  # fmt: skip
    assert done.run.rejected == 1
    run("in.parquet", "out.jsonl")
    first = read(tmp_path / "out.jsonl")[0]
    assert (first["id"], first["when"], first["price"], first["bytes"]) == (
        7,
        "2026-01-01T00:00:00+00:00",
        "1.10",
        "/w==",
    )
    run("in.parquet", "out.csv")
    assert read(tmp_path / "out.csv")[0]["nested"] == '{"a":[1,2]}'


def test_rows_of_json_lines_need_not_agree(run: Run, tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"prompt": "a", "x": 1, "only": True},
        {"prompt": "b", "x": "text", "list": [1]},
        {"prompt": "c", "x": {"y": 1}, "list": [], "nothing": None, "empty": {}},
        {"prompt": "d", "x": 2.5, "wide": 1},
        {"prompt": "e", "wide": 2.5},
    ]
    write(tmp_path / "in.jsonl", rows)
    run("in.jsonl", "out.parquet", part_rows=2)
    found = read(tmp_path / "out.parquet")
    assert [row["x"] for row in found] == ["1", "text", '{"y":1}', "2.5", None]
    assert [row["wide"] for row in found] == [None, None, None, 1.0, 2.5]
    assert [row["list"] for row in found] == [None, [1], [], None, None]
    assert [row["only"] for row in found] == [True, None, None, None, None]
    run("in.jsonl", "out.csv", part_rows=2)
    assert list(read(tmp_path / "out.csv")[0])[:6] == ["prompt", "x", "only", "list", "nothing", "empty"]


def test_rows_with_an_id_keep_it(run: Run, tmp_path: Path) -> None:
    write(tmp_path / "in.jsonl", [{"id": 7, "prompt": "a"}, {"id": None, "prompt": "b"}, {"id": "x", "prompt": "c"}])
    run("in.jsonl", "out.jsonl")
    ids = [row["id"] for row in read(tmp_path / "out.jsonl")]
    assert ids[0] == 7 and ids[2] == "x" and ids[1].startswith("2-") and len(ids[1]) == 10
    write(tmp_path / "other.jsonl", [{"key": "k1", "prompt": "a"}])
    run("other.jsonl", "out2.jsonl", columns={"id": "key"})
    assert read(tmp_path / "out2.jsonl")[0]["id"] == "k1"


def test_refusals_of_the_engine_are_told_in_their_row(run: Run, tmp_path: Path) -> None:
    write(tmp_path / "in.jsonl", [{"prompt": "refuse this"}, {"prompt": "a"}])
    done = run("in.jsonl", "out.jsonl")
    assert [(row["answer"], row["error"]) for row in read(tmp_path / "out.jsonl")] == [
        (None, "the prompt is empty"),
        ("a -> 1", None),
    ]
    assert (done.run.errors, done.run.rejected) == (1, 0)


def test_columns_that_would_be_lost_are_refused(run: Run, tmp_path: Path) -> None:
    write(tmp_path / "in.csv", [{"prompt": "a", "answer": "b", "model": "c"}])
    with pytest.raises(BatchError, match=r"columns that the output adds \(answer, model\)"):
        run("in.csv", "out.csv")
    run("in.csv", "out.csv", output_prefix="new_")
    found = read(tmp_path / "out.csv")[0]
    assert (found["answer"], found["model"], found["new_answer"], found["new_model"]) == ("b", "c", "a -> 1", "small")
    write(tmp_path / "in.jsonl", [{"prompt": "a"}] * 3 + [{"prompt": "b", "error": "mine"}])
    done = run("in.jsonl", "out.jsonl", part_rows=2)
    assert (
        done.run.rejected == 1
        and "has error, which the output adds" in (tmp_path / "out.jsonl.rejects.jsonl").read_text()
    )


def test_several_files_become_one(run: Run, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name in "ba":
        write(tmp_path / "in" / f"{name}.csv", [{"prompt": f"{name}{number}"} for number in range(3)])
    run("in", "out.jsonl", part_rows=2)
    found = read(tmp_path / "out.jsonl")
    assert [row["prompt"] for row in found] == ["a0", "a1", "a2", "b0", "b1", "b2"]
    assert [row["id"].rpartition("-")[0] for row in found] == [
        f"{name}.csv:{line}" for name in "ab" for line in (2, 3, 4)
    ]
    with pytest.raises(BatchError, match="is a file of the input"):
        run("in", "in/a.csv")


def test_an_input_without_rows_becomes_an_output_without_rows(run: Run, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text("\n")
    for name in ("out.jsonl", "out.csv", "out.parquet"):
        assert run("in.jsonl", name).run.rows == 0
        assert read(tmp_path / name) == []
    with pytest.raises(BatchError, match=r"output .*out\.txt is none of"):
        run("in.jsonl", "out.txt")
