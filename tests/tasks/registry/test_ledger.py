from __future__ import annotations

from contextlib import nullcontext
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from flows.promotion import consider, promote, roll_back
from tasks.errors import ConflictError, IntegrityError, PromotionError, RegistryError
from tasks.records import ModelVersion
from tasks.registry import (
    aliases_of,
    complete_interrupted,
    connect,
    entries,
    newest,
    restore,
    served_at,
    state_of,
    verify_ledgers,
    versions_named,
)
from tasks.registry.ledger import append, finish
from tests import small

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("with_store")]


@pytest.fixture
def three(home: Path, tmp_path: Path) -> list[ModelVersion]:
    return [small.version(tmp_path, content) for content in "abc"]


def move(reference: str, **how: object) -> int | None:
    """Promote as the command does, and return where the champion is."""
    complete_interrupted("small")
    promote(consider(reference, alias=str(how.pop("alias", "champion"))), **how)  # type: ignore[arg-type]
    return aliases_of("small")[0].get("champion")


def begin_a_move_to_3() -> None:
    """Write down a move, as a process does that is killed before it makes it."""
    last = newest("small").entry  # type: ignore[union-attr]
    follows = {"sequence": last.sequence + 1, "from_version": last.to_version, "previous": last.digest}
    begun = last.model_copy(update={**follows, "to_version": 3, "digest": ""})
    append(begun.model_copy(update={"digest": begun.computed_digest()}))


def problems() -> list[str]:
    return verify_ledgers("small")[1]["small"]


def test_an_entry_tells_all_of_a_move(three: list[ModelVersion]) -> None:
    move("small/1")
    assert move("small/2", actor="jane", reason="faster", approved_by="joe", flow_run_id="run-1") == 2
    last = newest("small")
    assert last is not None and not last.pending
    entry = last.entry
    assert (entry.sequence, entry.action, entry.alias, entry.name) == (2, "promoted", "champion", "small")
    assert (entry.from_version, entry.to_version) == (1, 2)
    assert (entry.from_digest, entry.to_digest) == (three[0].digest, three[1].digest)
    assert (entry.actor, entry.reason, entry.approved_by, entry.flow_run_id) == ("jane", "faster", "joe", "run-1")
    assert entry.report_digest == three[1].tags["vinoflow.report_digest"]
    first = list(entries("small"))[1].entry
    assert (first.from_version, first.previous, entry.previous) == (None, "", first.digest)
    assert "@" in first.actor
    assert problems() == []


def test_what_served_then(three: list[ModelVersion]) -> None:
    before = datetime.now(UTC)
    move("small/1")
    then = datetime.now(UTC)
    move("small/2")
    move("small/3", alias="staging")
    assert served_at("small", before) == {}
    assert {alias: entry.to_version for alias, entry in served_at("small", then).items()} == {"champion": 1}
    now = served_at("small", datetime.now(UTC))
    assert {alias: entry.to_version for alias, entry in now.items()} == {"champion": 2, "staging": 3}
    assert versions_named("small") == {1, 2, 3}


def test_a_clock_that_is_set_back_does_not_turn_the_ledger_round(
    three: list[ModelVersion], monkeypatch: pytest.MonkeyPatch
) -> None:
    move("small/1")
    real = datetime

    class Yesterday(datetime):
        @classmethod
        def now(cls, tz: object = None) -> datetime:  # type: ignore[override]
            return real.now(tz) - timedelta(days=1)  # type: ignore[arg-type]

    monkeypatch.setattr("tasks.registry.ledger.datetime", Yesterday)
    move("small/2")
    newer, older = (noted.entry for noted in entries("small"))
    assert newer.at >= older.at
    assert problems() == []


def test_an_edit_is_found(three: list[ModelVersion]) -> None:
    for reference in ("small/1", "small/2", "small/3"):
        move(reference)
    noted = list(entries("small"))[1]
    forged = noted.entry.model_copy(update={"actor": "nobody"})
    connect().set_tag(noted.run_id, "vinoflow.ledger.entry", forged.model_dump_json())
    assert problems() == ["entry 2 was edited: its content does not have its digest"]
    signed = forged.model_copy(update={"digest": forged.computed_digest()})  # one who knows how digests are made
    connect().set_tag(noted.run_id, "vinoflow.ledger.entry", signed.model_dump_json())
    assert problems() == ["entry 3 does not follow the entry 2 that is there: that one was edited"]
    connect().set_tag(noted.run_id, "vinoflow.ledger.entry", "{}")
    with pytest.raises(IntegrityError, match="holds no entry"):
        problems()


def test_a_hole_is_found_and_stays(three: list[ModelVersion]) -> None:
    for reference in ("small/1", "small/2", "small/3"):
        move(reference)
    connect().delete_run(list(entries("small"))[1].run_id)
    assert problems() == ["entry 2 is missing"]
    move("small/2")
    assert problems() == ["entry 2 is missing"]


def test_a_lost_end_is_found_and_stays(three: list[ModelVersion]) -> None:
    for reference in ("small/1", "small/2"):
        move(reference)
    connect().delete_run(newest("small").run_id)  # type: ignore[union-attr]
    found = problems()
    assert found[0] == "the last entry was 2, and the last that is there is 1"
    with pytest.raises(IntegrityError, match="lost its entry 2"):
        restore("small", "champion", actor="me", reason="")
    move("small/3")  # it goes on
    assert newest("small").entry.sequence == 3  # type: ignore[union-attr]
    assert problems() == ["entry 2 is missing"]


