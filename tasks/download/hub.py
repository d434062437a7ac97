"""The hub source: a repository's files at one commit, resumed, checked, and never pickled."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Collection
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

from tasks.config import COMMIT, HubSource
from tasks.download.hub_client import Hub, Tensors
from tasks.download.hub_files import INDEX, OTHER_WEIGHTS, PARTS, SINGLE, WEIGHTS, RemoteFile, part_of, size_of, wanted
from tasks.errors import (
    DiskFullError,
    SourceError,
    VinoflowError,
)
from tasks.progress import step

__all__ = ["fetch", "resolve", "structure", "wanted"]

WORKERS = 4
POLL_S = 0.2


def resolve(source: HubSource) -> str:
    """Return the commit that the source's revision names; a pinned one needs no network.

    Raises:
        SourceError: The hub does not know it, does not let us see it, or cannot be reached.
    """
    if source.pinned:
        return source.revision
    commit = Hub(source, source.revision).info().sha
    if commit is None or not COMMIT.fullmatch(commit):
        raise SourceError(f"the hub states no commit for {source.repository} {source.revision!r} (it says {commit!r})")
    return commit


def structure(source: HubSource, commit: str) -> tuple[dict[str, Any], Tensors]:
    """Return config.json and each tensor's dtype (as safetensors names it) and shape; no weights are fetched.

    Raises:
        SourceError: As in `fetch`.
        IntegrityError: A file is not what the hub states.
    """
    hub = Hub(source, commit)
    listed = hub.files()
    if "config.json" not in listed:
        raise SourceError(f"{hub} has no config.json: vinoflow exports Hugging Face models only")
    shards = [name for name in _weights(hub, listed) if name != INDEX]
    tensors: Tensors = {}
    with ThreadPoolExecutor(WORKERS) as pool:
        for found in pool.map(lambda name: hub.header(listed[name]), shards):
            tensors.update(found)
    return hub.read_json(listed["config.json"]), tensors


def fetch(source: HubSource, commit: str, folder: Path, *, code: bool = False) -> None:
    """Fill a folder with the files of a commit that an export needs, going on where an earlier call was cut off.

    A file gets its name once its hash is right; before that it lives in `.parts`, which is gone at the end. The
    folder is this call's alone: the caller locks it.

    Args:
        source: The repository.
        commit: 40 hex, as `resolve` returned it.
        folder: Made where it is missing.
        code: Fetch the repository's Python files too (trust_remote_code).

    Raises:
        SourceError: The repository or a file is missing (SourceNotFoundError), closed to us (SourceAccessError), cannot
            be reached (SourceUnreachableError), or holds no safetensors.
        IntegrityError: A file is not the one that the hub states; it is deleted.
        DiskFullError: The disk has no room.
    """
    hub = Hub(source, commit)
    listed = hub.files()
    names = {name for name in listed if wanted(name, code=code) and name != INDEX and not WEIGHTS.fullmatch(name)}
    names.update(_weights(hub, listed))  # these alone: some repositories hold their weights twice
    files = sorted((listed[name] for name in names), key=lambda file: file.size_bytes)
    try:
        (folder / PARTS).mkdir(parents=True, exist_ok=True)
        missing = sum(file.size_bytes for file in files) - _arrived(files, folder)
        if missing > shutil.disk_usage(folder).free:
            raise _disk_full(folder, missing)
        _download_all(hub, files, folder)
        shutil.rmtree(folder / PARTS)
    except VinoflowError:
        raise
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            missing = sum(file.size_bytes for file in files) - _arrived(files, folder)
            raise _disk_full(folder, missing) from error
        raise SourceError(f"{folder} cannot be filled from {hub}: {error}") from error


def _download_all(hub: Hub, files: list[RemoteFile], folder: Path) -> None:
    total = sum(file.size_bytes for file in files)
    with step("download", total=total, unit="bytes") as progress, ThreadPoolExecutor(WORKERS) as pool:
        waiting = {pool.submit(hub.download, file, folder) for file in files}
        try:
            while waiting:
                ended, waiting = wait(waiting, timeout=POLL_S, return_when=FIRST_EXCEPTION)
                progress.update(done=_arrived(files, folder))
                for future in ended:
                    future.result()
        except BaseException:
            hub.stop.set()
            for future in waiting:
                future.cancel()
            raise


def _arrived(files: Collection[RemoteFile], folder: Path) -> int:
    """Return the bytes that are on the disk, whole files and parts: true whatever was cut off or begun again."""
    return sum(max(size_of(folder / file.name), size_of(part_of(file, folder))) for file in files)


def _disk_full(folder: Path, missing: int) -> DiskFullError:
    free = shutil.disk_usage(folder).free
    return DiskFullError(
        f"{folder} has no room: {missing / 1e6:,.1f} MB are still to be fetched and {free / 1e6:,.1f} MB are free; "
        "make room, or set VINOFLOW_CACHE to a folder on a larger disk; what is there is kept"
    )


def _weights(hub: Hub, listed: dict[str, RemoteFile]) -> list[str]:
    """Return the names that transformers would load the weights from: one file, or an index and its shards."""
    if SINGLE in listed:
        return [SINGLE]
    if INDEX in listed:
        weight_map = hub.read_json(listed[INDEX]).get("weight_map")
        shards = sorted({str(name) for name in weight_map.values()}) if isinstance(weight_map, dict) else []
        for name in shards:
            if name not in listed or not WEIGHTS.fullmatch(name):
                raise SourceError(f"{INDEX} of {hub} names {name!r}, which is not a weights file of the repository")
        if shards:
            return [INDEX, *shards]
        raise SourceError(f"{INDEX} of {hub} names no weights")
    if "adapter_model.safetensors" in listed:
        raise SourceError(f"{hub} is an adapter, not a model: merge it into its base model, and use source.kind local")
    others = sorted(name for name in listed if OTHER_WEIGHTS.fullmatch(name))
    raise SourceError(
        f"{hub} has neither {SINGLE} nor {INDEX}, only {', '.join(others[:5]) or 'no weights at all'}; vinoflow never "
        "loads pickled weights, which can run code: convert them where you trust them, with transformers' "
        "from_pretrained(...) and save_pretrained(FOLDER), and use source.kind local with that folder"
    )
