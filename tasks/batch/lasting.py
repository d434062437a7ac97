"""An engine that outlives its process: it is loaded anew, and what ends every one of them is found and left out."""

from __future__ import annotations

import contextlib
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Generic, TypeVar

from tasks.engine import Engine, Request, Whole
from tasks.errors import EngineDiedError, EngineError

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


class LastingEngine:
    """An engine that is loaded anew when its process ends."""

    def __init__(self, load: Callable[[], Engine]) -> None:
        """Take what loads it; nothing is loaded yet."""
        self._load = load
        self._engine: Engine | None = None
        self._stopped = False

    def load(self) -> Engine:
        """Return the process of now; if there is none, it is loaded."""
        self._engine = self._engine or self._load()
        if self._stopped:  # meanwhile
            self._engine.kill()
        return self._engine

    def answers(
        self, requests: Iterable[tuple[Key, Request]], *, window: int
    ) -> Iterator[tuple[Key, Whole | EngineError]]:
        """Answer requests, and yield each with its key as it is done, an error where there is no answer.

        An engine that dies is loaded anew, and what it had in flight is asked again, half as much at a time. What is in
        flight when a second one dies is asked alone; what that ends as well is not answered.

        Raises:
            EngineError: Engines die again and again, and answer nothing.
        """
        trial = _Trial[Key](requests)
        in_vain = 0
        while True:
            try:
                for key, answer in self._asked(trial, window):
                    trial.done(key)
                    in_vain = 0
                    yield key, answer
                return
            except EngineDiedError as error:
                if self._stopped:
                    return
                in_vain += 1
                if in_vain >= _MOST_IN_VAIN:
                    raise EngineError(f"{in_vain} engines ended one after the other, the last: {error}") from error
                _log.warning("the engine ended and is loaded again: %s", error)
                self.close()
                window = max(1, window // 2)
                if (guilty := trial.died()) is not None:
                    yield guilty, EngineError(f"the engine ended {_MOST_DEATHS} times while it answered this row")

    def _asked(self, trial: _Trial[Key], window: int) -> Iterator[tuple[Key, Whole | EngineError]]:
        while trial.suspects:
            yield from self.load().stream(trial.alone(), window=1)
        yield from self.load().stream(trial.together(), window=window)

    def stop(self) -> None:
        """End it for good while another thread waits for its answers: that thread gets no more."""
        self._stopped = True
        if self._engine is not None:
            self._engine.kill()

    def close(self) -> None:
        """End its process, if there is one."""
        engine, self._engine = self._engine, None
        if engine is not None:
            with contextlib.suppress(Exception):
                engine.close()
