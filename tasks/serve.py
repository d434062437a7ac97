"""A model reference and prompts -> answers: pull, check, load, answer."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from pydantic import Field

from tasks import devices, progress
from tasks.engine import Completion, Engine, Request
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
    with loaded(reference, device=device) as (engine, version, used):
        completions = dict(engine.answers(requests, on_text=on_text))
    ordered = tuple(completions[index] for index in range(len(requests)))
    return Answered(version=version, device=used, completions=ordered)


@contextmanager
def loaded(reference: str, *, device: str | None = None) -> Iterator[tuple[Engine, ModelVersion, str]]:
    """Pull and load a version; end its process afterwards.

    Args:
        reference: NAME/VERSION, NAME@ALIAS or NAME@latest.
        device: Where to run; none: where the version was validated.

    Raises:
        VersionNotFoundError: There is no such version.
        IntegrityError: One of its files is not what was registered.
        DeviceError: The device is missing or refuses the model.
    """
    used = devices.chosen(device)
    model = pull(reference)
    used = used or model.version.tags["vinoflow.device"]
    with load(model, device=used) as engine:
        yield engine, model.version, used


def load(model: PulledModel, *, device: str) -> Engine:
    """Load a pulled version with the OpenVINO properties that it was validated with."""
    with progress.step("load") as step:
        step.update(note=f"{model.version.reference} on {device}")
        return Engine(model.path, device=device, ov_config=json.loads(model.version.tags["vinoflow.ov_config"]))
