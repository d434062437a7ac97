"""Batches by real engines that are killed, on one machine, Dask and Ray: every row once, equal to a run of its own."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from s3fs import S3FileSystem

from tasks.recipe_file import load_recipe
from tasks.records import ExportedModel, ModelVersion
from tasks.serving.responses import ChatCompletion, ErrorBody, TextCompletion
from tests import servers
from tests.conftest import ROOT, Vinoflow, write_tiny_recipe
from tests.serving import give, home_of, register_version

pytestmark = pytest.mark.slow
ROWS = 400
SETTINGS = ("--set", "exact=true", "--set", "part_rows=8", "--set", "window=16", "--max-tokens", "24")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One for all, in place of one a test."""
    folder = tmp_path_factory.mktemp("batches")
    with home_of(folder):
        yield folder


@pytest.fixture(scope="module")
def version(home: Path, tiny_checkpoint: Path, tiny_export: ExportedModel) -> ModelVersion:
    found = registered("tiny", home, tiny_checkpoint, tiny_export)
    give(found)
    return found


def registered(name: str, home: Path, tiny_checkpoint: Path, tiny_export: ExportedModel) -> ModelVersion:
    recipe = load_recipe(write_tiny_recipe(home, tiny_checkpoint, name=name))
    return register_version(tiny_export, recipe, home / name)


@pytest.fixture(scope="module")
def rows(home: Path) -> Path:
    path = home / "in.jsonl"
    chance = random.Random(5)
    words = ["many", "small", "words", "that", "go", "to", "a", "tiny", "model"]
    lines = [
        json.dumps({"n": number, "prompt": " ".join(chance.choices(words, k=1 + number % 20))})
        for number in range(ROWS)
    ]
    path.write_text("\n".join([*lines[:100], "rubbish", *lines[100:], ""]))
    return path


@pytest.fixture(scope="module")
def uninterrupted(version: ModelVersion, rows: Path, home: Path) -> list[dict[str, Any]]:
    """What the rows are answered when nothing happens."""
    output = home / "uninterrupted.jsonl"
    subprocess.run(command(rows, output), cwd=ROOT, check=True, capture_output=True)
    found = answered(output)
    assert [row["n"] for row in found] == list(range(ROWS))
    assert len({row["answer"] for row in found}) > ROWS / 4
    return found


def answered(output: Path) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in output.read_text().splitlines()]
    return [{name: value for name, value in row.items() if name != "latency_s"} for row in found]


def command(rows: Path, output: Path, *more: str) -> list[str]:
    asked = ["batch", str(rows), str(output), "--model", "tiny@champion", *SETTINGS, *more]
    return [sys.executable, "-m", "flows.cli", *asked]


def parts(output: Path) -> int:
    return len(list(output.with_name(f"{output.name}.parts").glob("part-*")))


