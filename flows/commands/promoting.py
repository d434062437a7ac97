"""Which version has an alias, and which had it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from flows.commands.options import Actor, AliasName, AsJson, Reason

if TYPE_CHECKING:
    from flows.promotion import Decision, Promoted

Run = Annotated[str, typer.Argument(metavar="RUN", help="Id or name of the flow run that waits.")]
Answerer = Annotated[str, typer.Option("--by", metavar="NAME", help="Who answers; the ledger keeps it.")]


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
    from flows.promotion import Promoted, consider, in_words, table

    name = _alias(alias)
    if dry_run:
        promoted = Promoted(decision=consider(reference, alias=name), moved=())
    else:
        promoted = _promoted(reference, alias=name, force=force, reason=reason, actor=by)
    decision, found = promoted.decision, promoted.decision.assessment
    if as_json:
        typer.echo(promoted.model_dump_json())
    elif dry_run:
        show_table(table(found))
        for line in (*found.blocked, *found.failed, _verdict(decision)):
            say(line)
    else:
        for entry in promoted.moved:
            typer.echo(in_words(entry))
        if not promoted.moved:
            say(f"{decision.state.name}@{alias} points at {found.version.reference} already")
    if dry_run and not found.allowed:
        raise typer.Exit(3)


def _promoted(reference: str, *, alias: str, force: bool, reason: str, actor: str) -> Promoted:
    """Promote as a flow where a Prefect server or a person is to know of it; else without Prefect, which is quicker."""
    from flows.environment import prefect_api, prepare_prefect
    from flows.promotion import Promoted, consider, permit
    from flows.promotion import promote as move
    from tasks.progress import step
    from tasks.registry import complete_interrupted, resolve

    completed = []
    if not prefect_api():
        completed = complete_interrupted(resolve(reference).name)
        decision = consider(reference, alias=alias)
        permit(decision, force=force, reason=reason)
        if not decision.needs_approval:
            moved = move(decision, force=force, reason=reason, actor=actor)
            return Promoted(decision=decision, moved=(*completed, *moved))
    with step("start"):
        prepare_prefect()
        from flows.promote import promote as flow
    promoted = flow(reference, alias=alias, force=force, reason=reason, actor=actor)
    return promoted.model_copy(update={"moved": (*completed, *promoted.moved)})


def _verdict(decision: Decision) -> str:
    found = decision.assessment
    if decision.is_there:
        return f"{found.version.name}@{found.alias} points at {found.version.reference} already"
    if found.blocked:
        return f"{found.version.reference} may not be {found.alias}"
    if found.failed:
        return f"{found.version.reference} may not be {found.alias}, unless with --force --reason WHY"
    return f"{found.version.reference} may be {found.alias}{' when a person approves' * found.manual}"


def rollback(
    name: Annotated[str, typer.Argument(help="The registered model.")],
    to: Annotated[int | None, typer.Option(metavar="VERSION", help="A version that had the alias before.")] = None,
    alias: AliasName = "champion",
    reason: Reason = "",
    by: Actor = "",
    as_json: AsJson = False,
) -> None:
    """Go back to the version that had the alias before, or to a named one that had it once.

    Where a rollback was interrupted, this completes it and goes no further.
    """
    from flows.console import say
    from flows.environment import prefect_api, prepare_prefect
    from flows.events import announce
    from flows.locking import locking_here
    from flows.promotion import in_words, is_rolled_back, roll_back
    from tasks.registry import complete_interrupted

    if prefect_api():
        prepare_prefect()
    locking = locking_here()
    moved = announce(complete_interrupted(name, locking=locking))
    if is_rolled_back(moved, alias=_alias(alias), to=to):
        say("this rollback was begun before, and is completed now; to go back further, run again")
    else:
        back = roll_back(name, alias=_alias(alias), to=to, reason=reason, actor=by, locking=locking)
        moved = [*moved, *announce(back)]
    if as_json:
        typer.echo(json.dumps([one.model_dump(mode="json") for one in moved]))
    else:
        for entry in moved:
            typer.echo(in_words(entry))


def approve(run: Run, by: Answerer, reason: Reason = "") -> None:
    """Let a promotion go on that waits for approval, and tell what came of it."""
    _answer(run, approved=True, by=by, reason=reason)


def reject(run: Run, by: Answerer, reason: Reason = "") -> None:
    """End a promotion that waits for approval; nothing is moved."""
    _answer(run, approved=False, by=by, reason=reason)


def _answer(run: str, *, approved: bool, by: str, reason: str) -> None:
    from flows.console import live_progress, say
    from flows.environment import prepare_prefect
    from tasks.errors import PromotionError, RecipeError
    from tasks.progress import step

    if not by.strip():
        raise RecipeError("--by is empty: the ledger keeps who answered")
    with live_progress():
        with step("start"):
            prepare_prefect()
            from flows.approval import Approval, answer
        with step("answer"):
            after = answer(run, Approval(approved=approved, by=by, reason=reason))
    state = after.state
    if state is None or not (state.is_final() or state.is_paused()):
        say(f"answered; flow run {after.id} has not ended yet: where the process that waited is gone, promote again")
    elif state.is_paused():
        say(f"flow run {after.id} asks again, what it showed has changed: look at it, then answer again")
        raise typer.Exit(1)
    elif approved and not state.is_completed():
        raise PromotionError(f"flow run {after.id} ended as {state.name}: {state.message}")
    else:
        typer.echo(state.message)


def _alias(name: str) -> str:
    from tasks.config import alias_name
    from tasks.errors import RecipeError

    try:
        return alias_name(name)
    except ValueError as error:
        raise RecipeError(f"--alias {error}") from error
