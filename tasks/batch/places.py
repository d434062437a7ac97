"""Where inputs and outputs lie: paths of this machine, or what fsspec opens (s3://, gs://, ...)."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from io import BufferedReader
from pathlib import Path
from typing import IO, Any, cast

from fsspec import AbstractFileSystem
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from tasks import secrecy
from tasks.batch.trouble import limit, patience, told
from tasks.errors import BatchError

_BLOCK = 1 << 20


@lru_cache(maxsize=64)
def _opened(url: str) -> tuple[AbstractFileSystem, str]:
    try:
        system, path = url_to_fs(url, **patience(url))
    except (ImportError, ValueError) as error:
        hint = "; pip install 'vinoflow[s3]'" if url.startswith(("s3://", "s3a://")) else ""
        raise BatchError(f"{url} cannot be opened: {error}{hint}") from error
    limit(system, url)
    return system, str(path)


def absolute(url: str) -> str:
    """Return a path in full, so that another process finds it; an URL as it is."""
    return url if "://" in url or "::" in url else str(Path(url).expanduser().absolute())


def refuse_secrets(*urls: str) -> None:
    """Return if no URL has a password or a signature in it: the journal, MLflow and Prefect keep what is answered.

    Raises:
        BatchError: One has.
    """
    for url in urls:
        if secrecy.has_secret(url):
            raise BatchError(
                f"{secrecy.without_secrets(url)} was given with a password or a signature in it, which journal and "
                "MLflow would keep: give that by the environment (for s3:// AWS_ACCESS_KEY_ID and "
                "AWS_SECRET_ACCESS_KEY), or by fsspec's configuration (FSSPEC_...)"
            )


def is_local(url: str) -> bool:
    """Return whether it lies on this machine's file systems."""
    return isinstance(_opened(url)[0], LocalFileSystem)


def exists(url: str) -> bool:
    """Return whether there is a file or folder."""
    system, path = _opened(url)
    system.invalidate_cache()
    with told(url, "looked for", here=is_local(url)):
        return bool(system.exists(path))


def found(pattern: str) -> list[str]:
    """Return the files that a path, a folder or a glob pattern names, in order; hidden ones and rejects are left out.

    Raises:
        BatchError: There are none, or they cannot be listed.
    """
    system, path = _opened(pattern)
    system.invalidate_cache()
    try:
        with told(f"input {pattern}", "listed", here=is_local(pattern)):
            if any(sign in path for sign in "*?[") and not system.exists(path):
                names = [name for name in system.glob(path) if not system.isdir(name)]
            elif system.isdir(path):
                names = [name for name in system.find(path) if not Path(name).name.startswith((".", "_"))]
            else:
                names = [path] if system.exists(path) else []
    except ValueError as error:  # a pattern that is none
        if isinstance(error, BatchError):
            raise
        raise BatchError(f"input {pattern} cannot be listed: {error}") from error
    files = sorted(str(name) for name in names if not str(name).endswith(".rejects.jsonl"))
    if not files:
        raise BatchError(f"input {pattern}: there is no such file, folder or pattern, or nothing in it")
    return [name if isinstance(system, LocalFileSystem) else system.unstrip_protocol(name) for name in files]


def mark(url: str) -> str:
    """Return what changes with a file: its size, and its time or ETag."""
    system, path = _opened(url)
    system.invalidate_cache(path)
    with told(url, "looked at", here=is_local(url)):
        about = system.info(path)
    when = next((about[key] for key in ("ETag", "etag", "mtime", "LastModified", "last_modified") if key in about), "")
    return f"{about.get('size')} {when}"


@contextmanager
def reading(url: str, *, offset: int = 0) -> Iterator[BufferedReader]:
    """Open a file at a byte.

    Raises:
        BatchError: It cannot be read.
        StorageError: Its object store does not answer.
    """
    system, path = _opened(url)
    here = is_local(url)
    with (
        told(url, "read", here=here),
        # fsspec's files have no readline() with a limit
        system.open(path, "rb") if here else io.BufferedReader(system.open(path, "rb"), _BLOCK) as file,
    ):
        file.seek(offset)
        yield file


def read(url: str) -> bytes:
    """Return a file's content."""
    with reading(url) as file:
        return file.read()


def sha256_of(url: str) -> str:
    """Return the SHA-256 of a file's content, in hex."""
    hashed = hashlib.sha256()
    with reading(url) as file:
        while block := file.read(_BLOCK):
            hashed.update(block)
    return hashed.hexdigest()


def names_in(folder: str) -> set[str]:
    """Return the names of what lies in a folder; none where there is no folder."""
    system, path = _opened(folder)
    system.invalidate_cache()
    with told(folder, "listed", here=is_local(folder)), contextlib.suppress(FileNotFoundError):
        return {str(name).rstrip("/").rpartition("/")[2] for name in system.ls(path, detail=False)}
    return set()


def write(url: str, content: bytes) -> None:
    """Write a file that is whole from the moment that it is to be seen."""
    with writing(url) as file:
        file.write(content)


@contextmanager
def writing(url: str) -> Iterator[IO[bytes]]:
    """Open a file to write, which is there, whole, when the context ends well, and never before.

    On this machine it is written under another name, made safe on the disk, and renamed; an object store shows an
    object when its upload is complete.

    Raises:
        DiskFullError: There is no room.
        UnwritableError: The folder cannot be written.
        StorageError: The object store does not answer.
    """
    with told(url, "written", here=is_local(url)), _writing(url) as file:
        yield file


@contextmanager
def _writing(url: str) -> Iterator[IO[bytes]]:
    system, path = _opened(url)
    if not isinstance(system, LocalFileSystem):
        file = system.open(path, "wb")
        try:
            yield cast("IO[bytes]", file)
        except BaseException:
            with contextlib.suppress(Exception):
                file.discard()  # what was uploaded so far
            raise
        file.close()
        return
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        with partial.open("wb") as output:
            yield output
            output.flush()
            os.fsync(output.fileno())
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


def remove(url: str) -> None:
    """Remove a file or a folder, if it is there."""
    system, path = _opened(url)
    system.invalidate_cache()
    with told(url, "removed", here=is_local(url)), contextlib.suppress(FileNotFoundError):
        system.rm(path, recursive=True)


class Hashing(io.RawIOBase):
    """Hands a file's bytes on, and into a hash."""

    def __init__(self, file: IO[bytes], hashed: Any) -> None:
        """Take a file and a hash of hashlib's."""
        self._file = file
        self._hashed = hashed

    def readable(self) -> bool:
        """Return that it is."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Read into a buffer."""
        block = self._file.read(len(buffer))
        buffer[: len(block)] = block
        self._hashed.update(block)
        return len(block)