def wait_for_parts(output: Path, count: int, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 240
    while parts(output) < count:
        assert process.poll() is None, log.read_text()[-3000:]
        assert time.monotonic() < deadline, log.read_text()[-3000:]
        time.sleep(0.005)


def engines(home: Path) -> list[psutil.Process]:
    return processes(home, "tasks.engine.worker")


def processes(home: Path, what: str) -> list[psutil.Process]:
    """The processes of this file's commands that have a word on their command line."""
    found = []
    for process in psutil.process_iter():
        try:
            ours = process.environ().get("VINOFLOW_HOME") == str(home)
            if ours and what in process.cmdline():
                found.append(process)
        except psutil.Error:
            continue
    return found


def test_killed_five_times(
    uninterrupted: list[dict[str, Any]], rows: Path, tmp_path: Path, vinoflow: Vinoflow, home: Path
) -> None:
    output, log, chance = tmp_path / "killed.jsonl", tmp_path / "log", random.Random()
    for kill in range(5):
        with log.open("wb") as told:
            process = subprocess.Popen(command(rows, output), cwd=ROOT, stdout=told, stderr=told)
            wait_for_parts(output, parts(output) + chance.randint(0 if kill else 1, 4), process, log)
            time.sleep(chance.random() / 40)  # some 50 parts in all come within a second
            process.kill()
            process.wait()
    told = vinoflow("batch", rows, output, "--model", "tiny@champion", *SETTINGS)
    assert answered(output) == uninterrupted
    assert f"{ROWS + 1}: {ROWS} answered, 0 not answered, 1 rejected" in told.stdout
    assert not [path for path in tmp_path.iterdir() if "partial" in path.name or path.name.endswith(".parts")]
    assert not engines(home)


@pytest.mark.parametrize("runner", ["dask", "ray"])
def test_workers_engines_and_commands_of_a_cluster_are_killed(
    uninterrupted: list[dict[str, Any]], rows: Path, tmp_path: Path, vinoflow: Vinoflow, home: Path, runner: str
) -> None:
    output, log, chance = tmp_path / "killed.jsonl", tmp_path / "log", random.Random()
    for killed in (("worker", "command"), ("engine", "worker", "command")):
        with log.open("wb") as told:
            process = subprocess.Popen(command(rows, output, "--runner", runner), cwd=ROOT, stdout=told, stderr=told)
            for what in killed:
                wait_for_parts(output, parts(output) + chance.randint(1, 4), process, log)
                if what == "command":
                    begun = psutil.Process(process.pid).create_time()
                    prefects = [one for one in processes(home, "uvicorn") if one.create_time() > begun]
                    assert len(prefects) == 1, "workers report to the one that the command began"
                    process.kill()
                    continue
                while not (found := engines(home)):  # the one that was killed comes again
                    wait_for_parts(output, 0, process, log)
                engine = chance.choice(found)
                (engine if what == "engine" else engine.parent() or engine).kill()
            process.wait()
        assert parts(output) < ROWS / 8
    told = vinoflow("batch", rows, output, "--model", "tiny@champion", *SETTINGS, "--runner", runner)
    assert answered(output) == uninterrupted
    assert f"{ROWS + 1}: {ROWS} answered, 0 not answered, 1 rejected" in told.stdout


def test_a_cluster_that_others_use_too(
    uninterrupted: list[dict[str, Any]], rows: Path, tmp_path: Path, vinoflow: Vinoflow, home: Path
) -> None:
    port, output, log = servers.free_port(), tmp_path / "out.jsonl", tmp_path / "log"
    address = f"tcp://127.0.0.1:{port}"
    asked = ("batch", rows, output, "--model", "tiny@champion", *SETTINGS, "--runner", "dask", "--workers", "1")
    given = ("--set", f"address={address}", "--set", "engines=2")
    gone = vinoflow(*asked, *given, expect=1)
    assert f"error: no cluster answers at address {address}" in gone.stderr and "Traceback" not in gone.stderr
    local = ("--host", "127.0.0.1", "--no-dashboard")
    worker = ("--nworkers", "1", "--nthreads", "1", "--local-directory", str(tmp_path))
    with ExitStack() as stack, log.open("wb") as told:
        for command in (("scheduler", "--port", str(port), *local), ("worker", address, *worker, *local)):
            process = subprocess.Popen([servers.BIN / "dask", *command], stdout=told, stderr=told)
            stack.callback(servers.stop, process)
        servers.listens(port, log=log)
        vinoflow(*asked, *given)
        assert answered(output) == uninterrupted
        kept = engines(home)
        assert len(kept) == 2
        output.unlink()
        vinoflow(*asked, *given)
        assert engines(home) == kept, "they stay for the next batch"
    psutil.wait_procs(kept, timeout=60)
    assert not engines(home)


def test_inputs_outputs_and_journals_in_an_object_store(
    uninterrupted: list[dict[str, Any]], rows: Path, tmp_path: Path, vinoflow: Vinoflow
) -> None:
    with servers.s3(tmp_path / "s3") as where:
        store = S3FileSystem(
            endpoint_url=where["AWS_ENDPOINT_URL"], key="test", secret="test", use_listings_cache=False
        )
        store.put(str(rows), "bucket/in/rows.jsonl")
        asked = ("batch", "s3://bucket/in", "s3://bucket/out/rows.jsonl", "--model", "tiny@champion", *SETTINGS)
        log = tmp_path / "log"
        with log.open("wb") as told:
            process = subprocess.Popen(
                [sys.executable, "-m", "flows.cli", *asked],
                cwd=ROOT,
                stdout=told,
                stderr=told,
                env={**os.environ, **where},
            )
            deadline = time.monotonic() + 240
            while len(store.glob("bucket/out/rows.jsonl.parts/part-*")) < 3:
                assert process.poll() is None and time.monotonic() < deadline, log.read_text()[-3000:]
                time.sleep(0.05)
            process.kill()
            process.wait()
        assert not store.exists("bucket/out/rows.jsonl")
        told = vinoflow(*asked, **where)
        found = [json.loads(line) for line in store.cat("bucket/out/rows.jsonl").splitlines()]
        assert [{name: row[name] for name in row if name != "latency_s"} for row in found] == uninterrupted
        assert store.find("bucket/out") == ["bucket/out/rows.jsonl", "bucket/out/rows.jsonl.rejects.jsonl"]
        assert "already" in vinoflow(*asked, **where).stderr
        lineage = json.loads(vinoflow("lineage", "s3://bucket/out/rows.jsonl", "--json", **where).stdout)
        assert [chain["version"] for chain in lineage] == ["tiny/1"]
        missing = vinoflow("batch", "s3://nowhere/x.jsonl", *asked[2:], expect=1, **where)
        assert "error: input s3://nowhere/x.jsonl" in missing.stderr and "Traceback" not in missing.stderr
    assert "s3://bucket/out/rows.jsonl" in told.stdout


def test_openais_batch_files(version: ModelVersion, tmp_path: Path, vinoflow: Vinoflow) -> None:
    chat = {"model": "gpt-x", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 5, "temperature": 0}
    raw = {"model": "gpt-x", "prompt": "Once", "max_tokens": 4, "temperature": 0, "stop": ["zzz"], "logprobs": 0}
    lines = [
        {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": chat},
        {"custom_id": "b", "method": "POST", "url": "/v1/completions", "body": raw},
        {"custom_id": "c", "method": "POST", "url": "/v1/embeddings", "body": raw},
        {"custom_id": "d", "method": "POST", "url": "/v1/chat/completions", "body": {**chat, "max_tokens": 9999}},
    ]
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("".join(json.dumps(line) + "\n" for line in lines))
    done = json.loads(vinoflow("batch", source, output, "--model", "tiny/1", "--json").stdout)
    assert (done["run"]["rows"], done["run"]["rejected"], done["run"]["errors"]) == (4, 1, 1)
    found = [json.loads(line) for line in output.read_text().splitlines()]
    assert [(one["custom_id"], one["response"]["status_code"]) for one in found] == [("a", 200), ("b", 200), ("d", 400)]
    first, second, third = (one["response"]["body"] for one in found)
    ChatCompletion.model_validate(first)
    TextCompletion.model_validate(second)
    ErrorBody.model_validate(third)
    assert len(second["choices"][0]["logprobs"]["token_logprobs"]) == second["usage"]["completion_tokens"]
    assert found[0]["vinoflow"]["digest"] == version.digest


def test_a_prefect_server_sees_it_go(version: ModelVersion, rows: Path, tmp_path: Path, vinoflow: Vinoflow) -> None:
    with servers.prefect(tmp_path / "prefect") as api:
        asked = ("batch", rows, tmp_path / "out.csv", "--model", "tiny@champion", *SETTINGS)
        told = vinoflow(*asked, PREFECT_API_URL=api)
        assert f"{ROWS + 1}: {ROWS} answered" in told.stdout
        with httpx.Client(base_url=api) as client:
            (flow,) = client.post("/flow_runs/filter", json={}).json()
            assert (flow["state_type"], flow["parameters"]["model"]) == ("COMPLETED", "tiny@champion")
            assert len(client.post("/task_runs/filter", json={}).json()) == 1
            artifacts = {one["key"]: one for one in client.post("/artifacts/latest/filter", json={}).json()}
    assert artifacts["batch-out-csv-progress"]["data"] == 100
    (row,) = json.loads(artifacts["batch-out-csv"]["data"])
    assert (row["rows"], row["rejected"], row["version"]) == (ROWS + 1, 1, "tiny/1") and row["tokens/s"] > 0


def test_what_the_command_says(
    home: Path, tiny_checkpoint: Path, tiny_export: ExportedModel, rows: Path, tmp_path: Path, vinoflow: Vinoflow
) -> None:
    untried = registered("untried", home, tiny_checkpoint, tiny_export).reference
    dry = vinoflow("batch", rows, tmp_path / "out.jsonl", "--model", untried, "--max-tokens", "5", "--dry-run")
    assert f"{ROWS + 1}: {ROWS} to answer, 1 to reject" in dry.stdout
    assert f"at most {5 * ROWS}" in dry.stdout and "not predicted" in dry.stdout
    predicted = json.loads(
        vinoflow("batch", rows, tmp_path / "out.jsonl", "--model", untried, "--dry-run", "--json").stdout
    )
    assert (predicted["rows"], sum(predicted["rejected"].values())) == (ROWS + 1, 1)
    for options, words in (
        (("--set", "windw=3"), "settings: windw is not a field: `vinoflow schema batch` lists them"),
        (("--set", "window"), "--set 'window' is not NAME=VALUE"),
        (("--set", "window=many"), "settings: window: Input should be a valid integer"),
        (("--set", "window.x=1", "--set", "window=1", "--set", "window.y=1"), "window.y: window is 1"),
        (("--set", "address=tcp://x:1"), "settings: address tcp://x:1 is a cluster's"),
        (("--set", "settings.n=2"), "setting n is not for a row"),
        (("--config", str(tmp_path / "none.yaml")), "none.yaml: no such file"),
    ):
        told = vinoflow("batch", rows, tmp_path / "x.jsonl", "--model", untried, *options, expect=1)
        assert words in told.stderr and "Traceback" not in told.stderr
    assert not list(tmp_path.glob("out.jsonl*"))
