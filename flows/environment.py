"""The settings that Prefect reads when it is imported: embedded unless a server is named."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

from tasks import guard, locations, telemetry
from tasks.errors import DiskFullError, RegistryError

_ROOM_BYTES = 16_000_000  # a fresh database of Prefect's takes 5 MB; without room its server tries for minutes


def prepare_prefect() -> None:
    """Set what the user has not set. Call before prefect is imported.

    Without PREFECT_API_URL (in the environment or in a Prefect profile), flows use Prefect's ephemeral API with its
    database beside MLflow's.

    Raises:
        DiskFullError: There is no room for the databases.
        RegistryError: The Prefect server that is set does not answer.
    """
    telemetry.turn_off()
    guard.start()  # Prefect's server does not notice when we are killed
    database = locations.home() / "mlruns" / "prefect.db"
    database.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(database.parent).free
    if free < _ROOM_BYTES:
        raise DiskFullError(
            f"the disk is full: {database.parent} has {free / 1e6:.1f} MB free, the databases of runs need "
            f"{_ROOM_BYTES / 1e6:.0f} MB: make room, or move VINOFLOW_HOME"
        )
    for name, value in {
        "PREFECT_SERVER_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{database}",
        "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "true",
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",  # a fresh database takes 21 s on 2 cores
        "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",  # the console is ours; the API keeps Prefect's log
    }.items():
        os.environ.setdefault(name, value)
    if server := prefect_api():
        _require(server)


def _require(server: str) -> None:
    from prefect.client.orchestration import get_client

    if error := get_client(sync_client=True).api_healthcheck():
        raise RegistryError(
            f"the Prefect server at {server} does not answer ({error}): start it, or run without it: PREFECT_API_URL= "
            "vinoflow ...; then only the processes of this machine wait for each other"
        )


def prefect_api() -> str:
    """Return the URL of the Prefect server that is set, without a password; empty: flows are embedded.

    Where neither the environment nor a file that Prefect reads may name one, Prefect is not imported: that takes long.
    """
    url = os.environ.get("PREFECT_API_URL")
    if not url and _may_be_named():
        from prefect.settings import get_current_settings

        url = get_current_settings().api.url
    return re.sub(r"//[^/@]+@", "//", url or "")


def _may_be_named() -> bool:
    """Look into the files that Prefect 3.8 takes settings from: its profiles, and those of the working folder."""
    home = Path(os.environ.get("PREFECT_HOME") or "~/.prefect").expanduser()
    profiles = Path(os.environ.get("PREFECT_PROFILES_PATH") or home / "profiles.toml")
    words = {profiles: "PREFECT_API_URL", Path(".env"): "PREFECT_", Path("prefect.toml"): ""}
    words[Path("pyproject.toml")] = "tool.prefect"
    return any(path.is_file() and word in path.read_text(errors="replace") for path, word in words.items())
