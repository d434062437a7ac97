"""The engine on the device: what it says to the prompts, again and again, alone and together, cold and warm."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tasks import locations, progress
from tasks.config import Validation
from tasks.engine import Completion, Engine, Request
from tasks.errors import DeviceError, EngineError
from tasks.records import DeviceRecord, Fault, LatencyRound
from tasks.validate.performance import latency_round, performance

# so that greedy means the first-ranked token, whatever generation_config.json says
_GREEDY: dict[str, float | int | bool] = {"repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}
_PROBE_TOKENS = 32  # of the answers to a very long and a very short prompt
_LONG = 1536
SHORT_PROBE = "short-prompt"
_RESTART_PROMPTS = 4


class Clock:
    """What is left of the validation's time."""

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._end = time.monotonic() + timeout_s

    def left_s(self, what: str) -> float:
        """Return the seconds that are left for something.

        Raises:
            EngineError: There are none.
        """
        left = self._end - time.monotonic()
        if left <= 0:
            raise EngineError(
                f"validation took longer than validation.timeout_s {self._timeout_s:g}: {what} was not begun"
            )
        return left


@dataclass
class Asked:
    """What the engine said to the reference prompts and to the probes, and how fast."""

    prompts: list[Completion] = field(default_factory=list)
    again: list[Completion] = field(default_factory=list)
    probes: dict[str, Completion] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    latency: list[LatencyRound] = field(default_factory=list)
    metrics: dict[str, float] = field(default_factory=dict)
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)


def ask(
    folder: Path,
    settings: Validation,
    device: DeviceRecord,
    *,
    text_ids: Sequence[int],
    clock: Clock,
) -> Asked:
    """Answer the reference prompts over several rounds, and a long and a short prompt.

    Raises:
        EngineError: The engine died, or the time ran out.
    """
    asked = Asked()
    requests = reference_requests(settings)
    rounds = settings.rounds
    # prefix caching would make every prompt after the first look faster than a user's first one
    with (
        Engine(folder, device=device.used, ov_config=settings.ov_config, prefix_caching=False) as engine,
        progress.step("generate", total=2 * rounds * len(requests), unit="steps") as step,
    ):
        engine.answer(requests[0].model_copy(update={"max_new_tokens": 8}))
        for number in range(rounds):
            step.update(note=f"round {number + 1}, one at a time")
            completions, seconds = [], 0.0
            for request in requests:
                clock.left_s(f"a prompt of round {number + 1}")
                completions.append(engine.answer(request))
                seconds += completions[-1].answer.seconds
                step.update(done=step.done + 1)
            asked.latency.append(latency_round(completions, concurrency=1, seconds=seconds))
            asked.prompts = asked.prompts or completions
            asked.again = completions
        for number in range(rounds):
            step.update(note=f"round {number + 1}, {settings.concurrency} at once")
            asked.latency.append(_together(engine, requests, settings.concurrency, clock))
            step.update(done=step.done + len(requests))
        step.update(note="long and short prompts")
        _probe(engine, asked, text_ids, clock)
        step.update(note="")
        asked.metrics = {"load_ms": engine.load_ms, "peak_rss_bytes": float(engine.peak_rss_bytes)}
    asked.metrics["concurrent_prompts"] = settings.concurrency
    for prefix, found in (("", asked.latency[:rounds]), ("concurrent_", asked.latency[rounds:])):
        metrics, intervals = performance(found, prefix=prefix)
        asked.metrics |= metrics
        asked.intervals |= intervals
    return asked


def reference_requests(settings: Validation) -> list[Request]:
    """Return the reference prompts as greedy requests."""
    limit = settings.max_new_tokens
    return [
        Request(
            messages=prompt.messages,
            prompt=prompt.prompt or "",
            add_special_tokens=prompt.add_special_tokens,
            max_new_tokens=min(limit, prompt.max_new_tokens or limit),
            generation=_GREEDY,
        )
        for prompt in settings.prompts
    ]


