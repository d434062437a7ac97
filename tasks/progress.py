"""How a stage says how far it is, without knowing who listens."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Literal, Protocol

logger = logging.getLogger(__name__)

Unit = Literal["bytes", "steps", ""]


@dataclass
class Step:
    """One piece of work under way; its owner moves it on, a listener draws it."""

    name: str
    total: float | None = None
    unit: Unit = ""
    done: float = 0
    note: str = ""
    started: float = field(default_factory=time.perf_counter)

    @property
    def seconds(self) -> float:
        """Seconds since the step began."""
        return time.perf_counter() - self.started

    def update(self, *, done: float | None = None, total: float | None = None, note: str | None = None) -> None:
        """Move the step on; what is not given stays as it is."""
        self.done = self.done if done is None else done
        self.total = self.total if total is None else total
        self.note = self.note if note is None else note
        _listener.get().moved(self)


class Listener(Protocol):
    """What wants to hear of steps."""

    def began(self, step: Step) -> None:
        """A step began."""

    def moved(self, step: Step) -> None:
        """A step has moved on."""

    def ended(self, step: Step, *, failed: bool) -> None:
        """A step is over."""


class LogListener:
    """Writes a log line as each step ends: what a flow on a worker shows."""

    def began(self, step: Step) -> None:
        """Say nothing yet."""

    def moved(self, step: Step) -> None:
        """Say nothing yet."""

    def ended(self, step: Step, *, failed: bool) -> None:
        """Log the step and its time."""
        logger.info("%s %s in %.1f s %s", step.name, "failed" if failed else "done", step.seconds, step.note)


_LOG = LogListener()
_listener: ContextVar[Listener] = ContextVar("listener", default=_LOG)


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Send the steps of this context to a listener."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


@contextmanager
def step(name: str, *, total: float | None = None, unit: Unit = "") -> Iterator[Step]:
    """Announce a piece of work; `total` is in `unit`."""
    current = Step(name, total=total, unit=unit)
    listener = _listener.get()
    listener.began(current)
    try:
        yield current
    except BaseException:
        listener.ended(current, failed=True)
        raise
    listener.ended(current, failed=False)
