"""Sabotages that need another export, which is made once and kept in the cache (VINOFLOW_CACHE)."""

from __future__ import annotations

import shutil

import numpy as np

from tasks import locations
from tasks.config import Export, LocalSource
from tasks.download import download
from tasks.export import export
from tasks.records import Checkpoint, ExportedModel
from tests.conftest import link_tree
from tests.sabotage.constants import constants
from tests.sabotage.registry import sabotage
from tests.sabotage.weights import FIDELITY
from tests.tiny import make_tiny


def _become(copy: ExportedModel, checkpoint: Checkpoint, settings: Export) -> None:
    """Replace the copy by an export of another kind."""
    other = export(checkpoint, settings)
    shutil.rmtree(copy.path)
    link_tree(other.path, copy.path)


@sabotage(*FIDELITY)
def int4_without_groups_or_backup(copy: ExportedModel) -> None:
    """All layers are int4, embeddings too, with one scale a column."""
    settings = Export(weight_format="int4", group_size=-1, ratio=1.0, sym=True, all_layers=True)
    _become(copy, copy.checkpoint, settings)


@sabotage(*FIDELITY)
def float_with_noise(copy: ExportedModel) -> None:
    """All weights are fp16 with noise of a tenth of their standard deviation."""
    _become(copy, copy.checkpoint, Export(weight_format="fp16"))
    random = np.random.default_rng(0)
    for array in constants(copy.path).values():
        if array.dtype == np.float16 and array.size > 1000:
            noise = random.standard_normal(array.shape, np.float32)
            noise *= 0.1 * array.std(dtype=np.float32)
            array[:] = array + noise


@sabotage("tokenizer_prompt_mismatches", *FIDELITY)
def another_model(copy: ExportedModel) -> None:
    """The whole export is that of another checkpoint: a tiny llama with random weights."""
    folder = make_tiny("llama", locations.cache() / "sabotage-tiny")
    _become(copy, download(LocalSource(kind="local", path=folder)), Export(weight_format="int8"))
