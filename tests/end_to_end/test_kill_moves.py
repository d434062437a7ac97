"""kill -9 anywhere in a promotion or a rollback: the alias is where it was or where it goes, and the rerun ends it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from flows.promotion import consider, promote, roll_back
from tasks.registry import aliases_of, complete_interrupted, entries, list_versions, state_of, verify_ledgers
from tests import small
from tests.end_to_end.test_kill import Strike, strike
from tests.killed import Point

__all__ = ["strike"]
pytestmark = pytest.mark.slow
_CLIENT = "mlflow:MlflowClient."
POINTS = [
    Point(target="tasks.registry.move:append"),
    Point(target=f"{_CLIENT}create_run", when="after"),
    Point(target="tasks.registry.move:same_sequence", when="after"),
    Point(target=f"{_CLIENT}set_registered_model_alias"),
    Point(target=f"{_CLIENT}set_registered_model_alias", when="after"),
    Point(target="tasks.registry.move:finish"),
    Point(target=f"{_CLIENT}set_registered_model_tag", when="after"),
    Point(target=f"{_CLIENT}set_terminated"),
    Point(target=f"{_CLIENT}set_terminated", when="after"),
]


def promoted() -> None:
    complete_interrupted("small")
    promote(consider("small/2", alias="champion"))


def rolled_back() -> None:
    complete_interrupted("small")
    if state_of("small", "champion").version == 2:  # what was killed may have got to its end
        roll_back("small")


@pytest.mark.parametrize("point", POINTS, ids=lambda point: f"{point.target.partition(':')[2]}-{point.when}")
@pytest.mark.parametrize(
    ("stage", "before", "again", "ends_at"),
    [("promote_stage", 1, promoted, 2), ("rollback_stage", 2, rolled_back, 1)],
    ids=["promote", "rollback"],
)
def test_a_move_killed_anywhere(
    point: Point, stage: str, before: int, again: Callable[[], None], ends_at: int, strike: Strike, tmp_path: Path
) -> None:
    small.version(tmp_path, "a")
    small.version(tmp_path, "b")
    for number in range(1, before + 1):
        promote(consider(f"small/{number}", alias="champion"))
    strike(point, stage, "small/2" if stage == "promote_stage" else "small")
    now = aliases_of("small")[0]["champion"]
    assert now in {before, ends_at}
    assert [version.version for version in list_versions("small")] == [2, 1]
    (problems,) = verify_ledgers("small")[1].values()
    assert all("pending" in problem for problem in problems)
    again()
    assert aliases_of("small")[0] == {"champion": ends_at}
    assert verify_ledgers("small") == ({"small": before + 1}, {"small": []})
    assert not any(noted.pending for noted in entries("small"))
