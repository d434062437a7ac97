"""Where vinoflow keeps things: the embedded stores and the cache."""

from __future__ import annotations

import os
from pathlib import Path


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
