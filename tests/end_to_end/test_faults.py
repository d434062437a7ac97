"""The matrix of faults (docs/faults.md): each ends in one clear line, or in a retry that ends well; nothing is lost."""

from __future__ import annotations

import fnmatch
import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from s3fs import S3FileSystem

from flows.promotion import consider, promote
from tasks.errors import UnwritableError, VinoflowError
from tasks.manifest import read_manifest, verify
from tasks.records import ExportedModel, ModelVersion
from tasks.registry import (
    aliases_of,
    batches,
    connect,
    entries,
    list_versions,
    pull,
    served_at,
    trouble,
    verify_ledgers,
)
from tests import servers, small
from tests.conftest import ROOT, write_tiny_recipe
from tests.end_to_end.test_kill import small_disk
from tests.faulty import Proxy
from tests.forked import Done, Forker, forker
from tests.killed import fill
from tests.serving import give, register_version, serving

__all__ = ["small_disk"]
pytestmark = pytest.mark.slow
ROWS = 20
# so that a fault is soon over; without them a command is as patient as docs/faults.md says
ONE_TRY = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "PREFECT_CLIENT_MAX_RETRIES": "0", "AWS_MAX_ATTEMPTS": "1"}
A_SECOND = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "1", "PREFECT_API_REQUEST_TIMEOUT": "1"}
S3_A_SECOND = {"connect_timeout": 1, "read_timeout": 1, "retries": {"total_max_attempts": 1}}


@dataclass
class Site:
    """Real servers, each behind a proxy, and versions of a few bytes."""

    mlflow: Proxy
    prefect: Proxy
    s3: Proxy
    forker: Forker
    folder: Path
    store: S3FileSystem
    known: dict[str, ModelVersion] = field(default_factory=dict)

    def run(self, *command: str | Path, prefect: bool = False, **environment: str) -> Done:
        return self.forker.run(*command, PREFECT_API_URL=self.prefect.url if prefect else "", **environment)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("faults")
    with ExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patch.setenv("VINOFLOW_HOME", str(folder / "home"))
        patch.setenv("VINOFLOW_CACHE", str(folder / "cache"))
        patch.setenv("MLFLOW_TRACKING_URI", "")
        for name, value in S3_A_SECOND.items():
            patch.setitem(trouble._S3, name, value)
        where = stack.enter_context(servers.s3(folder / "s3"))
        store = S3FileSystem(
            endpoint_url=where["AWS_ENDPOINT_URL"], key="test", secret="test", use_listings_cache=False
        )
        s3 = stack.enter_context(Proxy(where["AWS_ENDPOINT_URL"]).running())
        for name, value in where.items():
            patch.setenv(name, s3.url if name.endswith("ENDPOINT_URL") else value)
        api = stack.enter_context(servers.prefect(folder / "prefect"))
        prefect = stack.enter_context(Proxy(api).running())
        read_on_import = {
            "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
            "PREFECT_LOGGING_INTERNAL_LEVEL": "CRITICAL",
            "FSSPEC_S3": json.dumps({"config_kwargs": S3_A_SECOND}),
        }
        forked = stack.enter_context(forker(folder / "forker", PREFECT_API_URL=prefect.url, **read_on_import))
        url = stack.enter_context(
            servers.mlflow(folder / "mlflow", artifacts="s3://bucket/mlflow", AWS_MAX_ATTEMPTS="1")
        )
        mlflow = stack.enter_context(Proxy(url).running())
        patch.setenv("MLFLOW_TRACKING_URI", mlflow.url)
        connect().create_experiment("direct", "s3://bucket/direct")
        here = Site(mlflow, prefect, s3, forked, folder, store)
        for content in ("a", "b"):
            here.known[content] = small.version(folder, content)
        here.known["direct"] = small.version(folder, "direct", made_by=small.recipe("direct", experiment="direct"))
        yield here


@dataclass
class Operation:
    """What is done while a fault lasts, and again when it is over; then it is done exactly once."""

    do: Callable[[], str]  # returns the line of its error; empty: it went well
    check: Callable[[], None]


def _said(done: Done) -> str:
    """Return a command's line of error; empty: it went well."""
    assert done.code in (0, 1), done
    return done.error if done.code else ""


