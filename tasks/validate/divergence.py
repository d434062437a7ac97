"""Two models' logits -> how they differ at each position, in one pass over the vocabulary."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
_LOWEST = np.float32(-1e30)  # in place of -inf, with which models switch tokens off: its probability is 0 all the same


class _Softmax:
    """What one model makes of each position: first-ranked token, and the log of the sum of exponentials.

    Sums are kept relative to the largest logit so far (the online softmax of Milakov and Gimelshein, 2018).
    """

    def __init__(self, rows: int) -> None:
        self.top = np.zeros(rows, np.int64)
        self.peak = np.full(rows, -np.inf)
        self.sum = np.zeros(rows)
        self.weighted = np.zeros(rows)  # sum of exp(logit) * weight

    def add(self, block: Floats, weight: Floats | None, first: int) -> None:
        """Take up logits of columns from `first` on; the block is overwritten."""
        token = block.argmax(axis=1)
        best = block[np.arange(len(block)), token]
        self.top = np.where(best > self.peak, token + first, self.top)
        peak = np.maximum(self.peak, best)
        shrink = np.exp(self.peak - peak)
        block -= peak[:, None]
        np.exp(block, out=block)
        self.sum = self.sum * shrink + block.sum(axis=1)
        if weight is not None:
            self.weighted = self.weighted * shrink + np.einsum("ij,ij->i", block, weight)
        self.peak = peak

    @property
    def log_sum(self) -> Floats:
        return self.peak + np.log(self.sum)


def compare(
    blocks: Iterable[tuple[NDArray[np.float32], NDArray[np.float32]]], actual: NDArray[np.int64], stop_ids: list[int]
) -> dict[str, NDArray[np.generic]]:
    """Compare a reference model with a candidate at some positions; memory does not grow with the vocabulary.

    Args:
        blocks: Logits (reference, candidate), each of shape (positions, some columns), in the vocabulary's order.
        actual: The token that follows at each position, shape (positions,).
        stop_ids: The tokens that end an answer.

    Returns:
        Arrays of shape (positions,): `kl` (reference || candidate, nats), `nll` and `source_nll` (of the actual token,
        nats), `dp` (change of its probability), `stop_probability` (the reference's), `top` and `source_top` (the
        first-ranked tokens), `nonfinite` (the candidate's NaN and infinite logits; kl, nll and dp are NaN there).

    Source: llama.cpp, tools/perplexity, "KL divergence": sum of p (log p - log q) over the vocabulary.
    """
    rows = len(actual)
    source, candidate = _Softmax(rows), _Softmax(rows)
    chosen, source_chosen = np.full(rows, np.nan), np.full(rows, np.nan)
    nonfinite = np.zeros(rows, np.int64)
    stops = np.zeros((rows, 0))
    first = 0
    for reference_block, candidate_block in blocks:
        # NaN survives this, and makes the sum NaN
        p, q = (np.maximum(block, _LOWEST).astype(np.float64) for block in (reference_block, candidate_block))
        if not np.isfinite(q.sum()):
            nonfinite += (~np.isfinite(q)).sum(axis=1)
            np.copyto(q, _LOWEST, where=~np.isfinite(q))
        width = p.shape[1]
        here = np.flatnonzero((actual >= first) & (actual < first + width))
        chosen[here], source_chosen[here] = q[here, actual[here] - first], p[here, actual[here] - first]
        stops = np.hstack([stops, p[:, [token - first for token in stop_ids if first <= token < first + width]]])
        difference = p - q
        source.add(p, difference, first)
        candidate.add(q, None, first)
        first += width
    nll, source_nll = candidate.log_sum - chosen, source.log_sum - source_chosen
    kl = source.weighted / source.sum - source.log_sum + candidate.log_sum
    broken = np.where(nonfinite > 0, np.nan, 0.0)
    return {
        "kl": np.maximum(kl, 0.0) + broken,  # rounding can leave -1e-16
        "nll": nll + broken,
        "source_nll": source_nll,
        "dp": np.exp(-nll) - np.exp(-source_nll) + broken,
        "stop_probability": np.exp(stops - source.log_sum[:, None]).sum(axis=1),
        "top": candidate.top,
        "source_top": source.top,
        "nonfinite": nonfinite,
    }
