"""ExportedModel -> ValidationReport: is it still the source model, does it behave on the device, is that enough."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from tasks import progress
from tasks.config import Gate, Recipe, Validation
from tasks.devices import resolve
from tasks.errors import DeviceError, EngineError
from tasks.gates import comparable, judge
from tasks.manifest import digest_of
from tasks.records import Champion, DeviceRecord, ExportedModel, Fault, ReferenceRecord, ValidationReport
from tasks.validate.answering import Asked, Clock, answered_alike, ask, restart
from tasks.validate.comparing import Compared, compare_with_source, noise_floor
from tasks.validate.constants import check_constants
from tasks.validate.findings import counts, faults_of, results_of
from tasks.validate.parity import Parity, check_parity
from tasks.validate.passages import Passage, windows
from tasks.validate.stress import STORY
from tasks.versions import RUN, versions


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
    settings = recipe.validation
    evidence = _gather(exported, recipe, floor)
    device, asked, compared = evidence.device, evidence.asked, evidence.compared
    results = results_of(asked, compared, settings)
    faults = (*evidence.faults, *faults_of(asked, compared, evidence.parity, results))
    metrics = asked.metrics | evidence.parity.metrics | compared.metrics | counts(results, faults)
    intervals = asked.intervals | compared.intervals
    reference = _reference(settings, evidence.text, compared)
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
        seconds=evidence.seconds,
        peak_rss_bytes={"engine": int(asked.metrics.get("peak_rss_bytes", 0))} | compared.peak_rss_bytes,
        verdicts=judge(
            metrics,
            _gates(settings, device),
            intervals=intervals,
            champion=champion.reference if champion else "",
            known=comparable(champion, reference, device),
        ),
    )


@dataclass
class _Evidence:
    """What was found out, before it is counted and judged."""

    device: DeviceRecord
    parity: Parity
    text: list[Passage]
    asked: Asked
    compared: Compared
    seconds: dict[str, float]
    faults: list[Fault]


def _gather(exported: ExportedModel, recipe: Recipe, floor: ExportedModel | None) -> _Evidence:
    """Run every check, each in its process; one that breaks leaves the others' evidence."""
    settings, clock, parts = recipe.validation, Clock(recipe.validation.timeout_s), _Parts()
    with parts.timed("compile"):
        device = _compile(exported, settings)
    with parts.timed("parity"), progress.step("parity"):
        parity = check_parity(
            exported.checkpoint.path,
            exported.path,
            settings.prompts,
            text=settings.text or STORY,
            trust_remote_code=recipe.export.trust_remote_code,
            timeout_s=clock.left_s("parity"),
        )
        parts.faults += check_constants(exported.path, timeout_s=clock.left_s("the weights"))
    asked, compared = Asked(), Compared()
    text = windows(parity.text_ids, prefix=parity.prefix_ids) if settings.text else []
    with parts.survived("generate"):
        asked = ask(exported.path, settings, device, text_ids=parity.text_ids, clock=clock)
        restart(exported.path, settings, device, asked=asked, clock=clock)
        if device.used != "CPU":
            asked.metrics["device_equal_answers_share"] = answered_alike(
                exported.path, settings, device="CPU", expected=asked.prompts, clock=clock
            )
    with parts.survived("compare"):
        compared = compare_with_source(
            exported, recipe, device, asked=asked, text=text, stop_ids=parity.stop_ids, clock=clock
        )
    if floor:
        with parts.survived("noise floor"):
            compared.add(*noise_floor(exported.checkpoint, floor, text, clock=clock))
    return _Evidence(device, parity, text, asked, compared, parts.seconds, parts.faults)


@dataclass
class _Parts:
    """What the parts of a validation took, and what went wrong in them."""

    seconds: dict[str, float] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)

    @contextmanager
    def timed(self, part: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.seconds[part] = round(time.perf_counter() - started, 3)

    @contextmanager
    def survived(self, part: str) -> Iterator[None]:
        """Take down a failure of the engine, and go on with what else can be found out."""
        try:
            with self.timed(part):
                yield
        except (DeviceError, EngineError) as error:
            self.faults.append(Fault(metric="engine_failures", subject="the engine", message=str(error)))


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


def _gates(settings: Validation, device: DeviceRecord) -> dict[str, Gate]:
    """Return the gates that a device is judged by: the CPU by none that says how far it is from the CPU."""
    return {
        name: gate
        for name, gate in settings.all_gates.items()
        if device.used != "CPU" or not name.startswith("device_")
    }


def _reference(settings: Validation, text: Sequence[Passage], compared: Compared) -> ReferenceRecord:
    return ReferenceRecord(
        precision=settings.reference,
        text_tokens=sum(passage.scored for passage in text),
        text_digest=digest_of(settings.text) if settings.text else "",
        prompts_digest=digest_of([prompt.model_dump(mode="json") for prompt in settings.prompts]),
        cached=compared.cached,
    )
