"""What operators see: Prometheus metrics, a log line a request, and a sample of requests as traces in MLflow."""

from __future__ import annotations

import asyncio
import json
import logging
import random
import time
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics

from tasks.errors import VinoflowError
from tasks.records import ModelVersion
from tasks.registry import keep_trace
from tasks.serving.problems import CLIENT_GONE, ApiError

request_log = logging.getLogger("vinoflow.requests")
_log = logging.getLogger(__name__)
_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_TOKEN_SECONDS = (0.002, 0.005, 0.01, 0.02, 0.035, 0.05, 0.075, 0.1, 0.2, 0.5, 1)


@dataclass
class Seen:
    """What is known of one request when it is over."""

    id: str
    method: str
    path: str
    started: float = field(default_factory=time.perf_counter)
    client: str = ""  # the owner of the key
    user: str = ""  # as the request says
    status: int = 500
    version: ModelVersion | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    ttft_s: float | None = None
    finish: list[str] = field(default_factory=list)
    error: str = ""
    reason: str = ""  # why it was not answered, as the code of an error
    prompt: str = ""
    answers: list[str] = field(default_factory=list)

    def first_token(self) -> None:
        """Note that the first piece of an answer is here."""
        self.ttft_s = time.perf_counter() - self.started

    def failed(self, error: ApiError) -> None:
        """Note why it was not answered."""
        self.error, self.reason = error.message, error.code or str(error.status)

    def gone(self) -> None:
        """Note that the client did not wait."""
        self.status, self.reason = CLIENT_GONE, "client_gone"


class Observer:
    """Counts and logs what was seen."""

    def __init__(self, *, log_prompts: bool, trace_share: float) -> None:
        """Take what the settings say."""
        self.registry = CollectorRegistry()
        self._log_prompts = log_prompts
        self._trace_share = trace_share
        self._traces: set[asyncio.Task[None]] = set()
        kept = self.registry
        disable_created_metrics()  # type: ignore[no-untyped-call] # a second series for each
        by = ["path", "status"]
        self.requests = Counter("vinoflow_requests", "Requests by path and HTTP status.", by, registry=kept)
        self.rejections = Counter("vinoflow_rejections", "Requests not answered, by reason.", ["reason"], registry=kept)
        self.prompt_tokens = Counter("vinoflow_prompt_tokens", "Tokens read.", registry=kept)
        self.completion_tokens = Counter("vinoflow_completion_tokens", "Tokens generated.", registry=kept)
        self.swaps = Counter("vinoflow_swaps", "Moves to another version, by result.", ["result"], registry=kept)
        self.ttft, self.tpot, self.duration = (
            Histogram(f"vinoflow_{name}_seconds", what, buckets=buckets, registry=kept)
            for name, what, buckets in (
                ("ttft", "From a request to its first token.", _SECONDS),
                ("tpot", "Mean time a token after the first.", _TOKEN_SECONDS),
                ("request", "From a request to its end.", _SECONDS),
            )
        )
        self._gauges = {
            name: Gauge(f"vinoflow_{name}", what, registry=kept)
            for name, what in (
                ("running", "Answers that are generated now."),
                ("waiting", "Answers that wait for their turn."),
                ("ready", "1: requests are answered now."),
                ("engine_restarts", "How often the engine of the present version was loaded anew."),
                ("engine_peak_rss_bytes", "The largest memory of the engine's process."),
                ("swap_failed", "1: the alias names a version that could not be loaded; the one before serves."),
            )
        }
        self._model = Gauge("vinoflow_model", "What is served.", ["model", "version", "digest"], registry=kept)

    def present(self, version: ModelVersion | None, **values: float) -> None:
        """Note what is so at this moment: the gauges by their names."""
        self._model.clear()
        if version is not None:
            self._model.labels(version.name, str(version.version), version.digest).set(1)
        for name, value in values.items():
            self._gauges[name].set(value)

    def ended(self, seen: Seen) -> None:
        """Note the end of a request."""
        seconds = time.perf_counter() - seen.started
        self.requests.labels(seen.path, str(seen.status)).inc()
        if seen.reason:
            self.rejections.labels(seen.reason).inc()
        if seen.completion_tokens:
            self.duration.observe(seconds)
            self.prompt_tokens.inc(seen.prompt_tokens)
            self.completion_tokens.inc(seen.completion_tokens)
        if seen.ttft_s is not None:
            self.ttft.observe(seen.ttft_s)
            if seen.completion_tokens > 1:
                self.tpot.observe((seconds - seen.ttft_s) / (seen.completion_tokens - 1))
        request_log.info(json.dumps(self._line(seen, seconds), ensure_ascii=False))
        if seen.version and seen.completion_tokens and random.random() < self._trace_share:  # noqa: S311 - a sample
            task = asyncio.create_task(self._trace(seen, seconds))
            self._traces.add(task)
            task.add_done_callback(self._traces.discard)

    def _line(self, seen: Seen, seconds: float) -> dict[str, object]:
        line: dict[str, object] = {
            "request": seen.id,
            "method": seen.method,
            "path": seen.path,
            "status": seen.status,
            "seconds": round(seconds, 4),
        }
        optional = {
            "client": seen.client,
            "user": seen.user,
            "version": seen.version and seen.version.reference,
            "digest": seen.version and seen.version.digest,
            "prompt_tokens": seen.prompt_tokens,
            "completion_tokens": seen.completion_tokens,
            "ttft_ms": seen.ttft_s and round(1000 * seen.ttft_s, 1),
            "finish": seen.finish,
            "error": seen.error,
        }
        if self._log_prompts:
            optional |= {"prompt": seen.prompt, "answers": seen.answers}
        return line | {name: value for name, value in optional.items() if value}

    async def _trace(self, seen: Seen, seconds: float) -> None:
        about = self._line(seen, seconds)
        texts = (seen.prompt, seen.answers) if self._log_prompts else ("", [])
        try:
            await asyncio.to_thread(keep_trace, about, prompt=texts[0], answers=texts[1], seconds=seconds)
        except VinoflowError as error:
            _log.warning("a request could not be kept as a trace: %s", error)
