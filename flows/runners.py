"""Where a batch's ranges of rows are answered: on the workers of Dask or Ray, by Prefect's task runners."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from prefect import get_client
from prefect.settings import PREFECT_API_URL, temporary_settings

from tasks import devices
from tasks.config import Batch
from tasks.errors import BatchError

_REACH_S = 10
_OBJECTS_BYTES = 100_000_000  # Ray's shared memory: what passes through it are names and counts


def task_runner(settings: Batch) -> Any:
    """Return Prefect's task runner for `runner: dask` or `ray`, with a cluster of this machine unless one is named.

    Raises:
        BatchError: It is not installed, or the cluster does not answer.
    """
    if settings.address:
        _reach(settings.address)
    make = _dask if settings.runner == "dask" else _ray
    try:
        return make(settings)
    except ImportError as error:
        raise BatchError(
            f"runner {settings.runner} is not installed ({error}): pip install 'vinoflow[{settings.runner}]'"
        ) from error


@contextlib.contextmanager
def one_prefect(settings: Batch) -> Iterator[None]:
    """Have a cluster of this machine report to the Prefect that the flow reports to, be it embedded.

    Each worker would begin an embedded server of its own: five CPU-seconds, and several of them on one SQLite file.
    """
    if settings.address:  # its workers may be elsewhere, where an embedded server cannot be reached
        yield
        return
    with get_client(sync_client=True) as client, temporary_settings({PREFECT_API_URL: str(client.api_url)}):
        yield


def _reach(address: str) -> None:
    """Return if something listens at an address, as far as it has a host and a port."""
    try:
        there = urlsplit(address)
        if there.hostname and there.port:
            socket.create_connection((there.hostname, there.port), timeout=_REACH_S).close()
    except (OSError, ValueError) as error:
        raise BatchError(f"no cluster answers at address {address}: {error}; start it, or leave address out") from error


def _dask(settings: Batch) -> Any:
    from prefect_dask import DaskTaskRunner

    if settings.address:
        return DaskTaskRunner(address=settings.address)
    return DaskTaskRunner(
        cluster_class="distributed.LocalCluster",
        cluster_kwargs={
            "n_workers": settings.workers,
            "threads_per_worker": 1,  # ranges at a time: one has the whole engine
            "processes": True,
            "dashboard_address": None,
            "memory_limit": 0,  # the model is in the engine's process, which Dask does not see
        },
    )


def _ray(settings: Batch) -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    from prefect_ray import RayTaskRunner

    if settings.address:
        if (Path.home() / ".ray" / "auth_token").exists():  # its server looks there by itself, its client does not
            os.environ.setdefault("RAY_AUTH_MODE", "token")
        return RayTaskRunner(address=settings.address)
    settings_of_cluster = {
        "address": "local",  # not one that another program has left word of on this machine
        "num_cpus": settings.workers,  # a CPU a range: one at a time
        "object_store_memory": _OBJECTS_BYTES,
        "include_dashboard": False,
        "log_to_driver": False,
    }
    return RayTaskRunner(init_kwargs=settings_of_cluster)


def threads_of_worker(settings: Batch) -> int | None:
    """Return the threads of a worker's engines: what is set, or the worker's share of the cores; asked in the worker.

    None: as many as there are cores.
    """
    if settings.threads or settings.runner == "local":
        return settings.threads
    if not settings.address:
        return max(1, devices.cores() // settings.workers)
    with contextlib.suppress(Exception):  # outside of a worker there is none to ask
        if settings.runner == "dask":
            from distributed import get_worker

            return max(1, int(get_worker().state.nthreads))
        import ray

        return max(1, int(ray.get_runtime_context().get_assigned_resources()["CPU"]))
    return None
