"""What Prefect tells people, and what it does where nobody looks: automations, made once under their names."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from prefect.client.schemas.objects import StateType
from prefect.events.actions import ChangeFlowRunState, SendNotification
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.exceptions import ObjectNotFound

from tasks.errors import RecipeError
from tasks.records import Record

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient

_FLOWS = ["nightly", "promote", "batch-inference"]
_BROKEN = ("Crashed", "Failed", "TimedOut")
_SILENCED = (*_BROKEN, "Completed", "Cancelled", "NothingNew", "GatesFailed", "Paused", "Suspended", "AwaitingRetry")
_SILENT = timedelta(minutes=3)  # a run beats every 30 s
_LOST = "vinoflow: end runs of a machine that is gone"
_OF_A_MODEL = {"prefect.resource.id": "vinoflow.model.*"}
_OF_OUR_RUNS: dict[str, Any] = {  # others may have theirs on the same server
    "match": {"prefect.resource.id": "prefect.flow-run.*"},
    "match_related": {"prefect.resource.role": "flow", "prefect.resource.name": _FLOWS},
}
_MOVE = """It was {{ event.payload.from_version or 'nowhere' }}; by {{ event.payload.actor }}.
{{ event.payload.reason }}
Ledger entry {{ event.payload.sequence }}, digest {{ event.payload.to_digest }}"""


class News(Record):
    """What is worth telling: by which events, of what, and in which words (Jinja, as Prefect renders them)."""

    name: str
    events: tuple[str, ...]
    about: dict[str, Any]
    subject: str
    body: str


_NEWS = (
    News(
        name="gates failed",
        events=("vinoflow.model.gates-failed",),
        about={"match": _OF_A_MODEL},
        subject="{{ event.payload.name }} failed its gates",
        body="{{ event.payload.why }}",
    ),
    News(
        name="promoted",
        events=("vinoflow.model.promoted",),
        about={"match": _OF_A_MODEL},
        subject="{{ event.payload.name }}/{{ event.payload.to_version }} is now {{ event.payload.alias }}",
        body=_MOVE,
    ),
    News(
        name="rolled back",
        events=("vinoflow.model.rolled-back", "vinoflow.model.restored"),
        about={"match": _OF_A_MODEL},
        subject="{{ event.payload.alias }} went back to {{ event.payload.name }}/{{ event.payload.to_version }}",
        body=_MOVE,
    ),
    News(
        name="crashed",
        events=tuple(f"prefect.flow-run.{state}" for state in _BROKEN),
        about=_OF_OUR_RUNS,
        subject="{{ flow.name }} {{ flow_run.name }}: {{ flow_run.state.name }}",
        body="{{ flow_run.state.message }}",
    ),
)


def tell(client: SyncPrefectClient, block: str) -> list[str]:
    """Have a notification block tell of failed gates, promotions, rollbacks and crashes; return the automations' names.

    Args:
        client: Of the Prefect server.
        block: BLOCK-TYPE/NAME, `slack-webhook/team` for instance.

    Raises:
        RecipeError: There is no such block.
    """
    kind, slash, name = block.partition("/")
    try:
        document = client.read_block_document_by_name(name, kind) if slash else None
    except ObjectNotFound:
        document = None
    if document is None:
        raise RecipeError(
            f"--notify {block}: the Prefect server has no such block: make one on its page, under Blocks, and name "
            "it TYPE/NAME, slack-webhook/team for instance"
        )
    made = [
        AutomationCore(
            name=f"vinoflow: {news.name} -> {block}",
            description=f"Tells {block} of it; made by `vinoflow deploy`.",
            trigger=EventTrigger(expect=set(news.events), posture=Posture.Reactive, threshold=1, **news.about),
            actions=[
                SendNotification(block_document_id=document.id, subject=f"vinoflow: {news.subject}", body=news.body)
            ],
        )
        for news in _NEWS
    ]
    return _make(client, made)


def end_lost_runs(client: SyncPrefectClient) -> list[str]:
    """Have a run that has not been heard of for three minutes end as Crashed: its machine is gone."""
    beat = "prefect.flow-run.heartbeat"
    silence = EventTrigger(
        **_OF_OUR_RUNS,
        after={beat},
        expect={beat, *(f"prefect.flow-run.{state}" for state in _SILENCED)},
        for_each={"prefect.resource.id"},
        posture=Posture.Proactive,
        threshold=1,
        within=_SILENT,
    )
    told = f"nothing was heard of it for {_SILENT.total_seconds():.0f} s: its machine is gone"
    crash = ChangeFlowRunState(state=StateType.CRASHED, name="Crashed", message=told)
    about = "Heartbeats come every 30 s; made by `vinoflow deploy`."
    return _make(client, [AutomationCore(name=_LOST, description=about, trigger=silence, actions=[crash])])


def _make(client: SyncPrefectClient, wanted: Sequence[AutomationCore]) -> list[str]:
    """Make automations, or make those of the same name like them."""
    for automation in wanted:
        known = client.read_automations_by_name(automation.name)
        if known:
            client.update_automation(known[0].id, automation)
        else:
            client.create_automation(automation)
    return [automation.name for automation in wanted]
