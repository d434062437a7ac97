"""Requests that were served, as traces in MLflow."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from tasks.registry.store import connect, experiment_id, translated

EXPERIMENT = "vinoflow-serving"


def keep_trace(about: Mapping[str, object], *, prompt: str, answers: Sequence[str], seconds: float) -> None:
    """Keep one request that has just ended.

    Args:
        about: What is known of it: version, digest, tokens, ttft_ms and so on.
        prompt: What was asked; empty: is not kept.
        answers: What was answered.
        seconds: From the request to its end.

    Raises:
        RegistryError: MLflow does not take it.
    """
    client = connect()
    with translated():
        import mlflow

        ended_ns = time.time_ns()
        span = mlflow.start_span_no_context(
            "answer",
            span_type="LLM",
            inputs=prompt or None,
            attributes=dict(about),
            experiment_id=experiment_id(client, EXPERIMENT),
            start_time_ns=ended_ns - int(seconds * 1e9),
        )
        span.set_outputs(list(answers) or None)
        span.end(end_time_ns=ended_ns)
