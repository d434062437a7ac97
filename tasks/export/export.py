"""Checkpoint -> ExportedModel: OpenVINO IR with compressed weights, complete or not there at all."""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

from filelock import FileLock

from tasks import child, locations, progress
from tasks.config import Export
from tasks.errors import DiskFullError, ExportError, IntegrityError, WorkerError
from tasks.export.ir import read_weights
from tasks.manifest import build_manifest, digest_of, put_in_place, read_manifest, verify, write_manifest
from tasks.records import Checkpoint, ExportedModel
from tasks.versions import EXPORT, versions

REQUIRED = (
    "openvino_model.xml",
    "openvino_model.bin",
    "openvino_tokenizer.xml",
    "openvino_tokenizer.bin",
    "openvino_detokenizer.xml",
    "openvino_detokenizer.bin",
    "tokenizer.json",
    "config.json",
    "generation_config.json",
)
UNCOMPRESSED = Export(weight_format="fp32")  # what conversion alone makes of a model
_DISK_FULL = ("No space left on device", "iostream error")  # Python's words, and all that OpenVINO's writer says


def export(checkpoint: Checkpoint, settings: Export) -> ExportedModel:
    """Export a checkpoint, or return the finished export of the same inputs.

    The work happens in a child process and in a staging folder; the model appears under its digest when it is
    complete and checked.

    Raises:
        ExportError: optimum refused, crashed, was killed, took too long, or left out a required file.
        IntegrityError: The checkpoint is not the one that its manifest names.
        DiskFullError: The disk has no room.
    """
    made_with = versions(EXPORT)
    key = digest_of(
        {"checkpoint": checkpoint.digest, "export": settings.model_dump(exclude={"timeout_s"}), "versions": made_with}
    )
    record = locations.cache() / "exports" / f"{key}.json"
    record.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{record}.lock"):
        known = _finished(record)
        if known:
            return known.model_copy(update={"checkpoint": checkpoint})  # equal files may have come from elsewhere
        if _fetches_dataset(settings) and find_spec("datasets") is None:
            raise ExportError(
                f"export.dataset {settings.dataset} needs the `calibration` extra (pip install -c constraints.txt -e "
                "'.[calibration]'): install it, or set export.dataset to auto or to a list of texts"
            )
        verify(checkpoint.path, read_manifest(checkpoint.path, digest=checkpoint.digest))
        staging = _staging(f".staging-{key[:16]}-")
        try:
            started = time.perf_counter()
            peak = _run(checkpoint, settings, staging)
            exported = _publish(staging / "model", checkpoint, made_with, time.perf_counter() - started, peak)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
        partial = record.with_suffix(".partial")
        partial.write_text(exported.model_dump_json(), encoding="utf-8")
        partial.replace(record)
        return exported


def _staging(prefix: str) -> Path:
    """Make a folder to export into, and remove those that killed runs of the same export left.

    It never has the name of an earlier one: the child process of a run that was killed may live for a moment yet.
    """
    models = locations.cache() / "models"
    models.mkdir(parents=True, exist_ok=True)
    for left in models.glob(f"{prefix}*"):
        shutil.rmtree(left, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=prefix, dir=models))
    (folder / "tmp").mkdir()
    return folder


def _finished(record: Path) -> ExportedModel | None:
    """Return the export that a record names, where its folder still is what its digest says."""
    try:
        exported = ExportedModel.model_validate_json(record.read_bytes())
        verify(exported.path, read_manifest(exported.path, digest=exported.digest))
    except (FileNotFoundError, ValueError):  # no record, an unreadable one, or a folder that is gone or changed
        return None
    return exported


def _run(checkpoint: Checkpoint, settings: Export, staging: Path) -> int:
    """Run the child process; return its peak memory in bytes."""
    request = {
        "checkpoint": str(checkpoint.path),
        "output": str(staging / "model"),
        "settings": settings.model_dump(mode="json"),
    }
    with progress.step("export") as step:
        try:
            result = child.run(
                "tasks.export.worker",
                request,
                timeout_s=settings.timeout_s,
                # optimum renames across from its temporary folder: that must be the same file system
                env={"TMPDIR": str(staging / "tmp"), **_network(settings)},
                on_event=lambda event: step.update(
                    note=event["name"], done=event.get("done", 0), total=event.get("total", 0)
                ),
            )
        except WorkerError as error:
            if any(words in str(error) for words in _DISK_FULL):
                raise DiskFullError(
                    f"the disk is full: {staging.parent} had no room for the export of {checkpoint.origin.location} "
                    f"({error}); make room, or move VINOFLOW_CACHE"
                ) from error
            raise ExportError(
                f"export of {checkpoint.origin.location} ({checkpoint.origin.revision}) failed: {error}"
            ) from error
        step.update(note=settings.weight_format, done=0, total=0)
    return int(result["peak_rss_bytes"])


def _fetches_dataset(settings: Export) -> bool:
    return isinstance(settings.dataset, str) and settings.dataset != "auto"


def _network(settings: Export) -> dict[str, str]:
    """Keep the child off the hub, unless it has to fetch a calibration dataset."""
    return {} if _fetches_dataset(settings) else {"HF_HUB_OFFLINE": "1"}


def _publish(
    model: Path, checkpoint: Checkpoint, made_with: dict[str, str], seconds: float, peak_rss_bytes: int
) -> ExportedModel:
    """Check a finished export and move it to the folder of its digest."""
    _check_complete(model, checkpoint.path)
    weights = read_weights(model)
    manifest = build_manifest(model)
    write_manifest(model, manifest)
    folder = locations.cache() / "models" / manifest.digest
    with FileLock(f"{folder}.lock"):
        try:
            verify(folder, read_manifest(folder, digest=manifest.digest))
        except IntegrityError:  # not there yet, or damaged
            put_in_place(model, folder)
    return ExportedModel(
        path=folder,
        digest=manifest.digest,
        size_bytes=manifest.size_bytes,
        checkpoint=checkpoint,
        weights=weights,
        versions=made_with,
        seconds=seconds,
        peak_rss_bytes=peak_rss_bytes,
    )


def _check_complete(folder: Path, checkpoint: Path) -> None:
    """Refuse an export that lacks a file which serving needs: optimum only warns of some of them."""
    required = list(REQUIRED)
    if has_chat_template(checkpoint) and not has_chat_template(folder):
        required.append("chat_template.jinja")
    missing = [name for name in required if not (folder / name).is_file() or (folder / name).stat().st_size == 0]
    if missing:
        raise ExportError(
            f"the export lacks {', '.join(missing)}: it would not serve. Check the tokenizer files of the checkpoint "
            f"in {checkpoint}"
        )


def has_chat_template(folder: Path) -> bool:
    """Tell whether a model folder brings a chat template, in a file of its own or in tokenizer_config.json."""
    if (folder / "chat_template.jinja").is_file() or (folder / "chat_template.json").is_file():
        return True
    try:
        return "chat_template" in json.loads((folder / "tokenizer_config.json").read_bytes())
    except FileNotFoundError:
        return False