def _caught(call: Callable[[], Any]) -> str:
    try:
        call()
    except VinoflowError as error:
        return f"error: {error}"
    return ""


def promotion(site: Site, folder: Path, *, prefect: bool = False) -> Operation:
    """Move the champion of a model from where it is to the other version."""
    before, to = len(list(entries("small"))), 2 if aliases_of("small")[0].get("champion") == 1 else 1

    def check() -> None:
        assert aliases_of("small")[0] == {"champion": to}
        assert verify_ledgers("small") == ({"small": before + 1}, {"small": []})
        assert not any(noted.pending for noted in entries("small"))

    return Operation(lambda: _said(site.run("promote", f"small/{to}", prefect=prefect)), check)


def rolling_back(site: Site, folder: Path) -> Operation:
    """Go back by one version, of three."""
    recipe = small.recipe(folder.name.lower().replace("_", "-"))
    for content in ("a", "b", "c"):
        promote(consider(small.version(folder, content, made_by=recipe).reference, alias="champion"))

    def check() -> None:
        assert aliases_of(recipe.name)[0] == {"champion": 2}
        assert verify_ledgers(recipe.name) == ({recipe.name: 4}, {recipe.name: []})
        assert not any(noted.pending for noted in entries(recipe.name))

    return Operation(lambda: _said(site.run("rollback", recipe.name)), check)


def registration(site: Site, folder: Path, *, experiment: str = "vinoflow") -> Operation:
    """Record and register a new version."""
    recipe = small.recipe(folder.name.lower().replace("_", "-"), experiment=experiment)

    def check() -> None:
        assert [version.version for version in list_versions(recipe.name)] == [1]
        assert not [run for run in connect().search_runs(["0"]) if run.info.status == "RUNNING"]
        assert_whole(pull(f"{recipe.name}/1").path)

    return Operation(lambda: _caught(lambda: small.version(folder, "new", made_by=recipe)), check)


def pulling(site: Site, folder: Path, *, version: str = "a") -> Operation:
    """Fetch a version into a cache that is empty."""
    os.environ["VINOFLOW_CACHE"] = str(folder / "cache")

    def check() -> None:
        assert_whole(folder / "cache" / "models" / site.known[version].digest)

    return Operation(lambda: _caught(lambda: pull(site.known[version].reference)), check)


def batch(site: Site, folder: Path, *, prefect: bool = False, source: str = "", output: str = "") -> Operation:
    """Answer a file of rows, by an engine that answers at once."""
    lines = [json.dumps({"n": number, "prompt": f"q{number}"}) for number in range(ROWS)]
    name = folder.name
    (folder / "in.jsonl").write_text("\n".join(lines))
    if source:
        site.store.put(str(folder / "in.jsonl"), f"bucket/{name}.jsonl")
    asked = f"s3://bucket/{name}.jsonl" if source else str(folder / "in.jsonl")
    answers = f"s3://bucket/out/{name}.jsonl" if output else str(folder / "out.jsonl")
    command = ("batch", asked, answers, "--model", "small/1", "--set", "part_rows=5")

    def check() -> None:
        text = site.store.cat(answers.removeprefix("s3://")) if output else Path(answers).read_bytes()
        found = [json.loads(line) for line in text.splitlines()]
        assert [row["n"] for row in found] == list(range(ROWS))
        assert [row["answer"] for row in found] == [f"q{n} -> {len(f'q{n}')}" for n in range(ROWS)]
        assert len(batches(output=answers)) == 1
        assert not list(folder.glob("*.parts")) and not site.store.glob(f"bucket/out/{name}*.parts/*")

    return Operation(lambda: _said(site.run(*command, prefect=prefect)), check)


def assert_whole(folder: Path) -> None:
    verify(folder, read_manifest(folder))


@dataclass
class Row:
    """One row of the matrix."""

    id: str
    operation: Callable[[Site, Path], Operation]
    server: str
    kind: Any
    says: str = ""  # of the error; empty: a retry ends well
    when: dict[str, Any] = field(default_factory=dict)


