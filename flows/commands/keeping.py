"""Keeping the registry in order."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated

import typer

from flows.commands.options import Actor, AsJson

if TYPE_CHECKING:
    from tasks.registry import Diagnosis, Garbage, Locking


def gc(
    older_than: Annotated[
        float, typer.Option(metavar="DAYS", min=0, help="Younger versions stay, and leftovers younger than a day.")
    ] = 30,
    delete: Annotated[bool, typer.Option("--delete", help="Delete; otherwise it is only told what would go.")] = False,
    as_json: AsJson = False,
) -> None:
    """Tell what nothing needs any more; with --delete, delete it.

    Versions stay that have an alias, that the ledger names, that are young, and the newest of each model. What killed
    commands left goes: logged models without a version, and leftovers in the cache.
    """
    from flows.console import live_progress, say, show_table
    from flows.events import announce
    from tasks.registry import collect, complete_interrupted, garbage
    from tasks.summary import human_bytes

    age = timedelta(days=older_than)
    with live_progress():
        found: Sequence[Garbage] = garbage(older_than=age)
        if delete and found:
            locking = _locking()
            for name in sorted({one.model for one in found if one.kind == "version"}):
                announce(complete_interrupted(name, locking=locking))
            found = collect(found, older_than=age, locking=locking)
    if as_json:
        typer.echo(json.dumps({"deleted": delete, "found": [one.model_dump(mode="json") for one in found]}))
    elif found:
        header = ("what", "name", "size", "why")
        show_table([header, *((one.kind, one.name, human_bytes(one.size_bytes), one.why) for one in found)])
    total = human_bytes(sum(one.size_bytes for one in found))
    if not found:
        say("nothing to delete")
    elif delete:
        say(f"deleted: {total}; less where store and cache shared files and one of them keeps its")
    else:
        say(f"{total} would go: `vinoflow gc --delete` deletes")


def doctor(
    fix: Annotated[bool, typer.Option("--fix", help="Mend what can be mended.")] = False,
    by: Actor = "",
    as_json: AsJson = False,
) -> None:
    """Look for what is wrong with the registry: what killed commands left, ledgers, aliases, files, a moved folder.

    Hashes every file of every version. Exit code 1: something is wrong and stays so.
    """
    from flows.console import live_progress, say, show_table
    from flows.events import announce
    from flows.promotion import whoami
    from tasks.registry import examine

    with live_progress():
        found = examine(fix=fix, actor=by or whoami(), locking=_locking())
        announce(found.moved)
    if as_json:
        typer.echo(found.model_dump_json())
    elif found.mended or found.wrong:
        show_table([("", "what", "finding"), *_findings(found)])
    else:
        say("nothing is wrong")
    if not fix and any(one.fixable for one in found.wrong):
        say("`vinoflow doctor --fix` mends what is marked fixable")
    if any(one.level == "error" for one in found.wrong):
        raise typer.Exit(1)


def _locking() -> Locking:
    from flows.environment import prefect_api, prepare_prefect
    from flows.locking import locking_here

    if prefect_api():
        prepare_prefect()
    return locking_here()


def _findings(found: Diagnosis) -> list[tuple[str, str, str]]:
    mended = [("mended", one.subject, one.message) for one in found.mended]
    wrong = [(f"{one.level}, fixable" if one.fixable else one.level, one.subject, one.message) for one in found.wrong]
    return [*mended, *wrong]
