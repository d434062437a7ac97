"""The settings that Prefect reads when it is imported: embedded unless a server is named."""

from __future__ import annotations

import os

from tasks import guard, locations, telemetry


def prepare_prefect() -> None:
    """Set what the user has not set. Call before prefect is imported.

    Without PREFECT_API_URL (in the environment or in a Prefect profile), flows use Prefect's ephemeral API with its
    database beside MLflow's.
    """
    telemetry.turn_off()
    guard.start()  # Prefect's server does not notice when we are killed
    database = locations.home() / "mlruns" / "prefect.db"
    database.parent.mkdir(parents=True, exist_ok=True)
    for name, value in {
        "PREFECT_SERVER_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{database}",
        "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "true",
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",  # a fresh database takes 21 s on 2 cores
        "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",  # the console is ours; the API keeps Prefect's log
    }.items():
        os.environ.setdefault(name, value)
