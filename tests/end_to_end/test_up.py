"""`vinoflow up` on the embedded stores: what was there is served, what dies comes again, what was cut off goes on."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import yaml

from flows.deploying import deploy
from tasks.errors import RecipeError
from tests import receivers, servers, small
from tests.conftest import ROOT, Vinoflow
from tests.end_to_end.test_promotion import ask, until

pytestmark = pytest.mark.slow


def states(api: str) -> list[str]:
    return sorted(run["state_name"] for run in ask(api, "/flow_runs/filter", flows={"name": {"any_": ["nightly"]}}))


def begin(api: str) -> None:
    command = [str(servers.BIN / "prefect"), "deployment", "run", "nightly/tiny"]
    subprocess.run(command, check=True, env={**os.environ, "PREFECT_API_URL": api}, capture_output=True)


def running(process: psutil.Process) -> list[psutil.Process]:
    """What the servers and the worker have started."""
    found = []
    for one in process.children(recursive=True):
        with suppress(psutil.Error):
            if one.cmdline():
                found.append(one)
    return found


def test_what_dies_comes_again_and_what_was_cut_off_goes_on(
    home: Path, tmp_path: Path, tiny_recipe: Path, vinoflow: Vinoflow, monkeypatch: pytest.MonkeyPatch
) -> None:
    small.version(tmp_path, "a")
    vinoflow("promote", "small/1")
    (home / "tiny.yaml").write_text(tiny_recipe.read_text())
    content = yaml.safe_load((ROOT / "prefect.yaml").read_text())
    content["deployments"] = [one for one in content["deployments"] if one["name"] == "smollm2-135m-instruct"]
    content["deployments"][0] |= {"name": "tiny", "parameters": {"recipe": "tiny.yaml"}, "schedules": []}
    (home / "prefect.yaml").write_text(yaml.safe_dump(content))
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "prefect-home"))
    with receivers.webhook() as (hook, posted), servers.up(tmp_path) as (process, told):
        lines = {line["what"]: line for line in json.loads(vinoflow("status", "--json").stdout)}
        assert (lines["model"]["name"], lines["model"]["about"]) == ("small", "champion 1; newest 1")
        assert lines["worker"]["state"] == "ok"
        assert "runs already for" in vinoflow("up", expect=1).stderr
        with monkeypatch.context() as patch:
            patch.setenv("PREFECT_API_URL", told["prefect"])
            receivers.block(hook)
        vinoflow("deploy", "--file", home / "prefect.yaml", "--notify", "slack-webhook/team")

        (mlflow,) = [one for one in process.children() if "mlflow" in one.cmdline()]
        mlflow.kill()
        until(lambda: "mlflow ended with exit code -9: begun again" in (tmp_path / "up.log").read_text())
        begin(told["prefect"])
        export = until(lambda: [one for one in running(process) if "tasks.export.worker" in one.cmdline()])
        export[0].parent().kill()
        until(lambda: any("nightly tiny: Crashed" in str(one) for one in posted))
        begin(told["prefect"])
        until(lambda: states(told["prefect"]) == ["Crashed", "Running"])
    assert "nothing is scheduled" in vinoflow("deploy", "--file", home / "prefect.yaml", expect=1).stderr
    assert json.loads(vinoflow("status", "--json").stdout)[-1]["name"] == "embedded"
    with servers.up(tmp_path) as (_, told):
        until(lambda: states(told["prefect"]) == ["Completed", "Crashed"])
        lines = {line["name"]: line for line in json.loads(vinoflow("status", "--json").stdout)}
        assert lines["nightly/tiny"]["about"].endswith("tiny/1 is validated")
        assert lines["tiny"]["about"] == "none is promoted; newest 1"


def test_what_is_wrong_is_said_at_once(home: Path, tmp_path: Path, vinoflow: Vinoflow) -> None:
    for option, uri in (
        ("--backend-store-uri", "postgresql://team:planted@127.0.0.1:1/mlflow"),
        ("--prefect-database", "postgresql+asyncpg://team:planted@127.0.0.1:1/prefect"),
    ):
        dead = vinoflow("up", option, uri, expect=1).stderr
        assert f"error: {option}: no database answers at 127.0.0.1:1 (Connection refused)" in dead
        assert "planted" not in dead
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        refused = vinoflow("up", "--mlflow-port", port, expect=1)
        assert f"error: port {port} is taken" in refused.stderr and "--mlflow-port" in refused.stderr
        down = vinoflow("status", expect=1, PREFECT_API_URL=f"http://127.0.0.1:{port}/api", MLFLOW_TRACKING_URI="")
        assert "down" in down.stdout


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "no such file"),
        ("a: [", "cannot be read"),
        ("name: x", "deployments: Field required"),
        ("deployments: [{name: x, entrypoint: y}]", "deployments.0.work_pool: Field required"),
        (
            "deployments: [{name: x, entrypoint: y, work_pool: {name: z}, parameters: {recipe: none.yaml}}]",
            "none.yaml: no such file",
        ),
    ],
)
def test_a_file_that_cannot_be_deployed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str | None, words: str
) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:1/api")  # which is not asked
    file = tmp_path / "prefect.yaml"
    if text:
        file.write_text(text)
    with pytest.raises(RecipeError, match=re.escape(words)):
        deploy(file)
