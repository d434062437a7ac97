"""The journal of a batch -> its output: each row of the input with what was answered, in order; and the rejects."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import IO, TYPE_CHECKING, Any, Self

import orjson

from tasks import progress
from tasks.batch import places
from tasks.batch.answering import Tally, tally_of
from tasks.batch.inputs import InputFile, Part, kind_of, rows_of, schema_of, table_of
from tasks.batch.job import ADDED, Plan, Result, added, kept, unchanged
from tasks.batch.rows import Row
from tasks.errors import BatchError

if TYPE_CHECKING:
    from pyarrow import Schema


def write_output(plan: Plan) -> tuple[str, Tally]:
    """Write the output and, where there are some, the rejects; return the output's SHA-256 and what the rows came to.

    Raises:
        BatchError: The input has changed since the batch began.
        IntegrityError: A part of the journal is damaged.
    """
    job = plan.job
    unchanged(job)
    hashed, tally = hashlib.sha256(), Tally()
    places.remove(job.rejects)
    with ExitStack() as open_files, progress.step("write", total=job.rows, unit="steps") as step:
        file = open_files.enter_context(places.writing(job.output))
        writer = open_files.enter_context(_writer(plan, _Hashed(file, hashed)))
        rejects: IO[bytes] | None = None
        for part in plan.parts:
            results, source = kept(job, part), job.files[part.file]
            rows = rows_of(source, part, job.kind, job.settings)
            writer.add(source, part, rows, results)
            for row, result in zip(rows, results, strict=True):
                if result.rejected is not None:
                    rejects = rejects or open_files.enter_context(places.writing(job.rejects))
                    rejects.write(_rejected(source, row, result))
            tally += tally_of(results)
            step.update(done=tally.rows)
    return hashed.hexdigest(), tally


def _writer(plan: Plan, file: Any) -> _Writer:
    if plan.job.kind == "openai":
        return _OpenAI(plan, file)
    kind = kind_of(plan.job.output, what="output")
    return {"csv": _Csv, "parquet": _Parquet}.get(kind, _JsonLines)(plan, file)


class _Writer(ABC):
    """Writes the output in one format: a context, and parts in order."""

    def __init__(self, plan: Plan, file: Any) -> None:
        self._job = plan.job
        self._plan = plan
        self._file = file

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:  # noqa: B027 - most have nothing more to write
        """Write what comes after all rows."""

    @abstractmethod
    def add(self, file: InputFile, part: Part, rows: list[Row], results: list[Result]) -> None: ...


class _Columns(_Writer):
    """What the formats of columns have in common."""

    def __init__(self, plan: Plan, file: Any) -> None:
        super().__init__(plan, file)
        self._names = added(plan.job.settings)
        name, _, version = plan.job.version.rpartition("/")
        self._same = {"model": name, "version": int(version), "digest": plan.job.digest}

    def _added(self, result: Result) -> dict[str, Any]:
        values = self._same | {name: getattr(result, name) for name in ADDED if name not in self._same}
        return {name: values[plain] for name, plain in zip(self._names, ADDED, strict=True)}

    def _whole(self, rows: Sequence[Row], results: Sequence[Result]) -> Iterator[dict[str, Any]]:
        """Yield the rows that were asked, the input's columns first."""
        for row, result in zip(rows, results, strict=True):
            if result.rejected is None:
                given = row.values or {}
                own = {"id": given["id"]} if "id" in self._names and given.get("id") is not None else {}
                yield given | self._added(result) | own  # an id that is a number stays one

    def _columns(self) -> list[str]:
        """Return the columns of the input that some row has, in the order in which they come."""
        seen: dict[str, None] = {}
        if self._job.kind != "jsonl":
            for file in self._job.files:
                seen |= dict.fromkeys(file.columns)
        else:
            for part in self._plan.parts:
                for row in rows_of(self._job.files[part.file], part, self._job.kind, self._job.settings):
                    seen |= dict.fromkeys(row.values or {})
        return [name for name in seen if name not in self._names]


