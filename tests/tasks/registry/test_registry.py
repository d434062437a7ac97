from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tasks.errors import IntegrityError, RecipeError, RegistryError, VersionNotFoundError
from tasks.recipe_file import load_recipe
from tasks.records import ExportedModel, ModelVersion, ValidationReport
from tasks.registry import (
    RunContext,
    champion_of,
    connect,
    find_by_inputs,
    list_versions,
    metrics_of,
    pull,
    record,
    register,
    resolve,
    tracking_uri,
)
from tasks.registry.store import experiment_id
from tasks.registry.write import flatten
from tasks.validate import validate
from tests import small

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[3]
Registered = Callable[[], ModelVersion]


@pytest.fixture(scope="module")
def report(
    tiny_export: ExportedModel, tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> ValidationReport:
    from tests.conftest import write_tiny_recipe

    return validate(tiny_export, load_recipe(write_tiny_recipe(tmp_path_factory.mktemp("recipe"), tiny_checkpoint)))


@pytest.fixture
def registered(
    home: Path, tmp_path: Path, tiny_recipe: Path, tiny_export: ExportedModel, report: ValidationReport
) -> Registered:
    """Record and register the tiny export."""
    recipe = load_recipe(tiny_recipe)
    evidence = tmp_path / "evidence"
    (evidence / "plots").mkdir(parents=True)
    (evidence / "report.json").write_text(report.model_dump_json())
    (evidence / "plots" / "latency.png").write_bytes(b"PNG")
    context = RunContext(started_at=time.time(), inputs="inputs-of-tiny", flow_run_id="flow-1", git_commit="c" * 40)

    def once() -> ModelVersion:
        run_id = record(recipe, tiny_export, report, context, evidence=evidence)
        return register(recipe, tiny_export, report, context, run_id=run_id)

    return once


def test_a_version_knows_where_it_came_from(registered: Registered, tiny_export: ExportedModel, home: Path) -> None:
    version = registered()
    assert (version.name, version.version, version.digest) == ("tiny", 1, tiny_export.digest)
    assert version.tags["vinoflow.checkpoint_digest"] == tiny_export.checkpoint.digest
    assert version.tags["vinoflow.device"] == "CPU"
    run = connect().get_run(version.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params["export.group_size"] == "32"
    assert run.data.params["validation.prompts.0.messages.0.content"] == "Hello"
    assert run.data.tags["prefect.flow_run_id"] == "flow-1"
    assert run.data.tags["mlflow.source.git.commit"] == "c" * 40
    assert run.data.tags["version.openvino"]
    assert run.data.metrics["prompts_passed"] == 1
    assert metrics_of(version) == run.data.metrics
    names = {entry.path for entry in connect().list_artifacts(version.run_id)}
    assert names == {"plots", "report.json", "answers.jsonl", "recipe.yaml", "export.json", "requirements.txt"}
    assert (home / "mlruns" / "mlflow.db").is_file()


def test_evidence_reads_back_as_it_was(registered: Registered, report: ValidationReport) -> None:
    from mlflow.artifacts import load_text

    location = connect().get_run(registered().run_id).info.artifact_uri
    assert ValidationReport.model_validate_json(load_text(f"{location}/report.json")) == report
    assert load_text(f"{location}/plots/latency.png") == "PNG"
    (line,) = load_text(f"{location}/answers.jsonl").splitlines()
    assert json.loads(line)["id"] == "hello"


def test_the_champion_is_known_with_its_report(registered: Registered, report: ValidationReport) -> None:
    registered()
    assert champion_of("tiny") is None
    connect().set_registered_model_alias("tiny", "champion", "1")
    found = champion_of("tiny")
    assert found is not None and (found.reference, found.report) == ("tiny/1", report)


def test_files_are_written_once_and_pull_shares_them(registered: Registered, tiny_export: ExportedModel) -> None:
    version = registered()
    pulled = pull("tiny@latest")
    assert pulled.version == version
    stored = connect().get_logged_model(_model_id(version)).artifact_location.removeprefix("file://")
    for name in ("openvino_model.bin", "tokenizer.json"):
        assert (pulled.path / name).samefile(Path(stored) / "artifacts" / "model" / name)
        assert (pulled.path / name).read_bytes() == (tiny_export.path / name).read_bytes()


def test_the_same_files_by_the_same_recipe_are_the_same_version(home: Path, tmp_path: Path) -> None:
    first = small.version(tmp_path, "a")
    assert small.version(tmp_path, "a") == first
    other = small.version(tmp_path, "a", made_by=small.recipe(tags={"team": "other"}))
    assert (other.version, other.digest) == (2, first.digest)  # its report is about another recipe


def test_references(home: Path, tmp_path: Path) -> None:
    first, second = small.version(tmp_path, "a"), small.version(tmp_path, "b")
    connect().set_registered_model_alias("small", "champion", "1")
    assert resolve("small@latest") == second
    assert resolve("small/1").aliases == ("champion",)
    assert resolve("small@champion").digest == first.digest
    assert [version.reference for version in list_versions()] == ["small/2", "small/1"]
    assert [version.reference for version in list_versions("small", limit=1)] == ["small/2"]
    for bad in ("small", "small/", "small@", "SMALL/1", "small/1/2", "../x@latest", "", "small/0", f"small/{10**30}"):
        with pytest.raises(RecipeError, match="NAME/VERSION"):
            resolve(bad)
    with pytest.raises(VersionNotFoundError, match="no version 9; its newest versions are 2, 1"):
        resolve("small/9")
    with pytest.raises(VersionNotFoundError, match="no alias 'prod'"):
        resolve("small@prod")
    with pytest.raises(VersionNotFoundError, match="no model 'other'"):
        resolve("other@latest")


def test_a_flipped_byte_in_any_file_is_refused_by_name(registered: Registered) -> None:
    stored = _stored(registered())
    names = sorted(path.relative_to(stored).as_posix() for path in stored.rglob("*") if path.is_file())
    assert len(names) >= 10
    for name in names:
        whole = (stored / name).read_bytes()
        damaged = bytearray(whole)
        damaged[len(whole) // 2] ^= 0x01
        (stored / name).write_bytes(damaged)
        with pytest.raises(IntegrityError, match=name.replace(".", r"\.")):
            pull("tiny@latest")
        assert find_by_inputs("tiny", "inputs-of-tiny") is None
        (stored / name).write_bytes(whole)
    assert pull("tiny@latest").path.is_dir()


def test_a_damaged_copy_in_the_cache_is_replaced_by_the_stores_own_files(registered: Registered) -> None:
    registered()
    path = pull("tiny@latest").path / "openvino_model.bin"
    content = bytearray(path.read_bytes())
    content[7] ^= 0x80
    path.unlink()  # no longer the store's own file
    path.write_bytes(content)
    assert (pull("tiny@latest").path / "openvino_model.bin").read_bytes() != bytes(content)


def test_missing_and_planted_files_are_refused(registered: Registered) -> None:
    version = registered()
    stored = _stored(version)
    (stored / "planted.py").write_text("boom")
    with pytest.raises(IntegrityError, match=r"planted\.py"):
        pull("tiny@latest")
    (stored / "planted.py").unlink()
    (stored / "tokenizer.json").unlink()
    with pytest.raises(IntegrityError, match=r"tokenizer\.json is missing"):
        pull("tiny@latest")
    assert find_by_inputs("tiny", "inputs-of-tiny") is None


def test_same_inputs_are_found(registered: Registered) -> None:
    assert find_by_inputs("tiny", "inputs-of-tiny") is None
    version = registered()
    assert find_by_inputs("tiny", "inputs-of-tiny") == version
    assert find_by_inputs("tiny", "other") is None


def test_mlflow_loads_the_version_and_answers_chats(registered: Registered) -> None:
    import mlflow

    registered()
    model = mlflow.pyfunc.load_model("models:/tiny/1")
    answers = model.predict([{"messages": [{"role": "user", "content": "Hello"}], "max_new_tokens": 8}])
    assert len(answers) == 1
    assert isinstance(answers[0], str)


def test_an_upload_that_fails_registers_nothing(
    registered: Registered, monkeypatch: pytest.MonkeyPatch, home: Path
) -> None:
    from mlflow import MlflowClient

    original = MlflowClient.log_model_artifact

    def full(self: MlflowClient, model_id: str, local_path: str, *rest: object) -> None:
        if local_path.endswith("openvino_model.bin"):
            raise OSError(28, "No space left on device")
        original(self, model_id, local_path, *rest)

    monkeypatch.setattr(MlflowClient, "log_model_artifact", full)
    with pytest.raises(OSError, match="No space left"):
        registered()
    assert list_versions() == []
    monkeypatch.undo()


def test_many_first_time_writers_share_one_store(home: Path) -> None:
    code = "from tasks.registry.store import connect, experiment_id; print(experiment_id(connect(), 'vinoflow'))"
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for _ in range(4)
    ]
    ids = []
    for writer in writers:
        out, err = writer.communicate(timeout=300)
        assert writer.returncode == 0, err
        ids.append(out.strip())
    assert len(set(ids)) == 1


def test_a_server_that_does_not_answer_is_a_registry_error(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://someone:secret@127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    assert tracking_uri().endswith(":9")
    with pytest.raises(RegistryError) as caught:
        list_versions()
    assert "127.0.0.1:9" in str(caught.value)
    assert "secret" not in str(caught.value)


def test_flatten() -> None:
    value = {"a": {"b": [1, {"c": None}], "d": ""}, "e": False}
    assert dict(flatten(value)) == {"a.b.0": "1", "e": "False"}


def _model_id(version: ModelVersion) -> str:
    return str(connect().get_model_version(version.name, str(version.version)).source).removeprefix("models:/")


def _stored(version: ModelVersion) -> Path:
    location = connect().get_logged_model(_model_id(version)).artifact_location
    return Path(location.removeprefix("file://")) / "artifacts" / "model"


def test_an_experiment_that_another_process_makes_at_the_same_time_is_taken(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = connect()
    made, looks = client.create_experiment("shared"), []
    find = client.get_experiment_by_name
    monkeypatch.setattr(
        client, "get_experiment_by_name", lambda name: find(name) if looks else looks.append(name)
    )  # the first look comes too early
    assert experiment_id(client, "shared") == made
    assert looks == ["shared"]
