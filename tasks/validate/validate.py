"""ExportedModel -> ValidationReport: is it still the source model, does it behave on the device, is that enough."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from tasks import progress
from tasks.config import Recipe, Validation
from tasks.devices import resolve
from tasks.engine import Completion
from tasks.errors import DeviceError, EngineError
from tasks.manifest import digest_of
from tasks.records import (
    Champion,
    DeviceRecord,
    Divergence,
    ExportedModel,
    Fault,
    PromptResult,
    ReferenceRecord,
    ScoredToken,
    ValidationReport,
)
from tasks.validate.answering import SHORT_PROBE, Asked, Clock, answered_alike, ask, restart
from tasks.validate.comparing import Compared, compare_with_source, noise_floor
from tasks.validate.constants import check_constants
from tasks.validate.expectations import failures
from tasks.validate.gates import comparable, judge
from tasks.validate.parity import Parity, check_parity
from tasks.validate.passages import Passage, windows
from tasks.validate.sanity import differing, said
from tasks.validate.stress import STORY
from tasks.versions import RUN, versions

ABSURD = 50.0  # perplexity under the source model: good answers stay below 4, gibberish is in the thousands
COUNTED = (
    "engine_failures",
    "nonfinite_weights",
    "empty_answers",
    "looping_answers",
    "malformed_answers",
    "unrepeatable_answers",
    "long_prompt_faults",
    "warm_start_mismatches",
)


def validate(
    exported: ExportedModel,
    recipe: Recipe,
    *,
    champion: Champion | None = None,
    floor: ExportedModel | None = None,
) -> ValidationReport:
    """Answer the reference prompts on the recipe's device, compare with the source model, and judge.

    Args:
        exported: What is validated.
        recipe: Its recipe.
        champion: The version that relative gates compare with.
        floor: The source model exported in fp32, for the noise floor.

    What fails on the way once the model is compiled is told in the report, and fails its gates.

    Raises:
        DeviceError: The device is missing or refuses the model.
        WorkerError: The source model cannot be run.
    """
    settings, clock, seconds = recipe.validation, Clock(recipe.validation.timeout_s), _Seconds()
    with seconds.of("compile"):
        device = _compile(exported, settings)
    with seconds.of("parity"), progress.step("parity"):
        parity = check_parity(
            exported.checkpoint.path,
            exported.path,
            settings.prompts,
            text=settings.text or STORY,
            trust_remote_code=recipe.export.trust_remote_code,
            timeout_s=clock.left_s("parity"),
        )
        broken = check_constants(exported.path, timeout_s=clock.left_s("the weights"))
    asked, compared = Asked(), Compared()
    more: dict[str, float] = {}
    restarts: list[Fault] = []
    failed: list[Fault] = []
    text = windows(parity.text_ids, prefix=parity.prefix_ids) if settings.text else []
    with _told(failed), seconds.of("generate"):
        asked = ask(exported.path, settings, device, text_ids=parity.text_ids, clock=clock)
        more, restarts = restart(exported.path, settings, device, expected=asked.prompts, clock=clock)
        if device.used != "CPU":
            more["device_equal_answers_share"] = answered_alike(
                exported.path, settings, device="CPU", expected=asked.prompts, clock=clock
            )
    with _told(failed), seconds.of("compare"):
        compared = compare_with_source(
            exported, recipe, device, asked=asked, text=text, stop_ids=parity.stop_ids, clock=clock
        )
    metrics, intervals = asked.metrics | more | parity.metrics | compared.metrics, asked.intervals | compared.intervals
    if floor and text:
        with seconds.of("noise floor"):
            value, spread = noise_floor(exported.checkpoint, floor, text, clock=clock)
        metrics["noise_floor_kl_mean"], intervals["noise_floor_kl_mean"] = value, spread
    results = _results(asked, settings, compared)
    faults = (
        *failed,
        *broken,
        *parity.faults,
        *asked.faults,
        *restarts,
        *_sanity(asked, results, parity, compared),
    )
    metrics |= _counts(results, faults, compared_with_source=bool(compared.divergences))
    reference = _reference(settings, text, compared)
    gates = {
        name: gate
        for name, gate in settings.all_gates.items()
        if device.used != "CPU" or not name.startswith("device_")  # what says how far a device is from the CPU
    }
    return ValidationReport(
        model_digest=exported.digest,
        checkpoint_digest=exported.checkpoint.digest,
        recipe_digest=recipe.digest,
        device=device,
        versions=versions(RUN),
        metrics=metrics,
        intervals=intervals,
        reference=reference,
        champion=champion.reference if champion else "",
        prompts=results,
        faults=faults,
        kl_by_position=compared.bands,
        kl_histogram=compared.histogram,
        latency=tuple(asked.latency),
        seconds=seconds.taken,
        peak_rss_bytes={"engine": int(asked.metrics.get("peak_rss_bytes", 0))} | compared.peak_rss_bytes,
        verdicts=judge(
            metrics,
            gates,
            intervals=intervals,
            champion=champion.reference if champion else "",
            known=comparable(champion, reference, device),
        ),
    )


class _Seconds:
    """What the parts of the validation took."""

    def __init__(self) -> None:
        self.taken: dict[str, float] = {}

    @contextmanager
    def of(self, part: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.taken[part] = round(time.perf_counter() - started, 3)


@contextmanager
def _told(failed: list[Fault]) -> Iterator[None]:
    """Take down a failure of the engine, and go on with what else can be found out."""
    try:
        yield
    except (DeviceError, EngineError) as error:
        failed.append(Fault(metric="engine_failures", subject="the engine", message=str(error)))


def _compile(exported: ExportedModel, settings: Validation) -> DeviceRecord:
    with progress.step("compile") as step:
        device = resolve(
            exported.path,
            device=settings.device,
            on_missing=settings.on_missing_device,
            ov_config=settings.ov_config,
            timeout_s=settings.timeout_s,
        )
        step.update(note=f"on {device.used}")
    return device


def _results(asked: Asked, settings: Validation, compared: Compared) -> tuple[PromptResult, ...]:
    """Return the reference prompts with their answers, and with what comparing found of them."""
    return tuple(
        _result(prompt.id, completion, compared, number, expectations=failures(completion.answer, prompt.expect))
        for number, (prompt, completion) in enumerate(zip(settings.prompts, asked.prompts, strict=False))
    )


def _result(
    name: str, completion: Completion, compared: Compared, number: int, *, expectations: tuple[str, ...] = ()
) -> PromptResult:
    divergence: Divergence | None = None
    tokens: tuple[ScoredToken, ...] = ()
    if compared.divergences:
        divergence, tokens = compared.divergences[number], compared.tokens[number]
    return PromptResult(
        id=name,
        prompt=completion.prompt,
        answer=completion.answer,
        failures=expectations,
        divergence=divergence,
        tokens=tokens,
    )


def _sanity(asked: Asked, results: Sequence[PromptResult], parity: Parity, compared: Compared) -> list[Fault]:
    """Return what is wrong with the answers as such."""
    ids = {"stop_ids": parity.stop_ids, "template_ids": parity.template_ids}
    probes = [
        _result(name, completion, compared, number)
        for number, (name, completion) in enumerate(asked.probes.items(), start=len(results))
    ]
    repeated = differing(results, [completion.answer for completion in asked.again])
    return [*said(results, **ids), *repeated, *_about_probes(probes, said(probes, **ids))]


def _about_probes(probes: Sequence[PromptResult], found: Sequence[Fault]) -> Iterator[Fault]:
    """Yield what is wrong with the answers to probes.

    The source model tells best whether one is absurd; without it, a loop does, but not after a single token, where the
    best models go round in circles.
    """
    compared = {probe.id for probe in probes if probe.divergence}
    for fault in found:
        if fault.metric != "looping_answers" or fault.subject not in compared | {SHORT_PROBE}:
            yield fault.model_copy(update={"metric": "long_prompt_faults"})
    for probe in probes:
        if probe.divergence and probe.divergence.perplexity > ABSURD:
            perplexity = f"perplexity {probe.divergence.perplexity:.0f}"
            message = f"the source model finds the answer absurd ({perplexity}): {probe.answer.text!r}"
            yield Fault(metric="long_prompt_faults", subject=probe.id, message=message)


def _counts(
    results: Sequence[PromptResult], faults: Sequence[Fault], *, compared_with_source: bool
) -> dict[str, float]:
    passed, asked = sum(not result.failures for result in results), max(1, len(results))
    counted = [*COUNTED, *(["missed_stops"] if compared_with_source else [])]  # only the source tells of those
    return {
        "prompts": float(len(results)),
        "prompts_passed": float(passed),
        "prompts_passed_share": passed / asked,
        "looping_share": sum(fault.metric == "looping_answers" for fault in faults) / asked,
        **{metric: float(sum(fault.metric == metric for fault in faults)) for metric in counted},
    }


def _reference(settings: Validation, text: Sequence[Passage], compared: Compared) -> ReferenceRecord:
    return ReferenceRecord(
        precision=settings.reference,
        text_tokens=sum(passage.scored for passage in text),
        text_digest=digest_of(settings.text) if settings.text else "",
        prompts_digest=digest_of([prompt.model_dump(mode="json") for prompt in settings.prompts]),
        cached=compared.cached,
    )
