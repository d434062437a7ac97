"""What a folder holds, file by file: the base of every digest in vinoflow."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from tasks.errors import IntegrityError

MANIFEST_NAME = "manifest.json"


class FileEntry(BaseModel):
    """One file of a manifest."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(description="Path inside the folder, with forward slashes.")
    size_bytes: int = Field(ge=0, description="Size in bytes.")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$", description="SHA-256 of the content, in hex.")

    @field_validator("name")
    @classmethod
    def _stays_inside(cls, name: str) -> str:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or "\\" in name or not path.parts:
            raise ValueError(f"{name!r} leaves the folder")
        return name


class Manifest(BaseModel):
    """The files of a folder, in the order of their names."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    files: tuple[FileEntry, ...]

    @property
    def digest(self) -> str:
        """SHA-256 of the manifest's canonical JSON: equal digests mean equal folders."""
        return hashlib.sha256(canonical_json(self.model_dump(mode="json"))).hexdigest()

    @property
    def size_bytes(self) -> int:
        """Size of all files together."""
        return sum(entry.size_bytes for entry in self.files)


def canonical_json(value: object) -> bytes:
    """Return the one JSON text of a value: sorted keys, no spaces, UTF-8."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def digest_of(value: object) -> str:
    """Return the SHA-256 of a JSON value's canonical text, in hex."""
    return hashlib.sha256(canonical_json(value)).hexdigest()


def sha256_file(path: Path) -> str:
    """Return the SHA-256 of a file's content, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def build_manifest(folder: Path) -> Manifest:
    """Read every file below a folder and return its manifest (an existing manifest file is left out)."""
    names = sorted(_names(folder))
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        hashes = list(pool.map(lambda name: sha256_file(folder / name), names))
    return Manifest(
        files=tuple(
            FileEntry(name=name, size_bytes=(folder / name).stat().st_size, sha256=sha256)
            for name, sha256 in zip(names, hashes, strict=True)
        )
    )


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write the manifest into its folder."""
    (folder / MANIFEST_NAME).write_bytes(manifest.model_dump_json(indent=1).encode() + b"\n")


def read_manifest(folder: Path, *, digest: str | None = None) -> Manifest:
    """Return the manifest that lies in a folder.

    Raises:
        IntegrityError: It is missing, unreadable, or not the one with the expected digest.
    """
    path = folder / MANIFEST_NAME
    try:
        manifest = Manifest.model_validate_json(path.read_bytes())
    except FileNotFoundError as error:
        raise IntegrityError(f"{path} is missing, so nothing in {folder} can be trusted") from error
    except ValidationError as error:
        raise IntegrityError(f"{path} is not a manifest: {error.errors()[0]['msg']}") from error
    if digest is not None and manifest.digest != digest:
        raise IntegrityError(f"{path} has digest {manifest.digest[:12]}, expected {digest[:12]}: it was changed")
    return manifest


def verify(folder: Path, manifest: Manifest, *, deep: bool = True) -> None:
    """Check a folder against its manifest.

    Args:
        folder: What to check.
        manifest: What it must hold: these files, no others.
        deep: Hash every file; otherwise only names and sizes are compared.

    Raises:
        IntegrityError: Names the first file that is missing, was added, or differs.
    """
    expected = {entry.name: entry for entry in manifest.files}
    found = set(_names(folder))
    for name in sorted(expected.keys() - found):
        raise IntegrityError(f"{folder / name} is missing")
    for name in sorted(found - expected.keys()):
        raise IntegrityError(f"{folder / name} is not in the manifest: it was added later")
    for entry in manifest.files:
        size = (folder / entry.name).stat().st_size
        if size != entry.size_bytes:
            raise IntegrityError(f"{folder / entry.name} has {size} bytes, its manifest says {entry.size_bytes}")
    if not deep:
        return
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        hashes = pool.map(lambda entry: sha256_file(folder / entry.name), manifest.files)
        for entry, sha256 in zip(manifest.files, hashes, strict=True):
            if sha256 != entry.sha256:
                raise IntegrityError(
                    f"{folder / entry.name} is damaged: its SHA-256 is {sha256[:12]}, its manifest says "
                    f"{entry.sha256[:12]}"
                )


def put_in_place(finished: Path, folder: Path) -> None:
    """Give a finished folder its visible name; what bore it goes whole: at no moment is half a folder to be seen."""
    old = _moved_aside(folder)
    finished.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def discard(folder: Path) -> None:
    """Remove a folder so that no half of it is ever to be seen."""
    shutil.rmtree(_moved_aside(folder), ignore_errors=True)


def _moved_aside(folder: Path) -> Path:
    old = folder.with_name(f".old-{folder.name}")
    shutil.rmtree(old, ignore_errors=True)  # of a run that was killed here
    with contextlib.suppress(FileNotFoundError):
        folder.rename(old)
    return old


def _names(folder: Path) -> Iterable[str]:
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if (path.is_file() or path.is_symlink()) and name != MANIFEST_NAME:
            yield name
