"""Promotion and rollback step by step, without Prefect: `flows.promote` runs them as a flow."""

from __future__ import annotations

import getpass
import socket
from collections.abc import Iterable, Sequence

from tasks.errors import PromotionError, RegistryError
from tasks.promote import Assessment, assess
from tasks.records import Champion, Record
from tasks.registry import (
    AliasState,
    Entry,
    Locking,
    Move,
    carry_out,
    complete_interrupted,
    entries,
    evidence_of,
    locked,
    recipe_of,
    report_of,
    resolve,
    state_of,
)


class Decision(Record):
    """Whether a version may have an alias, and where the alias was when that was looked at."""

    assessment: Assessment
    state: AliasState

    @property
    def is_there(self) -> bool:
        """True where the alias points at the version already."""
        return self.state.version == self.assessment.version.version

    @property
    def needs_approval(self) -> bool:
        """True where a person has to agree to the move."""
        return self.assessment.manual and not self.is_there


class Promoted(Record):
    """What was decided, and the moves that were made: those that a killed process had begun come first."""

    decision: Decision
    moved: tuple[Entry, ...]


def consider(reference: str, *, alias: str) -> Decision:
    """Look at a version and at the one that has the alias now; change nothing.

    Raises:
        RegistryError: The version, or what it was made by, is not there.
    """
    version = resolve(reference)
    state = state_of(version.name, alias)
    current, unknown = None, ""
    if state.version not in (None, version.version):
        try:
            serving = resolve(f"{version.name}/{state.version}")
            current = Champion(reference=serving.reference, report=report_of(serving))
        except RegistryError as error:
            unknown = str(error)
    assessment = assess(evidence_of(version), recipe_of(version), current, alias=alias, unknown=unknown)
    return Decision(assessment=assessment, state=state)


def permit(decision: Decision, *, force: bool = False, reason: str = "") -> None:
    """Let a decision pass that may be carried out.

    Args:
        decision: What `consider` returned.
        force: Override gates that failed; never what is broken.
        reason: Why; needed with `force`.

    Raises:
        PromotionError: The version may not have the alias.
    """
    found = decision.assessment
    where = f"{found.version.reference} is not promoted to {found.alias}"
    if decision.is_there:
        return
    if found.blocked:
        raise PromotionError("\n  ".join([f"{where}:", *found.blocked]))
    if found.failed and not force:
        ways = "`--dry-run` compares; `--force --reason WHY` overrides gates, and the ledger tells of it"
        raise PromotionError("\n  ".join([f"{where}, gates fail:", *found.failed, ways]))
    if force and not reason.strip():
        raise PromotionError(f"{where}: --force needs a --reason, which the ledger keeps")


def promote(
    decision: Decision,
    *,
    force: bool = False,
    reason: str = "",
    actor: str = "",
    approved_by: str = "",
    flow_run_id: str = "",
    locking: Locking = locked,
) -> list[Entry]:
    """Move the alias as was decided; return the entries of the moves that were made, none where it is there already.

    Args:
        decision: What `consider` returned.
        force: Override gates that failed; never what is broken.
        reason: Why; needed with `force`.
        actor: Who does it; by default user@host.
        approved_by: Who approved it, where the alias asks for that.
        flow_run_id: Prefect's id of the flow run.
        locking: Keeps other writers away.

    Raises:
        PromotionError: The version may not have the alias.
        ConflictError: The alias moved meanwhile.
    """
    found = decision.assessment
    if decision.is_there:
        return []
    permit(decision, force=force, reason=reason)
    if decision.needs_approval and not approved_by:
        who = f"{found.version.reference} is not promoted to {found.alias}"
        raise PromotionError(f"{who}, which asks for approval: `vinoflow promote` waits for it")
    return carry_out(
        Move(
            state=decision.state,
            to=found.version,
            action="promoted",
            actor=actor or whoami(),
            report_digest=found.report_digest,
            gates=found.failed,
            reason=reason,
            approved_by=approved_by,
            flow_run_id=flow_run_id,
        ),
        locking=locking,
    )


def roll_back(
    name: str,
    *,
    alias: str = "champion",
    to: int | None = None,
    reason: str = "",
    actor: str = "",
    locking: Locking = locked,
) -> list[Entry]:
    """Point an alias at a version that it pointed at before; return the entries of the moves that were made.

    Where a rollback was interrupted, this completes it and goes no further: whoever was told to run it again gets one.

    Args:
        name: The registered model.
        alias: Its alias.
        to: A version that had it; by default the one before the present one.
        reason: Why.
        actor: Who does it; by default user@host.
        locking: Keeps other writers away.

    Raises:
        PromotionError: No version had it before, or the named one did not.
        IntegrityError: The version's files are not whole any more.
        ConflictError: The alias moved meanwhile.
    """
    resolve(f"{name}@latest")  # there is such a model
    completed = complete_interrupted(name, locking=locking)
    if is_rolled_back(completed, alias=alias, to=to):
        return completed
    state = state_of(name, alias)
    target = _had_it(name, alias, to) if to is not None else _before(state)
    if state.version == target:
        raise PromotionError(f"{name}@{alias} points at {target} already")
    version = resolve(f"{name}/{target}")
    move = Move(state=state, to=version, action="rolled-back", actor=actor or whoami(), reason=reason)
    return [*completed, *carry_out(move, locking=locking)]


def is_rolled_back(completed: Iterable[Entry], *, alias: str, to: int | None) -> bool:
    """Is the rollback that is asked for among the moves that were begun before, and have been completed now?"""
    return any(
        entry.action == "rolled-back" and entry.alias == alias and to in (None, entry.to_version) for entry in completed
    )


def _before(state: AliasState) -> int:
    """Return the version that an alias pointed at before the present one was promoted."""
    promotions = (noted.entry for noted in entries(state.name, alias=state.alias) if noted.entry.action == "promoted")
    came = next((entry for entry in promotions if entry.to_version == state.version), None)
    if came is None or came.from_version is None:
        raise PromotionError(f"there is no version before {state.name}@{state.alias}: {_history(state)}")
    return _had_it(state.name, state.alias, came.from_version)


def _had_it(name: str, alias: str, version: int) -> int:
    for noted in entries(name, alias=alias):
        if noted.entry.action == "promoted" and noted.entry.to_version == version:
            return version
    raise PromotionError(
        f"{name}/{version} was never {alias}: `vinoflow ledger {name}` tells which were; promote it instead"
    )


def _history(state: AliasState) -> str:
    if state.version is None:
        return f"the alias does not exist; `vinoflow promote {state.name}/VERSION` makes it"
    return f"{state.version} is the first; `vinoflow promote` takes another"


def whoami() -> str:
    """Return user@host."""
    return f"{getpass.getuser()}@{socket.gethostname()}"


def in_words(entry: Entry) -> str:
    """Return a move in a line."""
    origin = f"from {entry.from_version}" if entry.from_version else "the first"
    return (
        f"{entry.name}@{entry.alias} is now {entry.name}/{entry.to_version} ({origin}), ledger entry {entry.sequence}"
    )


def table(assessment: Assessment) -> Sequence[tuple[str, ...]]:
    """Return a comparison as rows, header first."""
    header = ("metric", assessment.version.reference, assessment.current or "(no version yet)", "limit", "")
    rows = [
        (row.metric, _figure(row.candidate), _figure(row.current), row.limit or "-", "ok" if row.passed else "FAILS")
        for row in assessment.table
    ]
    return [header, *rows]


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
