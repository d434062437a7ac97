"""The scheduled export with a hub and a Prefect server, and who is told of what."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from flows.promotion import consider, promote
from tasks.registry import list_versions, resolve
from tests import receivers, servers, small
from tests.conftest import ROOT, SAID_BY_NOISE, Vinoflow
from tests.end_to_end.test_promotion import ask, until
from tests.hub_server import FakeHub

pytestmark = pytest.mark.slow


@dataclass
class Told:
    """What a webhook and a mail server got."""

    posted: list[dict[str, Any]]
    mailed: list[Any]

    def of(self, words: str) -> bool:
        """Tell whether both got a message with these words in its subject."""
        mails = [str(one["subject"]) for one in self.mailed]
        return any(words in str(one) for one in self.posted) and any(words in subject for subject in mails)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with servers.prefect(tmp_path_factory.mktemp("nightly") / "prefect-server") as url:
        yield url


@pytest.fixture(scope="module")
def told(server: str) -> Iterator[Told]:
    """Both receivers, told by automations that `deploy` makes; blocks are made as a person does on Prefect's page."""
    with receivers.webhook() as (hook, posted), receivers.mail_server() as (mail, mailed):
        code = f"""
from prefect.blocks.notifications import SlackWebhook
from flows.email import Email
SlackWebhook(url="json://127.0.0.1:{hook}/services/T/B/x").save("team")
Email(host="127.0.0.1", port={mail}, encryption="none", sender="vinoflow@tests", to=["a@tests", "b@tests"]).save("team")
"""
        environment = {**os.environ, "PREFECT_API_URL": server}
        subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, env=environment)
        from prefect.client.orchestration import get_client
        from prefect.settings import PREFECT_API_URL, temporary_settings

        from flows.notifications import tell

        with temporary_settings({PREFECT_API_URL: server}), get_client(sync_client=True) as client:
            for _ in range(2):  # again without duplicates
                names = tell(client, "slack-webhook/team") + tell(client, "email/team")
            assert sorted(one.name for one in client.read_automations()) == sorted(names)
        yield Told(posted, mailed)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with FakeHub() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        yield hub