class _JsonLines(_Columns):
    def add(self, _file: InputFile, _part: Part, rows: list[Row], results: list[Result]) -> None:
        for values in self._whole(rows, results):
            self._file.write(orjson.dumps(values, default=_text, option=orjson.OPT_APPEND_NEWLINE))


class _Csv(_Columns):
    def __enter__(self) -> Self:
        self._text = io.TextIOWrapper(self._file, encoding="utf-8", newline="", write_through=True)
        delimiter = "\t" if self._job.output.lower().endswith(".tsv") else ","
        self._rows = csv.DictWriter(
            self._text, [*self._columns(), *self._names], delimiter=delimiter, lineterminator="\n", restval=""
        )
        self._rows.writeheader()
        return self

    def __exit__(self, *_: object) -> None:
        self._text.detach()

    def add(self, _file: InputFile, _part: Part, rows: list[Row], results: list[Result]) -> None:
        for values in self._whole(rows, results):
            self._rows.writerow({name: _cell(value) for name, value in values.items()})


class _Parquet(_Columns):
    """Columns of a Parquet input keep their types; of others the types are found in the rows."""

    def __enter__(self) -> Self:
        from pyarrow.parquet import ParquetWriter

        self._schema = self._found_schema()
        self._rows = ParquetWriter(self._file, self._schema)
        return self

    def __exit__(self, *_: object) -> None:
        self._rows.close()

    def add(self, file: InputFile, part: Part, rows: list[Row], results: list[Result]) -> None:
        import pyarrow

        asked = [place for place, result in enumerate(results) if result.rejected is None]
        if not asked:
            return
        ours = [self._added(results[place]) for place in asked]
        columns: dict[str, Any] = {}
        if self._job.kind == "parquet":
            table = table_of(file, part).take(asked)
            columns = {name: table[name] for name in table.column_names if name not in self._names or self._keeps(name)}
        else:
            for field in self._schema:
                if field.name not in self._names:
                    cells = [(rows[place].values or {}).get(field.name) for place in asked]
                    texts = pyarrow.types.is_string(field.type)
                    columns[field.name] = [_string(cell) if texts else cell for cell in cells]
        columns |= {name: [one[name] for one in ours] for name in self._names if name not in columns}
        arrays = [
            columns[field.name].cast(field.type)
            if hasattr(columns.get(field.name), "cast")
            else pyarrow.array(columns.get(field.name) or [None] * len(asked), field.type)
            for field in self._schema
        ]
        self._rows.write_table(pyarrow.Table.from_arrays(arrays, schema=self._schema))

    def _found_schema(self) -> Schema:
        import pyarrow

        if self._job.kind == "parquet":
            schemas = [schema_of(file) for file in self._job.files]
            try:
                found = pyarrow.unify_schemas(schemas, promote_options="permissive") if schemas else pyarrow.schema([])
            except pyarrow.ArrowException as error:
                raise BatchError(f"the input's files have columns of different types: {error}") from error
        else:
            found = self._types_in_rows()
        kinds = {"prompt_tokens": "int64", "completion_tokens": "int64", "version": "int64", "latency_s": "double"}
        self._kept_id = "id" in found.names and not pyarrow.types.is_string(found.field("id").type)
        ours = [
            pyarrow.field(name, pyarrow.type_for_alias(kinds.get(plain, "string")))
            for name, plain in zip(self._names, ADDED, strict=True)
            if not self._keeps(name)
        ]
        given = [field for field in found if field.name not in self._names or self._keeps(field.name)]
        return pyarrow.schema([*given, *ours])

    def _keeps(self, name: str) -> bool:
        """Return whether a column of ours is the input's: an id that is no text stays what it is."""
        return name == "id" and self._job.kind == "parquet" and self._kept_id and name in self._names

    def _types_in_rows(self) -> Schema:
        """Return the schema that all rows fit; a column whose values agree on no type holds them as JSON texts."""
        import pyarrow

        if self._job.kind == "csv":
            return pyarrow.schema([(name, pyarrow.string()) for name in self._columns()])
        types: dict[str, Any] = {}
        for part in self._plan.parts:
            rows = rows_of(self._job.files[part.file], part, self._job.kind, self._job.settings)
            cells: dict[str, list[Any]] = {}
            for row in rows:
                for name, value in (row.values or {}).items():
                    cells.setdefault(name, []).append(value)
            for name, values in cells.items():
                types[name] = _common(types.get(name), values)
        return pyarrow.schema([(name, _writable(kind)) for name, kind in types.items()])


