"""Moving an alias: compare, write down, set, look. MLflow itself lets the last writer win.

Every move is written into the ledger before it is made. Whoever comes next completes what a killed process began, so a
move is made wholly or not at all. The lock keeps writers apart; where it cannot (two machines without a Prefect server,
a lease that ran out), a second entry of the same sequence number is what tells, and both of its writers step back.
"""

from __future__ import annotations

from datetime import datetime

from pydantic import Field

from tasks.errors import ConflictError, IntegrityError, RegistryError, VersionNotFoundError
from tasks.records import ModelVersion, Record
from tasks.registry.files import problem_of
from tasks.registry.ledger import (
    Action,
    Entry,
    Noted,
    append,
    finish,
    newest,
    now_after,
    same_sequence,
    withdraw,
)
from tasks.registry.read import aliases_of, resolve
from tasks.registry.store import Locking, connect, locked, translated


class AliasState(Record):
    """Where an alias points, and by which entry of the ledger: what a decision to move it is made on."""

    name: str
    alias: str
    version: int | None = Field(description="None: there is no such alias.")
    sequence: int = Field(description="Of the ledger's last entry about it; 0: there is none.")


class Move(Record):
    """A move that was decided."""

    state: AliasState = Field(description="What it was decided on.")
    to: ModelVersion
    action: Action
    actor: str
    report_digest: str = ""
    gates: tuple[str, ...] = ()
    reason: str = ""
    approved_by: str = ""
    flow_run_id: str = ""


def state_of(name: str, alias: str) -> AliasState:
    """Return where an alias points now.

    Raises:
        VersionNotFoundError: There is no such model.
    """
    last = newest(name, alias=alias)
    version = aliases_of(name)[0].get(alias)
    return AliasState(name=name, alias=alias, version=version, sequence=last.entry.sequence if last else 0)


def carry_out(move: Move, *, locking: Locking = locked) -> list[Entry]:
    """Move an alias, if it is where the decision found it; return the entries of the moves that were made.

    Usually that is one; a move that a killed process had begun is completed first, and comes before it.

    Args:
        move: The decision.
        locking: Keeps other writers away meanwhile; by default those of this machine.

    Raises:
        ConflictError: The alias moved in the meantime.
        IntegrityError: The version's files are not whole.
        RegistryError: The alias was moved outside of vinoflow, or MLflow does not answer.
    """
    state = move.state
    with locking(state.name):
        completed = settle(state.name)
        now = state_of(state.name, state.alias)
        if now != state:
            raise ConflictError(_moved(state, now))
        end, known = _end(state.name), newest(state.name, alias=state.alias)
        # None: it went with a deleted version; a lost end may have told of another move
        if known and now.version not in (known.entry.to_version, None) and not end.lost:
            raise RegistryError(_outside(known.entry, now.version))
        if resolve(move.to.reference).digest != move.to.digest:
            raise ConflictError(f"{move.to.reference} has another digest than a moment ago: look at it again")
        if wrong := problem_of(move.to, deep=False):
            raise IntegrityError(f"{move.to.reference} cannot serve: {wrong}")
        return [*completed, _make(_entry(move, end, known))]


def complete_interrupted(name: str, *, locking: Locking = locked) -> list[Entry]:
    """Complete the move that a killed process began, if there is one; return its entry.

    Raises:
        RegistryError: The alias was moved outside of vinoflow meanwhile.
    """
    last = newest(name)
    if last is None or not last.pending:
        return []
    with locking(name):
        return settle(name)


def restore(name: str, alias: str, *, actor: str, reason: str, locking: Locking = locked) -> Entry | None:
    """Point an alias where the ledger says, if it was moved outside of vinoflow; the ledger tells of it.

    Raises:
        IntegrityError: The ledger has lost its end, so that it cannot tell.
    """
    with locking(name):
        settle(name)
        known, now = newest(name, alias=alias), state_of(name, alias)
        if known is None or known.entry.to_version == now.version:
            return None
        end = _end(name)
        if end.lost:
            raise IntegrityError(
                f"the ledger of {name} lost its entry {end.sequence}, so it cannot tell where {alias} should point: "
                "restore that run in MLflow, or promote or roll back, which the ledger then goes on with"
            )
        kept = known.entry.model_dump(include={"name", "alias", "to_version", "to_digest", "report_digest", "gates"})
        entry = Entry(
            **kept,
            sequence=end.sequence + 1,
            at=now_after(end.at),
            actor=actor,
            action="restored",
            from_version=now.version,
            reason=reason,
            previous=end.digest,
        )
        return _make(_signed(entry))


