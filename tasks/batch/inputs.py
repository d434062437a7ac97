"""The files of an input: of which kind they are, where their parts begin, and what a part's rows are."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator, Sequence
from pathlib import PurePath
from typing import IO, TYPE_CHECKING, Any, NamedTuple

from pydantic import Field

from tasks import progress
from tasks.batch import places
from tasks.batch.rows import Row, Stretch, csv_fields, csv_reader, csv_records, json_lines, read_json
from tasks.config import Batch, BatchKind
from tasks.errors import BatchError, StorageError
from tasks.records import Record

if TYPE_CHECKING:
    from pyarrow import Schema, Table

KINDS: dict[str, BatchKind] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
}
_BOM = b"\xef\xbb\xbf"
_OPENAI = {"custom_id", "url", "body"}


class InputFile(Record):
    """One file of the input, exactly enough to know it again."""

    url: str
    size_bytes: int
    mark: str = Field(description="What changes with the file: its size and time, or its ETag.")
    sha256: str
    rows: int
    columns: tuple[str, ...] = Field((), description="Of CSV and Parquet.")


class Part(NamedTuple):
    """Some rows of one file that are answered and kept together."""

    number: int
    file: int
    offset: int  # bytes; of Parquet rows
    line: int  # of the first row
    rows: int


def kind_of(url: str, *, what: str) -> BatchKind:
    """Return which kind of file a name says.

    Raises:
        BatchError: None that is known.
    """
    suffix = PurePath(url).suffix.lower()
    if suffix in KINDS:
        return KINDS[suffix]
    hint = ": decompress it first" if suffix in {".gz", ".bz2", ".xz", ".zst"} else ""
    raise BatchError(f"{what} {url} is none of {', '.join(KINDS)}{hint}")


def input_kind(urls: Sequence[str], settings: Batch) -> BatchKind:
    """Return the kind of all files of an input.

    Raises:
        BatchError: They are of several kinds, or of none that is known.
    """
    kinds = {settings.format or kind_of(url, what="input") for url in urls}
    if len(kinds) > 1:
        raise BatchError(f"the input has files of several kinds ({', '.join(sorted(kinds))}): name one, or a pattern")
    kind = kinds.pop()
    if kind == "jsonl" and settings.format is None and _is_openai(urls[0], settings):
        return "openai"
    return kind


def _is_openai(url: str, settings: Batch) -> bool:
    with places.reading(url) as file:
        for stretch in json_lines(file, line=1, most=settings.max_row_bytes):
            if stretch.is_row:
                row = read_json(stretch)
                return row.values is not None and row.values.keys() >= _OPENAI
    return False


def scan(urls: Sequence[str], kind: BatchKind, settings: Batch) -> tuple[tuple[InputFile, ...], tuple[Part, ...]]:
    """Read all files once; return what they are, and where their parts begin.

    Raises:
        BatchError: One cannot be read.
    """
    files: list[InputFile] = []
    parts: list[Part] = []
    with progress.step("scan", total=len(urls), unit="steps") as step:
        for number, url in enumerate(urls):
            step.update(note=url)
            look = _scan_parquet if kind == "parquet" else _scan_text
            file, begins = look(url, kind, settings)
            files.append(file)
            parts += [Part(len(parts) + place, number, *begin) for place, begin in enumerate(begins)]
            step.update(done=number + 1, note=f"{sum(file.rows for file in files)} rows")
    return tuple(files), tuple(parts)


def _scan_text(url: str, kind: BatchKind, settings: Batch) -> tuple[InputFile, list[tuple[int, int, int]]]:
    begins: list[tuple[int, int, int]] = []
    hashed, mark, rows = hashlib.sha256(), places.mark(url), 0
    with places.reading(url) as file:
        stream = io.BufferedReader(places.Hashing(file, hashed), 1 << 20)
        offset, line = (3, 1) if stream.peek(3)[:3] == _BOM else (0, 1)
        stream.read(offset)
        stretches = _stretches(stream, kind, url, settings, line=line)
        header: tuple[str, ...] = ()
        if kind == "csv":
            header, offset = _header(stretches, url, settings, offset)
        for stretch in stretches:
            if stretch.is_row:
                if rows % settings.part_rows == 0:
                    begins.append((offset, stretch.line, 0))
                rows += 1
                begins[-1] = (*begins[-1][:2], begins[-1][2] + 1)
            offset += stretch.size
    known = InputFile(url=url, size_bytes=offset, mark=mark, sha256=hashed.hexdigest(), rows=rows, columns=header)
    return known, begins


def _header(stretches: Iterator[Stretch], url: str, settings: Batch, offset: int) -> tuple[tuple[str, ...], int]:
    for stretch in stretches:
        offset += stretch.size
        if stretch.is_row:
            names, problem = csv_fields(stretch, _delimiter(url, settings))
            if not problem and len(set(names)) < len(names):
                problem = "names a column twice"
            if problem:
                raise BatchError(f"{url}, line {stretch.line}: the header {problem}")
            return tuple(names), offset
    return (), offset


def _scan_parquet(url: str, _: BatchKind, settings: Batch) -> tuple[InputFile, list[tuple[int, int, int]]]:
    hashed, mark = hashlib.sha256(), places.mark(url)
    with places.reading(url) as file:
        while block := file.read(1 << 20):
            hashed.update(block)
        size = file.tell()
        opened = _parquet(file, url)
        rows, columns = opened.metadata.num_rows, tuple(opened.schema_arrow.names)
    size_of = settings.part_rows
    begins = [(first, first + 1, min(size_of, rows - first)) for first in range(0, rows, size_of)]
    known = InputFile(url=url, size_bytes=size, mark=mark, sha256=hashed.hexdigest(), rows=rows, columns=columns)
    return known, begins


def rows_of(file: InputFile, part: Part, kind: BatchKind, settings: Batch) -> list[Row]:
    """Return the rows of a part.

    Raises:
        BatchError: The file cannot be read, or is not the one that was scanned.
    """
    if kind == "parquet":
        return _of_table(file, part)
    read = csv_reader(file.columns, _delimiter(file.url, settings)) if kind == "csv" else read_json
    found: list[Row] = []
    with places.reading(file.url, offset=part.offset) as stream:
        for stretch in _stretches(stream, kind, file.url, settings, line=part.line):
            if stretch.is_row:
                found.append(read(stretch))
                if len(found) == part.rows:
                    return found
    raise BatchError(f"{file.url} has changed since it was scanned: it ends in part {part.number}")


def schema_of(file: InputFile) -> Schema:
    """Return the columns of a Parquet file with their types."""
    with places.reading(file.url) as stream:
        return _parquet(stream, file.url).schema_arrow


def table_of(file: InputFile, part: Part) -> Table:
    """Return the rows of a part of a Parquet file as a table, with the types that they have there."""
    import pyarrow

    with places.reading(file.url) as stream:
        opened = _parquet(stream, file.url)
        first = skip = 0
        groups: list[int] = []
        for group in range(opened.num_row_groups):
            count = opened.metadata.row_group(group).num_rows
            if first < part.offset + part.rows and first + count > part.offset:
                skip = skip if groups else part.offset - first
                groups.append(group)
            first += count
        batches, left = [], part.rows
        for batch in opened.iter_batches(batch_size=max(part.rows, 1024), row_groups=groups):
            if skip >= batch.num_rows:
                skip -= batch.num_rows
                continue
            batches.append(batch.slice(skip, left))
            left -= batches[-1].num_rows
            skip = 0
            if not left:
                break
        return pyarrow.Table.from_batches(batches, schema=opened.schema_arrow)


def _of_table(file: InputFile, part: Part) -> list[Row]:
    from pyarrow import ArrowException

    try:
        table = table_of(file, part)
    except StorageError:  # the rows are none the worse
        raise
    except (ArrowException, OSError, ValueError) as error:
        return [Row(part.line + place, None, f"cannot be read: {error}", "") for place in range(part.rows)]
    rows = []
    for place in range(part.rows):
        try:
            values, problem = table.slice(place, 1).to_pylist()[0], ""
        except (ArrowException, ValueError, OverflowError) as error:
            values, problem = None, f"cannot be read: {error}"
        rows.append(Row(part.line + place, values, problem, ""))
    return rows


def _parquet(stream: IO[bytes], url: str) -> Any:
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    try:
        return ParquetFile(stream)
    except (ArrowException, OSError) as error:
        raise BatchError(f"{url} is not Parquet: {error}") from error


def _stretches(stream: IO[bytes], kind: BatchKind, url: str, settings: Batch, *, line: int) -> Iterator[Stretch]:
    most = settings.max_row_bytes
    if kind == "csv":
        return csv_records(stream, line=line, most=most, delimiter=_delimiter(url, settings))
    return json_lines(stream, line=line, most=most)


def _delimiter(url: str, settings: Batch) -> str:
    return settings.delimiter or ("\t" if url.lower().endswith(".tsv") else ",")
