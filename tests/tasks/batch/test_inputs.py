from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from tasks.batch import places
from tasks.batch.inputs import input_kind, rows_of, scan, table_of
from tasks.config import Batch
from tasks.errors import BatchError

SMALL = Batch(part_rows=3)


def read(path: Path, settings: Batch = SMALL) -> list[list[dict[str, Any] | None]]:
    kind = input_kind([str(path)], settings)
    files, parts = scan([str(path)], kind, settings)
    assert [part.number for part in parts] == list(range(len(parts)))
    assert sum(part.rows for part in parts) == files[0].rows
    assert files[0].sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    found = [rows_of(files[0], part, kind, settings) for part in parts]
    assert [rows[0].line for rows in found] == [part.line for part in parts]
    return [[row.values for row in rows] for rows in found]


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_parts_of_json_lines(tmp_path: Path, mark: bytes) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(mark + b"".join(b'{"n": %d}\n\n' % number for number in range(8)))
    assert read(path) == [[{"n": 0}, {"n": 1}, {"n": 2}], [{"n": 3}, {"n": 4}, {"n": 5}], [{"n": 6}, {"n": 7}]]


def test_parts_of_csv_begin_at_records(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('\ufeffid,prompt\n1,"a\nb"\n2,"c\n\nd"\n3,e\n4,"f"\n', encoding="utf-8")
    assert [[row and row["prompt"] for row in part] for part in read(path)] == [["a\nb", "c\n\nd", "e"], ["f"]]


def test_tabs_and_other_delimiters(tmp_path: Path) -> None:
    path = tmp_path / "a.tsv"
    path.write_text("id\tprompt\n1\ta,b\n")
    assert read(path) == [[{"id": "1", "prompt": "a,b"}]]
    (tmp_path / "a.csv").write_text("id;prompt\n1;a,b\n")
    assert read(tmp_path / "a.csv", Batch(delimiter=";")) == [[{"id": "1", "prompt": "a,b"}]]


@pytest.mark.parametrize("group", [1, 2, 4, 7, 100])
def test_parts_of_parquet_lie_across_row_groups(tmp_path: Path, group: int) -> None:
    path = tmp_path / "a.parquet"
    table = pyarrow.table({"n": list(range(11)), "t": [f"text {number}" for number in range(11)]})
    pyarrow.parquet.write_table(table, path, row_group_size=group)
    assert [row for part in read(path) for row in part] == table.to_pylist()
    files, parts = scan([str(path)], "parquet", SMALL)
    assert [table_of(files[0], part).to_pylist() for part in parts] == [
        table.slice(first, 3).to_pylist() for first in range(0, 11, 3)
    ]


def test_a_damaged_page_of_parquet_costs_its_own_part(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    table = pyarrow.table({"t": [f"text {number} " * 50 for number in range(9)]})
    pyarrow.parquet.write_table(table, path, row_group_size=3, compression="zstd", use_dictionary=False)
    data = bytearray(path.read_bytes())
    second = pyarrow.parquet.ParquetFile(path).metadata.row_group(1).column(0).data_page_offset
    data[second + 20 : second + 60] = b"\xff" * 40
    path.write_bytes(data)
    files, parts = scan([str(path)], "parquet", SMALL)
    rows = [rows_of(files[0], part, "parquet", SMALL) for part in parts]
    assert [[row.values is not None for row in part] for part in rows] == [[True] * 3, [False] * 3, [True] * 3]
    assert [row.line for row in rows[1]] == [4, 5, 6] and "cannot be read" in rows[1][0].problem


def test_a_value_of_parquet_that_is_none_costs_its_own_row(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    bad = pyarrow.array([b"good", b"\xff\xfe", b"good too"], pyarrow.binary()).view(pyarrow.string())
    pyarrow.parquet.write_table(pyarrow.table({"prompt": bad}), path)
    assert read(path) == [[{"prompt": "good"}, None, {"prompt": "good too"}]]


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.parquet"])
def test_an_empty_file_has_no_rows(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name.endswith("parquet"):
        pyarrow.parquet.write_table(pyarrow.table({"prompt": pyarrow.array([], pyarrow.string())}), path)
    else:
        path.write_bytes(b"")
    assert read(path) == []


def test_kinds(tmp_path: Path) -> None:
    openai = tmp_path / "b.jsonl"
    openai.write_text("\n" + json.dumps({"custom_id": "1", "method": "POST", "url": "/v1/x", "body": {}}) + "\n")
    assert input_kind([str(openai)], Batch()) == "openai"
    assert input_kind([str(openai)], Batch(format="jsonl")) == "jsonl"
    with pytest.raises(BatchError, match=r"a\.json is none of \.jsonl, \.ndjson, \.csv"):
        input_kind(["a.json"], Batch())
    with pytest.raises(BatchError, match=r"a\.csv\.gz is none of .*: decompress it first"):
        input_kind(["a.csv.gz"], Batch())
    with pytest.raises(BatchError, match=r"several kinds \(csv, jsonl\)"):
        input_kind(["a.csv", "a.jsonl"], Batch(format=None))


def test_files_folders_and_patterns(tmp_path: Path) -> None:
    for name in ("b.csv", "a.csv", "sub/c.csv", ".hidden.csv", "_SUCCESS", "a.csv.rejects.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    assert places.found(str(tmp_path)) == [str(tmp_path / name) for name in ("a.csv", "b.csv", "sub/c.csv")]
    assert places.found(f"{tmp_path}/?.csv") == [str(tmp_path / name) for name in ("a.csv", "b.csv")]
    assert places.found(f"{tmp_path}/b.csv") == [str(tmp_path / "b.csv")]
    with pytest.raises(BatchError, match="no such file, folder or pattern"):
        places.found(f"{tmp_path}/nothing*")
    with pytest.raises(BatchError, match="nowhere://x"):
        places.found("nowhere://x")


def test_files_that_are_not_what_their_name_says(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1 and rubbish")
    with pytest.raises(BatchError, match=r"a\.parquet is not Parquet"):
        scan([str(tmp_path / "a.parquet")], "parquet", Batch())
    (tmp_path / "a.csv").write_text("id,id\n1,2\n")
    with pytest.raises(BatchError, match=r"a\.csv, line 1: the header names a column twice"):
        scan([str(tmp_path / "a.csv")], "csv", Batch())


def test_a_file_that_shrinks_is_told(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"n": 1}\n' * 5)
    files, parts = scan([str(path)], "jsonl", SMALL)
    path.write_text('{"n": 1}\n')
    with pytest.raises(BatchError, match="has changed since it was scanned"):
        rows_of(files[0], parts[1], "jsonl", SMALL)


def test_what_is_written_is_whole_or_not_there(tmp_path: Path) -> None:
    target = str(tmp_path / "new" / "a.txt")
    places.write(target, b"first")
    with pytest.raises(KeyboardInterrupt), places.writing(target) as file:
        file.write(b"half of the sec")
        raise KeyboardInterrupt
    assert places.read(target) == b"first"
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.txt"]
