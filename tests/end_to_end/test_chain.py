"""The whole as a team runs it: PostgreSQL, S3, a hub, `vinoflow up` and `deploy`, and then everything by itself."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import yaml

from tasks.registry import entries
from tests import receivers, servers
from tests.conftest import ROOT, Vinoflow
from tests.end_to_end.test_nightly import changed, write_recipe
from tests.hub_server import FakeHub
from tests.postgres import database, postgres
from tests.serving import serving

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
EVERY_S = 40


@dataclass
class Team:
    """What a test can do with the whole."""

    home: Path
    api: str
    hub: FakeHub
    files: dict[str, bytes]
    process: psutil.Process

    def ask(self, path: str, **content: Any) -> Any:
        return httpx.post(f"{self.api}{path}", json=content, timeout=30).raise_for_status().json()

    def until(self, found: Any, *, seconds: float = 300) -> Any:
        deadline = time.monotonic() + seconds
        while not (result := found()):
            told = "\n".join(path.read_text()[-3000:] for path in (self.home / "mlruns" / "servers").glob("*.log"))
            assert self.process.is_running() and time.monotonic() < deadline, told
            time.sleep(0.5)
        return result


@pytest.fixture
def team(home: Path, tmp_path: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Team]:
    with ExitStack() as stack:
        for name, value in stack.enter_context(servers.s3(tmp_path / "s3")).items():
            monkeypatch.setenv(name, value)
        hub = stack.enter_context(FakeHub())
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "prefect-home"))
        uri = stack.enter_context(postgres())
        monkeypatch.setenv("VINOFLOW_BACKEND_STORE_URI", uri)
        monkeypatch.setenv("VINOFLOW_PREFECT_DATABASE", database(uri, "prefect"))
        files = {path.name: path.read_bytes() for path in tiny_checkpoint.iterdir()}
        hub.add("org/tiny", files)
        _project(home)
        options = ("--artifacts", "s3://bucket/mlflow", "--queue", "cpu")
        process, told = stack.enter_context(servers.up(tmp_path, *options))
        monkeypatch.setenv("MLFLOW_TRACKING_URI", told["mlflow"])
        monkeypatch.setenv("PREFECT_API_URL", told["prefect"])
        yield Team(home, told["prefect"], hub, files, process)


def _project(home: Path) -> None:
    """Lay out the project's own prefect.yaml, with one recipe that is looked at every 40 s."""
    shutil.copytree(ROOT / "configs", home / "configs")
    (home / "docs").mkdir()
    shutil.copy(ROOT / "docs" / "questions.jsonl", home / "docs")
    write_recipe(home / "configs" / "tiny.yaml")
    content = servers.deployments()
    (ours,) = [one for one in content["deployments"] if one["name"] == "smollm2-135m-instruct"]
    first = datetime.fromtimestamp(time.time() + EVERY_S / 2, UTC).isoformat()
    ours |= {"name": "tiny", "parameters": {"recipe": "configs/tiny.yaml"}}
    ours["schedules"] = [{"interval": EVERY_S, "anchor_date": first}]
    (home / "prefect.yaml").write_text(yaml.safe_dump(content))


def champions() -> list[int]:
    return [noted.entry.to_version for noted in entries("tiny")][::-1]


def test_a_new_revision_comes_into_service_by_itself(team: Team, tmp_path: Path, vinoflow: Vinoflow) -> None:
    with receivers.webhook() as (hook, told):
        receivers.block(hook)
        _deploy_twice(team, vinoflow)
        team.until(lambda: champions() == [1])  # the schedule fired, its version was promoted by the event
        answers = team.home / "mlruns" / "answers"
        team.until((answers / "tiny-1.jsonl").is_file)  # and the batch by the event of that
        with serving("tiny@champion", tmp_path / "serve", poll_s=0.5) as served:
            assert served.ready["version"] == "tiny/1"
            team.hub.add("org/tiny", changed(team.files))
            team.until(lambda: champions() == [1, 2])
            team.until(lambda: httpx.get(f"{served.url}/health/ready").json()["version"] == "tiny/2")
            team.until((answers / "tiny-2.jsonl").is_file)
            rows = map(json.loads, (answers / "tiny-2.jsonl").read_text().splitlines())
            assert [(row["model"], row["version"]) for row in rows] == [("tiny", 2)] * 4
            _look(team, served.url, vinoflow)
            vinoflow("rollback", "tiny", "--by", "ann", "--reason", "a test")
            team.until(lambda: httpx.get(f"{served.url}/health/ready").json()["version"] == "tiny/1")
        news = ("tiny/1 is now champion", "tiny/2 is now champion", "champion went back to tiny/1")
        team.until(lambda: all(any(subject in str(one) for one in told) for subject in news))


def _deploy_twice(team: Team, vinoflow: Vinoflow) -> None:
    asked = ("deploy", "--file", team.home / "prefect.yaml", "--json", "--notify", "slack-webhook/team")
    deployed = json.loads(vinoflow(*asked).stdout)
    known = {path: len(team.ask(f"/{path}/filter")) for path in ("deployments", "automations", "work_pools")}
    assert json.loads(vinoflow(*asked).stdout) == deployed
    assert known == {path: len(team.ask(f"/{path}/filter")) for path in known}
    assert len(deployed) == known["deployments"] == 7
    forms = {one["name"]: one["parameter_openapi_schema"]["properties"] for one in team.ask("/deployments/filter")}
    assert forms["tiny"]["again"]["type"] == "boolean" and "from the folder" in forms["tiny"]["recipe"]["description"]
    queues = {one["name"]: one["queue"] for one in deployed}
    assert (queues["nightly/tiny"], queues["nightly/phi-3-mini-4k-instruct"]) == ("cpu", "gpu")


def _look(team: Team, served: str, vinoflow: Vinoflow) -> None:
    """`status` tells of all that is here."""
    lines = {(one["what"], one["name"]): one for one in json.loads(_status(vinoflow, served))}
    assert lines["mlflow", os.environ["MLFLOW_TRACKING_URI"]]["about"] == "1 models, 2 versions"
    assert lines["model", "tiny"]["about"] == "champion 2; newest 2"
    assert lines["serve", served] == {"what": "serve", "name": served, "state": "ok", "about": "tiny/2"}
    ran = lines["deployment", "promote/after-validation"]
    assert ran["state"] == "ok" and "tiny@champion is now tiny/2" in ran["about"]
    assert "next" in lines["deployment", "nightly/tiny"]["about"]
    assert [one["state"] for (what, _), one in lines.items() if what == "worker"] == ["ok"]


def _status(vinoflow: Vinoflow, served: str) -> str:
    return vinoflow("status", "--server", served, "--json", MLFLOW_TRACKING_URI="", PREFECT_API_URL="").stdout
