"""A project folder that was moved or copied: MLflow's embedded store keeps absolute addresses."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import unquote

from pydantic import Field

from tasks import locations
from tasks.records import Record
from tasks.registry.store import tracking_uri

_COLUMNS = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "storage_location"),
)
_STORE = "mlruns/artifacts"
_ADDRESS = re.compile(rf"(?P<scheme>file://)?(?P<home>/.*?)/{_STORE}(?P<rest>/.*)?")


class Address(Record):
    """An address in the database that names another folder, while what it means is in this one."""

    table: str
    column: str
    old: str
    new: str
    home: str = Field(description="The project folder that the old one names.")


def embedded_database() -> Path | None:
    """Return the file of the embedded store, where that is the store and is there."""
    path = locations.home() / "mlruns" / "mlflow.db"
    return path if tracking_uri() == f"sqlite:///{path}" and path.is_file() else None


def moved_home() -> list[Address]:
    """Return the embedded store's addresses that name another project folder; none where the store is a server's."""
    database = embedded_database()
    if database is None:
        return []
    with closing(sqlite3.connect(database)) as connection:
        return [
            Address(table=table, column=column, old=old, new=new, home=home)
            for table, column in _COLUMNS
            for (old,) in connection.execute(f"SELECT DISTINCT {column} FROM {table}")  # noqa: S608 - ours
            for home, new in _here(old or "")
        ]


def move_in(addresses: Sequence[Address]) -> None:
    """Rewrite addresses, all or none; a copy of the database as it was stays beside it.

    Raises:
        sqlite3.Error: Another process writes, or the disk is full: nothing is changed.
    """
    database = locations.home() / "mlruns" / "mlflow.db"
    backup = database.with_name(f"mlflow.db.before-move-{datetime.now(UTC):%Y%m%dT%H%M%S}")
    with closing(sqlite3.connect(database, timeout=60)) as connection:
        with closing(sqlite3.connect(backup)) as copy:
            connection.backup(copy)
        with connection:
            for one in addresses:
                update = f"UPDATE {one.table} SET {one.column} = ? WHERE {one.column} = ?"  # noqa: S608 - ours
                connection.execute(update, (one.new, one.old))


def _here(address: str) -> list[tuple[str, str]]:
    """Return the project folder that an address names, and the address in this one; nothing where that is right."""
    match = _ADDRESS.fullmatch(address)
    if match is None:
        return []
    is_uri, rest = bool(match["scheme"]), match["rest"] or ""
    named, here = Path(unquote(match["home"]) if is_uri else match["home"]), locations.home()
    place = f"{here / _STORE}{unquote(rest) if is_uri else rest}"
    if named.resolve() == here or not Path(place).exists():
        return []
    return [(str(named), f"{(here / _STORE).as_uri()}{rest}" if is_uri else place)]
