"""Where vinoflow keeps things: the embedded stores and the cache."""

from __future__ import annotations

import errno
import os
from pathlib import Path

UNWRITABLE = (errno.EROFS, errno.EACCES, errno.EPERM)  # a read-only file system, or another user's folder


def home() -> Path:
    """Return the folder that holds `mlruns/`: VINOFLOW_HOME, else the current folder."""
    return Path(os.environ.get("VINOFLOW_HOME") or Path.cwd()).expanduser().resolve()


def cache() -> Path:
    """Return the folder of working copies: VINOFLOW_CACHE, else `vinoflow` in the user's cache folder.

    All in it can be deleted at any time: it is fetched or made again.
    """
    chosen = os.environ.get("VINOFLOW_CACHE")
    if chosen:
        return Path(chosen).expanduser().resolve()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vinoflow"


def unwritable(error: OSError, folder: Path) -> str:
    """Return what is to be said of a folder that cannot be written, and what to do."""
    setting = "VINOFLOW_CACHE" if folder == cache() else "VINOFLOW_HOME"
    return (
        f"{folder} cannot be written ({error.strerror}): give it to this user or set {setting} to a folder that can be"
    )
