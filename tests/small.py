"""Versions of a few bytes with all that a registered version has: for what is about versions, not about models."""

from __future__ import annotations

import time
from pathlib import Path

from tasks.config import Recipe
from tasks.manifest import build_manifest, write_manifest
from tasks.records import (
    Answer,
    Checkpoint,
    DeviceRecord,
    ExportedModel,
    ModelVersion,
    Origin,
    PromptResult,
    ReferenceRecord,
    ValidationReport,
    Verdict,
    Weights,
)
from tasks.registry import RunContext, record, register


def recipe(name: str = "small", *, device: str = "CPU", **registry: object) -> Recipe:
    prompts = [{"id": "hello", "messages": [{"role": "user", "content": "Hello"}]}]
    gates = {"answers_kl_mean": {"max": 1.0, "max_of_champion": 1.5}}
    return Recipe.model_validate(
        {
            "name": name,
            "source": {"kind": "local", "path": "checkpoint"},
            "export": {"weight_format": "int4"},
            "validation": {"device": device, "prompts": prompts, "gates": gates},
            "registry": registry,
        }
    )


def exported(folder: Path, content: str) -> ExportedModel:
    """A folder that holds two files of a few bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "openvino_model.bin").write_text(content)
    (folder / "openvino_model.xml").write_text(f"<net><!-- {content} --></net>")
    manifest = build_manifest(folder)
    write_manifest(folder, manifest)
    origin = Origin(kind="local", location="checkpoint", revision="local", requested="local")
    return ExportedModel(
        path=folder,
        digest=manifest.digest,
        size_bytes=manifest.size_bytes,
        checkpoint=Checkpoint(path=folder, digest="c" * 64, size_bytes=1, origin=origin),
        weights=Weights(size_bytes=1, share_by_type={"int4_sym": 1.0}, group_sizes={}, ignored_layers=(), settings={}),
        versions={"nncf": "3.4.0"},
        seconds=1.0,
        peak_rss_bytes=1,
    )


def report(
    model: ExportedModel, made_by: Recipe, *, kl: float = 0.2, device: str = "CPU", passed: bool = True
) -> ValidationReport:
    said = Answer(
        text="Hi", token_ids=(1, 2), finish_reason="stop", prompt_tokens=3, ttft_ms=12.0, tpot_ms=1.0, seconds=0.01
    )
    return ValidationReport(
        model_digest=model.digest,
        checkpoint_digest=model.checkpoint.digest,
        recipe_digest=made_by.digest,
        device=DeviceRecord(
            requested=made_by.validation.device,
            used=device,
            full_name=device,
            execution_devices=(device,),
            ov_config={},
        ),
        versions={"openvino": "1"},
        metrics={
            "answers_kl_mean": kl,
            "ttft_ms": 12.0,
            "prompts": 1,
            "prompts_passed": 1,
            "prompts_passed_share": 1,
            "answers_same_top_share": 0.9,
            "answers_perplexity": 2.0,
            "answers_source_perplexity": 2.0,
            "fdt_median": 1.0,
        },
        intervals={"answers_kl_mean": (kl * 0.99, kl * 1.01)},
        reference=ReferenceRecord(precision="fp32", prompts_digest="p" * 64),
        prompts=(PromptResult(id="hello", prompt="Hello", answer=said, failures=()),),
        verdicts=(
            Verdict(metric="answers_kl_mean", value=kl, limit="at most 1", passed=passed),
            Verdict(metric="prompts_passed_share", value=1, limit="at least 1", passed=True),
        ),
    )


def version(
    folder: Path,
    content: str,
    *,
    kl: float = 0.2,
    device: str = "CPU",
    passed: bool = True,
    made_by: Recipe | None = None,
) -> ModelVersion:
    """Record and register a small version whose files hold `content`."""
    made_by = made_by or recipe()
    model = exported(folder / content, content)
    found = report(model, made_by, kl=kl, device=device, passed=passed)
    return registered(made_by, model, found, inputs=f"inputs-{content}", evidence=folder / f"{content}-evidence")


def registered(
    made_by: Recipe, model: ExportedModel, found: ValidationReport, *, inputs: str, evidence: Path
) -> ModelVersion:
    """Record and register an exported model."""
    evidence.mkdir(exist_ok=True)
    (evidence / "report.json").write_text(found.model_dump_json(indent=1) + "\n")
    (evidence / "report.html").write_text("<p>A report</p>")
    context = RunContext(started_at=time.time(), inputs=inputs)
    run_id = record(made_by, model, found, context, evidence=evidence)
    return register(made_by, model, found, context, run_id=run_id)
