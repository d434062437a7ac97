"""The source model's side of a comparison: made once a checkpoint and kept in the cache, read block by block."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray
from pydantic import Field

from tasks import child, locations, progress
from tasks.errors import WorkerError
from tasks.manifest import build_manifest, digest_of, put_in_place, read_manifest, verify, write_manifest
from tasks.records import Checkpoint, Record
from tasks.validate.passages import Passage, digest
from tasks.versions import versions

_MADE_WITH = ("torch", "transformers")


class Reference(Record):
    """The source model's results on some passages."""

    folder: Path = Field(description="states.npy and ways.json.")
    head: Path = Field(description="The last projection: weight.npy, bias.npy, form.json.")
    cached: bool = Field(description="Whether it was there already.")
    peak_rss_bytes: int = 0


def score_source(
    checkpoint: Checkpoint,
    passages: Sequence[Passage],
    *,
    name: str,
    precision: Literal["fp32", "bf16"],
    trust_remote_code: bool = False,
    timeout_s: float,
) -> Reference:
    """Return the source model's results on passages, from the cache where they are known.

    Args:
        checkpoint: The source model.
        passages: What it reads.
        name: What the passages are, for progress; those of "answers" are also continued, greedily.
        precision: Of weights and arithmetic.
        trust_remote_code: Run the checkpoint's code.
        timeout_s: The child process may take this many seconds.

    Raises:
        WorkerError: The source model cannot be loaded or run.
    """
    made_with = {"checkpoint": checkpoint.digest, "precision": precision, "versions": versions(_MADE_WITH)}
    root = locations.cache() / "references"
    head = root / digest_of(made_with)
    folder = root / digest_of(made_with | {"passages": digest(passages), "name": name})
    root.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{head}.lock"):
        known_head = _whole(head)
        if known_head and _whole(folder):
            return Reference(folder=folder, head=head, cached=True)
        prefix = f".staging-{head.name[:16]}-"
        for left in root.glob(f"{prefix}*"):  # of runs that were killed
            shutil.rmtree(left, ignore_errors=True)
        staging = Path(tempfile.mkdtemp(prefix=prefix, dir=root))
        try:
            new_head, results = staging / "head", staging / "results"
            new_head.mkdir()
            results.mkdir()
            request = {
                "checkpoint": str(checkpoint.path),
                "precision": precision,
                "trust_remote_code": trust_remote_code,
                "passages": [passage.model_dump() for passage in passages],
                "continue": name == "answers",
                "write_head": not known_head,
                "head": str(new_head),
                "folder": str(results),
            }
            peak = _run(request, name, timeout_s=timeout_s)
            if not known_head:
                _keep(new_head, head)
            _keep(results, folder)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    return Reference(folder=folder, head=head, cached=False, peak_rss_bytes=peak)


def _run(request: child.Message, name: str, *, timeout_s: float) -> int:
    with progress.step("source", total=len(request["passages"]), unit="steps") as step:
        step.update(note=name)
        try:
            result = child.run(
                "tasks.validate.source_worker",
                request,
                timeout_s=timeout_s,
                env={"HF_HUB_OFFLINE": "1"},
                on_event=lambda event: step.update(done=event["done"]),
            )
        except WorkerError as error:
            raise WorkerError(
                f"the source model in {request['checkpoint']} cannot be compared with: {error}; "
                "validation.reference: none validates without it"
            ) from error
    return int(result["peak_rss_bytes"])


def _whole(folder: Path) -> bool:
    try:
        verify(folder, read_manifest(folder))
    except ValueError:  # IntegrityError: not there, or damaged
        return False
    return True


def _keep(staged: Path, folder: Path) -> None:
    write_manifest(staged, build_manifest(staged))
    put_in_place(staged, folder)


class StoredLogits:
    """The source model's logits of all passages, a block of the vocabulary at a time."""

    def __init__(self, reference: Reference) -> None:
        self._states = np.load(reference.folder / "states.npy", mmap_mode="r")
        form = json.loads((reference.head / "form.json").read_text(encoding="utf-8"))
        self._form: dict[str, float] | None = form
        if form:
            self._weight = np.load(reference.head / "weight.npy", mmap_mode="r")
            bias = reference.head / "bias.npy"
            self._bias = np.load(bias) if bias.exists() else None

    @property
    def vocabulary(self) -> int:
        """How many logits a position has."""
        return int(self._weight.shape[0] if self._form else self._states.shape[1])

    def block(self, rows: slice, columns: slice) -> NDArray[np.float32]:
        """Return logits of shape (rows, columns)."""
        states: NDArray[np.float32] = self._states[rows]
        if self._form is None:
            return states[:, columns]
        logits: NDArray[np.float32] = states @ self._weight[columns].T
        if self._bias is not None:
            logits += self._bias[columns]
        logits *= np.float32(self._form["scale"])
        if cap := np.float32(self._form["soft_cap"]):
            logits = np.tanh(logits / cap) * cap
        return logits
