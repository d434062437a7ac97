"""How many answers are generated at once, and how many may wait for their turn."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tasks.serving.problems import ApiError

_MOST_RETRY_S = 60


class Admission:
    """Lets answers in, first come first served."""

    def __init__(self, *, running: int, waiting: int) -> None:
        """Take how many may run, and how many may wait."""
        self._most_running = running
        self._most_waiting = waiting
        self._queue: deque[tuple[asyncio.Future[None], int]] = deque()
        self._mean_s = 1.0  # that a request takes, of the last ones
        self.running = 0
        self.waiting = 0

    @asynccontextmanager
    async def place(self, count: int) -> AsyncIterator[None]:
        """Hold places for a request's answers; wait for them if need be.

        Raises:
            ApiError: Too many wait already (429), or the request asks for more than can ever run (400).
        """
        if count > self._most_running:
            raise ApiError(
                400, f"{count} answers are asked for, {self._most_running} can be generated at once", param="n"
            )
        if self._queue or self.running + count > self._most_running:
            await self._wait(count)
        else:
            self.running += count
        started = asyncio.get_running_loop().time()
        try:
            yield
        finally:
            self._mean_s += 0.1 * (asyncio.get_running_loop().time() - started - self._mean_s)
            self.running -= count
            self._admit()

    async def _wait(self, count: int) -> None:
        if self.waiting + count > self._most_waiting:
            seconds = min(_MOST_RETRY_S, math.ceil(self._mean_s * (self.waiting + self.running) / self._most_running))
            raise ApiError(
                429,
                f"{self.waiting} answers wait already, at most {self._most_waiting} may: try again in {seconds} s",
                code="queue_full",
                headers={"retry-after": str(max(1, seconds))},
            )
        turn = asyncio.get_running_loop().create_future()
        self._queue.append((turn, count))
        self.waiting += count
        try:
            await turn
        except BaseException:
            if (turn, count) in self._queue:
                self._queue.remove((turn, count))
                self.waiting -= count
            else:  # it was let in, and gave up in the same moment
                self.running -= count
            self._admit()
            raise

    def close(self) -> None:
        """Turn away all that wait."""
        for turn, _ in self._queue:
            if not turn.done():
                turn.set_exception(ApiError(503, "the server is shutting down: send the request again"))

    def _admit(self) -> None:
        while self._queue and self.running + self._queue[0][1] <= self._most_running:
            turn, count = self._queue.popleft()
            self.waiting -= count
            self.running += count
            turn.set_result(None)