class _OpenAI(_Writer):
    """OpenAI's batch output: a line a request."""

    def add(self, _file: InputFile, _part: Part, _rows: list[Row], results: list[Result]) -> None:
        name, _, version = self._job.version.rpartition("/")
        for result in results:
            if result.rejected is not None:
                continue
            unique = hashlib.sha256(f"{self._job.inputs} {result.id} {result.line}".encode()).hexdigest()[:32]
            told = {
                "id": f"batch_req_{unique}",
                "custom_id": result.id,
                "response": {
                    "status_code": 400 if result.error else 200,
                    "request_id": f"req_{unique}",
                    "body": result.body,
                },
                "error": None,
                "vinoflow": {
                    "model": name,
                    "version": int(version),
                    "digest": self._job.digest,
                    "latency_s": result.latency_s,
                },
            }
            self._file.write(orjson.dumps(told, option=orjson.OPT_APPEND_NEWLINE))


class _Hashed(io.RawIOBase):
    """Writes to a file, and into a hash."""

    def __init__(self, file: IO[bytes], hashed: Any) -> None:
        self._file = file
        self._hashed = hashed
        self._place = 0

    def writable(self) -> bool:
        return True

    def write(self, block: Any) -> int:
        data = bytes(block)
        self._file.write(data)
        self._hashed.update(data)
        self._place += len(data)
        return len(data)

    def tell(self) -> int:
        return self._place


def _rejected(file: InputFile, row: Row, result: Result) -> bytes:
    raw = row.raw or (json.dumps(row.values, default=_text, ensure_ascii=False) if row.values is not None else "")
    told = {"file": file.url, "line": row.line, "reason": result.rejected, "row": raw}
    return orjson.dumps(told, option=orjson.OPT_APPEND_NEWLINE)


def _common(known: Any, values: list[Any]) -> Any:
    """Return a type for both a known type and some values; string where they have none in common."""
    import pyarrow

    try:
        kind = pyarrow.array(values).type
        if known is None or pyarrow.types.is_null(known):
            return kind
        one, other = pyarrow.schema([("a", known)]), pyarrow.schema([("a", kind)])
        return pyarrow.unify_schemas([one, other], promote_options="permissive").field("a").type
    except (pyarrow.ArrowException, ValueError, OverflowError):
        return pyarrow.string()


def _writable(kind: Any) -> Any:
    """Return a type that Parquet can hold in place of one that only says that nothing is known."""
    import pyarrow

    empty = pyarrow.types.is_struct(kind) and not kind.num_fields
    return pyarrow.string() if pyarrow.types.is_null(kind) or empty else kind


def _string(cell: Any) -> str | None:
    return cell if cell is None or isinstance(cell, str) else orjson.dumps(cell).decode()


def _cell(value: Any) -> Any:
    """Return what stands in a cell of CSV."""
    if value is None:
        return ""
    return value if isinstance(value, str | int | float) else orjson.dumps(value, default=_text).decode()


def _text(value: Any) -> str:
    """Return what JSON has no form for as a text."""
    return base64.b64encode(value).decode() if isinstance(value, bytes) else str(value)
