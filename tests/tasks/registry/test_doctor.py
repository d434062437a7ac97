from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from flows.promotion import consider, promote
from tasks import locations
from tasks.records import ModelVersion
from tasks.registry import aliases_of, connect, entries, examine, list_versions, pull, resolve
from tasks.registry.evidence import evidence_uri
from tasks.registry.files import local_store, location_of
from tasks.registry.ledger import HEAD
from tests import small
from tests.killed import Point
from tests.leftovers import held, killed_registration, stores

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("with_store")]


def wrong(*, fix: bool = False) -> list[tuple[str, str, bool]]:
    """Return level, subject and whether it is fixable, of what is wrong and stays so."""
    return [(one.level, one.subject, one.fixable) for one in examine(fix=fix).wrong]


def subjects(*, fix: bool = False) -> list[str]:
    return [subject for _, subject, _ in wrong(fix=fix)]


def said() -> str:
    return "\n".join(one.message for one in examine().wrong)


def store_of(version: ModelVersion) -> Path:
    store = local_store(location_of(version))
    assert store is not None
    return store


def champion(reference: str) -> None:
    promote(consider(reference, alias="champion"))


@pytest.fixture
def two(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[ModelVersion]:
    """Two versions, made with the libraries that are here."""
    monkeypatch.setattr("tasks.registry.libraries._installed", lambda name: {"openvino": "1", "nncf": "3.4.0"}[name])
    return [small.version(tmp_path, content) for content in "ab"]


def test_nothing_is_wrong(two: list[ModelVersion]) -> None:
    champion("small/1")
    champion("small/2")
    assert wrong() == []
    assert examine(fix=True) == examine()


@pytest.mark.parametrize(
    ("point", "count"),
    [
        (Point(target="mlflow:MlflowClient.set_terminated"), 1),  # a RUNNING run
        (Point(target="mlflow:MlflowClient.log_model_artifact", match="MLmodel"), 1),  # a PENDING logged model
        (Point(target="mlflow:MlflowClient.create_model_version"), 1),  # a READY one
    ],
)
def test_what_a_killed_registration_leaves(home: Path, tmp_path: Path, point: Point, count: int) -> None:
    killed_registration(tmp_path, point)
    found = wrong()
    assert [(level, fixable) for level, _, fixable in found] == [("error", True)] * count
    with held(locations.home() / "mlruns" / "locks" / "inputs-of-tiny.lock"):
        assert wrong() == [], "it is under way"
    assert wrong(fix=True) == []
    assert wrong() == []
    assert stores() == set()
    assert {run.info.status for run in connect().search_runs(["1"])} <= {"FINISHED", "KILLED"}


def test_a_move_that_was_interrupted(two: list[ModelVersion], monkeypatch: pytest.MonkeyPatch) -> None:
    champion("small/1")
    interrupted("small/2", monkeypatch)
    assert wrong() == [("error", "small@champion", True)]
    found = examine(fix=True)
    assert (found.wrong, [entry.to_version for entry in found.moved]) == ((), [2])
    assert (wrong(), aliases_of("small")[0]) == ([], {"champion": 2})


def test_an_interrupted_move_whose_alias_was_moved_outside(
    two: list[ModelVersion], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small.version(tmp_path, "c")
    champion("small/1")
    interrupted("small/2", monkeypatch)
    connect().set_registered_model_alias("small", "champion", "3")
    assert wrong(fix=True) == []
    assert (wrong(), aliases_of("small")[0]) == ([], {"champion": 2})


def interrupted(reference: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Begin a promotion, and stop before its end is written down."""
    from mlflow import MlflowClient

    class Killed(BaseException):
        pass

    def killed(*_: object) -> None:
        raise Killed

    decision = consider(reference, alias="champion")
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(MlflowClient, "set_registered_model_alias", killed)
        promote(decision)


@pytest.mark.parametrize("stopped_at", ["set_registered_model_tag", "set_terminated"])
def test_a_move_that_was_interrupted_at_its_end(
    two: list[ModelVersion], monkeypatch: pytest.MonkeyPatch, stopped_at: str
) -> None:
    from mlflow import MlflowClient

    class Killed(BaseException):
        pass

    def killed(*_: object) -> None:
        raise Killed

    champion("small/1")
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(MlflowClient, stopped_at, killed)
        champion("small/2")
    assert wrong() == [("error", "small@champion", True)]
    assert wrong(fix=True) == []
    assert wrong() == []


def test_a_chain_that_is_broken(two: list[ModelVersion]) -> None:
    champion("small/1")
    champion("small/2")
    champion("small/1")
    second = list(entries("small"))[1]
    connect().delete_run(second.run_id)
    assert wrong(fix=True) == [("error", "ledger of small", False)]
    assert "entry 2 is missing" in said()
    connect().restore_run(second.run_id)
    assert wrong() == []
    connect().set_tag(second.run_id, "vinoflow.ledger.entry", "{}")
    assert wrong(fix=True) == [("error", "ledger of small", False)]


def test_an_alias_that_was_moved_outside(two: list[ModelVersion]) -> None:
    champion("small/1")
    connect().set_registered_model_alias("small", "champion", "2")
    assert wrong() == [("error", "small@champion", True)]
    found = examine(fix=True, actor="jane")
    assert found.wrong == ()
    assert [(entry.action, entry.actor, entry.to_version) for entry in found.moved] == [("restored", "jane", 1)]
    assert (wrong(), aliases_of("small")[0]) == ([], {"champion": 1})


def test_an_alias_that_was_deleted(two: list[ModelVersion]) -> None:
    champion("small/1")
    connect().delete_registered_model_alias("small", "champion")
    assert wrong(fix=True) == []
    assert (wrong(), aliases_of("small")[0]) == ([], {"champion": 1})


def test_a_champion_that_was_deleted(two: list[ModelVersion]) -> None:
    champion("small/1")
    files = stores()
    connect().delete_model_version("small", "1")
    assert wrong(fix=True) == [("error", "small@champion", False)]
    assert "vinoflow promote" in said()
    assert stores() == files, "they are all that is left of it"
    champion("small/2")
    assert wrong() == []


def test_an_alias_that_points_at_nothing(two: list[ModelVersion]) -> None:
    connect().set_registered_model_alias("small", "shadow", "1")
    database("UPDATE registered_model_aliases SET version = 9")
    assert wrong() == [("error", "small@shadow", True)]
    assert wrong(fix=True) == []
    assert (wrong(), aliases_of("small")[0]) == ([], {})


def database(statement: str) -> None:
    with closing(sqlite3.connect(locations.home() / "mlruns" / "mlflow.db")) as connection, connection:
        connection.execute(statement)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[0] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: flip(folder / "openvino_model.bin"),
        lambda folder: (folder / "openvino_model.xml").unlink(),
        lambda folder: (folder / "manifest.json").write_text("{}"),
        lambda folder: (folder / "planted.py").write_text("boom"),
        shutil.rmtree,
    ],
)
def test_files_that_were_damaged(two: list[ModelVersion], tmp_path: Path, damage: Callable[[Path], object]) -> None:
    copied = pull("small/1").path
    for path in [*copied.iterdir()]:  # as where the cache is on another file system
        shutil.copy(path, tmp_path / "one")
        path.unlink()
        shutil.move(tmp_path / "one", path)
    damage(store_of(two[0]))
    assert wrong() == [("error", "small/1", True)]
    assert wrong(fix=True) == []
    assert wrong() == []
    assert (pull("small/1").path / "openvino_model.bin").read_text() == "a"


def test_files_that_were_damaged_in_store_and_cache(two: list[ModelVersion]) -> None:
    pull("small/1")
    flip(store_of(two[0]) / "openvino_model.bin")  # the cache's own file as well: they are linked
    assert wrong(fix=True) == [("error", "small/1", False)]
    assert "openvino_model.bin is damaged" in said()


def test_a_report_that_is_not_the_one(two: list[ModelVersion]) -> None:
    report = Path(evidence_uri(two[0].run_id)) / "report.json"
    report.write_text(report.read_text().replace("0.2", "0.1"))
    assert wrong(fix=True) == [("error", "small/1", False)]
    assert "report.json is not the one" in said()
    shutil.copy(Path(evidence_uri(two[1].run_id)) / "report.json", report)
    assert "about another model" in said()
    report.unlink()
    assert subjects() == ["small/1"]


def test_a_recipe_that_is_not_the_one(two: list[ModelVersion]) -> None:
    recipe = Path(evidence_uri(two[0].run_id)) / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("int4", "int8"))
    assert wrong() == [("error", "small/1", False)]


def test_other_libraries_than_those_of_the_champion(home: Path, tmp_path: Path) -> None:
    small.version(tmp_path, "a")
    assert wrong() == []
    champion("small/1")
    assert ("warning", "small/1", False) in wrong()
    assert "pip install openvino==1" in said()


@pytest.mark.parametrize("to", ["elsewhere", "with blanks/and ümlauts"])
def test_a_project_folder_that_was_moved(
    two: list[ModelVersion], home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, to: str
) -> None:
    champion("small/1")
    moved_to(shutil.move, home, tmp_path / to, monkeypatch)
    assert wrong() == [("error", str(home), True)]
    assert wrong(fix=True) == []
    assert wrong() == []
    assert [version.reference for version in list_versions()] == ["small/2", "small/1"]
    assert pull("small@champion").path.is_dir()
    assert store_of(resolve("small/1")).is_relative_to(tmp_path / to)
    assert small.version(tmp_path, "c").version == 3
    assert not home.exists()
    (backup,) = (tmp_path / to / "mlruns").glob("mlflow.db.before-move-*")
    with closing(sqlite3.connect(backup)) as connection:
        ((uri,), *_) = connection.execute("SELECT artifact_uri FROM runs").fetchall()
    assert uri.startswith(home.as_uri())


def moved_to(how: Callable[[Path, Path], object], home: Path, to: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    to.parent.mkdir(exist_ok=True)
    how(home, to)
    monkeypatch.setenv("VINOFLOW_HOME", str(to))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")  # which the first connection has set


def test_a_project_folder_that_was_copied(
    two: list[ModelVersion], home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved_to(shutil.copytree, home, tmp_path / "copy", monkeypatch)
    assert wrong() == [("error", str(home), True)], "it works, with the other folder's files"
    assert wrong(fix=True) == []
    shutil.rmtree(home)
    assert wrong() == []


def test_a_database_without_its_files_is_left_alone(
    two: list[ModelVersion], home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "only" / "mlruns").mkdir(parents=True)
    moved_to(
        lambda one, other: shutil.copy(one / "mlruns" / "mlflow.db", other / "mlruns" / "mlflow.db"),
        home,
        tmp_path / "only",
        monkeypatch,
    )
    assert wrong() == []
    assert store_of(resolve("small/1")).is_relative_to(home)


def test_a_ledger_is_needed_where_no_version_is_left(two: list[ModelVersion]) -> None:
    champion("small/1")
    for version in ("1", "2"):
        connect().delete_model_version("small", version)
    assert HEAD in connect().get_registered_model("small").tags
    assert "small@champion" in subjects()
