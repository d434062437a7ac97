"""Source -> Checkpoint: whatever the source, a folder of the cache with a manifest and a digest."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from filelock import FileLock

from tasks import locations, progress
from tasks.config import HubSource, LocalSource, Source, WheelSource
from tasks.download import hub, wheel
from tasks.errors import IntegrityError, SourceError, SourceNotFoundError
from tasks.manifest import build_manifest, digest_of, put_in_place, read_manifest, verify, write_manifest
from tasks.records import Checkpoint, Origin

_TOKENIZERS = ("tokenizer.json", "vocab.json", "vocab.txt", "tekken.json")


def download(source: Source, *, code: bool = False) -> Checkpoint:
    """Fetch a checkpoint, or return it from the cache.

    Args:
        source: Where it comes from.
        code: Fetch the checkpoint's Python files too (trust_remote_code).

    Raises:
        SourceError: It cannot be fetched; see the error's own type.
        IntegrityError: What came is not what the source promised.
        DiskFullError: It does not fit.
    """
    origin = identify(source)
    folder = _folder(source, origin, code=code)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        known = _known(folder, origin)
        if known:
            return known
        partial = folder.with_name(
            f"{folder.name}.partial"
        )  # stays after an interruption: the hub source goes on from it
        partial.mkdir(exist_ok=True)
        if isinstance(source, HubSource):
            hub.fetch(source, origin.revision, partial, code=code)
        elif isinstance(source, WheelSource):
            shutil.rmtree(partial)
            partial.mkdir()
            wheel.fetch(source, partial)
        else:
            shutil.rmtree(partial)
            _copy_local(source.path, partial, code=code)
        _require_tokenizer(partial, origin)
        with progress.step("hash"):
            write_manifest(partial, build_manifest(partial))
        put_in_place(partial, folder)
        found = _known(folder, origin)
    if found is None:
        raise SourceError(f"{folder} changed while it was being made; run again")
    return found


def _require_tokenizer(folder: Path, origin: Origin) -> None:
    """Refuse a checkpoint without a tokenizer: transformers 5 would make up an empty one, and the export would pass."""
    if not any((folder / name).is_file() for name in _TOKENIZERS) and not any(folder.glob("*.model")):
        raise SourceError(
            f"{origin.kind} source {origin.location} has no tokenizer ({', '.join(_TOKENIZERS)} or *.model): "
            "save it beside the model with tokenizer.save_pretrained()"
        )


def identify(source: Source) -> Origin:
    """Return exactly which checkpoint a source names: a branch or tag of a hub is resolved to its commit."""
    if isinstance(source, HubSource):
        return Origin(kind="hub", location=source.repository, revision=hub.resolve(source), requested=source.revision)
    if isinstance(source, WheelSource):
        return Origin(kind="wheel", location=source.package, revision=source.version, requested=source.version)
    if not (source.path / "config.json").is_file():
        raise SourceNotFoundError(f"source.path {source.path} is not a model folder: it has no config.json")
    return Origin(kind="local", location=str(source.path), revision="local", requested="local")


def cached(source: Source, *, code: bool = False) -> Checkpoint | None:
    """Return a checkpoint that is in the cache; never uses the network, so never for a branch of a hub."""
    if isinstance(source, HubSource) and not source.pinned:
        return None
    origin = identify(source)
    return _known(_folder(source, origin, code=code), origin)


def _folder(source: Source, origin: Origin, *, code: bool) -> Path:
    key: dict[str, object] = {"kind": origin.kind, "location": origin.location, "revision": origin.revision}
    if isinstance(source, WheelSource):
        key |= {"file": source.file, "sha256": source.sha256, "conversion": wheel.CONVERSION}
    elif isinstance(source, LocalSource):
        key |= {"files": _fingerprint(source.path, code=code)}
    name = origin.location.rstrip("/").rsplit("/", 1)[-1].lower()
    return locations.cache() / "checkpoints" / f"{name}-{digest_of(key | {'code': code})[:16]}"


def _known(folder: Path, origin: Origin) -> Checkpoint | None:
    try:
        manifest = read_manifest(folder)
        verify(folder, manifest, deep=False)  # the export hashes them all before it reads them
    except IntegrityError:
        return None
    return Checkpoint(path=folder, digest=manifest.digest, size_bytes=manifest.size_bytes, origin=origin)


def _fingerprint(folder: Path, *, code: bool) -> list[tuple[str, int, int]]:
    """Return name, size and time of change of a local folder's files: what tells that it was edited."""
    return [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in _local_files(folder, code=code)]


def _local_files(folder: Path, *, code: bool) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_file() and hub.wanted(path.name, code=code))


def _copy_local(source: Path, target: Path, *, code: bool) -> None:
    """Link or copy the model's files: the cache keeps what was exported even where the folder changes later."""
    files = _local_files(source, code=code)
    if not any(path.suffix == ".safetensors" for path in files):
        raise SourceError(
            f"source.path {source} has no safetensors file: save the model with save_pretrained(), which writes them"
        )
    target.mkdir()
    with progress.step("download", total=sum(path.stat().st_size for path in files), unit="bytes") as step:
        for path in files:
            try:
                os.link(path.resolve(), target / path.name)
            except OSError:  # another file system, or one without links
                shutil.copy2(path, target / path.name)
            step.update(done=step.done + path.stat().st_size)
