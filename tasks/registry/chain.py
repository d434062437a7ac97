"""Is the ledger what was written: every entry there, as it was, and the aliases where the last ones put them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from tasks import progress
from tasks.registry.ledger import Entry, Noted, entries
from tasks.registry.read import aliases_of, list_versions, resolve
from tasks.registry.store import Locking, locked


def verify_ledgers(
    name: str | None = None, *, locking: Locking = locked
) -> tuple[dict[str, int], dict[str, list[str]]]:
    """Return the number of entries of each model's ledger, and what is wrong with it, by the model's name.

    Raises:
        VersionNotFoundError: There is no such model.
    """
    found = [resolve(f"{name}@latest")] if name else list_versions(limit=1)
    names = sorted({version.name for version in found})
    lengths: dict[str, int] = {}
    wrong: dict[str, list[str]] = {}
    with progress.step("verify", total=len(names), unit="steps") as step:
        for number, model in enumerate(names, start=1):
            step.update(done=number, note=model)
            with locking(model):  # a move that is under way looks like one that was interrupted
                noted = list(entries(model))[::-1]
                aliases, head = aliases_of(model)
            lengths[model], wrong[model] = len(noted), list(check_chain(model, aliases, head, noted))
        step.update(note="")
    return lengths, wrong


def check_chain(name: str, aliases: Mapping[str, int], head: str, noted: Iterable[Noted]) -> Iterator[str]:
    """Yield what is wrong with a ledger: holes, edits, forks, a lost end, moves that it does not know of.

    Args:
        name: The registered model.
        aliases: What its aliases point at.
        head: Its tag `HEAD`; empty where there is none.
        noted: Its entries, the oldest first.
    """
    before: Entry | None = None
    state: dict[str, set[int | None]] = {}
    heads = {""}
    for one in noted:
        entry = one.entry
        expected = before.sequence + 1 if before else 1
        if entry.computed_digest() != entry.digest:
            yield f"entry {entry.sequence} was edited: its content does not have its digest"
        if entry.sequence > expected:
            gone = (
                f"entry {expected} is"
                if entry.sequence == expected + 1
                else f"entries {expected} to {entry.sequence - 1} are"
            )
            yield f"{gone} missing"
        elif entry.sequence < expected:
            yield f"there are two entries {entry.sequence}"
        elif entry.previous != (before.digest if before else ""):
            yield f"entry {entry.sequence} does not follow the entry {expected - 1} that is there: that one was edited"
        if one.pending:
            yield f"entry {entry.sequence} is pending: its move was interrupted, the next one completes it"
        before = entry
        state[entry.alias] = {entry.to_version, *([entry.from_version] if one.pending else [])}
        heads = {*(heads if one.pending else ()), f"{entry.sequence}:{entry.digest}"}
    if head not in heads:
        number = head.partition(":")[0] or "none"
        yield f"the last entry was {number}, and the last that is there is {before.sequence if before else 'none'}"
    for alias, versions in state.items():
        if aliases.get(alias) not in versions:
            now = f"at {aliases[alias]}" if alias in aliases else "nowhere"
            told = " or ".join(str(version) for version in sorted(versions, key=str))
            yield f"{name}@{alias} points {now}, the ledger says {told}: it was moved outside of vinoflow"
