"""What others may hang on: each move of an alias as an event in Prefect. The ledger is the truth, an event a hint."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from flows.environment import prefect_api
from tasks.registry import Entry

_log = logging.getLogger(__name__)


def announce(moved: Sequence[Entry]) -> Sequence[Entry]:
    """Emit `vinoflow.model.promoted`, `.rolled-back` or `.restored` a move, where a Prefect server is; hand them on."""
    if moved and prefect_api():
        for entry in moved:
            _emit(entry)
    return moved


def _emit(entry: Entry) -> None:
    from prefect.events import emit_event

    about = {
        "prefect.resource.id": f"vinoflow.model.{entry.name}",
        "prefect.resource.name": entry.name,
        "vinoflow.version": str(entry.to_version),
        "vinoflow.digest": entry.to_digest,
        "vinoflow.alias": entry.alias,
        "vinoflow.from_version": str(entry.from_version or ""),
        "vinoflow.sequence": str(entry.sequence),
    }
    try:
        emit_event(f"vinoflow.model.{entry.action}", resource=about, payload=entry.model_dump(mode="json"))
    except Exception:  # the move is made, whatever becomes of its event
        _log.warning("the event of ledger entry %s could not be emitted", entry.sequence, exc_info=True)
