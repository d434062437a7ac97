"""How the whole is doing: servers, workers, deployments, what serves; asked anew each time, nothing is kept."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, Literal

import httpx
from pydantic import Field

from flows.environment import prefect_api
from flows.up import POOL
from tasks import secrecy
from tasks.errors import VinoflowError
from tasks.records import Record
from tasks.registry import list_versions, tracking_uri

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.objects import FlowRun
    from prefect.client.schemas.responses import DeploymentResponse

_TIMEOUT_S = 10.0
_SKEW_S = 30.0
_IMPATIENT = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "10", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}  # it is asked how it is now
_OURS = ("nightly", "promote", "batch-inference")


class Line(Record):
    """One thing and how it is."""

    what: str
    name: str
    state: Literal["ok", "-", "look", "down"] = Field(description="-: nothing to say; look: a person should; down.")
    about: str = ""


def status(serving: Sequence[str] = ()) -> list[Line]:
    """Ask everything that a team runs how it is.

    Args:
        serving: URLs of `vinoflow serve`.
    """
    for name, value in _IMPATIENT.items():
        os.environ.setdefault(name, value)
    return [*_mlflow(), *_prefect(), *(_server(url) for url in serving)]


def is_down(lines: Sequence[Line]) -> bool:
    """Tell whether something that should run does not."""
    return any(line.state == "down" for line in lines)


def _mlflow() -> Iterator[Line]:
    """Yield the registry, and for each model what is promoted and what is newer."""
    uri = secrecy.without_secrets(tracking_uri())
    try:
        versions = list_versions()
    except VinoflowError as error:
        yield Line(what="mlflow", name=uri, state="down", about=str(error))
        return
    names = dict.fromkeys(version.name for version in versions)
    yield Line(what="mlflow", name=uri, state="ok", about=f"{len(names)} models, {len(versions)} versions")
    for name in names:
        own = [version for version in versions if version.name == name]
        promoted = [f"{alias} {version.version}" for version in own for alias in version.aliases]
        newer = not promoted or not own[0].aliases
        about = f"{', '.join(promoted) or 'none is promoted'}; newest {own[0].version}"
        yield Line(what="model", name=name, state="-" if newer else "ok", about=about)


def _prefect() -> Iterator[Line]:
    """Yield the server, its workers, and each deployment with its last and its next run."""
    url = prefect_api()
    if not url:
        yield Line(what="prefect", name="embedded", state="-", about="no server: nothing is scheduled; `vinoflow up`")
        return
    from prefect.client.orchestration import get_client
    from prefect.exceptions import PrefectHTTPStatusError
    from prefect.settings import temporary_settings

    answers: list[httpx.Response] = []
    settings = {"timeout": _TIMEOUT_S, "event_hooks": {"response": [answers.append]}}
    try:
        with (
            temporary_settings({"client.max_retries": 0}),
            get_client(sync_client=True, httpx_settings=settings) as client,
        ):
            if error := client.api_healthcheck():
                yield Line(what="prefect", name=url, state="down", about=str(error) or type(error).__name__)
                return
            yield Line(what="prefect", name=url, state="ok", about=f"version {client.api_version()}")
            yield from _clock(answers[-1])
            yield from _workers(client)
            for one in _deployments(client):
                yield _deployment(client, one)
            yield from _waiting(client)
    except (httpx.HTTPError, PrefectHTTPStatusError) as error:
        yield Line(what="prefect", name=url, state="down", about=str(error) or type(error).__name__)


def _clock(answer: httpx.Response) -> Iterator[Line]:
    """Yield by how much this machine's time differs from the server's; a worker takes runs by its own."""
    try:
        ahead = (datetime.now(UTC) - parsedate_to_datetime(answer.headers["date"])).total_seconds()
    except (KeyError, TypeError, ValueError):  # a proxy may say no time, or rubbish
        return
    if abs(ahead) > _SKEW_S:
        about = f"{abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'} Prefect's server; set it (NTP)"
        if ahead < 0:
            about = f"{about}: a worker here takes runs so much too late"
        yield Line(what="clock", name=platform.node(), state="look", about=about)


def _workers(client: SyncPrefectClient) -> Iterator[Line]:
    from prefect.exceptions import ObjectNotFound

    try:
        found = client.read_workers_for_work_pool(POOL)
    except ObjectNotFound:
        yield Line(what="worker", name=POOL, state="-", about="no such work pool yet: `vinoflow deploy` makes it")
        return
    alive = [worker for worker in found if worker.status and worker.status.value == "ONLINE"]
    for worker in alive:
        yield Line(what="worker", name=worker.name, state="ok", about=f"heard of {_ago(worker.last_heartbeat_time)}")
    if not alive:
        about = f"none is online: prefect worker start --pool {POOL}"
        yield Line(what="worker", name=POOL, state="down", about=about)
    for queue in client.read_work_queues(work_pool_name=POOL):
        late = _late(client, queue.name)
        if late:
            why = "workers are busy, take other queues, or their clocks are behind" if alive else "no worker takes them"
            yield Line(what="queue", name=queue.name, state="look", about=f"late runs: {late}; {why}")


def _late(client: SyncPrefectClient, name: str) -> int:
    """Return how many runs of a queue should have begun."""
    from prefect.client.schemas.filters import FlowRunFilter, WorkQueueFilter

    late = FlowRunFilter.model_validate({"state": {"name": {"any_": ["Late"]}}})
    queue = WorkQueueFilter.model_validate({"name": {"any_": [name]}})
    return len(client.read_flow_runs(flow_run_filter=late, work_queue_filter=queue, limit=50))


def _deployments(client: SyncPrefectClient) -> list[tuple[str, DeploymentResponse]]:
    from prefect.client.schemas.filters import FlowFilter

    ours = FlowFilter.model_validate({"name": {"any_": list(_OURS)}})
    found = client.read_deployments(flow_filter=ours, limit=200)
    named = [(f"{client.read_flow(one.flow_id).name}/{one.name}", one) for one in found]
    return sorted(named, key=lambda pair: pair[0])


def _deployment(client: SyncPrefectClient, named: tuple[str, DeploymentResponse]) -> Line:
    from prefect.client.schemas.filters import FlowRunFilter
    from prefect.client.schemas.sorting import FlowRunSort

    name, one = named
    of_it: dict[str, Any] = {"deployment_id": {"any_": [str(one.id)]}}
    ended = FlowRunFilter.model_validate(of_it | {"start_time": {"is_null_": False}})
    coming = FlowRunFilter.model_validate(of_it | {"state": {"type": {"any_": ["SCHEDULED"]}}})
    last = client.read_flow_runs(flow_run_filter=ended, sort=FlowRunSort.START_TIME_DESC, limit=1)
    next_ = client.read_flow_runs(flow_run_filter=coming, sort=FlowRunSort.EXPECTED_START_TIME_ASC, limit=1)
    told = [_told(last[0]) if last else "has not run"]
    if next_ and next_[0].expected_start_time:
        told.append(f"next {next_[0].expected_start_time:%Y-%m-%d %H:%M}")
    if one.paused:
        told.append("paused")
    wrong = bool(last and last[0].state and (last[0].state.is_failed() or last[0].state.is_crashed()))
    return Line(what="deployment", name=name, state="look" if wrong else "ok" if last else "-", about="; ".join(told))


def _told(run: FlowRun) -> str:
    state = run.state
    first = next(iter((state.message or "").splitlines()), "") if state else ""
    name = state.name if state else "unknown"
    return f"{name} {_ago(run.end_time or run.start_time)}{f': {first}' * bool(first)}"


def _waiting(client: SyncPrefectClient) -> Iterator[Line]:
    """Yield the promotions that wait for a person."""
    from prefect.client.schemas.filters import FlowFilter, FlowRunFilter

    promotions = FlowFilter.model_validate({"name": {"any_": ["promote"]}})
    paused = FlowRunFilter.model_validate({"state": {"type": {"any_": ["PAUSED"]}}})
    for run in client.read_flow_runs(flow_filter=promotions, flow_run_filter=paused, limit=50):
        yield Line(what="approval", name=run.name, state="look", about=f"vinoflow approve {run.id} --by NAME")


def _server(url: str) -> Line:
    """Return how a `vinoflow serve` is, by its own word."""
    try:
        answer = httpx.get(f"{url.rstrip('/')}/health/ready", timeout=_TIMEOUT_S)
        found = answer.json()
    except (httpx.HTTPError, ValueError) as error:
        return Line(what="serve", name=url, state="down", about=str(error) or type(error).__name__)
    about = str(found.get("version") or "no version")
    swap = found.get("swap")
    with suppress(TypeError, KeyError):
        if swap["state"] == "failed":
            return Line(
                what="serve", name=url, state="look", about=f"{about}; {swap['target']} failed: {swap['error']}"
            )
    return Line(what="serve", name=url, state="ok" if answer.is_success else "down", about=about)


def _ago(moment: datetime | None) -> str:
    if moment is None:
        return "never"
    seconds = int((datetime.now(UTC) - moment).total_seconds())
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds // size} {unit} ago"
    return f"{max(seconds, 0)} s ago"
