from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import timedelta
from pathlib import Path

import pytest

from flows.promotion import consider, promote
from tasks import locations
from tasks.errors import RegistryError
from tasks.registry import collect, connect, find_by_inputs, garbage, list_versions, locked, pull, resolve
from tasks.registry.files import model_id_of, problem_of
from tests import small
from tests.killed import Point
from tests.leftovers import held, killed_registration, stores

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("with_store")]
NOW = timedelta(0)


def age(days: float) -> None:
    """Make everything that is there older."""
    shift = days * 86400
    with closing(sqlite3.connect(locations.home() / "mlruns" / "mlflow.db")) as database, database:
        database.execute("UPDATE model_versions SET creation_time = creation_time - ?", (int(shift * 1000),))
        database.execute(
            "UPDATE logged_models SET last_updated_timestamp_ms = last_updated_timestamp_ms - ?", (int(shift * 1000),)
        )
    for path in locations.cache().rglob("*"):
        seen = path.stat()
        os.utime(path, (seen.st_atime - shift, seen.st_mtime - shift))


def names(older_than: timedelta = timedelta(days=30)) -> list[str]:
    return [Path(one.name).name if one.kind == "cache" else one.name for one in garbage(older_than=older_than)]


def test_what_is_kept(home: Path, tmp_path: Path) -> None:
    for content in "abcdef":
        small.version(tmp_path, content)
    promote(consider("small/1", alias="champion"))
    promote(consider("small/2", alias="champion"))
    connect().set_registered_model_alias("small", "shadow", "3")
    age(31)
    small.version(tmp_path, "g")  # the newest; 6 is old now
    small.version(tmp_path, "x", made_by=small.recipe("other"))
    assert names() == ["small/4", "small/5", "small/6"]
    assert names(timedelta(days=32)) == []
    assert names(NOW) == ["small/4", "small/5", "small/6"]


def test_what_is_deleted_is_gone_and_nothing_else(home: Path, tmp_path: Path) -> None:
    versions = [small.version(tmp_path, content) for content in "abc"]
    models = [model_id_of(version) for version in versions]
    promote(consider("small/2", alias="champion"))
    found = garbage(older_than=NOW)
    assert [(one.kind, one.name, one.size_bytes) for one in found] == [("version", "small/1", 22)]
    assert len(list_versions()) == 3, "looking deletes nothing"
    assert [one.name for one in collect(found, older_than=NOW)] == ["small/1"]
    assert [version.reference for version in list_versions()] == ["small/3", "small/2"]
    assert stores() == set(models[1:])
    assert names(NOW) == []
    assert problem_of(resolve("small@champion")) == ""
    assert find_by_inputs("small", "inputs-a") is None
    assert connect().get_run(versions[0].run_id).info.status == "FINISHED", "what it was validated by stays"


def test_links_that_store_and_cache_share(home: Path, tmp_path: Path) -> None:
    """Deleting one name of a file must not harm the other."""
    first, second = small.version(tmp_path, "a"), small.version(tmp_path, "b")
    pulled = {version.reference: pull(version.reference).path for version in (first, second)}
    assert names(NOW) == ["small/1", first.digest]
    age(31)
    found = [one for one in garbage() if one.kind == "version"]
    collect(found)
    assert (pulled["small/1"] / "openvino_model.bin").read_text() == "a"
    assert names() == [first.digest]
    collect(garbage())
    assert not pulled["small/1"].exists()
    (pulled["small/2"] / "openvino_model.bin").unlink()  # as gc deletes names
    assert problem_of(second) == ""
    assert (pull("small/2").path / "openvino_model.bin").read_text() == "b"


def test_an_alias_that_came_after_the_look_is_seen(home: Path, tmp_path: Path) -> None:
    for content in "abc":
        small.version(tmp_path, content)
    found = garbage(older_than=NOW)
    assert [one.name for one in found] == ["small/1", "small/2"]
    promote(consider("small/1", alias="champion"))
    assert [one.name for one in collect(found, older_than=NOW)] == ["small/2"]
    assert problem_of(resolve("small@champion")) == ""


def test_versions_go_under_the_lock_of_promotions(home: Path, tmp_path: Path) -> None:
    """Whoever promotes while gc waits for the lock keeps the version."""
    for content in "abc":
        small.version(tmp_path, content)

    @contextmanager
    def late(name: str) -> Iterator[None]:
        promote(consider("small/1", alias="champion"))
        with locked(name):
            yield

    assert [one.name for one in collect(garbage(older_than=NOW), older_than=NOW, locking=late)] == ["small/2"]
    assert problem_of(resolve("small@champion")) == ""


@pytest.mark.parametrize(
    ("call", "gone"),
    [
        ("delete_model_version", []),
        ("delete_logged_model", ["small/1"]),
    ],
)
def test_a_kill_leaves_what_the_next_one_ends(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, gone: list[str]
) -> None:
    from mlflow import MlflowClient

    class Killed(BaseException):
        pass

    def killed(*_: object) -> None:
        raise Killed

    versions = [small.version(tmp_path, content) for content in "ab"]
    orphan = model_id_of(versions[0])
    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, call, killed)
        with pytest.raises(Killed):
            collect(garbage(older_than=NOW), older_than=NOW)
    assert [version.reference for version in list_versions()] == ["small/2", *({"small/1"} - set(gone))]
    assert names(NOW) == ([orphan] if gone else ["small/1"])
    collect(garbage(older_than=NOW), older_than=NOW)
    assert (names(NOW), [version.version for version in list_versions()]) == ([], [2])
    assert stores() == {model_id_of(versions[1])}


