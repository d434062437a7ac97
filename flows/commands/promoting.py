"""Which version has an alias, and which had it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from flows.commands.options import Actor, AliasName, AsJson, Reason

if TYPE_CHECKING:
    from flows.promotion import Decision


def promote(
    reference: Annotated[str, typer.Argument(metavar="REF", help="NAME/VERSION or NAME@latest.")],
    alias: AliasName = "champion",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Compare and judge; move nothing.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Override gates that fail; needs --reason.")] = False,
    reason: Reason = "",
    by: Actor = "",
    as_json: AsJson = False,
) -> None:
    """Give a version an alias, `champion` by default: what serves under it follows.

    Refused without a passing report of these very files, this recipe and the device that the alias asks for, and where
    the version is worse than the present one. Every move is in the ledger. Exit code 3: it may not have the alias.
    """
    from flows.console import say, show_table
    from flows.promotion import consider, in_words, table
    from flows.promotion import promote as move
    from tasks.registry import complete_interrupted, resolve

    moved = [] if dry_run else complete_interrupted(resolve(reference).name)
    decision = consider(reference, alias=_alias(alias))
    if dry_run and not as_json:
        show_table(table(decision.assessment))
        for line in (*decision.assessment.blocked, *decision.assessment.failed):
            say(line)
        say(_verdict(decision))
    elif not dry_run:
        moved += move(decision, force=force, reason=reason, actor=by)
    if as_json:
        told = {"decision": decision.model_dump(mode="json"), "moved": [one.model_dump(mode="json") for one in moved]}
        typer.echo(json.dumps(told))
    elif not dry_run:
        for entry in moved:
            typer.echo(in_words(entry))
        if not moved:
            say(f"{decision.state.name}@{alias} points at {decision.assessment.version.reference} already")
    if dry_run and not decision.assessment.allowed:
        raise typer.Exit(3)


def _verdict(decision: Decision) -> str:
    found = decision.assessment
    if decision.is_there:
        return f"{found.version.name}@{found.alias} points at {found.version.reference} already"
    if found.blocked:
        return f"{found.version.reference} may not be {found.alias}"
    if found.failed:
        return f"{found.version.reference} may not be {found.alias}, unless with --force --reason WHY"
    return f"{found.version.reference} may be {found.alias}"


def rollback(
    name: Annotated[str, typer.Argument(help="The registered model.")],
    to: Annotated[int | None, typer.Option(metavar="VERSION", help="A version that had the alias before.")] = None,
    alias: AliasName = "champion",
    reason: Reason = "",
    by: Actor = "",
    as_json: AsJson = False,
) -> None:
    """Go back to the version that had the alias before, or to a named one that had it once."""
    from flows.promotion import in_words, roll_back

    moved = roll_back(name, alias=_alias(alias), to=to, reason=reason, actor=by)
    if as_json:
        typer.echo(json.dumps([one.model_dump(mode="json") for one in moved]))
    else:
        for entry in moved:
            typer.echo(in_words(entry))


def _alias(name: str) -> str:
    from tasks.config import alias_name
    from tasks.errors import RecipeError

    try:
        return alias_name(name)
    except ValueError as error:
        raise RecipeError(f"--alias {error}") from error
