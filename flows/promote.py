"""The promotion as a flow: order, nothing else. `flows.promotion` has the steps, which need no Prefect."""

from __future__ import annotations

from typing import Any

from prefect import flow
from prefect.artifacts import create_table_artifact
from prefect.runtime import flow_run
from prefect.states import Completed

from flows.approval import FLOW, approved, how_to_answer
from flows.environment import leave
from flows.events import announce
from flows.locking import locking_here
from flows.promotion import Decision, Promoted, consider, in_words, permit, table
from flows.promotion import promote as move
from tasks.registry import complete_interrupted, resolve


# No tasks: a run that was suspended starts anew, and has to look at the alias as it is then, not at a kept result.
@flow(name=FLOW, flow_run_name="{reference}-to-{alias}")
def promote(
    reference: str, alias: str = "champion", force: bool = False, reason: str = "", actor: str = ""
) -> Promoted:
    """Give a version an alias, where evidence, policy and, if the policy asks for it, a person agree.

    Args:
        reference: NAME/VERSION or NAME@latest.
        alias: The alias.
        force: Override gates that fail; needs a reason.
        reason: Why; the ledger keeps it.
        actor: Who does it; by default user@host.
    """
    locking = locking_here()
    completed = announce(complete_interrupted(resolve(reference).name, locking=locking))

    def look() -> Decision:
        decision = consider(reference, alias=alias)
        permit(decision, force=force, reason=reason)
        return decision

    decision, answer = approved(look, _publish)
    moved = announce(
        move(
            decision,
            force=force,
            reason="; ".join(filter(None, (reason, answer.reason if answer else ""))),
            actor=actor,
            approved_by=answer.by if answer else "",
            flow_run_id=str(flow_run.id or ""),
            locking=locking,
        )
    )
    promoted = Promoted(decision=decision, moved=(*completed, *moved))
    told = "; ".join(map(in_words, moved)) or f"{reference} is {alias} already"
    return Completed(message=told, data=promoted)  # type: ignore[return-value] # Prefect hands the data on


def _publish(decision: Decision) -> None:
    """Leave the comparison in Prefect, with what to type where it waits for a person."""
    found = decision.assessment
    header, *rows = table(found)
    cells: list[dict[str, Any]] = [dict(zip((*header[:-1], "passed"), row, strict=True)) for row in rows]
    asks = f"; to answer: {how_to_answer()}" if decision.needs_approval else ""
    leave(
        create_table_artifact,
        key=f"{found.version.name}-promotion".replace(".", "-").replace("_", "-"),
        table=cells,
        description=f"{found.version.reference} to {found.alias}, now {found.current or 'nowhere'}{asks}",
    )
