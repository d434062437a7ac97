"""Who may move a model's aliases, one at a time, here or on all machines of a Prefect server; and who may export."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager

from flows.environment import matter_of, prefect_api
from tasks import locations
from tasks.errors import ConflictError, RegistryError
from tasks.registry import Locking, locked
from tasks.turns import in_turn

_LEASE_S = 60.0  # the least that Prefect grants; its holder renews it, and Prefect frees what nobody renews
_WAIT_S = 120.0  # a killed holder's lease is free after 75 s (its server looks every 15 s), seen up to 39 s later
_log = logging.getLogger(__name__)


def export_slot() -> AbstractContextManager[None]:
    """Let one export at a time through on this machine: two may not fit its memory, and slow each other's figures."""
    return in_turn(locations.cache() / "export.lock", note="another export is under way on this machine")


def locking_here() -> Locking:
    """Return what keeps writers apart: the file lock, and where a Prefect server is set its lease as well."""
    return _locked_and_leased if prefect_api() else locked


@contextmanager
def _locked_and_leased(name: str) -> Iterator[None]:
    """Keep out the writers of this machine, who wait for a file lock without asking the server, then all others."""
    with locked(name), lease(f"vinoflow.model.{name}"):
        yield


@contextmanager
def lease(limit: str) -> Iterator[None]:
    """Hold the one slot of a global concurrency limit in Prefect, which is made on first use.

    A holder that is killed loses it when its lease runs out. One that cannot renew it goes on: the ledger shows a
    second writer, and a move that stops half-way would have to be completed all the same.

    Raises:
        ConflictError: Another process holds it for two minutes.
        RegistryError: The Prefect server does not answer.
    """
    from prefect.concurrency.sync import concurrency

    held = ExitStack()
    with _told(limit):
        _ensure_limit(limit)
        held.enter_context(
            concurrency(
                limit,
                timeout_seconds=_WAIT_S,
                lease_duration=_LEASE_S,
                strict=True,
                raise_on_lease_renewal_failure=False,
            )
        )
    try:
        yield
    finally:
        try:
            held.close()
        except Exception:  # what was done under the lease is done, and the lease runs out
            _log.warning("the lease %s could not be given back: it runs out by itself", limit, exc_info=True)


def _ensure_limit(limit: str) -> None:
    """Make a limit of one slot, unless it is there or another process is faster."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate
    from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound

    with get_client(sync_client=True) as client:
        try:
            client.read_global_concurrency_limit_by_name(limit)
        except ObjectNotFound:
            try:
                client.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name=limit, limit=1))
            except ObjectAlreadyExists:
                return


@contextmanager
def _told(limit: str) -> Iterator[None]:
    """Turn Prefect's errors on the way to a lease into ours."""
    import httpx
    from prefect.concurrency.asyncio import AcquireConcurrencySlotTimeoutError, ConcurrencySlotAcquisitionError

    try:
        yield
    except AcquireConcurrencySlotTimeoutError as error:
        raise ConflictError(
            f"another process has held {limit} on {prefect_api()} for {_WAIT_S:g} s: look for it, then run again; "
            f"if there is none, `prefect gcl update {limit} --active-slots 0` frees it"
        ) from error
    except (ConcurrencySlotAcquisitionError, httpx.HTTPError) as error:
        matter = matter_of(error) or f"says: {error.__cause__ or error}"
        raise RegistryError(
            f"the Prefect server at {prefect_api()} {matter}, and gives no lease {limit}, so nothing was done: see "
            "that it runs, then run again"
        ) from error