@pytest.fixture
def nightly(server: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    """The flow on the server, in this process; returns its final state."""
    from prefect.settings import PREFECT_API_URL, temporary_settings

    from flows.nightly import nightly as flow

    monkeypatch.setenv("PREFECT_API_URL", server)
    with temporary_settings({PREFECT_API_URL: server}):
        yield lambda recipe, **more: flow(str(recipe), return_state=True, **more)


def write_recipe(path: Path, *, max_new_tokens: int = 8, **gates: Any) -> Path:
    data = {
        "name": "tiny",
        "source": {"kind": "hub", "repository": "org/tiny", "revision": "main"},
        "export": {"weight_format": "int4", "group_size": 32, "ratio": 0.6, "sym": True},
        "validation": {
            "device": "CPU",
            "max_new_tokens": max_new_tokens,
            "reference": "none",
            "rounds": 2,
            "concurrency": 2,
            "gates": dict.fromkeys(SAID_BY_NOISE) | gates,
            "prompts": [{"id": "hello", "messages": [{"role": "user", "content": "Hello"}]}],
        },
        "registry": {"auto_promote": "champion"},
    }
    path.write_text(yaml.safe_dump(data))
    return path


def changed(files: dict[str, bytes]) -> dict[str, bytes]:
    """The same model with other weights in places."""
    weights = bytearray(files["model.safetensors"])
    start = 8 + int.from_bytes(weights[:8], "little") + 4000
    for place in range(start, start + 20_000, 4):
        weights[place + 2] ^= 0x40  # of a float32: a bit of its fraction
    return files | {"model.safetensors": bytes(weights)}


def test_what_is_new_is_exported_once(
    nightly: Callable[..., Any], hub: FakeHub, server: str, told: Told, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    files = {path.name: path.read_bytes() for path in tiny_checkpoint.iterdir()}
    first = hub.add("org/tiny", files)
    recipe = write_recipe(tmp_path / "tiny.yaml")
    made = nightly(recipe)
    assert (made.name, made.message) == ("Completed", "tiny/1 is validated")
    about = until(lambda: validated(server))
    assert about[-1]["resource"]["vinoflow.auto_promote"] == "champion"
    assert about[-1]["payload"]["reference"] == "tiny/1"
    assert (tmp_path / "cache" / "export.lock").exists(), "it did not wait for its turn on this machine"
    promote(consider("tiny/1", alias="champion"))

    again = nightly(recipe)
    assert (again.name, again.message) == ("NothingNew", f"tiny at {first[:12]} is registered as tiny/1")
    os.environ["VINOFLOW_CACHE"] = str(tmp_path / "another-machine")  # `home` sets it back
    hub.served.clear()
    assert nightly(recipe).name == "NothingNew"
    assert hub.served["model.safetensors"] == 0, "the weights were fetched to learn that they are known"

    second = hub.add("org/tiny", changed(files))
    assert nightly(recipe).message == "tiny/2 is validated"
    page = artifact(server, "tiny-changes")
    assert f"Checkpoint hub:org/tiny {first}, now hub:org/tiny {second}." in page
    assert "# tiny/2 against champion tiny/1" in page and "| prompt | tiny/1 | tiny/2 |" in page
    assert page == kept("tiny/2", "changes.md")

    write_recipe(recipe, ttft_ms={"max": 0.0001})
    failed = nightly(recipe)
    assert (failed.name, failed.type.value) == ("GatesFailed", "FAILED") and "ttft_ms is" in failed.message
    known = nightly(recipe)
    assert known.name == "NothingNew" and "failed its gates before, see" in known.message
    assert nightly(recipe, again=True).name == "GatesFailed"
    assert [version.reference for version in list_versions("tiny")] == ["tiny/2", "tiny/1"]
    until(lambda: told.of("tiny failed its gates"))
    assert "ttft_ms is" in told.mailed[-1].get_content() and told.mailed[-1]["to"] == "a@tests, b@tests"


def test_moves_and_crashes_are_told(
    server: str, told: Told, home: Path, tmp_path: Path, vinoflow: Vinoflow, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prefect.client.orchestration import get_client
    from prefect.settings import PREFECT_API_URL, temporary_settings
    from prefect.states import Crashed, Running

    from flows.nightly import nightly as flow

    for content in "ab":
        small.version(tmp_path, content)
        vinoflow("promote", "small@latest", PREFECT_API_URL=server)
    vinoflow("rollback", "small", "--reason", "said rubbish", PREFECT_API_URL=server)
    until(lambda: told.of("small/2 is now champion") and told.of("champion went back to small/1"))
    assert "said rubbish" in told.mailed[-1].get_content()
    with temporary_settings({PREFECT_API_URL: server}), get_client(sync_client=True) as client:
        run = client.create_flow_run(flow, parameters={"recipe": "x.yaml"}, name="x", state=Running())
        client.set_flow_run_state(run.id, Crashed(message="out of memory"))
    until(lambda: told.of("nightly x: Crashed"))
    assert not told.of("promote small/1-to-champion")


def test_a_run_of_a_machine_that_is_gone_ends_as_crashed(
    server: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prefect.client.orchestration import get_client
    from prefect.events import emit_event
    from prefect.settings import PREFECT_API_URL, temporary_settings
    from prefect.states import Running

    from flows import notifications
    from flows.nightly import nightly as flow

    monkeypatch.setattr(notifications, "_SILENT", timedelta(seconds=10))
    with temporary_settings({PREFECT_API_URL: server}), get_client(sync_client=True) as client:
        notifications.end_lost_runs(client)
        notifications.end_lost_runs(client)
        assert len(client.read_automations_by_name("vinoflow: end runs of a machine that is gone")) == 1
        run = client.create_flow_run(flow, parameters={"recipe": "x.yaml"}, state=Running())
        time.sleep(3)  # the automation is known to what watches events
        ours = {"prefect.resource.id": f"prefect.flow.{run.flow_id}", "prefect.resource.role": "flow"}
        emit_event(
            "prefect.flow-run.heartbeat",
            resource={"prefect.resource.id": f"prefect.flow-run.{run.id}"},
            related=[ours | {"prefect.resource.name": "nightly"}],
        )
        state = until(lambda: (now := client.read_flow_run(run.id).state) and now.is_crashed() and now)
    assert "its machine is gone" in state.message


def test_a_block_that_is_not_there(server: str, home: Path, vinoflow: Vinoflow) -> None:
    for name in ("slack-webhook/nobody", "nobody"):
        refused = vinoflow("deploy", "--notify", name, expect=1, PREFECT_API_URL=server)
        assert f"error: --notify {name}: the Prefect server has no such block" in refused.stderr


def validated(api: str) -> list[dict[str, Any]]:
    wanted = {"event": {"name": ["vinoflow.model.validated"]}}
    return list(ask(api, "/events/filter", filter=wanted, limit=50)["events"])


def artifact(api: str, key: str) -> str:
    (found,) = ask(api, "/artifacts/latest/filter", artifacts={"key": {"any_": [key]}})
    return str(found["data"])


def kept(reference: str, name: str) -> str:
    from mlflow.artifacts import load_text

    return str(load_text(f"runs:/{resolve(reference).run_id}/{name}"))