def test_an_alias_moved_outside_is_refused_until_it_is_put_back(three: list[ModelVersion]) -> None:
    move("small/1")
    connect().set_registered_model_alias("small", "champion", "3")
    assert problems() == ["small@champion points at 3, the ledger says 1: it was moved outside of vinoflow"]
    with pytest.raises(RegistryError, match=r"moved outside of vinoflow; `vinoflow doctor --fix` puts it back"):
        move("small/2")
    entry = restore("small", "champion", actor="me", reason="doctor")
    assert entry is not None and (entry.action, entry.from_version, entry.to_version) == ("restored", 3, 1)
    assert problems() == []
    assert restore("small", "champion", actor="me", reason="doctor") is None
    assert move("small/2") == 2
    assert [entry.to_version for entry in roll_back("small")] == [1]


def test_a_champion_that_was_set_by_hand_before_is_where_the_ledger_begins(three: list[ModelVersion]) -> None:
    connect().set_registered_model_alias("small", "champion", "1")
    assert move("small/2") == 2
    assert newest("small").entry.from_version == 1  # type: ignore[union-attr]
    with pytest.raises(PromotionError, match="small/1 was never champion"):  # no gate let it through
        roll_back("small")


def test_a_version_deleted_in_mlflow_does_not_stop_the_next(three: list[ModelVersion]) -> None:
    move("small/1")
    move("small/2")
    connect().delete_model_version("small", "2")  # its alias goes with it
    assert move("small/3") == 3
    with pytest.raises(RegistryError, match="no version 2"):
        roll_back("small", to=2)
    assert problems() == []


def test_a_move_on_an_old_look_is_a_conflict(three: list[ModelVersion]) -> None:
    old = consider("small/2", alias="champion")
    move("small/3", actor="jane")
    with pytest.raises(ConflictError, match="moved from nowhere to 3 by jane"):
        promote(old)
    looked = consider("small/1", alias="champion")
    move("small/2")
    roll_back("small")
    assert state_of("small", "champion").version == 3
    with pytest.raises(ConflictError, match="was moved and moved back"):
        promote(looked)
    staging = consider("small/1", alias="staging")
    move("small/1")
    promote(staging)  # a move of another alias is none of its business


def test_a_move_that_another_machine_began_is_completed_first(three: list[ModelVersion]) -> None:
    move("small/1")
    begin_a_move_to_3()
    assert problems() == ["entry 2 is pending: its move was interrupted, the next one completes it"]
    assert move("small/2") == 2
    assert [noted.entry.to_version for noted in entries("small")] == [2, 3, 1]
    assert problems() == []


def test_a_move_to_a_version_that_is_gone_is_taken_back(three: list[ModelVersion]) -> None:
    move("small/1")
    begin_a_move_to_3()
    connect().delete_model_version("small", "3")
    assert move("small/2") == 2
    assert [noted.entry.to_version for noted in entries("small")] == [2, 1]
    assert problems() == []


def test_a_twin_that_appears_while_it_moves_is_a_conflict(
    three: list[ModelVersion], monkeypatch: pytest.MonkeyPatch
) -> None:
    from tasks.registry import move as moving

    move("small/1")
    original = moving.append

    def raced(entry: object) -> object:
        original(entry.model_copy(update={"to_version": 3, "actor": "other"}))  # type: ignore[attr-defined, arg-type]
        return original(entry)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(moving, "append", raced)
        with pytest.raises(ConflictError, match="being moved by another process"):
            move("small/2")
    assert aliases_of("small")[0]["champion"] == 1
    assert move("small/2") == 2
    assert sorted(noted.entry.sequence for noted in entries("small")) == [1, 2, 3]


def test_a_request_that_arrives_twice_is_one_move(three: list[ModelVersion], monkeypatch: pytest.MonkeyPatch) -> None:
    from tasks.registry import move as moving

    original = moving.append

    def twice(entry: object) -> object:
        original(entry)  # type: ignore[arg-type]
        return original(entry)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(moving, "append", twice)
        assert move("small/1") == 1
    assert move("small/2") == 2
    assert [noted.entry.sequence for noted in entries("small")] == [2, 1]


def test_a_writer_that_slept_does_not_undo_what_came_after(
    three: list[ModelVersion], monkeypatch: pytest.MonkeyPatch
) -> None:
    from tasks.registry import move as moving

    move("small/1")
    original, slept = moving.same_sequence, []

    def sleeps(name: str, sequence: int) -> object:
        found = original(name, sequence)
        if not slept:  # it looked, and is alone; now its lease runs out
            slept.append(True)
            noted = newest("small")
            assert noted is not None
            connect().set_registered_model_alias("small", "champion", "2")
            finish(noted)
            move("small/3")
        return found

    monkeypatch.setattr(moving, "same_sequence", sleeps)
    decision = consider("small/2", alias="champion")
    promote(decision, locking=nullcontext)
    assert aliases_of("small")[0]["champion"] == 3
    assert problems() == []