DOWN, SLOW, ILL = "does not answer", "said nothing in time", "answers 500"
CUT = "broke the connection off|does not answer"
ALIAS = {"match": "registered-models/alias"}
UPLOAD = {"match": "PUT .*openvino_model.bin"}
MAKES_RUN = {"match": "runs/create"}
LEASE = {"match": "increment-with-lease"}
LAST_STATE = {"match": "set_state", "after": 1}


def on_prefect(operation: Callable[..., Operation]) -> Callable[[Site, Path], Operation]:
    return lambda site, folder: operation(site, folder, prefect=True)


def direct(operation: Callable[..., Operation], **how: str) -> Callable[[Site, Path], Operation]:
    return lambda site, folder: operation(site, folder, **how)


ONCE = {"times": 1}
STORE = "the store of MLflow's files at .* fails"
BEHIND = "mostly the store of its files is down or full|said nothing in time"
BUCKET = "the object store at .* fails"
MATRIX = [
    Row("mlflow-down-promote", promotion, "mlflow", "down", DOWN),
    Row("mlflow-slow-promote", promotion, "mlflow", "slow", SLOW),
    Row("mlflow-500-promote", promotion, "mlflow", "errors", ILL),
    Row("mlflow-down-in-the-middle-of-promote", promotion, "mlflow", "down", CUT, ALIAS),
    Row("mlflow-slow-in-the-middle-of-promote", promotion, "mlflow", "slow", SLOW, ALIAS),
    Row("mlflow-500-in-the-middle-of-promote", promotion, "mlflow", "errors", ILL, ALIAS),
    Row("mlflow-down-in-the-middle-of-rollback", rolling_back, "mlflow", "down", CUT, ALIAS),
    Row("mlflow-slow-in-the-middle-of-rollback", rolling_back, "mlflow", "slow", SLOW, ALIAS),
    Row("mlflow-500-once-promote", promotion, "mlflow", "errors", "", {**MAKES_RUN, **ONCE}),
    Row("mlflow-answer-lost-promote", promotion, "mlflow", "lost", "", {**MAKES_RUN, **ONCE}),
    Row("mlflow-down-register", registration, "mlflow", "down", CUT, UPLOAD),
    Row("mlflow-slow-register", registration, "mlflow", "slow", SLOW, UPLOAD),
    Row("mlflow-500-register", registration, "mlflow", "errors", ILL, UPLOAD),
    Row("mlflow-500-once-register", registration, "mlflow", "errors", "", {"match": "POST", "after": 2, **ONCE}),
    Row("mlflow-answer-lost-record", registration, "mlflow", "lost", "", {**MAKES_RUN, **ONCE}),
    Row("mlflow-answer-lost-register", registration, "mlflow", "lost", "", {"match": "model-versions/create", **ONCE}),
    Row("mlflow-down-pull", pulling, "mlflow", "down", DOWN),
    Row("mlflow-slow-pull", pulling, "mlflow", "slow", SLOW, {"match": "GET .*openvino_model.bin"}),
    Row("mlflow-500-pull", pulling, "mlflow", "errors", ILL),
    Row("mlflow-down-batch", batch, "mlflow", "down", DOWN),
    Row("mlflow-down-at-the-end-of-batch", batch, "mlflow", "down", CUT, MAKES_RUN),
    Row("mlflow-slow-at-the-end-of-batch", batch, "mlflow", "slow", SLOW, MAKES_RUN),
    Row("mlflow-500-at-the-end-of-batch", batch, "mlflow", "errors", ILL, MAKES_RUN),
    Row("mlflow-answer-lost-batch", batch, "mlflow", "lost", "", {**MAKES_RUN, **ONCE}),
    Row("prefect-down-promote", on_prefect(promotion), "prefect", "down", DOWN),
    Row("prefect-slow-promote", on_prefect(promotion), "prefect", "slow", SLOW),
    Row("prefect-500-promote", on_prefect(promotion), "prefect", "errors", ILL),
    Row("prefect-down-at-the-lease", on_prefect(promotion), "prefect", "down", CUT, LEASE),
    Row("prefect-slow-at-the-lease", on_prefect(promotion), "prefect", "slow", SLOW, LEASE),
    Row("prefect-500-at-the-lease", on_prefect(promotion), "prefect", "errors", ILL, LEASE),
    Row("prefect-down-at-the-end-of-promote", on_prefect(promotion), "prefect", "down", CUT, LAST_STATE),
    Row("prefect-slow-at-the-end-of-promote", on_prefect(promotion), "prefect", "slow", SLOW, LAST_STATE),
    Row("prefect-500-at-the-end-of-promote", on_prefect(promotion), "prefect", "errors", ILL, LAST_STATE),
    Row("prefect-down-batch", on_prefect(batch), "prefect", "down", DOWN),
    Row(
        "prefect-500-in-the-middle-of-batch",
        on_prefect(batch),
        "prefect",
        "errors",
        "",
        {"match": "POST .*artifacts", "times": 9},
    ),
    Row("s3-down-register", registration, "s3", "down", BEHIND),
    Row("s3-slow-register", registration, "s3", "slow", BEHIND),
    Row("s3-500-register", registration, "s3", "errors", BEHIND),
    Row("s3-down-pull", pulling, "s3", "down", BEHIND),
    Row("s3-slow-pull", pulling, "s3", "slow", BEHIND),
    Row("s3-500-pull", pulling, "s3", "errors", BEHIND),
    Row("s3-down-register-past-mlflow", direct(registration, experiment="direct"), "s3", "down", STORE),
    Row("s3-slow-register-past-mlflow", direct(registration, experiment="direct"), "s3", "slow", STORE),
    Row("s3-500-register-past-mlflow", direct(registration, experiment="direct"), "s3", "errors", STORE),
    Row("s3-down-pull-past-mlflow", direct(pulling, version="direct"), "s3", "down", STORE),
    Row("s3-500-pull-past-mlflow", direct(pulling, version="direct"), "s3", "errors", STORE),
    Row("s3-down-batch-input", direct(batch, source="s3"), "s3", "down", BUCKET, {"match": "GET .*jsonl"}),
    Row("s3-slow-batch-input", direct(batch, source="s3"), "s3", "slow", BUCKET, {"match": "GET .*jsonl"}),
    Row("s3-500-batch-input", direct(batch, source="s3"), "s3", "errors", BUCKET, {"match": "GET .*jsonl"}),
    Row("s3-down-batch-output", direct(batch, output="s3"), "s3", "down", BUCKET, {"match": "PUT .*part-000002"}),
    Row("s3-slow-batch-output", direct(batch, output="s3"), "s3", "slow", BUCKET, {"match": "PUT .*part-000002"}),
    Row(
        "s3-500-batch-output", direct(batch, output="s3"), "s3", "errors", BUCKET, {"match": "PUT .*jsonl$", "after": 4}
    ),
]
FULL = ("cache", "home", "batch-output")
READ_ONLY = ("cache", "cache-of-an-export", "home", "batch-output")


