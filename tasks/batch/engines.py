"""The engine of this process: loaded for the first range of rows, kept for the next, ended when no more come."""

from __future__ import annotations

import contextlib
import json
import logging
import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

from tasks import progress
from tasks.batch.job import Job
from tasks.engine import Engine, GrammarCheck, Request, Whole
from tasks.errors import EngineDiedError, EngineError, IntegrityError
from tasks.registry import PulledModel, pull, recipe_of, report_of
from tasks.serving.smoke import judge
from tasks.validate import EXACT, reference_requests

_IDLE_S = 60.0
_MOST_DEATHS = 3  # of an engine while it answers a row; the last time it answers nothing else
_MOST_IN_VAIN = 10  # deaths without an answer between them
_log = logging.getLogger(__name__)
Key = TypeVar("Key")


class _Trial(Generic[Key]):
    """Which requests were in flight when engines died, and which one of them is to blame."""

    def __init__(self, requests: Iterable[tuple[Key, Request]]) -> None:
        self.suspects: list[Key] = []
        self._source = iter(requests)
        self._again: list[Key] = []
        self._in_flight: dict[Key, Request] = {}
        self._deaths: Counter[Key] = Counter()

    def alone(self) -> list[tuple[Key, Request]]:
        """Return the suspect that is asked by itself."""
        return [(self.suspects[0], self._in_flight[self.suspects[0]])]

    def together(self) -> Iterator[tuple[Key, Request]]:
        """Yield what was in flight before, then what was not asked yet."""
        again, self._again = self._again, []
        yield from ((key, self._in_flight[key]) for key in again)
        for key, request in self._source:
            self._in_flight[key] = request
            yield key, request

    def done(self, key: Key) -> None:
        """Note that a request is answered."""
        del self._in_flight[key]
        if self.suspects and self.suspects[0] == key:
            self.suspects.pop(0)

    def died(self) -> Key | None:
        """Note that an engine died; return the request that is to blame, which is not asked again, if it is known."""
        self._deaths.update(self.suspects[:1] or list(self._in_flight))
        guilty = None
        if self.suspects and self._deaths[self.suspects[0]] >= _MOST_DEATHS:
            guilty = self.suspects[0]
            self.done(guilty)
        if not self.suspects:
            self.suspects = [key for key in self._in_flight if self._deaths[key] >= _MOST_DEATHS - 1]
            self._again = [key for key in self._in_flight if self._deaths[key] < _MOST_DEATHS - 1]
        return guilty


class Loaded:
    """A version with its engine, which is loaded anew when its process ends."""

    def __init__(self, job: Job, threads: int | None) -> None:
        """Pull the version, check its files, load it, and have it answer its reference prompts.

        Raises:
            IntegrityError: Its files, or those of its report, are not what the batch was begun with.
            DeviceError: OpenVINO refuses the model on this device.
            EngineError: It does not answer as when it was validated.
        """
        self.of = _what(job, threads)
        self.model: PulledModel = pull(job.version)
        if self.model.version.digest != job.digest:
            raise IntegrityError(
                f"{job.version} has digest {self.model.version.digest[:12]}, the batch was begun with {job.digest[:12]}"
            )
        self.grammars = GrammarCheck(self.model.path)
        self._job = job
        self._config: dict[str, str] = json.loads(self.model.version.tags["vinoflow.ov_config"])
        if threads:
            self._config["INFERENCE_NUM_THREADS"] = str(threads)
        if job.settings.exact:
            self._config |= EXACT
        self._engine = self._load()
        try:
            self._try()
        except BaseException:
            self.close()
            raise

    def answers(self, requests: Iterable[tuple[Key, Request]]) -> Iterator[tuple[Key, Whole | EngineError]]:
        """Answer requests, and yield each with its key as it is done, an error where there is no answer.

        An engine that dies is loaded anew, and what it had in flight is asked again, half as much at a time. What is in
        flight when a second one dies is asked alone; what that ends as well is not answered.

        Raises:
            EngineError: Engines die again and again, and answer nothing.
        """
        trial = _Trial[Key](requests)
        window, in_vain = self._job.settings.window, 0
        while True:
            try:
                for key, answer in self._asked(trial, window):
                    trial.done(key)
                    in_vain = 0
                    yield key, answer
                return
            except EngineDiedError as error:
                in_vain += 1
                if in_vain >= _MOST_IN_VAIN:
                    raise EngineError(f"{in_vain} engines ended one after the other, the last: {error}") from error
                _log.warning("the engine ended and is loaded again: %s", error)
                self._reload()
                window = max(1, window // 2)
                if (guilty := trial.died()) is not None:
                    yield guilty, EngineError(f"the engine ended {_MOST_DEATHS} times while it answered this row")

    def _asked(self, trial: _Trial[Key], window: int) -> Iterator[tuple[Key, Whole | EngineError]]:
        while trial.suspects:
            yield from self._engine.stream(trial.alone(), window=1)
        yield from self._engine.stream(trial.together(), window=window)

    def close(self) -> None:
        """End the engine."""
        self._engine.close()
        self.grammars.close()

    def _load(self) -> Engine:
        settings = self._job.settings
        with progress.step("load") as step:
            step.update(note=f"{self._job.version} on {self._job.device}")
            return Engine(
                self.model.path, device=self._job.device, ov_config=self._config, kv_cache_gb=settings.kv_cache_gb
            )

    def _reload(self) -> None:
        with contextlib.suppress(Exception):
            self._engine.close()
        self._engine = self._load()

    def _try(self) -> None:
        version = self.model.version
        recipe, report = recipe_of(version), report_of(version)
        with progress.step("smoke test") as step:
            step.update(note=f"{len(recipe.validation.prompts)} prompts")
            requests = reference_requests(recipe.validation)
            answers = dict(self._engine.stream(enumerate(requests), window=len(requests)))
        wholes = [answers[place] for place in range(len(requests))]
        failed = next((one for one in wholes if isinstance(one, EngineError)), None)
        problem = (
            str(failed) if failed else judge([one.answer for one in wholes if isinstance(one, Whole)], recipe, report)
        )
        if problem:
            raise EngineError(f"{version.reference} does not answer as when it was validated: {problem}")


_lock = threading.Lock()  # one range at a time
_kept: Loaded | None = None
_idle: threading.Timer | None = None


@contextmanager
def loaded(job: Job, *, threads: int | None) -> Iterator[Loaded]:
    """Hold this process's engine, loaded with a job's version; another range of this process waits."""
    global _kept, _idle  # noqa: PLW0603 - one engine a process is the point
    with _lock:
        if _idle is not None:
            _idle.cancel()
        if _kept is not None and _kept.of != _what(job, threads):
            _kept.close()
            _kept = None
        _kept = _kept or Loaded(job, threads)
        try:
            yield _kept
        except BaseException:
            _kept.close()
            _kept = None
            raise
        _idle = threading.Timer(_IDLE_S, release)
        _idle.daemon = True
        _idle.start()


def release() -> None:
    """End this process's engine, if it has one."""
    global _kept  # noqa: PLW0603
    with _lock:
        if _kept is not None:
            _kept.close()
            _kept = None


def _what(job: Job, threads: int | None) -> tuple[object, ...]:
    settings = job.settings
    return job.version, job.digest, job.device, settings.exact, settings.kv_cache_gb, threads