@pytest.mark.parametrize("target", ["log_model_artifact", "finalize_logged_model", "create_model_version"])
def test_killed_registrations(home: Path, tmp_path: Path, target: str) -> None:
    killed_registration(tmp_path, Point(target=f"mlflow:MlflowClient.{target}"))
    assert names() == [], "it may be under way yet"
    age(2)
    found = garbage()
    assert [one.kind for one in found] == ["logged model", *["cache"] * (target == "log_model_artifact")]
    collect(found)
    assert (names(), stores()) == ([], set())


def test_a_registration_that_is_under_way(home: Path, tmp_path: Path) -> None:
    killed_registration(tmp_path, Point(target="mlflow:MlflowClient.create_model_version"))
    age(2)
    assert len(names()) == 1
    with held(locations.home() / "mlruns" / "locks" / "inputs-of-tiny.lock"):
        assert names() == []


def test_files_that_are_all_that_is_left_of_what_served(home: Path, tmp_path: Path) -> None:
    """A champion that was deleted past vinoflow: its files are not gc's to take."""
    versions = [small.version(tmp_path, content) for content in "ab"]
    promote(consider("small/1", alias="champion"))
    model_id = model_id_of(versions[0])
    connect().delete_model_version("small", "1")
    age(31)
    assert names() == []
    assert model_id in stores()


KEY = "0123456789abcdef" * 4


@pytest.mark.parametrize(
    ("left", "lock"),
    [
        (f"models/.staging-{KEY[:16]}-x_1y/model/a.bin", f"exports/{KEY}.json.lock"),
        (f"models/.upload-{KEY[:16]}/a.bin", f"models/.upload-{KEY[:16]}.lock"),
        (f"models/.old-{KEY}/a.bin", f"models/{KEY}.lock"),
        (f"models/{KEY}.partial/a.bin", f"models/{KEY}.lock"),
        (f"exports/{KEY}.partial", f"exports/{KEY}.json.lock"),
        (f"references/.staging-{KEY[:16]}-abc/head/a.bin", f"references/{KEY}.lock"),
        (f"checkpoints/phi-3.5-{KEY[:16]}.partial/a.bin", f"checkpoints/phi-3.5-{KEY[:16]}.lock"),
        (f"checkpoints/phi-3.5-{KEY[:16]}.partial.wheel/a.bin", f"checkpoints/phi-3.5-{KEY[:16]}.lock"),
        ("compiled-x1/a.blob", None),
        (f"models/{KEY}/a.bin", f"models/{KEY}.lock"),
    ],
)
def test_leftovers_in_the_cache(home: Path, left: str, lock: str | None) -> None:
    path = locations.cache() / left
    path.parent.mkdir(parents=True)
    path.write_bytes(b"1234")
    connect()
    assert names() == [], "it was written just now"
    age(2)
    (found,) = garbage()
    assert (found.kind, found.size_bytes) == ("cache", 4)
    if lock:
        with held(locations.cache() / lock):
            assert names() == []
            assert collect([found]) == ()
            assert path.is_file()
    assert collect([found]) == (found,)
    assert [file for file in locations.cache().rglob("*") if file.is_file() and file.suffix != ".lock"] == []


def test_what_the_cache_needs(home: Path, tmp_path: Path) -> None:
    """A version's copy, and an export that no version came of yet, which the next run would use."""
    version = small.version(tmp_path, "a")
    pull("small/1")
    made = small.exported(tmp_path / "b", "b")
    for folder, content in (("exports", made.model_dump_json()), ("references", "{}")):
        (locations.cache() / folder).mkdir()
        (locations.cache() / folder / f"{KEY}.json").write_text(content)
    (locations.cache() / "models" / made.digest).mkdir()
    (locations.cache() / "checkpoints" / "llama-1").mkdir(parents=True)
    age(60)
    assert names() == []
    assert {version.digest, made.digest} < {path.name for path in (locations.cache() / "models").iterdir()}


def test_a_copy_of_a_version_needs_it(home: Path, tmp_path: Path) -> None:
    for content in "ab":
        small.version(tmp_path, content)
    connect().copy_model_version("models:/small/1", "production")
    assert names(NOW) == []


def test_versions_that_are_not_ours(home: Path, tmp_path: Path) -> None:
    small.version(tmp_path, "a")
    client = connect()
    client.create_registered_model("theirs")
    model = client.create_logged_model(client.get_experiment_by_name("vinoflow").experiment_id, name="theirs")
    for _ in range(2):
        client.create_model_version("theirs", f"models:/{model.model_id}", model_id=model.model_id)
    assert names(NOW) == []


def test_a_copied_project_folder_is_not_swept(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for content in "ab":
        small.version(tmp_path, content)
    shutil.copytree(home, tmp_path / "copy")
    monkeypatch.setenv("VINOFLOW_HOME", str(tmp_path / "copy"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")  # which the first connection has set
    with pytest.raises(RegistryError, match="doctor --fix"):
        garbage(older_than=NOW)
