"""The settings that Prefect reads when it is imported: embedded unless a server is named."""

from __future__ import annotations

import logging
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from tasks import guard, locations, secrecy, telemetry
from tasks.errors import DiskFullError, RegistryError, VinoflowError

T = TypeVar("T")
_PATIENCE = {
    "PREFECT_API_REQUEST_TIMEOUT": "10",  # s without a byte; Prefect's own 60, six times over, is 7 minutes a request
    "PREFECT_CLIENT_MAX_RETRIES": "3",  # some 14 s: a server that starts anew takes 8 s
}
_PATIENCE_AT_FIRST_S = 10.0
_log = logging.getLogger(__name__)
_unheard: list[str] = []  # what could not be left in Prefect: then nothing more is tried
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
    secrecy.keep()
    logging.raiseExceptions = False  # that Prefect cannot keep a line of its log is none of ours
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
        "PREFECT_LOGGING_INTERNAL_LEVEL": "CRITICAL",  # and what goes wrong there is told in a line
    }.items():
        os.environ.setdefault(name, value)
    for name, value in _PATIENCE.items():
        if (os.environ.get("PREFECT_API_URL") or _may_be_named()) and not _is_named(name):
            os.environ.setdefault(name, value)
    if server := prefect_api():
        _require(server)


def _require(server: str) -> None:
    """Ask a server for next to nothing, and not for long: one that is down is told before anything is begun."""
    from prefect.client.orchestration import get_client
    from prefect.settings import get_current_settings, temporary_settings

    timeout = min(_PATIENCE_AT_FIRST_S, get_current_settings().api.request_timeout)
    with temporary_settings({"client.max_retries": 1}):
        error = get_client(sync_client=True, httpx_settings={"timeout": timeout}).api_healthcheck()
    if error:
        matter = matter_of(error) or f"does not answer ({secrecy.without_secrets(str(error))})"
        raise RegistryError(
            f"the Prefect server at {server} {matter}: start it, then run again; or run without it: "
            "PREFECT_API_URL= vinoflow ...; then only the processes of this machine wait for each other"
        )


def prefect_trouble(error: Exception) -> VinoflowError | None:
    """Return what to say where an error is that the Prefect server went silent in the middle; None: it is another.

    Where the run had failed before that, for a reason of its own, this is said.
    """
    if "prefect" not in sys.modules or not (server := prefect_api()) or not (matter := matter_of(error)):
        return None
    told = f"the Prefect server at {server} {matter}"
    if ours := next((one for one in _chain(error) if isinstance(one, VinoflowError)), None):
        return ours if server in str(ours) else type(ours)(f"{ours}; and {told}: it does not know of this")
    return RegistryError(f"{told}: see that it runs, then run again; what is done is kept, and not done twice")


def leave(make: Callable[..., T], **what: Any) -> T | None:
    """Leave something in Prefect for people to look at; where that cannot be, the run goes on, and no more is tried."""
    if _unheard:
        return None
    try:
        return make(**what)
    except Exception as error:
        _unheard.append(str(error))
        _log.warning("Prefect keeps no %s: %s", what.get("key", "artifacts"), error)
        return None


def matter_of(error: BaseException) -> str:
    """Return what is the matter with a server, by an error that came of it; empty: nothing."""
    import httpx

    for one in _chain(error):
        if isinstance(one, httpx.HTTPStatusError) and one.response.status_code >= 500:
            return f"answers {one.response.status_code}"
        if isinstance(one, httpx.TimeoutException):
            return "said nothing in time"
        if isinstance(one, httpx.ConnectError):
            return f"does not answer ({one})"
        if isinstance(one, httpx.TransportError):
            return "broke the connection off"
    return ""


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def prefect_api() -> str:
    """Return the URL of the Prefect server that is set, without a password; empty: flows are embedded.

    Where neither the environment nor a file that Prefect reads may name one, Prefect is not imported: that takes long.
    """
    url = os.environ.get("PREFECT_API_URL")
    if not url and _may_be_named():
        from prefect.settings import get_current_settings

        url = get_current_settings().api.url
    return secrecy.without_secrets(url or "")


def _may_be_named() -> bool:
    """Look whether the files that Prefect 3.8 takes settings from may name a server."""
    words = dict(zip(_files(), ("PREFECT_API_URL", "PREFECT_", "", "tool.prefect"), strict=True))
    return any(path.is_file() and word in path.read_text(errors="replace") for path, word in words.items())


def _is_named(setting: str) -> bool:
    """Look whether one of them has a setting, by its name or by its last words (`request_timeout`)."""
    last = "_".join(setting.lower().split("_")[-2:])
    texts = (path.read_text(errors="replace") for path in _files() if path.is_file())
    return any(setting in text or last in text for text in texts)


def _files() -> tuple[Path, ...]:
    """Return the files that Prefect 3.8 takes settings from: its profiles, and those of the working folder."""
    home = Path(os.environ.get("PREFECT_HOME") or "~/.prefect").expanduser()
    profiles = Path(os.environ.get("PREFECT_PROFILES_PATH") or home / "profiles.toml")
    return profiles, Path(".env"), Path("prefect.toml"), Path("pyproject.toml")
