"""The ledger: every move of an alias as an MLflow run of its own, chained to the one before by its hash.

An entry's run is RUNNING while its move is under way and FINISHED when the alias was seen to point where the entry
says. `tasks.registry.move` writes them; nothing changes or deletes one.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, Literal

from pydantic import Field

from tasks.errors import IntegrityError
from tasks.manifest import digest_of
from tasks.records import Record
from tasks.registry.store import connect, experiment_id, tracking_uri, translated
from tasks.registry.trouble import create_run

EXPERIMENT = "vinoflow-ledger"
HEAD = "vinoflow.ledger.head"  # tag of the registered model: sequence and digest of its last finished entry
_NAME, _ALIAS, _SEQUENCE, _ENTRY = (f"vinoflow.ledger.{part}" for part in ("name", "alias", "sequence", "entry"))
_PAGE = 50

Action = Literal["promoted", "rolled-back", "restored"]


class Entry(Record):
    """One move of an alias. Its digest covers every other field, that of the entry before among them."""

    sequence: int = Field(description="1, 2, ... over all aliases of a model.")
    at: datetime = Field(description="When, in UTC; never before the entry before.")
    actor: str = Field(description="Who: user@host, or the name that was given.")
    action: Action
    name: str = Field(description="The registered model.")
    alias: str
    from_version: int | None = Field(description="None: the alias did not exist.")
    from_digest: str = Field("", description="Of the exported model.")
    to_version: int
    to_digest: str
    report_digest: str = Field("", description="SHA-256 of the report.json that the decision was made on.")
    gates: tuple[str, ...] = Field((), description="Gates that failed and were overridden, in words.")
    reason: str = ""
    approved_by: str = ""
    flow_run_id: str = Field("", description="Prefect's id of the flow run.")
    previous: str = Field("", description="Digest of the entry before; empty for the first.")
    digest: str = Field("", description="SHA-256 of all of the above.")

    def computed_digest(self) -> str:
        """Return what `digest` must be."""
        return digest_of(self.model_dump(mode="json", exclude={"digest"}))


class Noted(Record):
    """An entry as MLflow has it."""

    entry: Entry
    run_id: str
    pending: bool = Field(description="Its move was begun, and was not seen to end.")


def entries(name: str, *, alias: str | None = None) -> Iterator[Noted]:
    """Yield a model's entries, the newest first, page by page.

    Raises:
        IntegrityError: What is kept of one is no entry.
    """
    client = connect()
    with translated():
        wanted = f"tags.`{_NAME}` = '{name}'" + (f" AND tags.`{_ALIAS}` = '{alias}'" if alias else "")
        token, size = None, 1  # most callers want the newest only
        while True:
            order = [f"tags.`{_SEQUENCE}` DESC"]
            page = client.search_runs([_experiment()], wanted, max_results=size, order_by=order, page_token=token)
            yield from map(_noted, page)
            token = page.token
            if not token:
                return
            size = _PAGE


def newest(name: str, *, alias: str | None = None) -> Noted | None:
    """Return a model's last entry, or that of one alias; None: there is none."""
    return next(entries(name, alias=alias), None)


def same_sequence(name: str, sequence: int) -> list[Noted]:
    """Return the entries of a sequence number: more than one where writers did not share a lock."""
    client = connect()
    wanted = f"tags.`{_NAME}` = '{name}' AND tags.`{_SEQUENCE}` = '{sequence:08}'"
    with translated():
        return [_noted(run) for run in client.search_runs([_experiment()], wanted)]


def append(entry: Entry) -> Noted:
    """Write an entry down as pending."""
    client = connect()
    where = f"{entry.name} {entry.alias}: {entry.from_version or '-'} -> {entry.to_version}"
    with translated():
        run_id = create_run(
            client,
            _experiment(),
            start_time=int(entry.at.timestamp() * 1000),
            run_name=f"{where} ({entry.action})",
            tags={
                _NAME: entry.name,
                _ALIAS: entry.alias,
                _SEQUENCE: f"{entry.sequence:08}",
                _ENTRY: entry.model_dump_json(),
            },
        )
    return Noted(entry=entry, run_id=run_id, pending=True)


def finish(noted: Noted) -> None:
    """Write down that an entry's move is done."""
    client, entry = connect(), noted.entry
    with translated():
        client.set_registered_model_tag(entry.name, HEAD, f"{entry.sequence}:{entry.digest}")
        client.set_terminated(noted.run_id, "FINISHED")


def withdraw(noted: Noted) -> None:
    """Take an entry back whose move was never begun."""
    with translated():
        connect().delete_run(noted.run_id)


def served_at(name: str, moment: datetime) -> dict[str, Entry]:
    """Return the last finished move of each alias at a moment: `to_version` is what it pointed at."""
    found: dict[str, Entry] = {}
    for noted in entries(name):
        if not noted.pending and noted.entry.at <= moment:
            found.setdefault(noted.entry.alias, noted.entry)
    return found


def versions_named(name: str) -> set[int]:
    """Return every version that an entry of a model names."""
    found = [noted.entry for noted in entries(name)]
    return {version for entry in found for version in (entry.from_version, entry.to_version) if version is not None}


def now_after(before: datetime | None) -> datetime:
    """Return the time, or that of the entry before where the clock was set back."""
    return max(datetime.now(UTC), before or datetime.min.replace(tzinfo=UTC))


def _noted(run: Any) -> Noted:
    try:
        entry = Entry.model_validate_json(run.data.tags[_ENTRY])
    except (KeyError, ValueError) as error:
        raise IntegrityError(f"run {run.info.run_id} of the ledger holds no entry: {error}") from error
    return Noted(entry=entry, run_id=run.info.run_id, pending=run.info.status != "FINISHED")


def _experiment() -> str:
    return _experiment_in(tracking_uri())


@lru_cache(maxsize=4)
def _experiment_in(store: str) -> str:  # noqa: ARG001 - each store has its own
    return experiment_id(connect(), EXPERIMENT)
