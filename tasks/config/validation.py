"""With which prompts and text an export is checked, on which device, and what it must reach."""

from __future__ import annotations

import difflib
import re
from typing import Literal

from pydantic import Field, field_validator, model_validator

from tasks.config.base import Config
from tasks.metrics import BUILT_IN_GATES, METRICS, NEED_REFERENCE


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
        if self.messages and not self.add_special_tokens:
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
    def _noise_floor_can_be_measured(self) -> Validation:
        if self.noise_floor and not (self.text and self.reference != "none"):
            raise ValueError("noise_floor needs the source model and a text: set reference and text, or drop it")
        return self

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
