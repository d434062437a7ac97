"""The exported model's child process: its logits on passages, compared position by position with a reference."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.child import Message, Parent, serve_once
from tasks.validate.divergence import compare
from tasks.validate.reference import Reference, StoredLogits

_COLUMNS, _TILE = 4096, 1024  # of the vocabulary: projected at a time, and compared at a time (it fits the cache)
_LOGITS_BYTES = 64 << 20  # a chunk's logits take at most this
_Block = NDArray[np.float32]


class Compiled:
    """An exported model on a device, read chunk by chunk with its KV cache kept."""

    def __init__(self, core: Any, side: Message) -> None:
        self._model = core.compile_model(side["model"], side["device"], side["ov_config"])
        self._request = self._model.create_infer_request()
        self._inputs = {name for port in self._model.inputs for name in port.get_names()}
        known = {"input_ids", "attention_mask", "position_ids", "beam_idx"}
        if not {"input_ids"} <= self._inputs <= known:
            raise ValueError(f"the model takes {', '.join(sorted(self._inputs))}; a text model takes {sorted(known)}")
        self.vocabulary = self._model.output("logits").get_partial_shape()[2].get_length()

    def begin(self) -> None:
        """Forget what was read."""
        self._request.reset_state()
        self._read = 0

    def read(self, ids: NDArray[np.int64]) -> None:
        """Read on; `block` then gives the logits of these tokens."""
        before, self._read = self._read, self._read + len(ids)
        inputs = {
            "input_ids": ids[None],
            "attention_mask": np.ones((1, self._read), np.int64),
            "position_ids": np.arange(before, self._read, dtype=np.int64)[None],
            "beam_idx": np.zeros(1, np.int32),
        }
        self._request.infer({name: value for name, value in inputs.items() if name in self._inputs}, share_inputs=True)
        self._logits = self._request.get_tensor("logits").data[0]

    def block(self, rows: slice, columns: slice) -> _Block:
        """Return logits of what was read last, shape (rows, columns)."""
        logits: _Block = self._logits[rows, columns]
        return logits


def score(request: Message, parent: Parent) -> Message:
    """Compare `candidate` with the reference of each of `jobs`; write the arrays of each to its `output`."""
    import openvino

    core = openvino.Core()
    candidate = Compiled(core, request["candidate"])
    for job in request["jobs"]:
        stored = "stored" in job
        reference = StoredLogits(Reference.model_validate(job["stored"])) if stored else Compiled(core, job["compiled"])
        if candidate.vocabulary != reference.vocabulary:
            raise ValueError(
                f"the exported model has {candidate.vocabulary} logits a token, the source model "
                f"{reference.vocabulary}: it is an export of another one"
            )
        parts: list[dict[str, NDArray[Any]]] = []
        row = 0
        for number, passage in enumerate(job["passages"], start=1):
            for found in _passage(passage, candidate, reference, row, request["stop_ids"]):
                parts.append(found)
                row += len(found["kl"])
            parent.send(event="scored", name=job["name"], done=number)
        arrays: dict[str, Any] = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        np.savez(job["output"], **arrays)
    return {"peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}


def _passage(
    passage: Message, candidate: Compiled, reference: StoredLogits | Compiled, row: int, stop_ids: list[int]
) -> Iterator[dict[str, NDArray[Any]]]:
    """Read a passage chunk by chunk, and compare where it is scored; `row` is its first in the stored logits."""
    ids = np.array(passage["ids"], np.int64)
    live = [reference] if isinstance(reference, Compiled) else []
    rows = max(16, min(256, _LOGITS_BYTES // (4 * candidate.vocabulary)))
    for model in (candidate, *live):
        model.begin()
    for first in range(0, len(ids) - 1, rows):
        chunk = ids[first : min(first + rows, len(ids) - 1)]
        for model in (candidate, *live):
            model.read(chunk)
        scored = slice(max(0, passage["start"] - 1 - first), len(chunk))  # what comes before is only read
        count = scored.stop - scored.start
        if count > 0:
            known = scored if live else slice(row, row + count)
            actual = ids[first + scored.start + 1 : first + scored.stop + 1]
            yield compare(_blocks(candidate, scored, reference, known), actual, stop_ids)
            row += count


def _blocks(
    candidate: Compiled, rows: slice, reference: StoredLogits | Compiled, known: slice
) -> Iterator[tuple[_Block, _Block]]:
    for first in range(0, candidate.vocabulary, _COLUMNS):
        columns = slice(first, min(first + _COLUMNS, candidate.vocabulary))
        one, other = reference.block(known, columns), candidate.block(rows, columns)
        for tile in range(0, one.shape[1], _TILE):
            yield one[:, tile : tile + _TILE], other[:, tile : tile + _TILE]


if __name__ == "__main__":
    serve_once(score)
