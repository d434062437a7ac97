"""Rows of JSON Lines and CSV: where each one begins and ends, and what is in it. What is no row is told, never lost."""

from __future__ import annotations

import csv
import io
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import IO, Any, NamedTuple

import orjson

_SHOWN = 1000  # bytes of a row that is too long


class Row(NamedTuple):
    """One row of the input."""

    line: int  # where it begins, from 1; of Parquet the number of the row
    values: dict[str, Any] | None
    problem: str  # why there are no values
    raw: str  # as it stands there; of Parquet nothing


class Stretch(NamedTuple):
    """The bytes of one row: of one line, or in CSV of several."""

    line: int
    size: int  # bytes, with those that end it
    data: bytes
    problem: str

    @property
    def is_row(self) -> bool:
        """Whether it is more than a blank line."""
        return bool(self.problem or self.data.strip())


def json_lines(stream: IO[bytes], *, line: int, most: int) -> Iterator[Stretch]:
    """Yield each line, blank ones too.

    Args:
        stream: What to read.
        line: The number of its first line.
        most: Bytes that a line may have.
    """
    for number, (size, data, problem) in enumerate(_lines(stream, most), start=line):
        yield Stretch(number, size, data, problem)


def csv_records(stream: IO[bytes], *, line: int, most: int, delimiter: str) -> Iterator[Stretch]:
    """Yield each record, of one or more lines. A line whose quotes are wrong is one by itself, and costs no other.

    The arguments are those of `json_lines`.
    """
    source, ahead = _lines(stream, most), deque[tuple[int, bytes, str]]()
    separator = delimiter.encode()
    while first := ahead.popleft() if ahead else next(source, None):
        size, data, problem = first
        record = [first]
        state = _Quotes(separator)
        if not problem and b'"' in data:
            state.read(data)
            while state.open and not problem:
                following = ahead.popleft() if ahead else next(source, None)
                if following is None or following[2] or size + following[0] > most:
                    problem = "a quote that begins here is not closed"
                    record += [following] if following else []
                    break
                record.append(following)
                size += following[0]
                state.read(following[1])
            problem = problem or state.problem
        if problem:
            ahead.extendleft(reversed(record[1:]))
            record = record[:1]
        yield Stretch(line, sum(one[0] for one in record), b"".join(one[1] for one in record), problem)
        line += len(record)


def read_json(stretch: Stretch) -> Row:
    """Return the object that a line holds."""
    raw = _shown(stretch.data)
    if stretch.problem:
        return Row(stretch.line, None, stretch.problem, raw)
    try:
        values = orjson.loads(stretch.data)
        orjson.dumps(values)  # which takes less depth than it reads
    except (ValueError, TypeError) as error:
        return Row(stretch.line, None, _not_json(stretch.data, error), raw)
    if not isinstance(values, dict):
        return Row(stretch.line, None, f"is not an object, but {_kind(values)}", raw)
    return Row(stretch.line, values, "", raw)


def csv_reader(header: Sequence[str], delimiter: str) -> Callable[[Stretch], Row]:
    """Return what reads a record of a file with this header."""

    def read(stretch: Stretch) -> Row:
        raw = _shown(stretch.data)
        fields, problem = csv_fields(stretch, delimiter)
        if not problem and len(fields) != len(header):
            problem = f"has {len(fields)} fields, the header has {len(header)}"
        if problem:
            return Row(stretch.line, None, problem, raw)
        return Row(stretch.line, dict(zip(header, fields, strict=True)), "", raw)

    return read


def csv_fields(stretch: Stretch, delimiter: str) -> tuple[list[str], str]:
    """Return a record's fields, or what is wrong with it."""
    if stretch.problem:
        return [], stretch.problem
    try:
        text = stretch.data.decode().rstrip("\r\n")
    except UnicodeDecodeError as error:
        return [], _not_utf8(error)
    if "\0" in text:
        return [], "has a NUL character"
    csv.field_size_limit(max(csv.field_size_limit(), len(text) + 1))
    try:
        return next(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)), ""
    except (csv.Error, StopIteration) as error:
        return [], f"is not CSV: {error}"


class _Quotes:
    """Where the quotes of a CSV record stand, line by line. A quote is one only at the beginning of a field."""

    def __init__(self, separator: bytes) -> None:
        self._separator = separator
        self.open = False  # whether the last line ends inside of a quoted field
        self.problem = ""

    def read(self, data: bytes) -> None:
        place, end = 0, len(data.rstrip(b"\r\n"))
        while place < end or self.open:
            if not self.open and data[place : place + 1] != b'"':
                place = data.find(self._separator, place) + 1
                if not place:
                    return
                continue
            place = data.find(b'"', place if self.open else place + 1)
            self.open = place < 0
            if self.open:
                return
            if data[place + 1 : place + 2] == b'"':
                self.open, place = True, place + 2
                continue
            place += 1
            if place < end and data[place : place + 1] != self._separator:
                self.problem = "is not CSV: text follows a closing quote"
                return
            place += 1


def _lines(stream: IO[bytes], most: int) -> Iterator[tuple[int, bytes, str]]:
    """Yield the size of each line, its bytes, and what is wrong with it."""
    while line := stream.readline(most + 1):
        size = len(line)
        if size > most and not line.endswith(b"\n"):
            while (more := stream.readline(1 << 20)) and not more.endswith(b"\n"):
                size += len(more)
            size += len(more)
            yield size, line[:_SHOWN], f"has {size} bytes, more than max_row_bytes {most}"
        else:
            yield size, line, ""


def _not_json(data: bytes, error: Exception) -> str:
    try:
        data.decode()
    except UnicodeDecodeError as broken:
        return _not_utf8(broken)
    return f"is not JSON: {error}"


def _not_utf8(error: UnicodeDecodeError) -> str:
    return f"is not UTF-8: byte 0x{error.object[error.start]:02x} at {error.start}"


def _kind(value: Any) -> str:
    names = {list: "a list", str: "a text", bool: "true or false", int: "a number", float: "a number"}
    return names.get(type(value), "null")


def _shown(data: bytes) -> str:
    return data.decode(errors="backslashreplace").rstrip("\r\n")
