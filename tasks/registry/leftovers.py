"""What killed processes left in the cache, and whether a process is still at work on something."""

from __future__ import annotations

import contextlib
import math
import re
import stat
import time
from collections.abc import Iterable, Iterator
from datetime import timedelta
from pathlib import Path

from filelock import FileLock, Timeout

from tasks import locations
from tasks.errors import IntegrityError
from tasks.manifest import discard, read_manifest, verify
from tasks.records import ExportedModel, Record

_UNFINISHED = ("*/.staging-*", "*/.old-*", "*/.upload-*", "*/*.partial", "*/*.wheel", "compiled-*")
_KEY = re.compile(r"\.staging-(?P<staging>.+)-[^-]+|(?:\.(?:old|upload)-)?(?P<name>.+?)(?:\.partial|\.wheel)*")


class Leftover(Record):
    """A file or folder of the cache that nothing needs."""

    path: Path
    size_bytes: int
    why: str


def in_cache(needed: Iterable[str], *, older_than: timedelta) -> list[Leftover]:
    """Return what interrupted commands left in the cache, and models that neither a version nor a record needs.

    Args:
        needed: The digests of the registered versions.
        older_than: What changed since may be in use.
    """
    root, known = locations.cache(), {*needed, *_exported()}
    unfinished = {path for pattern in _UNFINISHED for path in root.glob(pattern) if path.suffix != ".lock"}
    found = dict.fromkeys(sorted(unfinished), "an interrupted command left it")
    for path in sorted((root / "models").glob("[!.]*")):
        if path not in unfinished and path.is_dir() and path.name not in known:
            found[path] = "neither a version nor an export at hand needs it"
    limit = time.time() - older_than.total_seconds()
    looked_at = {path: _look(path) for path in found}
    return [
        Leftover(path=path, size_bytes=looked_at[path][1], why=why)
        for path, why in found.items()
        if looked_at[path][0] <= limit and not any(map(_held, _locks(path)))
    ]


def delete(path: Path) -> bool:
    """Delete a leftover, unless a process has taken its lock meanwhile; return whether it went."""
    with contextlib.ExitStack() as held:
        try:
            for lock in _locks(path):
                held.enter_context(FileLock(lock, timeout=0))
        except Timeout:
            return False
        if path.is_dir():
            discard(path)
        else:
            path.unlink(missing_ok=True)
    return True


def at_work(inputs: str) -> bool:
    """Return whether a process of this machine holds the lock of a run's inputs."""
    return bool(inputs) and _held(locations.home() / "mlruns" / "locks" / f"{inputs}.lock")


def intact(digest: str) -> Path | None:
    """Return the cache's folder of a digest, if every file in it is whole."""
    folder = locations.cache() / "models" / digest
    try:
        verify(folder, read_manifest(folder, digest=digest))
    except IntegrityError:
        return None
    return folder


def _exported() -> Iterator[str]:
    """Yield the digests of the exports at hand."""
    for record in (locations.cache() / "exports").glob("*.json"):
        with contextlib.suppress(ValueError, FileNotFoundError):  # one that cannot be read names nothing
            yield ExportedModel.model_validate_json(record.read_bytes()).digest


def _look(path: Path) -> tuple[float, int]:
    """Return when something last changed, in seconds since the epoch, and the size of its files in bytes."""
    looks = []
    for part in (path, *path.rglob("*")):
        with contextlib.suppress(FileNotFoundError):  # its owner is faster
            looks.append(part.lstat())
    changed = max((look.st_mtime for look in looks), default=math.inf)
    return changed, sum(look.st_size for look in looks if not stat.S_ISDIR(look.st_mode))


def _locks(path: Path) -> list[Path]:
    """Return the locks that whoever works on something of the cache would hold."""
    match = _KEY.fullmatch(path.name)
    key = (match["staging"] or match["name"]) if match else path.name
    return [lock for lock in locations.cache().glob("*/*.lock") if key in lock.name]


def _held(lock: Path) -> bool:
    if not lock.exists():
        return False
    try:
        with FileLock(lock, timeout=0):
            return False
    except Timeout:
        return True