def settle(name: str) -> list[Entry]:
    """Complete the move that a killed process began; return its entry. Call with the lock held.

    Raises:
        RegistryError: The alias was moved outside of vinoflow meanwhile.
    """
    last = newest(name)
    if last is None or not last.pending:
        return []
    now = aliases_of(name)[0].get(last.entry.alias)
    twins = same_sequence(name, last.entry.sequence)
    if len(twins) > 1:  # of writers that did not share a lock: at most one of them went on to set the alias
        done = [twin for twin in twins if not twin.pending]
        made = done or [twin for twin in twins if twin.entry.to_version == now][:1]
        for twin in twins:
            if twin not in made:
                withdraw(twin)
        return settle(name)
    entry = last.entry
    if now not in (entry.from_version, entry.to_version, None):
        raise RegistryError(_outside(entry, now))
    try:
        resolve(f"{name}/{entry.to_version}")
    except VersionNotFoundError:  # deleted in MLflow meanwhile: the move cannot be made, and never was
        withdraw(last)
        return []
    _set(last)
    return [entry]


class _End(Record):
    """What the next entry of a ledger follows."""

    sequence: int
    digest: str
    at: datetime | None
    lost: bool = Field(description="The entry is not there any more: the registered model's tag tells of it.")


def _end(name: str) -> _End:
    last, head = newest(name), aliases_of(name)[1]
    number, _, digest = head.partition(":")
    if last and last.entry.sequence >= int(number or 0):
        return _End(sequence=last.entry.sequence, digest=last.entry.digest, at=last.entry.at, lost=False)
    at = last.entry.at if last else None
    return _End(sequence=int(number or 0), digest=digest, at=at, lost=bool(number))


def _entry(move: Move, end: _End, known: Noted | None) -> Entry:
    state = move.state
    return _signed(
        Entry(
            sequence=end.sequence + 1,
            at=now_after(end.at),
            actor=move.actor,
            action=move.action,
            name=state.name,
            alias=state.alias,
            from_version=state.version,
            from_digest=known.entry.to_digest if known else "",
            to_version=move.to.version,
            to_digest=move.to.digest,
            report_digest=move.report_digest,
            gates=move.gates,
            reason=move.reason,
            approved_by=move.approved_by,
            flow_run_id=move.flow_run_id,
            previous=end.digest,
        )
    )


def _signed(entry: Entry) -> Entry:
    return entry.model_copy(update={"digest": entry.computed_digest()})


def _make(entry: Entry) -> Entry:
    """Write a move down, then make it."""
    noted = append(entry)
    for twin in same_sequence(entry.name, entry.sequence):
        if twin.entry != entry:
            withdraw(noted)
            raise ConflictError(f"{entry.name}@{entry.alias} is being moved by another process: look, then run again")
        if twin.run_id != noted.run_id:  # a request of ours that was given up, and arrived late
            withdraw(twin)
    _set(noted)
    return entry


def _set(noted: Noted) -> None:
    """Make a move that is written down, and see that it is made."""
    client, entry = connect(), noted.entry
    with translated():
        client.set_registered_model_alias(entry.name, entry.alias, str(entry.to_version))
    last = newest(entry.name, alias=entry.alias)
    if last is None or last.run_id != noted.run_id:  # we slept, and others without our lock went on
        _follow(last, entry)
        return
    now = aliases_of(entry.name)[0].get(entry.alias)
    if now != entry.to_version:
        raise RegistryError(_outside(entry, now))
    finish(noted)


def _follow(last: Noted | None, entry: Entry) -> None:
    """Point an alias where others have moved it, after they completed our move, or took our entry back."""
    client = connect()
    with translated():
        if last:
            client.set_registered_model_alias(entry.name, entry.alias, str(last.entry.to_version))
        else:
            client.delete_registered_model_alias(entry.name, entry.alias)
    if last is None or last.entry.sequence < entry.sequence:
        raise ConflictError(f"{entry.name}@{entry.alias} is being moved by another process: look, then run again")


def _moved(before: AliasState, now: AliasState) -> str:
    last = newest(now.name, alias=now.alias)
    by = f" by {last.entry.actor} at {last.entry.at:%H:%M:%S} UTC" if last else ""
    where = f"from {before.version or 'nowhere'} to {now.version or 'nowhere'}"
    what = f"moved {where}{by}" if before.version != now.version else f"was moved and moved back{by}"
    return f"{now.name}@{now.alias} {what} while this move was decided: look at it again, then run again"


def _outside(entry: Entry, now: int | None) -> str:
    return (
        f"{entry.name}@{entry.alias} points at {now or 'nothing'}, the ledger says {entry.to_version}: it was moved "
        "outside of vinoflow; `vinoflow doctor --fix` puts it back"
    )
