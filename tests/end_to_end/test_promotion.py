"""Promotion with a person, with a Prefect server, and with a worker: every process and every server is real."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest
import yaml

from flows.promotion import consider, promote
from tasks.registry import Entry, aliases_of, entries
from tests import small
from tests.conftest import ROOT, Vinoflow
from tests.killed import Point
from tests.servers import BIN, prefect, stop

pytestmark = pytest.mark.slow
CLI = [sys.executable, "-m", "flows.cli"]
ASKED = re.compile(r"vinoflow approve (\S+) --by NAME")
HOLD = """
import os, sys
from flows.locking import lease
import prefect.concurrency.sync
name, log = sys.argv[1:]
print("ready", flush=True)
sys.stdin.readline()
with lease(f'vinoflow.model.{name}'):
    with open(log, "a") as file:
        print(f"{os.getpid()} enters", file=file, flush=True)
        print("held", flush=True)
        sys.stdin.readline()
        print(f"{os.getpid()} leaves", file=file, flush=True)
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with prefect(tmp_path_factory.mktemp("promotion") / "prefect-server") as url:
        yield url


@pytest.fixture
def on_server(server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("PREFECT_API_URL", server)
    return server


@pytest.fixture
def versions(home: Path, tmp_path: Path, request: pytest.FixtureRequest) -> str:
    """Three versions of a model of the test's own name."""
    return _versions(tmp_path, request, approval="automatic")


@pytest.fixture
def guarded(home: Path, tmp_path: Path, request: pytest.FixtureRequest) -> str:
    """The same, whose champion asks for approval."""
    return _versions(tmp_path, request, approval="manual")


def _versions(folder: Path, request: pytest.FixtureRequest, **policy: str) -> str:
    name = request.node.name.replace("_", "-")
    made_by = small.recipe(name, aliases={"champion": policy})
    for content, kl in (("a", 0.20), ("b", 0.19), ("c", 0.18)):
        small.version(folder, content, kl=kl, made_by=made_by)
    return name


def until(found: Callable[[], Any], *, log: Path | None = None, seconds: float = 180) -> Any:
    """Return what is found, as soon as something is."""
    deadline = time.monotonic() + seconds
    while not (result := found()):
        assert time.monotonic() < deadline, log.read_text() if log else "nothing came"
        time.sleep(0.3)
    return result


@contextmanager
def process(*command: str, log: Path, stdin: int | None = None) -> Iterator[subprocess.Popen[str]]:
    with log.open("w") as output:
        started = subprocess.Popen(command, cwd=ROOT, stdin=stdin, stdout=output, stderr=output, text=True)
    try:
        yield started
    finally:
        stop(started)
        if started.stdin:
            started.stdin.close()


def ledger(name: str) -> list[Entry]:
    return [noted.entry for noted in entries(name)][::-1]


def ask(api: str, path: str, **content: Any) -> Any:
    headers = {"Content-Type": "application/json"}
    return json.load(urlopen(Request(f"{api}{path}", data=json.dumps(content).encode(), headers=headers), timeout=30))


def events_of(api: str, name: str) -> list[dict[str, Any]]:
    wanted = {"event": {"prefix": ["vinoflow.model."]}, "resource": {"id": [f"vinoflow.model.{name}"]}}
    found = ask(api, "/events/filter", filter=wanted, limit=50)["events"]
    return sorted(found, key=lambda event: event["payload"]["sequence"])


def test_a_person_approves_in_another_process(guarded: str, vinoflow: Vinoflow, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with process(*CLI, "promote", f"{guarded}/1", "--by", "bob", "--reason", "first", log=log) as waiting:
        run = until(lambda: ASKED.search(log.read_text()), log=log)[1]
        assert ledger(guarded) == []
        unknown = vinoflow("approve", "nobody", "--by", "ann", expect=1)
        assert f"no promotion with flow run id or name 'nobody'; these wait: {run}" in unknown.stderr
        said = vinoflow("approve", run, "--by", "ann", "--reason", "reads well").stdout
        assert waiting.wait(timeout=60) == 0, log.read_text()
    assert said == f"{guarded}@champion is now {guarded}/1 (the first), ledger entry 1\n"
    assert said in log.read_text()
    (entry,) = ledger(guarded)
    assert (entry.actor, entry.approved_by, entry.reason, entry.flow_run_id) == ("bob", "ann", "first; reads well", run)
    late = vinoflow("reject", f"{guarded}/1-to-champion", "--by", "ann", expect=1)
    assert f"does not wait for approval: {run} ({guarded}/1-to-champion, Completed)" in late.stderr


def test_a_rejected_promotion_moves_nothing(guarded: str, vinoflow: Vinoflow, tmp_path: Path) -> None:
    log = tmp_path / "log"
    forced = ("promote", f"{guarded}/1", "--force", "--reason", "in a hurry")
    with process(*CLI, *forced, log=log) as waiting:
        run = until(lambda: ASKED.search(log.read_text()), log=log)[1]
        told = vinoflow("reject", run, "--by", "ann", "--reason", "too slow").stdout
        assert waiting.wait(timeout=60) == 3, log.read_text()
    refused = f"{guarded}/1 is not promoted to champion: ann rejected it: too slow\n"
    assert told.endswith(refused)
    assert log.read_text().endswith(f"error: {refused}")
    assert ledger(guarded) == []
    assert aliases_of(guarded)[0] == {}


def test_an_answer_holds_for_what_was_shown(guarded: str, vinoflow: Vinoflow, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with process(*CLI, "promote", f"{guarded}/2", log=log) as waiting:
        run = until(lambda: ASKED.search(log.read_text()), log=log)[1]
        promote(consider(f"{guarded}/1", alias="champion"), approved_by="zoe")
        again = vinoflow("approve", run, "--by", "ann", expect=1)
        assert "asks again, what it showed has changed" in again.stderr
        assert [entry.to_version for entry in ledger(guarded)] == [1]
        until(lambda: len(ASKED.findall(log.read_text())) == 2, log=log)
        vinoflow("approve", run, "--by", "ben")
        assert waiting.wait(timeout=60) == 0, log.read_text()
    moves = [(entry.from_version, entry.to_version, entry.approved_by) for entry in ledger(guarded)]
    assert moves == [(None, 1, "zoe"), (1, 2, "ben")]


def test_moves_on_a_server_are_runs_and_events(
    versions: str, on_server: str, vinoflow: Vinoflow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed = Point(target="tasks.registry.move:_set").model_dump_json()
    command = [sys.executable, "-m", "tests.killed", killed, "vinoflow", "promote", f"{versions}/1"]
    with monkeypatch.context() as patch:
        patch.delenv("PREFECT_API_URL")
        assert subprocess.run(command, cwd=ROOT, check=False).returncode == -signal.SIGKILL

    told = json.loads(vinoflow("promote", f"{versions}/2", "--by", "bob", "--json").stdout)
    assert [move["to_version"] for move in told["moved"]] == [1, 2]
    vinoflow("rollback", versions, "--by", "ann")
    moves = ledger(versions)
    events = until(lambda: (found := events_of(on_server, versions)) and len(found) >= 3 and found)
    assert [event["event"].removeprefix("vinoflow.model.") for event in events] == [
        "promoted",
        "promoted",
        "rolled-back",
    ]
    assert [Entry.model_validate(event["payload"]) for event in events] == moves
    about = events[1]["resource"]
    assert about["vinoflow.version"] == "2"
    assert about["vinoflow.from_version"] == "1"
    assert about["vinoflow.alias"] == "champion"
    assert about["vinoflow.digest"] == moves[1].to_digest

    (run,) = ask(on_server, "/flow_runs/filter", flow_runs={"id": {"any_": [moves[1].flow_run_id]}})
    assert (run["name"], run["state_type"]) == (f"{versions}/2-to-champion", "COMPLETED")
    assert run["state"]["message"] == f"{versions}@champion is now {versions}/2 (from 1), ledger entry 2"
    (artifact,) = ask(on_server, "/artifacts/filter", artifacts={"flow_run_id": {"any_": [run["id"]]}})
    assert {row["metric"] for row in json.loads(artifact["data"])} >= {"answers_kl_mean"}


def test_a_deployment_is_suspended_until_a_person_approves(
    guarded: str, on_server: str, vinoflow: Vinoflow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No process waits: the worker begins the run anew when it is answered, and the run looks at the alias again."""
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "prefect-home"))
    deployed = {"name": "on-request", "entrypoint": "flows/promote.py:promote"}
    pool = {"name": "machines", "job_variables": {"working_dir": str(ROOT)}}
    steps = [{"prefect.deployments.steps.set_working_directory": {"directory": str(ROOT)}}]
    file, log = tmp_path / "prefect.yaml", tmp_path / "log"
    file.write_text(yaml.safe_dump({"pull": steps, "deployments": [{**deployed, "work_pool": pool}]}))
    prefect_cli("work-pool", "create", "machines", "--type", "process")
    prefect_cli("deploy", "--all", "--prefect-file", str(file))
    with process(str(BIN / "prefect"), "worker", "start", "--pool", "machines", log=log):
        prefect_cli("deployment", "run", "promote/on-request", "--param", f"reference={guarded}/2")
        run = until(lambda: ASKED.search(log.read_text()), log=log)[1]
        until(lambda: suspended(on_server, run), log=log)
        promote(consider(f"{guarded}/1", alias="champion"), approved_by="zoe")
        again = vinoflow("approve", run, "--by", "ann", expect=1)
        assert "asks again, what it showed has changed" in again.stderr
        until(lambda: suspended(on_server, run), log=log)
        said = vinoflow("approve", run, "--by", "ben").stdout
    assert said == f"{guarded}@champion is now {guarded}/2 (from 1), ledger entry 2\n"
    last = ledger(guarded)[-1]
    assert (last.approved_by, last.flow_run_id) == ("ben", run)
    states = [
        state["name"] for state in json.load(urlopen(f"{on_server}/flow_run_states/?flow_run_id={run}", timeout=30))
    ]
    assert (states.count("Suspended"), states[-1]) == (2, "Completed"), states


def prefect_cli(*arguments: str) -> None:
    command = [str(BIN / "prefect"), "--no-prompt", *arguments]
    done = subprocess.run(command, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def suspended(api: str, run: str) -> bool:
    (found,) = ask(api, "/flow_runs/filter", flow_runs={"id": {"any_": [run]}})
    return bool(found["state_name"] == "Suspended")


def test_a_move_does_not_need_its_event(versions: str) -> None:
    (entry,) = promote(consider(f"{versions}/1", alias="champion"))
    code = "import sys; from flows.events import announce; from tasks.registry import Entry; "
    code += "announce([Entry.model_validate_json(sys.argv[1])])"
    nobody = {**os.environ, "PREFECT_API_URL": "http://127.0.0.1:1/api"}
    command = [sys.executable, "-c", code, entry.model_dump_json()]
    assert subprocess.run(command, cwd=ROOT, env=nobody, check=False, timeout=120).returncode == 0


def test_one_holds_the_lease_until_it_dies(on_server: str, home: Path, tmp_path: Path) -> None:
    """Three processes make a limit at once: one holds it, one is killed with it, the last gets it in the end."""
    log, outputs = tmp_path / "log", [tmp_path / f"out-{number}" for number in range(3)]
    command = [sys.executable, "-c", HOLD, "race.of-makers", str(log)]
    with ExitStack() as stack:
        holders = [stack.enter_context(process(*command, log=output, stdin=subprocess.PIPE)) for output in outputs]
        until(lambda: all("ready" in output.read_text() for output in outputs))
        for holder in holders:
            tell(holder)
        first = until(lambda: holding(outputs, {0, 1, 2}))[0]
        tell(holders[first])
        assert holders[first].wait(timeout=60) == 0, outputs[first].read_text()
        second = until(lambda: holding(outputs, {0, 1, 2} - {first}))[0]
        (third,) = {0, 1, 2} - {first, second}
        holders[second].kill()
        tell(holders[third])
        assert holders[third].wait(timeout=180) == 0, outputs[third].read_text()
    assert log.read_text().splitlines() == [
        f"{holders[first].pid} enters",
        f"{holders[first].pid} leaves",
        f"{holders[second].pid} enters",
        f"{holders[third].pid} enters",
        f"{holders[third].pid} leaves",
    ]
    limit = json.load(urlopen(f"{on_server}/v2/concurrency_limits/vinoflow.model.race.of-makers", timeout=30))
    assert (limit["limit"], limit["active_slots"]) == (1, 0)


def tell(holder: subprocess.Popen[str]) -> None:
    assert holder.stdin
    holder.stdin.write("go\n")
    holder.stdin.flush()


def holding(outputs: list[Path], which: set[int]) -> list[int]:
    """Return those that hold the lease."""
    return [at for at in which if "held" in outputs[at].read_text()]
