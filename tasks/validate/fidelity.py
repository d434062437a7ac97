"""Two models on the same passages: a child process compares them, and what it finds comes back as arrays."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from tasks import child, progress
from tasks.errors import EngineError, WorkerError
from tasks.records import Record
from tasks.validate.passages import Passage
from tasks.validate.reference import Reference

_MEASURED = ("kl", "nll", "source_nll", "dp")


class Compiled(Record):
    """An exported model, and how it is to be compiled."""

    folder: Path
    device: str
    ov_config: dict[str, str]

    def message(self) -> child.Message:
        """Return what the child process needs to know."""
        return {
            "model": str(self.folder / "openvino_model.xml"),
            "device": self.device,
            "ov_config": self.ov_config,
        }


@dataclass(frozen=True)
class Comparison:
    """What a comparison found: arrays over all scored positions, in the passages' order (see `divergence.compare`)."""

    passages: Sequence[Passage]
    arrays: dict[str, NDArray[np.float64]]
    peak_rss_bytes: int

    @property
    def lengths(self) -> list[int]:
        """Positions of each passage."""
        return [passage.scored for passage in self.passages]

    @property
    def scores(self) -> dict[str, NDArray[np.float64]]:
        """What `statistics.summarise` takes."""
        same_top = (self.arrays["top"] == self.arrays["source_top"]).astype(np.float64)
        return {name: self.arrays[name] for name in _MEASURED} | {"same_top": same_top}

    @property
    def agreement(self) -> float:
        """Share of the scored tokens that the candidate itself ranks first, 0 to 1."""
        actual = np.concatenate([passage.ids[passage.start :] for passage in self.passages])
        return float((self.arrays["top"] == actual).mean())

    def of(self, first: int, last: int) -> Comparison:
        """Return the comparison of some of its passages."""
        ends = np.cumsum([0, *self.lengths])
        inside = slice(int(ends[first]), int(ends[last]))
        arrays = {name: values[inside] for name, values in self.arrays.items()}
        return Comparison(self.passages[first:last], arrays, self.peak_rss_bytes)


class Job(Record):
    """One comparison: passages, and what the exported model is compared with on them."""

    name: str = Field(description="What the passages are, for progress.")
    reference: Reference | Compiled = Field(description="The source model's results, or a model that runs beside.")
    passages: tuple[Passage, ...]


def compare_models(
    candidate: Compiled, jobs: Sequence[Job], *, stop_ids: Sequence[int] = (), timeout_s: float
) -> list[Comparison]:
    """Compare an exported model with the source model, or with another exported one.

    Args:
        candidate: The exported model.
        jobs: The comparisons.
        stop_ids: The tokens that end an answer.
        timeout_s: The child process may take this many seconds.

    Raises:
        EngineError: The exported model could not be run.
    """
    total = sum(len(job.passages) for job in jobs)
    with (
        tempfile.TemporaryDirectory(prefix="vinoflow-") as folder,
        progress.step("compare", total=total, unit="steps") as step,
    ):
        outputs = [Path(folder) / f"{number}.npz" for number in range(len(jobs))]
        request = {
            "candidate": candidate.message(),
            "jobs": [_message(job, output) for job, output in zip(jobs, outputs, strict=True)],
            "stop_ids": list(stop_ids),
        }
        try:
            result = child.run(
                "tasks.validate.score_worker",
                request,
                timeout_s=timeout_s,
                on_event=lambda event: step.update(done=step.done + 1, note=event["name"]),
            )
        except WorkerError as error:
            raise EngineError(f"{candidate.folder} cannot be compared on {candidate.device}: {error}") from error
        step.update(note=", ".join(job.name for job in jobs))
        peak = int(result["peak_rss_bytes"])
        return [Comparison(job.passages, _load(output), peak) for job, output in zip(jobs, outputs, strict=True)]


def _message(job: Job, output: Path) -> child.Message:
    if isinstance(job.reference, Compiled):
        known = {"compiled": job.reference.message()}
    else:
        known = {"stored": job.reference.model_dump(mode="json")}
    passages = [passage.model_dump() for passage in job.passages]
    return {"name": job.name, "passages": passages, "output": str(output), **known}


def _load(path: Path) -> dict[str, NDArray[np.float64]]:
    with np.load(path) as arrays:
        return {name: arrays[name] for name in arrays.files}