@pytest.mark.parametrize("row", MATRIX, ids=lambda row: row.id)
def test_a_server_fails(row: Row, site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VINOFLOW_CACHE", os.environ["VINOFLOW_CACHE"])  # what a row sets is undone
    operation, proxy = row.operation(site, tmp_path), getattr(site, row.server)
    proxy.breaks(row.kind, **row.when)
    try:
        with monkeypatch.context() as patch:
            for name, value in {**(ONE_TRY if row.says else {}), **(A_SECOND if row.kind == "slow" else {})}.items():
                patch.setenv(name, value)
            said = operation.do()
    finally:
        proxy.is_well()
    assert proxy.struck, f"the fault befell nothing, of {proxy.requests[-20:]}"
    if row.says:
        assert re.fullmatch(rf"error: [^\n]*({row.says})[^\n]*", said), said
        assert re.search(r"http://127\.0\.0\.1:\d+", said) and "run again" in said, said
    else:
        assert said == ""
    assert operation.do() == ""
    operation.check()


def test_export(
    site: Site, tmp_path: Path, tiny_checkpoint: Path, tiny_export: ExportedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MLflow goes down in the middle of a run, Prefect in the middle of the next; the third waits for an ill MLflow."""
    monkeypatch.setenv("VINOFLOW_CACHE", str(tiny_export.path.parents[1]))  # what is exported is kept
    command = ("export-and-validate", write_tiny_recipe(tmp_path, tiny_checkpoint, name="exported"))
    for proxy, when in (
        (site.mlflow, {"match": "model-versions/search", "after": 1}),  # by the flow, before it exports
        (site.prefect, {"match": "POST .*artifacts"}),  # when it has validated
    ):
        proxy.breaks("down", **when)
        said = _said(site.run(*command, prefect=True, **ONE_TRY))
        proxy.is_well()
        assert proxy.struck
        assert re.fullmatch(rf"error: [^\n]*at {proxy.url}[^\n]* ({CUT})[^\n]*run again[^\n]*", said), said
        assert list_versions("exported") == []
    site.mlflow.breaks("errors", match="runs/create", times=1)  # when it has validated
    assert _said(site.run(*command, prefect=True, **ONE_TRY)) == ""
    assert site.mlflow.struck
    assert [version.version for version in list_versions("exported")] == [1]
    assert "nothing was exported" in site.run(*command, prefect=True).err


def test_serve(site: Site, tmp_path: Path, tiny_export: ExportedModel) -> None:
    """Requests are answered without MLflow, asked less and less often; when it is back, the alias is followed again."""
    version = register_version(tiny_export, small.recipe("tiny"), tmp_path)
    give(version)
    question = {"model": "tiny", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 8}
    with serving("tiny@champion", tmp_path / "serve", environment={**ONE_TRY, **A_SECOND}, poll_s=0.1) as served:

        def swap_until(so: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
            deadline = time.monotonic() + 60
            while not so(found := dict(httpx.get(f"{served.url}/health/ready", timeout=30).json()["swap"])):
                assert time.monotonic() < deadline, found
                time.sleep(0.1)
            return found

        for kind in ("down", "slow", "errors"):
            site.mlflow.breaks(kind)
            swap = swap_until(lambda found: found["state"] == "unreachable" and found["attempts"] >= 3)
            answer = httpx.post(f"{served.url}/v1/chat/completions", json=question, timeout=60)
            assert (answer.status_code, answer.headers["x-vinoflow-digest"]) == (200, version.digest)
            assert swap["next_try_s"] >= 0.4, "the next look should be later than the one before"
            assert site.mlflow.url in swap["error"]
            site.mlflow.is_well()
            swap_until(lambda found: found["state"] == "following")


def test_clock_behind(site: Site, tmp_path: Path) -> None:
    """The ledger's order is that of its numbers, and its times never go back; a lease is the server's."""
    for content in ("c", "d"):
        small.version(tmp_path, content, made_by=small.recipe("clocks"))
    an_hour_behind = {"LD_PRELOAD": str(faketime()), "FAKETIME": "-1h", "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
    with forker(tmp_path / "behind", **an_hour_behind) as behind:
        for machine, to in ((behind, 1), (site.forker, 2), (behind, 1), (site.forker, 2)):
            assert _said(machine.run("promote", f"clocks/{to}", PREFECT_API_URL=site.prefect.url)) == ""
        told = behind.run("status", "--json", PREFECT_API_URL=site.prefect.url)
    (clock,) = (line for line in json.loads(told.out) if line["what"] == "clock")
    assert re.search(r"3[56]\d\d s behind Prefect's server", clock["about"])
    moves = [noted.entry for noted in entries("clocks")][::-1]
    assert [(move.sequence, move.to_version) for move in moves] == [(1, 1), (2, 2), (3, 1), (4, 2)]
    assert timedelta(minutes=59) < moves[1].at - moves[0].at < timedelta(minutes=62)
    assert moves[2].at == moves[1].at <= moves[3].at
    assert verify_ledgers("clocks") == ({"clocks": 4}, {"clocks": []})
    assert aliases_of("clocks")[0] == {"champion": 2}
    now = datetime.now(UTC)
    assert served_at("clocks", now)["champion"].sequence == 4
    assert served_at("clocks", now - timedelta(minutes=30))["champion"].sequence == 1  # as its clock had it


def faketime() -> Path:
    """Return the library that gives a process another time; it is installed where it is not there yet."""
    where = "usr/lib/*/faketime/libfaketime.so.1"
    if not (found := sorted(Path("/").glob(where))):
        subprocess.run([ROOT / ".ci" / "system-packages", "libfaketime"], check=True)
        found = sorted(Path("/").glob(where))
    return found[0]


def test_a_command_is_patient_for_two_minutes_at_most() -> None:
    """What a user has set stays; a server that restarts in 15 s is waited for."""
    connect()
    tries, timeout = (int(os.environ[name]) for name in (trouble.RETRIES, trouble.TIMEOUT))
    waits = sum(2 * 2**n for n in range(1, tries))  # as urllib3 does, of MLflow's factor
    assert waits > 10 and (1 + tries) * timeout + waits < 120


@pytest.mark.parametrize("place", FULL, ids=lambda place: f"disk-full-{place}")
def test_a_disk_is_full(
    place: str, site: Site, tmp_path: Path, small_disk: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VINOFLOW_CACHE", os.environ["VINOFLOW_CACHE"])
    if place == "home":
        (small_disk / "mlruns").mkdir()
        shutil.copy(empty_store, small_disk / "mlruns" / "mlflow.db")
        monkeypatch.setenv("VINOFLOW_HOME", str(small_disk))
        monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
        small.version(tmp_path, "a")
    operation = {"cache": pulling, "home": promotion, "batch-output": batch}[place](site, small_disk)
    fill(small_disk)
    said = operation.do()
    assert re.fullmatch(r"error: [^\n]*the disk is full[^\n]*again[^\n]*", said) and str(small_disk) in said, said
    (small_disk / "rubbish").unlink()
    assert operation.do() == ""
    operation.check()


@pytest.fixture
def read_only(small_disk: Path) -> Iterator[Callable[[], None]]:
    """Have the small disk take no more writing, from the call on, until the test ends."""

    def remount(how: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{how}", str(small_disk)], check=True)

    yield lambda: remount("ro")
    remount("rw")


@pytest.mark.parametrize("place", READ_ONLY, ids=lambda place: f"read-only-{place}")
def test_a_folder_is_read_only(
    place: str,
    site: Site,
    tmp_path: Path,
    small_disk: Path,
    read_only: Callable[[], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "config.json").write_text("{}")
    recipe = write_tiny_recipe(tmp_path, tmp_path)
    (tmp_path / "in.jsonl").write_text(json.dumps({"prompt": "q"}))
    export, pulled = ("export-and-validate", recipe), ("ask", "Hi", "--model", "small/1")
    output = ("batch", tmp_path / "in.jsonl", small_disk / "out.jsonl", "--model", "small/1")
    command, environment = {
        "cache": (pulled, {"VINOFLOW_CACHE": str(small_disk)}),
        "cache-of-an-export": (export, {"VINOFLOW_CACHE": str(small_disk)}),
        "home": (("promote", "small/1"), {"VINOFLOW_HOME": str(small_disk), "MLFLOW_TRACKING_URI": ""}),
        "batch-output": (output, {}),
    }[place]
    read_only()
    said = _said(site.run(*command, prefect=place == "cache-of-an-export", **environment))
    wanted = rf"error: [^\n]*{small_disk}\S* cannot be \w+ \(Read-only file system\): [^\n]*"
    assert re.fullmatch(wanted, said), said


def test_read_only_cache_serves(
    site: Site, small_disk: Path, read_only: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VINOFLOW_CACHE", str(small_disk))
    path = pull("small/1").path
    read_only()
    assert pull("small/1").path == path
    with pytest.raises(UnwritableError, match=rf"{small_disk} cannot be written \(Read-only file system\)"):
        pull("small/2")


def test_the_page_has_every_row() -> None:
    lines = (ROOT / "docs" / "faults.md").read_text().splitlines()
    named = [name for line in lines if line.count("|") == 6 for name in re.findall(r"`([^`]+)`", line.split("|")[-2])]
    rows = {row.id for row in MATRIX} | {f"disk-full-{one}" for one in FULL} | {f"read-only-{one}" for one in READ_ONLY}
    tests = {"test_export", "test_serve", "test_clock_behind", "test_read_only_cache_serves"}
    assert tests <= globals().keys()
    for name in named:
        assert fnmatch.filter(rows | tests, name), f"{name} is no row"
    for row in rows | tests:
        assert any(fnmatch.fnmatch(row, name) for name in named), f"{row} is not on the page"
