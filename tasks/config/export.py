"""How the weights are compressed."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from tasks.config.base import Config


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
