"""The servers of a team on one machine: MLflow, Prefect and a worker, with settings that fit beside a model."""

from __future__ import annotations

import os
import re
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import httpx
from filelock import FileLock, Timeout
from pydantic import Field

from flows.supervisor import Service, supervise
from tasks import guard, locations, telemetry
from tasks.errors import ServingError
from tasks.records import Record

_HOST = "127.0.0.1"
POOL = "vinoflow"
_PATIENCE_S = 10.0
_PORTS = {"postgresql": 5432, "postgres": 5432, "mysql": 3306, "mssql": 1433}


class Servers(Record):
    """Where the servers of this machine listen: what `up` writes down."""

    mlflow: str = Field(description="For MLFLOW_TRACKING_URI.")
    prefect: str = Field(description="For PREFECT_API_URL.")
    pid: int = Field(description="Of the `vinoflow up` that runs them.")


class Wanted(Record):
    """What to run; an empty place is a file or folder below `mlruns/`."""

    mlflow_port: int = 5000
    prefect_port: int = 4200
    backend_store_uri: str = ""
    artifacts: str = ""
    prefect_database: str = ""
    queues: tuple[str, ...] = ()
    worker: bool = True


def up(wanted: Wanted, *, on_ready: Callable[[Servers], None], on_trouble: Callable[[str], None]) -> None:
    """Run the servers until SIGTERM or Ctrl-C.

    Raises:
        ServingError: A port is taken, a database does not answer, or a server does not start.
    """
    for port, option in ((wanted.mlflow_port, "--mlflow-port"), (wanted.prefect_port, "--prefect-port")):
        _require_free(port, option)
    for uri, option in (
        (wanted.backend_store_uri, "--backend-store-uri"),
        (wanted.prefect_database, "--prefect-database"),
    ):
        _require_database(uri, option)
    telemetry.turn_off()
    guard.start()  # should we be killed
    folder = locations.home() / "mlruns" / "servers"
    folder.mkdir(parents=True, exist_ok=True)
    alone = FileLock(folder / "up.lock")
    try:
        alone.acquire(blocking=False)
    except Timeout as error:
        raise ServingError(f"`vinoflow up` runs already for {locations.home()}: `vinoflow status` shows it") from error
    servers = Servers(
        mlflow=f"http://{_HOST}:{wanted.mlflow_port}",
        prefect=f"http://{_HOST}:{wanted.prefect_port}/api",
        pid=os.getpid(),
    )
    services = [_mlflow(wanted, folder, servers), _prefect(wanted, folder, servers)]
    if wanted.worker:
        services.append(_worker(wanted, folder, servers))

    def ready() -> None:
        _note().write_text(servers.model_dump_json())
        on_ready(servers)

    try:
        supervise(services, on_ready=ready, on_trouble=on_trouble)
    finally:
        _note().unlink(missing_ok=True)
        alone.release()


def find_servers() -> None:
    """Use the servers that `vinoflow up` runs for this home, where the environment names no others."""
    try:
        found = Servers.model_validate_json(_note().read_text())
        os.kill(found.pid, 0)  # it is still there
    except (OSError, ValueError):
        return
    for name, url in (("MLFLOW_TRACKING_URI", found.mlflow), ("PREFECT_API_URL", found.prefect)):
        os.environ[name] = os.environ.get(name) or url


def _note() -> Path:
    return locations.home() / "mlruns" / "servers" / "up.json"


def _require_free(port: int, option: str) -> None:
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((_HOST, port))
        except OSError as error:
            raise ServingError(
                f"port {port} is taken ({error.strerror}): choose another by {option}, unless `vinoflow status` says "
                "that `vinoflow up` runs already"
            ) from error


def _require_database(uri: str, option: str) -> None:
    """A server whose database is down tries for 100 s before it says so."""
    try:
        where = urlsplit(uri)
        host, port = where.hostname, where.port or _PORTS.get(where.scheme.partition("+")[0])
    except ValueError:  # several hosts, say, of which the driver makes something
        return
    if not host or not port:  # a file, or a socket
        return
    try:
        socket.create_connection((host, port), timeout=_PATIENCE_S).close()
    except OSError as error:
        raise ServingError(
            f"{option}: no database answers at {host}:{port} ({error.strerror or error}): start it, or correct the URI"
        ) from error


def _mlflow(wanted: Wanted, folder: Path, servers: Servers) -> Service:
    """One worker and no job execution take 0.5 GB; the defaults take 2."""
    store = wanted.backend_store_uri or f"sqlite:///{locations.home() / 'mlruns' / 'mlflow.db'}"
    artifacts = wanted.artifacts or str(locations.home() / "mlruns" / "artifacts")
    return Service(
        name="mlflow",
        command=[
            *(sys.executable, "-m", "mlflow", "server", "--host", _HOST, "--port", str(wanted.mlflow_port)),
            *("--workers", "1", "--artifacts-destination", artifacts),
        ],
        environment={
            "MLFLOW_BACKEND_STORE_URI": store,  # may have a password, which a command line would show to all
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "AWS_MAX_ATTEMPTS": os.environ.get("AWS_MAX_ATTEMPTS", "2"),  # else a silent S3 holds a thread for minutes
            "MLFLOW_TRACKING_URI": "",
        },
        log=folder / "mlflow.log",
        health=f"{servers.mlflow}/health",
    )


def _prefect(wanted: Wanted, folder: Path, servers: Servers) -> Service:
    database = wanted.prefect_database or f"sqlite+aiosqlite:///{folder / 'prefect.db'}"
    database = re.sub(r"^postgres(ql)?:", "postgresql+asyncpg:", database)  # the driver that Prefect has
    return Service(
        name="prefect",
        command=[
            *(sys.executable, "-m", "prefect", "server", "start", "--host", _HOST, "--port", str(wanted.prefect_port)),
        ],
        environment={"PREFECT_SERVER_DATABASE_CONNECTION_URL": database, "PREFECT_API_URL": servers.prefect},
        log=folder / "prefect.log",
        health=f"{servers.prefect}/health",
    )


def _worker(wanted: Wanted, folder: Path, servers: Servers) -> Service:
    return Service(
        name="worker",
        command=[
            *(sys.executable, "-m", "prefect", "worker", "start", "--pool", POOL, "--type", "process"),
            *("--name", socket.gethostname()),
            *(argument for queue in wanted.queues for argument in ("--work-queue", queue)),
        ],
        environment={
            "MLFLOW_TRACKING_URI": servers.mlflow,
            "PREFECT_API_URL": servers.prefect,
            "VINOFLOW_HOME": str(locations.home()),
        },
        log=folder / "worker.log",
        before=lambda: _schedule_again(servers.prefect),
    )


def _schedule_again(api: str) -> None:
    """Have the runs begin again that an earlier worker was at: they take up what was done, by digests and journals."""
    cut_off = {"state": {"type": {"any_": ["PENDING", "RUNNING"]}}}
    again = {"type": "SCHEDULED", "name": "AwaitingRetry", "message": "its worker was stopped"}
    user, _, password = os.environ.get("PREFECT_SERVER_API_AUTH_STRING", "").partition(":")
    auth = httpx.BasicAuth(user, password) if user else None
    with httpx.Client(base_url=api, auth=auth, timeout=30, trust_env=False) as client:
        found = client.post("/flow_runs/filter", json={"work_pools": {"name": {"any_": [POOL]}}, "flow_runs": cut_off})
        for run in found.raise_for_status().json():
            client.post(f"/flow_runs/{run['id']}/set_state", json={"state": again, "force": True}).raise_for_status()
