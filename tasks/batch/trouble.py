"""A disk or an object store that is full, read-only, down, slow or ill: how long to wait for it, and what to say."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fsspec.config import conf

from tasks import locations, secrecy
from tasks.errors import BatchError, DiskFullError, StorageError, UnwritableError, VinoflowError

_TRIES = 2  # of s3fs; it tries 5 times what its client tries 5 times, 15 s each: 6 minutes
_PATIENCE = {"retries": {"total_max_attempts": 2, "mode": "standard"}, "read_timeout": 10}
_ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
_KEPT = "; what is answered is kept"
# whose errors have no base in common with any other
_CLIENTS = ("adlfs", "aiobotocore", "aiohttp", "azure", "botocore", "fsspec", "gcsfs", "google", "s3fs")


def patience(url: str) -> dict[str, Any]:
    """Return the options by which S3 is given up after a time, unless the user says how patient to be.

    Raises:
        ImportError: S3's client is not installed.
    """
    if not url.startswith(("s3://", "s3a://")):
        return {}
    known = conf.get("s3", {})
    how = {} if "AWS_MAX_ATTEMPTS" in os.environ or "config_kwargs" in known else {"config_kwargs": _PATIENCE}
    return how if known.keys() & {"profile", "session"} else {**how, "session": _session()}


def limit(system: Any, url: str) -> None:
    """Have s3fs try less often: how often its client tries is what the user may say."""
    if url.startswith(("s3://", "s3a://")):
        system.retries = _TRIES


def _session() -> Any:
    """Make a session that uploads without asking first: for the answer to that, aiohttp would wait for ever."""
    from aiobotocore.session import AioSession
    from botocore.handlers import add_expect_header

    session = AioSession()
    session.unregister("before-call.s3", add_expect_header)
    return session


@contextmanager
def told(url: str, what: str, *, here: bool) -> Iterator[None]:
    """Turn what a disk or an object store raises into errors of ours.

    Args:
        url: The file.
        what: What is done to it: read, written, ...
        here: Whether it lies on a file system of this machine.

    Raises:
        DiskFullError: There is no room.
        UnwritableError: The folder cannot be written.
        StorageError: The object store does not answer, or fails.
        BatchError: It is not there, or not allowed, or not possible for another reason.
    """
    try:
        yield
    except VinoflowError:
        raise
    except Exception as error:
        number = error.errno if isinstance(error, OSError) else None
        cannot = secrecy.without_secrets(f"{url} cannot be {what}")
        why = secrecy.without_secrets(str(error)) or type(error).__name__
        if number in (errno.ENOSPC, errno.EDQUOT):
            room = f"{_free(url)} free" if here else "none free"
            raise DiskFullError(f"{cannot}, the disk is full ({room}): make room, then run again{_KEPT}") from error
        if here and number in locations.UNWRITABLE:
            raise UnwritableError(
                f"{cannot} ({os.strerror(number or 0)}): mend that, or choose another place"
            ) from error
        if not here and _is_down(error):
            at = next((f" at {os.environ[name]}" for name in _ENDPOINTS if os.environ.get(name)), "")
            raise StorageError(
                f"{cannot}, the object store{secrecy.without_secrets(at)} fails ({why}): see that it runs, then run "
                f"again{_KEPT}"
            ) from error
        if isinstance(error, OSError):
            raise BatchError(f"{cannot}: {why}") from error
        raise


def _is_down(error: Exception) -> bool:
    """Return whether an error is a store's that cannot be asked or fails, not one about a file."""
    if isinstance(error, FileNotFoundError | PermissionError):
        return False
    if isinstance(error, OSError) and (error.errno is not None or isinstance(error, TimeoutError | ConnectionError)):
        return True
    return type(error).__module__.partition(".")[0] in _CLIENTS  # pyarrow's, about a damaged file, are not


def _free(path: str) -> str:
    folder = next((one for one in Path(path).parents if one.is_dir()), Path("/"))
    return f"{shutil.disk_usage(folder).free / 1e6:.1f} MB"
