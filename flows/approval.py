"""Asking a person whether an alias may move, and answering: Prefect keeps the question, any process may answer."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowFilter, FlowFilterName, FlowRunFilter, FlowRunFilterId, FlowRunFilterName
from prefect.client.schemas.responses import SetStateStatus
from prefect.client.schemas.sorting import FlowRunSort
from prefect.exceptions import FlowPauseTimeout
from prefect.flow_runs import pause_flow_run, suspend_flow_run
from prefect.input import RunInput
from prefect.runtime import deployment, flow_run
from pydantic import Field

from flows.console import say
from flows.promotion import Decision
from tasks.errors import PromotionError, RecipeError
from tasks.manifest import digest_of

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.objects import FlowRun

FLOW = "promote"
_WAIT_S = 7 * 24 * 3600  # for a person
_POLL_S = 2  # between looks at whether a person has answered
_FOLLOW_S = 90.0  # for what an answered run does: a worker takes 20 s to begin it anew


class Approval(RunInput):
    """A person's answer."""

    approved: bool
    by: str = Field(min_length=1, description="Who answers; the ledger keeps it.")
    reason: str = ""


def approved(look: Callable[[], Decision], show: Callable[[Decision], None]) -> tuple[Decision, Approval | None]:
    """Decide, wait until a person approves where the alias asks for that; return the decision and the answer.

    An answer holds for what was shown. Where the alias or the version is another by the time of the answer, the
    question is asked again. The run of a deployment ends meanwhile, and starts from the beginning when answered.

    Args:
        look: Makes the decision; called again after each answer.
        show: Shows it to the person.

    Raises:
        PromotionError: It was rejected, or nobody answered for a week.
    """
    decision = look()
    while True:
        show(decision)
        if not decision.needs_approval:
            return decision, None
        given = _ask(decision)
        if not given.approved:
            why = f": {given.reason}" if given.reason else ""
            raise PromotionError(f"{_where(decision)}: {given.by} rejected it{why}")
        seen, decision = decision, look()
        if _key(seen) == _key(decision):
            return decision, given
        say("the alias or the version changed since that was asked")


def how_to_answer() -> str:
    """Return what to type about the present flow run."""
    return f"vinoflow approve {flow_run.id} --by NAME, or: vinoflow reject {flow_run.id} --by NAME --reason WHY"


def _ask(decision: Decision) -> Approval:
    """Return the answer about a decision; one that was asked before and answered is not asked again."""
    found = decision.assessment
    say(f"{found.version.reference} waits for approval to be {found.alias}: {how_to_answer()}")
    key = _key(decision)
    if deployment.id:
        return suspend_flow_run(wait_for_input=Approval, timeout=_WAIT_S, key=key)
    try:
        return pause_flow_run(wait_for_input=Approval, timeout=_WAIT_S, poll_interval=_POLL_S, key=key)
    except FlowPauseTimeout as error:
        raise PromotionError(f"{_where(decision)}: nobody answered for a week") from error


def _where(decision: Decision) -> str:
    return f"{decision.assessment.version.reference} is not promoted to {decision.assessment.alias}"


def _key(decision: Decision) -> str:
    """Return what binds an answer to what was shown: the version, its report, and where the alias was."""
    found = decision.assessment
    shown = [found.version.reference, found.version.digest, found.report_digest, decision.state.model_dump()]
    return digest_of(shown)[:16]


def answer(run: str, given: Approval) -> FlowRun:
    """Answer a promotion that waits, see it go on, and return its run as it then is.

    Args:
        run: Id or name of the flow run.
        given: The answer.

    Raises:
        RecipeError: There is no such run, or it does not wait.
    """
    with get_client(sync_client=True) as client:
        found = _waiting(client, run)
        response = client.resume_flow_run(found.id, run_input=given.model_dump())
        if response.status != SetStateStatus.ACCEPT:
            reason = getattr(response.details, "reason", None) or "it does not wait any more"
            raise RecipeError(f"flow run {run} takes no answer: {reason}")
        deadline = time.monotonic() + _FOLLOW_S
        while time.monotonic() < deadline:
            now = client.read_flow_run(found.id)
            if now.state and (now.state.is_final() or now.state.is_paused()):
                break
            time.sleep(_POLL_S / 4)
    return now


def _waiting(client: SyncPrefectClient, run: str) -> FlowRun:
    """Return the promotion of an id or a name that waits for an answer."""
    runs = client.read_flow_runs(
        flow_filter=FlowFilter(name=FlowFilterName(any_=[FLOW])),
        flow_run_filter=_filter(run),
        sort=FlowRunSort.EXPECTED_START_TIME_DESC,
    )
    waiting = [one for one in runs if one.state and one.state.is_paused()]
    if len(waiting) == 1:
        return waiting[0]
    if waiting:
        raise RecipeError(f"{len(waiting)} promotions of that name wait, name one by its id: {_told(waiting)}")
    if runs:
        raise RecipeError(f"flow run {run} does not wait for approval: {_told(runs)}")
    waiting = client.read_flow_runs(
        flow_filter=FlowFilter(name=FlowFilterName(any_=[FLOW])),
        flow_run_filter=FlowRunFilter.model_validate({"state": {"type": {"any_": ["PAUSED"]}}}),
    )
    there = f"these wait: {_told(waiting)}" if waiting else "none waits for approval"
    raise RecipeError(f"there is no promotion with flow run id or name {run!r}; {there}")


def _filter(run: str) -> FlowRunFilter:
    try:
        return FlowRunFilter(id=FlowRunFilterId(any_=[UUID(run)]))
    except ValueError:
        return FlowRunFilter(name=FlowRunFilterName(any_=[run]))


def _told(runs: list[FlowRun]) -> str:
    return ", ".join(f"{run.id} ({run.name}, {run.state_name})" for run in runs[:5])
