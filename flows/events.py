"""What others may hang on, as events in Prefect: what was validated, what moved.

MLflow and the ledger have the truth, an event is a hint.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from flows.environment import prefect_api
from tasks.config import Recipe
from tasks.records import ModelVersion
from tasks.registry import Entry, evidence_uri

_log = logging.getLogger(__name__)


def announce(moved: Sequence[Entry]) -> Sequence[Entry]:
    """Emit `vinoflow.model.promoted`, `.rolled-back` or `.restored` a move, where a Prefect server is; hand them on."""
    for entry in moved:
        about = {
            "vinoflow.version": str(entry.to_version),
            "vinoflow.digest": entry.to_digest,
            "vinoflow.alias": entry.alias,
            "vinoflow.from_version": str(entry.from_version or ""),
            "vinoflow.sequence": str(entry.sequence),
        }
        _emit(entry.action, entry.name, about, entry.model_dump(mode="json"))
    return moved


def validated(version: ModelVersion, *, auto_promote: str | None) -> None:
    """Emit `vinoflow.model.validated`; its label `vinoflow.auto_promote` is there where the recipe names an alias."""
    about = {"vinoflow.version": str(version.version), "vinoflow.digest": version.digest}
    if auto_promote:
        about["vinoflow.auto_promote"] = auto_promote
    told = {"name": version.name, "version": version.version, "reference": version.reference, "run_id": version.run_id}
    _emit("validated", version.name, about, told | {"auto_promote": auto_promote})


def gates_failed(recipe: Recipe, why: str, run_id: str) -> None:
    """Emit `vinoflow.model.gates-failed`."""
    told = {"name": recipe.name, "why": why, "run_id": run_id, "report": f"{evidence_uri(run_id)}/report.html"}
    _emit("gates-failed", recipe.name, {}, told)


def _emit(what: str, name: str, about: Mapping[str, str], payload: dict[str, Any]) -> None:
    if not prefect_api():
        return
    from prefect.events import emit_event

    resource = {"prefect.resource.id": f"vinoflow.model.{name}", "prefect.resource.name": name, **about}
    try:
        emit_event(f"vinoflow.model.{what}", resource=resource, payload=payload)
    except Exception:  # what it tells of is done, whatever becomes of the event
        _log.warning("the event vinoflow.model.%s of %s could not be emitted", what, name, exc_info=True)
