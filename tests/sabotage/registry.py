"""Sabotages by name, and how one is done: on a copy whose manifest is in order, so that only a gate can notice."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tasks.export.ir import read_weights
from tasks.manifest import MANIFEST_NAME, build_manifest, write_manifest
from tasks.records import ExportedModel
from tests.conftest import link_tree


@dataclass(frozen=True)
class Sabotage:
    """What is done to a copy of an export, and which metrics should tell; none: the model does not load."""

    change: Callable[[ExportedModel], None]
    told_by: tuple[str, ...]
    in_manifest: bool = True

    @property
    def text(self) -> str:
        return self.change.__doc__ or ""


SABOTAGES: dict[str, Sabotage] = {}

# The stand-in device's faults (tests/gpu_shim) and the metrics that tell; none: the model does not get a device.
DEVICE_FAULTS: dict[str, tuple[str, ...]] = {
    "refuse": (),
    "crash": (),
    "elsewhere": (),
    "nan": ("nonfinite_logits", "empty_answers"),
    "zero": ("empty_answers", "device_kl_mean"),
    "wrong": ("device_equal_answers_share", "worst_answer_perplexity"),
    "drift": ("device_equal_answers_share", "device_kl_mean"),
    "overflow": ("long_prompt_faults",),
}


def sabotage(
    *told_by: str, in_manifest: bool = True
) -> Callable[[Callable[[ExportedModel], None]], Callable[[ExportedModel], None]]:
    """Register a function that damages the folder of the copy that it is given.

    Args:
        told_by: The metrics that show the damage, the one that fits best first.
        in_manifest: Write a manifest of the damaged files; otherwise that of the original stays.
    """

    def register(change: Callable[[ExportedModel], None]) -> Callable[[ExportedModel], None]:
        SABOTAGES[change.__name__] = Sabotage(change, told_by, in_manifest)
        return change

    return register


def sabotaged(name: str, exported: ExportedModel, folder: Path) -> ExportedModel:
    """Return a sabotaged copy of an export in a new folder; files that stay as they are are links."""
    link_tree(exported.path, folder)
    copy, chosen = exported.model_copy(update={"path": folder}), SABOTAGES[name]
    chosen.change(copy)
    if not chosen.in_manifest:
        return copy
    (folder / MANIFEST_NAME).unlink()
    manifest = build_manifest(folder)
    write_manifest(folder, manifest)
    changed = {"digest": manifest.digest, "size_bytes": manifest.size_bytes, "weights": read_weights(folder)}
    return copy.model_copy(update=changed)


def own(path: Path) -> Path:
    """Make a linked file one of its own, so that it can be written; return it."""
    partial = path.with_name(f"{path.name}.partial")
    shutil.copyfile(path, partial)
    partial.replace(path)
    return path
