"""Follows a reference of the registry: what it names is served, and no request notices that it moves."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from tasks import progress
from tasks.config import Serving
from tasks.errors import EngineError, IntegrityError, VinoflowError
from tasks.records import ModelVersion
from tasks.registry import PulledModel, pull, recipe_of, report_of, resolve
from tasks.serving.replica import Replica
from tasks.serving.responses import Swap
from tasks.serving.smoke import smoke_test

_log = logging.getLogger(__name__)
_LOOK_S = 0.02
_UNREACHABLE_MOST_S = 30.0
OnSwap = Callable[[str], None]  # with its result: done, failed


def backoff_s(attempts: int, *, first: float, most: float) -> float:
    """Return the seconds to wait after so many attempts: `first`, then twice as long each time, up to `most`."""
    return min(first * 2.0 ** min(attempts - 1, 60), most)


class Follower:
    """Holds the version that answers, and replaces it when the reference names another one."""

    def __init__(self, reference: str, settings: Serving, *, on_swap: OnSwap = lambda _: None) -> None:
        """Take NAME/VERSION, which stays, or NAME@ALIAS or NAME@latest, which move."""
        self.reference = reference
        self.alias = reference.partition("@")[2] or None
        self.current: Replica | None = None
        self.swap = Swap(
            state="following" if self.alias else "fixed", target=None, error=None, attempts=0, next_try_s=None
        )
        self._settings = settings
        self._on_swap = on_swap
        self._open = False  # while nothing may be sent: between two versions with stop-first
        self._next_try = 0.0
        self._retiring: dict[asyncio.Task[None], Replica] = {}  # what answers old requests still

    async def start(self) -> None:
        """Load what the reference names.

        Raises:
            VinoflowError: It cannot be found, is damaged, cannot be loaded or does not answer as when it was validated.
        """
        self.current = await self._loaded(await asyncio.to_thread(pull, self.reference))
        self._open = True

    async def replica(self) -> Replica:
        """Return what answers now; wait while it is being loaded anew or replaced."""
        while not (self._open and self.current and self.current.answers):
            await asyncio.sleep(_LOOK_S)
        return self.current

    async def follow(self) -> None:
        """Look at the reference again and again, and swap when it names another version.

        A registry that does not answer is asked less and less often, and at least once in half a minute.
        """
        failures, most = 0, max(self._settings.poll_s, _UNREACHABLE_MOST_S)
        while self.alias:
            await asyncio.sleep(backoff_s(failures + 1, first=self._settings.poll_s, most=most))
            try:
                named = await asyncio.to_thread(resolve, self.reference)
            except Exception as error:
                if not isinstance(error, VinoflowError):
                    _log.exception("a bug came up in looking for %s", self.reference)
                failures += 1
                wait = backoff_s(failures + 1, first=self._settings.poll_s, most=most)
                self._tell("unreachable", error=str(error), attempts=failures, next_try_s=wait)
            else:
                failures = 0
                await self._follow(named)

    async def _follow(self, named: ModelVersion) -> None:
        served = self.current.version if self.current and self.current.state != "loading" else None
        if served and (named.version, named.digest) == (served.version, served.digest):
            self._tell("following")
            return
        if named.reference == self.swap.target and self.swap.state == "failed" and time.monotonic() < self._next_try:
            self.swap.next_try_s = self._next_try - time.monotonic()
            return
        attempts = self.swap.attempts + 1 if named.reference == self.swap.target else 1
        self._tell("loading", target=named.reference, attempts=attempts)
        try:
            await self._swap(named)
        except Exception as error:
            if not isinstance(error, VinoflowError):
                _log.exception("a bug came up in the swap to %s", named.reference)
            wait = backoff_s(attempts, first=self._settings.retry_s, most=self._settings.retry_most_s)
            self._next_try = time.monotonic() + wait
            self._tell("failed", target=named.reference, error=str(error), attempts=attempts, next_try_s=wait)
            _log.error("%s is not served: %s; next try in %.0f s", named.reference, error, wait)
            self._on_swap("failed")
        else:
            self._tell("following")
            _log.info("%s is now %s", self.reference, named.reference)
            self._on_swap("done")

    async def _swap(self, named: ModelVersion) -> None:
        model = await asyncio.to_thread(pull, named.reference)
        old = self.current
        if self._settings.swap == "beside" or old is None:
            self.current = await self._loaded(model)
            self._open = True
            if old is not None:
                self._retire(old)
            return
        self._open = False
        try:
            await self._emptied(old)
            await old.close()
            self.current = await self._loaded(model)
        except Exception:
            self.current = Replica(PulledModel(path=old.path, version=old.version), self._settings)
            await self.current.start()
            raise
        finally:
            self._open = True

    async def _loaded(self, model: PulledModel) -> Replica:
        """Return a replica that answers the reference prompts as it should.

        Raises:
            VinoflowError: It does not.
        """
        reference = model.version.reference
        recipe, report = await asyncio.gather(
            asyncio.to_thread(recipe_of, model.version), asyncio.to_thread(report_of, model.version)
        )
        if report.model_digest != model.version.digest:
            raise IntegrityError(f"the report of {reference} is about other files: run export-and-validate again")
        replica = Replica(model, self._settings)
        try:
            with progress.step("load") as step:
                step.update(note=f"{reference} on {replica.device}")
                await replica.start()
            with progress.step("smoke test") as step:
                step.update(note=f"{len(recipe.validation.prompts)} prompts")
                if problem := await smoke_test(replica.engine, recipe, report):
                    raise EngineError(f"{reference} does not answer as when it was validated: {problem}")
        except BaseException:
            await replica.close()
            raise
        return replica

    def _retire(self, old: Replica) -> None:
        async def retire() -> None:
            await self._emptied(old)
            await old.close()

        task = asyncio.create_task(retire())
        self._retiring[task] = old
        task.add_done_callback(self._retiring.pop)

    async def _emptied(self, old: Replica) -> None:
        """Wait until a replica answers nothing any more, at most as long as a request may take."""
        deadline = time.monotonic() + self._settings.deadline_s
        while old.in_flight and time.monotonic() < deadline:
            await asyncio.sleep(0.05)

    def _tell(
        self,
        state: str,
        *,
        target: str | None = None,
        error: str | None = None,
        attempts: int = 0,
        next_try_s: float | None = None,
    ) -> None:
        self.swap = Swap.model_validate(
            {"state": state, "target": target, "error": error, "attempts": attempts, "next_try_s": next_try_s}
        )

    def fail_all(self, error: EngineError) -> None:
        """Give up all requests under way."""
        for replica in filter(None, (self.current, *self._retiring.values())):
            if replica.answers:
                replica.engine.fail_all(error)

    async def close(self) -> None:
        """End all engines."""
        old = list(self._retiring.values())
        for task in self._retiring:
            task.cancel()
        for replica in filter(None, (self.current, *old)):
            await replica.close()
