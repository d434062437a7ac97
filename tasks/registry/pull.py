"""Fetching a version: every file checked before anything is made of it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock

from tasks import locations, progress
from tasks.errors import DiskFullError, IntegrityError, RegistryError, UnwritableError
from tasks.locations import UNWRITABLE, unwritable
from tasks.manifest import MANIFEST_NAME, discard, put_in_place, read_manifest, verify
from tasks.records import ModelVersion, Record
from tasks.registry.files import MODEL_FOLDER, local_store, location_of
from tasks.registry.read import resolve
from tasks.registry.store import translated
from tasks.registry.trouble import time_for

_MANIFEST_BYTES = 100_000  # it is smaller


class PulledModel(Record):
    """A version's files on this machine, checked."""

    path: Path
    version: ModelVersion


def pull(reference: str) -> PulledModel:
    """Fetch a version's files into the cache and check every one of them.

    Raises:
        DiskFullError: It does not fit.
        IntegrityError: A file is damaged, missing, or was added; names it.
        UnwritableError: It is not in the cache, which cannot be written.
        RegistryError: The store does not answer, or the version is not one of vinoflow's.
    """
    version = resolve(reference)
    if not version.digest:
        raise RegistryError(f"{version.reference} has no vinoflow.digest tag: it was not registered by vinoflow")
    folder = locations.cache() / "models" / version.digest
    with _alone(folder) as writable:
        location = location_of(version)
        store = local_store(location)
        if store is not None and writable:
            _link(store, folder, version.digest)
        elif not (folder / MANIFEST_NAME).is_file():
            _fetch(location, folder, version.digest)
        with progress.step("verify"):
            try:
                verify(folder, read_manifest(folder, digest=version.digest))
            except IntegrityError as error:
                if writable:
                    discard(folder)
                raise IntegrityError(
                    f"{version.reference} is not served: {error}. {_way_out(store, writable=writable)}"
                ) from error
    return PulledModel(path=folder, version=version)


@contextmanager
def _alone(folder: Path) -> Iterator[bool]:
    """Keep other processes from a folder of the cache; yield whether it can be written.

    A cache that cannot be, such as one that came with a container's image, serves what it has: nobody can change it.

    Raises:
        UnwritableError: It cannot be written, and has nothing there.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(f"{folder}.lock")
        lock.acquire()
    except OSError as error:
        if error.errno not in UNWRITABLE:
            raise
        if not (folder / MANIFEST_NAME).is_file():
            raise UnwritableError(
                f"{unwritable(error, locations.cache())}: it does not have this version yet"
            ) from error
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


def _way_out(store: Path | None, *, writable: bool) -> str:
    if not writable:
        return (
            f"The cache {locations.cache()} cannot be written: delete the copy there, or set VINOFLOW_CACHE to another"
        )
    if store is None:
        return "The copy in the cache was deleted: run again to fetch it anew"
    return f"Restore {store} from a backup, or run export-and-validate again for a new version"


def _link(store: Path, folder: Path, digest: str) -> None:
    """Make the cache's folder out of the local store's own files: no second copy, and what is checked is the store's.

    Raises:
        IntegrityError: The store's manifest is not the version's, or a file that it names is missing.
    """
    manifest = read_manifest(store, digest=digest)
    verify(store, manifest, deep=False)
    names = [entry.name for entry in manifest.files]
    if folder.is_dir() and all(_same_file(store / name, folder / name) for name in [*names, MANIFEST_NAME]):
        return
    partial = folder.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    for name in [*names, MANIFEST_NAME]:
        (partial / name).parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(store / name, partial / name)
        except OSError:  # the cache is on another file system
            shutil.copy2(store / name, partial / name)
    put_in_place(partial, folder)


def _same_file(one: Path, other: Path) -> bool:
    return one.exists() and other.exists() and one.samefile(other)


def _fetch(location: str, folder: Path, digest: str) -> None:
    """Download a version's files from a server; the folder appears when all that the manifest names are there."""
    from mlflow.artifacts import download_artifacts

    partial = folder.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()

    def get(name: str, size_bytes: int = 0) -> None:
        target = (partial / name).parent
        target.mkdir(parents=True, exist_ok=True)
        with time_for(size_bytes):
            download_artifacts(artifact_uri=f"{location}/{MODEL_FOLDER}/{name}", dst_path=str(target))

    with translated():
        _require_room(partial, _MANIFEST_BYTES)
        get(MANIFEST_NAME)
        manifest = read_manifest(partial, digest=digest)
        _require_room(partial, manifest.size_bytes)
        with progress.step("fetch", total=manifest.size_bytes, unit="bytes") as step:
            for entry in manifest.files:
                step.update(note=entry.name)
                get(entry.name, entry.size_bytes)
                step.update(done=step.done + entry.size_bytes, note="")
    put_in_place(partial, folder)


def _require_room(folder: Path, needed_bytes: int) -> None:
    """Refuse to fetch what does not fit: MLflow would try again and again, and forget why."""
    free = shutil.disk_usage(folder).free
    if free < needed_bytes:
        raise DiskFullError(
            f"the disk is full: {folder.parent} has {free / 1e6:.1f} MB free, {needed_bytes / 1e6:.1f} MB are to be "
            "fetched: make room, or move VINOFLOW_CACHE, then run again"
        )
