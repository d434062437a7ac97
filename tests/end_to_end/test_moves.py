"""Any order of register, promote, rollback and gc, with a death at any of their calls to MLflow, against a model."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from flows.promotion import consider, promote, roll_back
from tasks.errors import PromotionError, VersionNotFoundError
from tasks.registry import (
    complete_interrupted,
    connect,
    entries,
    evidence_of,
    list_versions,
    newest,
    resolve,
    verify_ledgers,
)
from tasks.registry.gc import collect, garbage
from tests import small

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
WRITES = (
    "create_run",
    "log_batch",
    "log_text",
    "log_artifacts",
    "set_terminated",
    "create_logged_model",
    "log_model_artifact",
    "finalize_logged_model",
    "delete_logged_model",
    "create_registered_model",
    "create_model_version",
    "delete_model_version",
    "set_registered_model_alias",
    "set_registered_model_tag",
    "delete_run",
)
NOW = timedelta(0)
DEATH = st.one_of(st.none(), st.integers(1, 14))


class Dead(BaseException):
    """What a process that was killed runs into at its next call."""


@contextmanager
def dying(at: int | None, *, after: bool) -> Iterator[list[str]]:
    """Let the nth write to MLflow be the last that a process makes, and everything after it fail, clean-up too."""
    from mlflow import MlflowClient

    calls, died = 0, []

    def wrapped(original: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            if at is None or calls < at:
                return original(*args, **kwargs)
            died.append(original.__name__)
            if calls == at and after:
                original(*args, **kwargs)
            raise Dead

        return call

    with pytest.MonkeyPatch.context() as patch:
        for name in WRITES:
            patch.setattr(MlflowClient, name, wrapped(getattr(MlflowClient, name)))
        with suppress(Dead):
            yield died


class Registry(RuleBasedStateMachine):
    """What should be there: versions with their KL divergence and verdict, and every move of the champion."""

    template: Path
    steps = 0

    @initialize()
    def begin(self) -> None:
        self.folder = Path(tempfile.mkdtemp(dir=self.template.parent))
        (self.folder / "mlruns").mkdir()
        shutil.copy(self.template, self.folder / "mlruns" / "mlflow.db")
        os.environ |= {"VINOFLOW_HOME": str(self.folder), "MLFLOW_TRACKING_URI": ""}  # which the one before has set
        self.name = "small"
        self.versions: dict[int, tuple[str, float, bool]] = {}
        self.moves: list[tuple[int | None, int]] = []
        self.contents = 0

    @property
    def serving(self) -> int | None:
        return self.moves[-1][1] if self.moves else None

    @rule(
        kl=st.sampled_from([0.1, 0.14, 0.2, 0.5]),
        passed=st.sampled_from([True, True, True, False]),
        again=st.sampled_from([False, False, False, True]),
        at=DEATH,
        after=st.booleans(),
    )
    def register(self, kl: float, passed: bool, again: bool, at: int | None, after: bool) -> None:
        known = max(self.versions, default=0)
        if again and known:
            content, kl, passed = self.versions[known]
            assert small.version(self.folder, content, kl=kl, passed=passed).version == known
            return
        self.contents += 1
        content = f"c{self.contents}"
        with dying(at, after=after):
            small.version(self.folder, content, kl=kl, passed=passed)
        self._look_for(content, kl, passed)

    def _look_for(self, content: str, kl: float, passed: bool) -> None:
        for version in list_versions(self.name):
            if version.version not in self.versions:
                self.versions[version.version] = (content, kl, passed)

    @precondition(lambda self: self.versions)
    @rule(data=st.data(), force=st.booleans(), at=DEATH, after=st.booleans())
    def promote(self, data: st.DataObject, force: bool, at: int | None, after: bool) -> None:
        number = data.draw(st.sampled_from(sorted(self.versions)))
        _, kl, passed = self.versions[number]
        before, refused = self.serving, None
        with dying(at, after=after) as died:
            try:
                complete_interrupted(self.name)
                self._learn()
                before = self.serving
                decision = consider(f"{self.name}/{number}", alias="champion")
                made = promote(decision, force=force, reason="a test" if force else "")
                assert [entry.to_version for entry in made] == ([] if before == number else [number])
            except PromotionError as error:
                refused = str(error)
        worse = before is not None and kl * 1.01 > 1.5 * self.versions[before][1]
        allowed = before == number or (passed and not worse) or force
        if not died:
            assert (refused is None) == allowed, refused
        self._learn()

    @precondition(lambda self: self.versions)
    @rule(at=DEATH, after=st.booleans())
    def rollback(self, at: int | None, after: bool) -> None:
        before, refused = list(self.moves), None
        with dying(at, after=after) as died:
            try:
                roll_back(self.name)
            except PromotionError as error:
                refused = str(error)
        self._learn()
        if not died and refused is None:
            undone = self.moves[len(before) :][-1]
            came = next(move for move in reversed(self.moves[:-1]) if move[1] == undone[0])
            assert undone[1] in {move[0] for move in self.moves[:-1] if move[1] == came[1]}

    @precondition(lambda self: self.versions)
    @rule(at=DEATH, after=st.booleans())
    def gc(self, at: int | None, after: bool) -> None:
        with dying(at, after=after) as died:
            complete_interrupted(self.name)
            collect(garbage(older_than=NOW), older_than=NOW)
        self._learn()
        named = {number for move in self.moves for number in move if number}
        kept = named | {max(self.versions)}
        left = {version.version for version in list_versions(self.name)}
        assert kept <= left, "what the ledger names and the newest stay"
        assert died or left == kept
        self.versions = {number: self.versions[number] for number in left}

    def _learn(self) -> None:
        """Take up the moves that the ledger has; none that was there may be gone or be another one."""
        done = [(one.entry.from_version, one.entry.to_version) for one in entries(self.name) if not one.pending][::-1]
        assert done[: len(self.moves)] == self.moves, "a move is lost"
        self.moves = done

    @invariant()
    def the_alias_points_at_a_sound_version(self) -> None:
        Registry.steps += 1
        if not self.versions:
            return
        lengths, wrong = verify_ledgers(self.name)
        problems = [problem for problem in wrong[self.name] if "pending" not in problem]
        assert problems == []
        assert lengths[self.name] - len(self.moves) in (0, 1)
        try:
            version = resolve(f"{self.name}@champion")
        except VersionNotFoundError:
            return
        evidence = evidence_of(version)
        assert evidence.problems == ()
        last = newest(self.name)
        assert last is not None and version.version in {last.entry.to_version, last.entry.from_version}
        report = evidence.report
        assert report is not None
        if not report.passed:
            moves = (one.entry for one in entries(self.name))
            assert any(move.gates for move in moves if move.to_version == version.version), "nobody forced it"


def test_no_order_of_steps_and_deaths_breaks_the_ledger(home: Path) -> None:
    connect()
    Registry.template = home / "mlruns" / "mlflow.db"
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        Registry,
        settings=settings(
            max_examples=21,
            stateful_step_count=50,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
    assert Registry.steps >= 1000
