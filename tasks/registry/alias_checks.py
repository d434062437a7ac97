"""Whether the aliases of a model point where its ledger says, and whether that can be believed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial

from tasks.errors import IntegrityError
from tasks.registry.chain import check_chain
from tasks.registry.finding import Case
from tasks.registry.ledger import Entry, Noted, entries
from tasks.registry.move import restore, settle
from tasks.registry.read import aliases_of
from tasks.registry.store import Locking, connect, translated

_BROKEN = (
    "it cannot be mended: what it tells up to there is no proof of what served. Entries that MLflow deleted come back "
    "with its restore_run"
)


def check_aliases(name: str, versions: set[int], actor: str, locking: Locking) -> Iterator[Case]:
    """Yield what is wrong with a model's ledger and aliases; `versions` are those that it has."""
    try:
        noted, aliases, head = _read(name, locking)
        if noted and noted[-1].pending:
            entry = noted[-1].entry
            message = f"ledger entry {entry.sequence}, to {entry.to_version}, was begun and did not end"
            yield Case(f"{name}@{entry.alias}", message, partial(_complete, entry, locking))
            noted, aliases, head = _read(name, locking)
    except IntegrityError as error:
        yield Case(f"ledger of {name}", f"{error}; {_BROKEN}")
        return
    done = [one for one in noted if not one.pending]
    open_ = [one.entry for one in noted if one.pending]
    state = {one.entry.alias: one.entry.to_version for one in done}
    if any(head == f"{entry.sequence}:{entry.digest}" for entry in open_):  # killed between the head and the end
        head = f"{done[-1].entry.sequence}:{done[-1].entry.digest}" if done else ""
    for problem in check_chain(name, state, head, done):
        yield Case(f"ledger of {name}", f"{problem}; {_BROKEN}")
    settled = {alias: to for alias, to in state.items() if alias not in {entry.alias for entry in open_}}
    yield from _aliases(name, settled, aliases, versions, partial(_put_back, actor, locking))


def _aliases(
    name: str,
    ledger: Mapping[str, int],
    aliases: Mapping[str, int],
    versions: set[int],
    put_back: Callable[[str, str, str], list[Entry]],
) -> Iterator[Case]:
    """Yield the aliases that are not where the ledger says, or that point at nothing."""
    for alias, version in ledger.items():
        subject, now = f"{name}@{alias}", aliases.get(alias)
        if version not in versions:
            yield Case(
                subject,
                f"the ledger says {version}, which was deleted outside of vinoflow: `vinoflow promote` another one, or "
                f"`vinoflow rollback {name} --alias {alias} --to VERSION`",
            )
        elif now != version:
            message = f"points at {now or 'nothing'}, the ledger says {version}: it was moved outside of vinoflow"
            mend = partial(put_back, name, alias, f"doctor: {message}")
            yield Case(subject, message, mend)
    for alias, version in aliases.items():
        if version not in versions and ledger.get(alias) not in versions:
            message = f"points at {version}, which is gone"
            yield Case(f"{name}@{alias}", message, partial(_point, name, alias, None))


def _put_back(actor: str, locking: Locking, name: str, alias: str, reason: str) -> list[Entry]:
    entry = restore(name, alias, actor=actor, reason=reason, locking=locking)
    return [entry] if entry else []


def _read(name: str, locking: Locking) -> tuple[list[Noted], dict[str, int], str]:
    """Return a model's entries, the oldest first, its aliases and the head of its ledger."""
    with locking(name):  # a move that is under way looks like one that was interrupted
        return list(entries(name))[::-1], *aliases_of(name)


def _complete(entry: Entry, locking: Locking) -> list[Entry]:
    """Complete a move; an alias that was moved outside of vinoflow meanwhile is first put where it came from."""
    with locking(entry.name):
        now = aliases_of(entry.name)[0].get(entry.alias)
        if now not in (entry.from_version, entry.to_version, None):
            _point(entry.name, entry.alias, entry.from_version)
        return settle(entry.name)


def _point(name: str, alias: str, version: int | None) -> None:
    with translated():
        if version is None:
            connect().delete_registered_model_alias(name, alias)
        else:
            connect().set_registered_model_alias(name, alias, str(version))
