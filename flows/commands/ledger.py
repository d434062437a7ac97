"""Which version had an alias, and when."""

from __future__ import annotations

import itertools
import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from flows.commands.options import AsJson
from tasks.errors import IntegrityError, RecipeError

if TYPE_CHECKING:
    from tasks.registry import Entry, Noted

_VERIFY = "verify"
MOVES = ("entry", "when", "alias", "move", "what", "who", "digest", "why")  # the header over `move_row`s


def ledger(
    name: Annotated[str, typer.Argument(metavar="NAME|verify", help="The registered model; verify: check the chain.")],
    verified: Annotated[str | None, typer.Argument(metavar="[NAME]", help="After verify: only this model's.")] = None,
    at: Annotated[
        str,
        typer.Option(metavar="TIME", help="What had each alias then: 2026-11-22T12:00, with +02:00 or in local time."),
    ] = "",
    limit: Annotated[int, typer.Option(min=1, help="The newest moves that are shown.")] = 20,
    as_json: AsJson = False,
) -> None:
    """Show every move of a model's aliases, newest first; or what served at a time.

    `vinoflow ledger verify` recomputes every hash and tells of holes, edits, and aliases moved outside of vinoflow.
    """
    if name == _VERIFY:
        _verify(verified, as_json=as_json)
    elif at:
        _served_at(name, _time(at), as_json=as_json)
    else:
        _moves(name, limit=limit, as_json=as_json)


def _moves(name: str, *, limit: int, as_json: bool) -> None:
    from flows.console import say, show_table
    from tasks.registry import entries, resolve

    resolve(f"{name}@latest")  # there is such a model
    found = list(itertools.islice(entries(name), limit + 1))
    if as_json:
        typer.echo(json.dumps([move_as_json(noted) for noted in found[:limit]]))
        return
    if not found:
        say(f"no alias of {name} was ever moved: `vinoflow promote {name}@latest` makes the champion")
        return
    show_table([MOVES, *map(move_row, found[:limit])])
    if len(found) > limit:
        say(f"the newest {limit}; --limit shows more")


def move_row(noted: Noted) -> tuple[str, ...]:
    """Return a move as a row for people."""
    entry = noted.entry
    forced = f"forced past {len(entry.gates)} gate{'s' if len(entry.gates) > 1 else ''}" if entry.gates else ""
    approved = f"approved by {entry.approved_by}" if entry.approved_by else ""
    return (
        str(entry.sequence),
        f"{entry.at.astimezone():%Y-%m-%d %H:%M:%S}",
        entry.alias,
        f"{entry.from_version or '-'} -> {entry.to_version}",
        f"{entry.action} (pending)" if noted.pending else entry.action,
        entry.actor,
        entry.to_digest[:12],
        "; ".join(filter(None, (entry.reason, forced, approved))) or "-",
    )


def _served_at(name: str, moment: datetime, *, as_json: bool) -> None:
    from flows.console import say, show_table
    from tasks.registry import resolve, served_at

    resolve(f"{name}@latest")
    found = served_at(name, moment)
    if as_json:
        typer.echo(json.dumps({alias: entry.model_dump(mode="json") for alias, entry in found.items()}))
    elif found:
        header = ("alias", "version", "digest", "since")
        show_table([header, *(_since(entry) for entry in found.values())])
    else:
        say(
            f"no alias of {name} pointed anywhere at {moment.astimezone():%Y-%m-%d %H:%M:%S}, as far as the ledger goes"
        )


def _since(entry: Entry) -> tuple[str, ...]:
    since = f"{entry.at.astimezone():%Y-%m-%d %H:%M:%S}"
    return entry.alias, f"{entry.name}/{entry.to_version}", entry.to_digest[:12], since


def _verify(name: str | None, *, as_json: bool) -> None:
    from flows.console import live_progress, say
    from flows.locking import locking_here
    from tasks.registry import verify_ledgers

    with live_progress():
        lengths, wrong = verify_ledgers(name, locking=locking_here())
    if as_json:
        typer.echo(json.dumps({"entries": lengths, "problems": wrong}))
    else:
        for model, length in lengths.items():
            found = f"{len(wrong[model])} problems" if wrong[model] else "the chain is whole"
            say(f"{model}: entries {length}, {found}")
    if any(wrong.values()):
        lines = [f"{model}: {problem}" for model, problems in wrong.items() for problem in problems]
        raise IntegrityError("\n  ".join(["the ledger is not as it was written:", *lines]))


def _time(text: str) -> datetime:
    try:
        return datetime.fromisoformat(text).astimezone(UTC)
    except ValueError as error:
        raise RecipeError(f"--at {text!r} is not a time: write 2026-11-22T12:00, or with +02:00") from error


def move_as_json(noted: Noted) -> dict[str, object]:
    """Return a move for machines."""
    return {**noted.entry.model_dump(mode="json"), "pending": noted.pending}
