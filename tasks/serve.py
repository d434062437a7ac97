"""A model reference and prompts -> answers: pull, check, load, answer."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

from pydantic import Field

from tasks import progress
from tasks.config import one_device
from tasks.engine import Completion, Engine, Request
from tasks.errors import DeviceError
from tasks.records import ModelVersion, Record
from tasks.registry import PulledModel, pull


class Answered(Record):
    """Answers, and the version that gave them."""

    version: ModelVersion
    device: str
    completions: tuple[Completion, ...] = Field(description="In the order of the requests.")


def answer(
    reference: str,
    requests: Sequence[Request],
    *,
    device: str | None = None,
    on_text: Callable[[int, str], None] = lambda *_: None,
) -> Answered:
    """Answer requests with a registered version.

    Args:
        reference: NAME/VERSION, NAME@ALIAS or NAME@latest.
        requests: What to answer, all at once.
        device: Where to run; none: where the version was validated.
        on_text: Is called with a request's index and each piece of text as it comes.

    Raises:
        VersionNotFoundError: There is no such version.
        IntegrityError: One of its files is not what was registered.
        DeviceError: The device is missing or refuses the model.
        EngineError: A request was not answered.
    """
    try:
        chosen = one_device(device) if device else None
    except ValueError as error:
        raise DeviceError(f"device {error}") from error
    model = pull(reference)
    used = chosen or model.version.tags["vinoflow.device"]
    with load(model, device=used) as engine:
        completions = dict(engine.answers(requests, on_text=on_text))
    ordered = tuple(completions[index] for index in range(len(requests)))
    return Answered(version=model.version, device=used, completions=ordered)


def load(model: PulledModel, *, device: str) -> Engine:
    """Load a pulled version with the OpenVINO properties that it was validated with."""
    with progress.step("load") as step:
        step.update(note=f"{model.version.reference} on {device}")
        return Engine(model.path, device=device, ov_config=json.loads(model.version.tags["vinoflow.ov_config"]))