def _together(engine: Engine, requests: Sequence[Request], concurrency: int, clock: Clock) -> LatencyRound:
    """Answer all prompts, so many at once; where there are fewer, some are asked twice."""
    filled = [requests[index % len(requests)] for index in range(max(len(requests), concurrency))]
    completions, seconds = [], 0.0
    for first in range(0, len(filled), concurrency):
        group = filled[first : first + concurrency]
        started = time.perf_counter()
        completions += [found for _, found in engine.answers(group, timeout_s=clock.left_s("a concurrent round"))]
        seconds += time.perf_counter() - started
    return latency_round(completions, concurrency=concurrency, seconds=seconds)


def _probe(engine: Engine, asked: Asked, text_ids: Sequence[int], clock: Clock) -> None:
    """Ask with a prompt of 1,536 tokens (less where the context is smaller), and with one of a single token."""
    clock.left_s("the long prompt")
    for name, ids in (
        ("long-prompt", text_ids[: min(_LONG, engine.context - _PROBE_TOKENS - 1)]),
        (SHORT_PROBE, text_ids[:1]),
    ):
        request = Request(token_ids=tuple(ids), max_new_tokens=_PROBE_TOKENS, generation=_GREEDY)
        try:
            asked.probes[name] = engine.answer(request)
        except EngineError as error:
            asked.faults.append(Fault(metric="long_prompt_faults", subject=name, message=str(error)))


def restart(
    folder: Path,
    settings: Validation,
    device: DeviceRecord,
    *,
    asked: Asked,
    clock: Clock,
) -> None:
    """Start twice with a compiled-model cache, the second time from it; both must answer as was `asked` before.

    What it finds joins the metrics and faults of `asked`.
    """
    requests = reference_requests(settings)[:_RESTART_PROMPTS]
    locations.cache().mkdir(parents=True, exist_ok=True)
    with (
        progress.step("restart", total=2, unit="steps") as step,
        tempfile.TemporaryDirectory(prefix="compiled-", dir=locations.cache()) as cache,
    ):
        ov_config = settings.ov_config | {"CACHE_DIR": cache}
        for number, start in enumerate(("cold", "warm"), start=1):
            clock.left_s(f"the {start} start")
            step.update(note=start)
            try:
                with Engine(folder, device=device.used, ov_config=ov_config, prefix_caching=False) as engine:
                    given = [engine.answer(request).answer for request in requests]
                    asked.metrics[f"load_{start}_ms"] = engine.load_ms
            except (DeviceError, EngineError) as error:
                message = f"the {start} start with a compiled-model cache failed: {error}"
                asked.faults.append(Fault(metric="warm_start_mismatches", subject=start, message=message))
                break
            asked.faults += [
                Fault(
                    metric="warm_start_mismatches",
                    subject=prompt.id,
                    message=f"after a {start} start with a compiled-model cache the answer is another: {answer.text!r}",
                )
                for prompt, answer, known in zip(settings.prompts, given, asked.prompts, strict=False)
                if answer.token_ids != known.answer.token_ids
            ]
            step.update(done=number, note="")


def answered_alike(
    folder: Path,
    settings: Validation,
    *,
    device: str,
    expected: Sequence[Completion],
    clock: Clock,
) -> float:
    """Return the share of the reference prompts that another device answers as `expected`, token by token."""
    requests = reference_requests(settings)
    with (
        Engine(folder, device=device, ov_config=settings.ov_config, prefix_caching=False) as engine,
        progress.step("generate", total=len(requests), unit="steps") as step,
    ):
        alike = 0
        for number, (request, known) in enumerate(zip(requests, expected, strict=True), start=1):
            clock.left_s(f"a prompt on {device}")
            alike += engine.answer(request).answer.token_ids == known.answer.token_ids
            step.update(done=number, note=f"on {device}")
    return alike / len(requests)
