"""ExportedModel -> ValidationReport: what it answers on the device, how fast, and whether that is enough."""

from __future__ import annotations

import time

from tasks import progress
from tasks.config import Recipe, ReferencePrompt, Validation
from tasks.devices import resolve
from tasks.engine import Completion, Engine, Request
from tasks.errors import EngineError
from tasks.records import DeviceRecord, ExportedModel, PromptResult, ValidationReport
from tasks.validate.expectations import failures
from tasks.validate.gates import judge
from tasks.validate.performance import performance
from tasks.versions import RUN, versions


def validate(exported: ExportedModel, recipe: Recipe) -> ValidationReport:
    """Answer the reference prompts on the recipe's device and judge the answers.

    Raises:
        DeviceError: The device is missing or refuses the model.
        EngineError: The engine died, or the whole took longer than the recipe's timeout.
    """
    settings = recipe.validation
    with progress.step("compile") as step:
        device = resolve(
            exported.path,
            device=settings.device,
            on_missing=settings.on_missing_device,
            ov_config=settings.ov_config,
            timeout_s=settings.timeout_s,
        )
        step.update(note=f"on {device.used}")
    results, metrics = _answer(exported, settings, device)
    passed = sum(not result.failures for result in results)
    metrics |= {"prompts": len(results), "prompts_passed": passed, "prompts_passed_share": passed / len(results)}
    return ValidationReport(
        model_digest=exported.digest,
        checkpoint_digest=exported.checkpoint.digest,
        recipe_digest=recipe.digest,
        device=device,
        versions=versions(RUN),
        metrics=metrics,
        prompts=results,
        verdicts=judge(metrics, settings.all_gates),
    )


def _answer(
    exported: ExportedModel, settings: Validation, device: DeviceRecord
) -> tuple[tuple[PromptResult, ...], dict[str, float]]:
    """Answer the prompts one at a time, after a warm-up that does not count."""
    deadline = time.monotonic() + settings.timeout_s
    results = []
    # prefix caching would make every prompt after the first look faster than a user's first one
    with (
        Engine(exported.path, device=device.used, ov_config=settings.ov_config, prefix_caching=False) as engine,
        progress.step("generate", total=len(settings.prompts), unit="steps") as step,
    ):
        engine.answer(_request(settings.prompts[0], 8))
        for number, prompt in enumerate(settings.prompts, start=1):
            if time.monotonic() > deadline:
                raise EngineError(
                    f"validation took longer than validation.timeout_s {settings.timeout_s:g}: prompt {number} of "
                    f"{len(settings.prompts)} was not begun"
                )
            step.update(note=prompt.id)
            completion = engine.answer(_request(prompt, settings.max_new_tokens))
            results.append(_result(prompt, completion))
            step.update(done=number, note="")
        metrics = performance([result.answer for result in results])
        metrics |= {"load_ms": engine.load_ms, "peak_rss_bytes": float(engine.peak_rss_bytes)}
    return tuple(results), metrics


def _request(prompt: ReferencePrompt, max_new_tokens: int) -> Request:
    return Request(
        messages=prompt.messages,
        prompt=prompt.prompt or "",
        add_special_tokens=prompt.add_special_tokens,
        max_new_tokens=min(max_new_tokens, prompt.max_new_tokens or max_new_tokens),
    )


def _result(prompt: ReferencePrompt, completion: Completion) -> PromptResult:
    return PromptResult(
        id=prompt.id,
        prompt=completion.prompt,
        answer=completion.answer,
        failures=failures(completion.answer, prompt.expect),
    )
