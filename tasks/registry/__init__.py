"""The registry: MLflow as the memory. Nothing else imports it."""

from tasks.registry.read import (
    PulledModel,
    champion_of,
    evidence_uri,
    find_by_inputs,
    list_versions,
    metrics_of,
    pull,
    report_of,
    resolve,
)
from tasks.registry.store import connect, one_at_a_time, tracking_uri
from tasks.registry.write import RunContext, record, register

__all__ = [
    "PulledModel",
    "RunContext",
    "champion_of",
    "connect",
    "evidence_uri",
    "find_by_inputs",
    "list_versions",
    "metrics_of",
    "one_at_a_time",
    "pull",
    "record",
    "register",
    "report_of",
    "resolve",
    "tracking_uri",
]
