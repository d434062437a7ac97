from __future__ import annotations

import csv
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.batch.rows import Row, csv_reader, csv_records, json_lines, read_json

HEADER = ("id", "prompt")


def json_rows(data: bytes, most: int = 1000) -> list[Row]:
    return [read_json(one) for one in json_lines(io.BytesIO(data), line=1, most=most) if one.is_row]


def csv_rows(data: bytes, most: int = 1000, header: tuple[str, ...] = HEADER) -> list[Row]:
    read = csv_reader(header, ",")
    return [read(one) for one in csv_records(io.BytesIO(data), line=1, most=most, delimiter=",") if one.is_row]


def test_json_lines() -> None:
    rows = json_rows(b'{"a": 1}\n\n  \r\n{"b": "\xc3\xa9"}\r\n{"c": null}')
    assert [(row.line, row.values) for row in rows] == [(1, {"a": 1}), (4, {"b": "é"}), (5, {"c": None})]
    assert rows[1].raw == '{"b": "é"}'


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b"not json", "is not JSON"),
        (b'{"a": NaN}', "is not JSON"),
        (b'{"a": 1', "is not JSON"),
        (b'{"a": "\\ud800"}', "is not JSON"),
        (b"[" * 2000, "is not JSON"),
        (b'{"a": ' + b"[" * 400 + b"]" * 400 + b"}", "is not JSON"),
        (b"[1, 2]", "is not an object, but a list"),
        (b'"text"', "is not an object, but a text"),
        (b"7", "is not an object, but a number"),
        (b"null", "is not an object, but null"),
        (b'{"a": "\xff"}', "is not UTF-8: byte 0xff at 7"),
        (b"\x00\x01\x02", "is not JSON"),
        (b"x" * 5000, "has 5001 bytes, more than max_row_bytes 4000"),
    ],
)
def test_what_is_no_json_object_is_told_and_costs_no_other(line: bytes, problem: str) -> None:
    rows = json_rows(b'{"a": 1}\n' + line + b'\n{"b": 2}\n', most=4000)
    assert [row.values for row in rows] == [{"a": 1}, None, {"b": 2}]
    assert rows[1].line == 2 and rows[1].problem.startswith(problem)
    assert rows[1].raw.startswith(line[:5].decode(errors="backslashreplace"))


def test_csv() -> None:
    rows = csv_rows(b'1,plain\n2,"with, comma"\r\n3,"two\nlines ""quoted"""\n\n4,in"side\n')
    assert [(row.line, row.values and row.values["prompt"]) for row in rows] == [
        (1, "plain"),
        (2, "with, comma"),
        (3, 'two\nlines "quoted"'),
        (6, 'in"side'),
    ]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b"1", "has 1 fields, the header has 2"),
        (b"1,2,3", "has 3 fields, the header has 2"),
        (b'1,"never closed', "a quote that begins here is not closed"),
        (b'"closed" twice,2', "is not CSV: text follows a closing quote"),
        (b"1,\xff", "is not UTF-8: byte 0xff at 2"),
        (b"1,a\x00b", "has a NUL character"),
        (b"1," + b"x" * 5000, "has 5003 bytes, more than max_row_bytes 4000"),
    ],
)
def test_what_is_no_csv_record_is_told_and_costs_no_other(line: bytes, problem: str) -> None:
    good = b"".join(b"%d,fine\n" % number for number in range(600))
    rows = csv_rows(b"0,before\n" + line + b"\n" + good, most=4000)
    assert [row.line for row in rows] == list(range(1, 603))
    assert [row.line for row in rows if row.values is None] == [2]
    assert rows[1].problem.startswith(problem)


@given(st.lists(st.lists(st.text(max_size=6), min_size=2, max_size=2), max_size=8), st.sampled_from(["\n", "\r\n"]))
def test_what_csv_writers_write_is_read(table: list[list[str]], end: str) -> None:
    table = [[cell.replace("\0", "").replace("\r", "") for cell in row] for row in table]
    table = [row for row in table if any(cell.strip() for cell in row)]
    text = io.StringIO()
    csv.writer(text, lineterminator=end).writerows(table)
    data = text.getvalue().encode(errors="replace")
    rows = csv_rows(data, most=10_000)
    expected = [[cell.encode(errors="replace").decode() for cell in row] for row in table]
    assert [list((row.values or {}).values()) for row in rows] == expected


@given(st.lists(st.sampled_from([b'"', b",", b"\n", b"a", b'""', b"\r\n", b"\xff", b"1,fine\n", b'"x\n']), max_size=30))
def test_every_byte_of_a_csv_is_in_one_record(pieces: list[bytes]) -> None:
    data = b"".join(pieces)
    found = list(csv_records(io.BytesIO(data), line=1, most=60, delimiter=","))
    assert sum(one.size for one in found) == len(data)
    lines, place = data.splitlines(keepends=True), 0
    starts = {}
    for number, line in enumerate(data.split(b"\n"), start=1):
        starts[number] = place
        place += len(line) + 1
    place = 0
    for one in found:
        assert starts[one.line] == place
        place += one.size
    assert lines or not found
