"""prefect.yaml -> deployments on a server: what has to be there first, Prefect's own command, and what came of it."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from flows.environment import prefect_api
from tasks import progress
from tasks.errors import RecipeError, RegistryError
from tasks.recipe_file import load_recipe
from tasks.records import Record

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient

_TIMEOUT_S = 300
_SAID = 600  # characters of what Prefect said


class Deployed(Record):
    """A deployment as the server has it."""

    name: str = Field(description="FLOW/NAME.")
    queue: str = Field(description="Of the work pool.")
    starts: str = Field(description="What begins it, beside a person.")


class _Pool(BaseModel):
    name: str


class _Wanted(BaseModel):
    """What we have to know of a deployment in the file; the rest is Prefect's to read."""

    model_config = ConfigDict(extra="ignore")
    name: str
    entrypoint: str
    work_pool: _Pool
    parameters: dict[str, Any] = {}
    triggers: list[dict[str, Any]] = []


class _File(BaseModel):
    model_config = ConfigDict(extra="ignore")
    deployments: list[_Wanted] = Field(min_length=1)


def deploy(file: Path, *, notify: Sequence[str] = ()) -> list[Deployed]:
    """Make a file's deployments with their work pools and automations; what is there already is made like it.

    Args:
        file: In the shape of Prefect's prefect.yaml.
        notify: Notification blocks, TYPE/NAME each, that tell of failed gates, promotions, rollbacks and crashes.

    Raises:
        RecipeError: The file, one of its recipes, or a block is not there or wrong; nothing was deployed.
        RegistryError: No Prefect server is set, or it refuses.
    """
    if not prefect_api():
        raise RegistryError(
            "no Prefect server is set, and nothing is scheduled without one: set PREFECT_API_URL; `vinoflow up` runs "
            "one here"
        )
    wanted = _read(file)
    from prefect.client.orchestration import get_client

    from flows.notifications import end_lost_runs, tell

    with get_client(sync_client=True) as client:
        for block in notify:
            tell(client, block)
        for pool in sorted({one.work_pool.name for one in wanted}):
            _ensure_pool(client, pool)
        with progress.step("deploy", total=len(wanted), unit="steps") as step:
            _prefect_deploy(file)
            step.update(done=len(wanted))
        end_lost_runs(client)
        return sorted(_made(client, wanted), key=lambda one: one.name)


def _read(file: Path) -> list[_Wanted]:
    """Return a file's deployments, whose recipes can be read."""
    try:
        found = _File.model_validate(yaml.safe_load(file.read_text(encoding="utf-8")))
    except FileNotFoundError as error:
        raise RecipeError(f"{file}: no such file: name one by --file, or copy vinoflow's prefect.yaml") from error
    except ValidationError as error:
        first = error.errors()[0]
        raise RecipeError(f"{file}: {'.'.join(map(str, first['loc'])) or 'the file'}: {first['msg']}") from error
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise RecipeError(f"{file} cannot be read: {' '.join(str(error).split())}") from error
    for one in found.deployments:
        if "recipe" in one.parameters:
            load_recipe(file.parent / str(one.parameters["recipe"]))
    return found.deployments


def _ensure_pool(client: SyncPrefectClient, name: str) -> None:
    from prefect.client.schemas.actions import WorkPoolCreate
    from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound

    try:
        client.read_work_pool(name)
    except ObjectNotFound:
        about = "Machines that run vinoflow's deployments; those with a GPU take the queue gpu."
        try:
            client.create_work_pool(WorkPoolCreate(name=name, type="process", description=about))
        except ObjectAlreadyExists:
            return


def _prefect_deploy(file: Path) -> None:
    """Run `prefect deploy --all`, which asks nothing and makes nothing twice."""
    command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all", "--prefect-file", file.name]
    done = subprocess.run(
        command,
        cwd=file.resolve().parent,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=_TIMEOUT_S,
        check=False,
    )
    if done.returncode:
        said = " ".join(done.stdout.replace("An exception occurred.", "").split())
        reason = re.split(r"[\w.]+Error: ", said)[-1]
        raise RegistryError(f"`prefect deploy --all` refuses {file}: {reason[-_SAID:] or 'it said nothing'}")


def _made(client: SyncPrefectClient, wanted: Sequence[_Wanted]) -> Iterator[Deployed]:
    """Yield the deployments of the file as the server has them.

    Raises:
        RegistryError: It lacks one.
    """
    there = {(one.entrypoint, one.name): one for one in _all_deployments(client)}
    for one in wanted:
        found = there.get((one.entrypoint, one.name))
        if found is None:
            raise RegistryError(
                f"the Prefect server has no deployment {one.name} ({one.entrypoint}) after deploying it"
            )
        starts = [_in_words(schedule.schedule) for schedule in found.schedules if schedule.active]
        starts += [f"event {event}" for trigger in one.triggers for event in trigger.get("expect", ())]
        yield Deployed(
            name=f"{client.read_flow(found.flow_id).name}/{one.name}",
            queue=found.work_queue_name or "default",
            starts=", ".join(starts) or "by hand",
        )


def _all_deployments(client: SyncPrefectClient) -> Iterator[Any]:
    offset = 0
    while page := client.read_deployments(limit=200, offset=offset):
        yield from page
        offset += len(page)


def _in_words(schedule: Any) -> str:
    """Return when a schedule fires."""
    if cron := getattr(schedule, "cron", None):
        return f"cron {cron} {schedule.timezone or 'UTC'}"
    if interval := getattr(schedule, "interval", None):
        return f"every {interval}"
    return f"{schedule.rrule}"
