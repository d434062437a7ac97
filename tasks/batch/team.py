"""Several engines that answer one stream of requests."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Generator, Iterable, Sequence
from itertools import chain, islice, repeat
from queue import Empty, SimpleQueue
from typing import Any

from tasks.batch.lasting import Key, LastingEngine
from tasks.engine import Request, Whole
from tasks.errors import DeviceError, EngineError, WorkerError

_log = logging.getLogger(__name__)


class Team:
    """Engines that take what they answer from one queue, each in a thread.

    The queue is filled in the caller's thread, a request for an answer: requests are read and answers taken by the
    caller alone, and what waits does not grow with their number.
    """

    def __init__(self, engines: Sequence[LastingEngine], *, window: int) -> None:
        """Take engines, of which the first is loaded; the others load in their threads.

        Args:
            engines: At least one.
            window: So many requests are in flight in each.
        """
        self._engines = engines
        self._window = window
        self._todo: SimpleQueue[Any] = SimpleQueue()  # keys with requests; None: no more come
        self._done: SimpleQueue[Any] = SimpleQueue()  # keys with answers, an engine's error; None: an engine is done

    def answers(self, requests: Iterable[tuple[Key, Request]]) -> Generator[tuple[Key, Whole | EngineError]]:
        """Answer requests, and yield each with its key as it is done, an error where there is no answer.

        Raises:
            EngineError: An engine dies again and again, and answers nothing.
        """
        threads = [threading.Thread(target=self._work, args=(engine,), daemon=True) for engine in self._engines]
        source = chain(requests, repeat(None))
        try:
            for thread in threads:
                thread.start()
            # twice what can be in flight: so while all engines wait for requests, there are answers to be taken
            for request in islice(source, 2 * self._window * len(threads)):
                self._todo.put(request)
            working = len(threads)
            while working:
                answered = self._done.get()
                if isinstance(answered, Exception):
                    raise answered
                if answered is None:
                    working -= 1
                else:
                    self._todo.put(next(source))
                    yield answered
        except BaseException:
            self._stop()
            raise
        finally:
            for thread in threads:
                thread.join()

    def _work(self, engine: LastingEngine) -> None:
        try:
            if engine is self._engines[0] or _loads(engine):
                for answered in engine.answers(iter(self._todo.get, None), window=self._window):
                    self._done.put(answered)
            self._done.put(None)
        except Exception as error:
            self._done.put(error)

    def _stop(self) -> None:
        """End all engines and what their threads wait for."""
        for engine in self._engines:
            engine.stop()
        with contextlib.suppress(Empty):
            while True:
                self._todo.get_nowait()
        for _ in self._engines:
            self._todo.put(None)


def _loads(engine: LastingEngine) -> bool:
    try:
        engine.load()
    except (DeviceError, WorkerError) as error:
        _log.warning("the batch goes on with an engine less: %s", error)
        return False
    return True
