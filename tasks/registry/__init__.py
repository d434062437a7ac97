"""The registry: MLflow as the memory. Nothing else imports it."""

from tasks.registry.batches import BatchRun, batches, keep_batch, speed_of
from tasks.registry.chain import verify_ledgers
from tasks.registry.doctor import Diagnosis, examine
from tasks.registry.evidence import champion_of, evidence_of, evidence_uri, metrics_of, recipe_of, report_of
from tasks.registry.gc import Garbage, collect, garbage
from tasks.registry.known import checkpoint_digest, failed_run
from tasks.registry.ledger import Entry, Noted, entries, newest, served_at, versions_named
from tasks.registry.libraries import libraries_of
from tasks.registry.move import (
    AliasState,
    Move,
    carry_out,
    complete_interrupted,
    restore,
    state_of,
)
from tasks.registry.pull import PulledModel, pull
from tasks.registry.read import aliases_of, find_by_inputs, list_versions, resolve
from tasks.registry.store import Locking, connect, locked, one_at_a_time, tracking_uri
from tasks.registry.traces import keep_trace
from tasks.registry.write import RunContext, attach, flatten, record, register

__all__ = [
    "AliasState",
    "BatchRun",
    "Diagnosis",
    "Entry",
    "Garbage",
    "Locking",
    "Move",
    "Noted",
    "PulledModel",
    "RunContext",
    "aliases_of",
    "attach",
    "batches",
    "carry_out",
    "champion_of",
    "checkpoint_digest",
    "collect",
    "complete_interrupted",
    "connect",
    "entries",
    "evidence_of",
    "evidence_uri",
    "examine",
    "failed_run",
    "find_by_inputs",
    "flatten",
    "garbage",
    "keep_batch",
    "keep_trace",
    "libraries_of",
    "list_versions",
    "locked",
    "metrics_of",
    "newest",
    "one_at_a_time",
    "pull",
    "recipe_of",
    "record",
    "register",
    "report_of",
    "resolve",
    "restore",
    "served_at",
    "speed_of",
    "state_of",
    "tracking_uri",
    "verify_ledgers",
    "versions_named",
]
