"""The connection to MLflow: the embedded store under mlruns/, or the server that MLFLOW_TRACKING_URI names."""

from __future__ import annotations

import errno
import logging
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from tasks import locations, secrecy, telemetry
from tasks.errors import ConflictError, DiskFullError, RegistryError, UnwritableError
from tasks.registry import trouble
from tasks.turns import in_turn

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Experiment

Locking = Callable[[str], AbstractContextManager[object]]  # by the name of the registered model
_WAIT_S = 60.0  # for the lock: a move takes a fraction of a second
_DEFAULTS = {
    **trouble.PATIENCE,
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "GIT_PYTHON_REFRESH": "quiet",
}


def tracking_uri() -> str:
    """Return MLFLOW_TRACKING_URI as it is set, else the embedded sqlite store."""
    return os.environ.get("MLFLOW_TRACKING_URI") or _embedded_uri()


def _embedded_uri() -> str:
    return f"sqlite:///{locations.home() / 'mlruns' / 'mlflow.db'}"


def connect() -> MlflowClient:
    """Return a client of the store; the embedded one is made on first use.

    Raises:
        RegistryError: The store does not answer.
    """
    secrecy.keep()
    return _connect(tracking_uri())


@lru_cache(maxsize=4)
def _connect(uri: str) -> MlflowClient:
    telemetry.turn_off()
    for name, value in _DEFAULTS.items():
        os.environ.setdefault(name, value)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # mlflow's own use of what pydantic and others deprecate
        from mlflow import MlflowClient

    for name in ("alembic", "mlflow"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)  # each request that is sent again
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # the traceback of what it raises as well
    if uri != _embedded_uri():
        with translated():
            if not trouble.is_server(uri):
                trouble.hurry_databases()
            client = MlflowClient(uri)
            if trouble.is_server(uri):
                trouble.ask(client)
        return client
    os.environ["MLFLOW_TRACKING_URI"] = uri  # MLflow's model registry asks the environment, not its own client
    folder = locations.home() / "mlruns"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / "mlflow.lock"), translated():  # two first-time writers would both make the tables
            client = MlflowClient(uri)
            client.search_experiments(max_results=1)
            return client
    except DiskFullError:
        raise
    except OSError as error:
        if error.errno in locations.UNWRITABLE:
            raise UnwritableError(f"{locations.unwritable(error, locations.home())}; then run again") from error
        raise RegistryError(f"the embedded registry in {folder} cannot be opened: {error}") from error


def experiment_id(client: MlflowClient, name: str) -> str:
    """Return the id of an experiment; make it where there is none."""
    with translated():
        found = client.get_experiment_by_name(name) or _make_experiment(client, name)
        if found.lifecycle_stage != "active":
            raise RegistryError(f"registry.experiment {name!r} was deleted in MLflow: restore it, or name another")
        return str(found.experiment_id)


def _make_experiment(client: MlflowClient, name: str) -> Experiment:
    """Make an experiment, or take the one that another process has made since we looked."""
    from mlflow.exceptions import MlflowException

    embedded = tracking_uri() == _embedded_uri()
    try:
        client.create_experiment(name, (locations.home() / "mlruns" / "artifacts").as_uri() if embedded else None)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    return client.get_experiment_by_name(name)


@contextmanager
def one_at_a_time(inputs: str) -> Iterator[None]:
    """Let one run of the same inputs through at a time on this machine: the next one finds what it has registered.

    Args:
        inputs: Digest of what decides the result.
    """
    lock = locations.home() / "mlruns" / "locks" / f"{inputs}.lock"
    with in_turn(lock, note="another run of the same inputs is under way"):
        yield


@contextmanager
def locked(name: str) -> Iterator[None]:
    """Keep other processes of this machine from moving a model's aliases; a holder that dies lets go.

    Raises:
        ConflictError: Another process holds it for a minute.
    """
    folder = locations.home() / "mlruns" / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / f"ledger-{name}.lock", timeout=_WAIT_S)
    try:
        lock.acquire()
    except Timeout as error:
        raise ConflictError(
            f"another process has been moving aliases of {name} for {_WAIT_S:g} s: look for it, then run again"
        ) from error
    try:
        yield
    finally:
        lock.release()


@contextmanager
def translated() -> Iterator[None]:
    """Turn MLflow's and the network's errors into ours.

    Raises:
        DiskFullError: There is no room for what was to be written.
        RegistryError: In place of any other of them.
    """
    import requests.exceptions
    import sqlalchemy.exc
    from mlflow.exceptions import MlflowException

    try:
        yield
    except (MlflowException, requests.exceptions.RequestException, sqlalchemy.exc.SQLAlchemyError) as error:
        if "database or disk is full" in str(error):
            raise _disk_full("sqlite: database or disk is full") from error
        raise RegistryError(_in_words(error)) from error
    except Exception as error:
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            raise _disk_full(str(error)) from error
        if not trouble.is_of_a_store(error):
            raise
        raise RegistryError(_in_words(error)) from error


def _in_words(error: Exception) -> str:
    uri, first = tracking_uri(), next(iter(str(error).splitlines()), "")
    told = trouble.is_server(uri) or trouble.is_of_a_store(error)
    said = trouble.in_words(error, uri) if told else ""
    return secrecy.without_secrets(said or f"the MLflow registry at {uri} says: {first}")


def _disk_full(reason: str) -> DiskFullError:
    folder = locations.home() / "mlruns"
    return DiskFullError(f"the disk is full ({reason}): make room for {folder} and {locations.cache()}, then run again")
