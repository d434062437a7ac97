"""Keeps a few servers running: started in order, asked whether they are well, begun again when they die, stopped."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx

from tasks import progress
from tasks.errors import ServingError

_START_S = 180.0  # Prefect's tables on a new PostgreSQL take 40 s on 2 cores
_STOP_S = 30.0
_LOOK_S = 1.0
_ASK_S = 10.0  # between questions to each server
_UNWELL = 3  # unanswered questions in a row, and it is begun again
_ATTEMPTS = 5  # that fail in a row, and all is given up
_STEADY_S = 60.0  # running so long makes an attempt a success
_TAIL = 6  # lines of a log that an error shows


@dataclass(frozen=True)
class Service:
    """One server: how it is started and how it is asked.

    `health` is a URL that answers with a 2xx status; empty: it is well as long as it runs. `before` is done before each
    start, when nothing of an earlier one runs any more.
    """

    name: str
    command: Sequence[str]
    environment: Mapping[str, str]
    log: Path
    health: str = ""
    before: Callable[[], None] = lambda: None


class Running:
    """A service's process."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.failures = 0
        self._unanswered = 0
        self._asked = time.monotonic()
        self._start()

    def _start(self) -> None:
        self.service.before()
        self.since = time.monotonic()
        with self.service.log.open("ab") as log:
            self.process = subprocess.Popen(
                list(self.service.command),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **self.service.environment},
                start_new_session=True,  # Ctrl-C is for us: we stop them in order
            )

    def wait(self) -> None:
        """Return when it answers.

        Raises:
            ServingError: It ended, or does not answer for three minutes.
        """
        deadline = time.monotonic() + _START_S
        while not self.answers():
            if self.process.poll() is not None:
                raise ServingError(
                    f"{self.service.name} ended with exit code {self.process.returncode}: {self._told()}"
                )
            if time.monotonic() > deadline:
                raise ServingError(f"{self.service.name} does not answer at {self.service.health}: {self._told()}")
            time.sleep(0.2)

    def answers(self) -> bool:
        """Ask whether it is well."""
        if not self.service.health:
            return self.process.poll() is None
        try:
            return httpx.get(self.service.health, timeout=5, trust_env=False).is_success
        except httpx.HTTPError:
            return False

    def problem(self) -> str:
        """Return what is wrong with it at this moment, asking it now and then; empty: nothing is known to be."""
        if self.process.poll() is not None:
            return f"ended with exit code {self.process.returncode}"
        if time.monotonic() - self._asked >= _ASK_S:
            self._asked = time.monotonic()
            self._unanswered = 0 if self.answers() else self._unanswered + 1
        return f"did not answer {_UNWELL} times" if self._unanswered >= _UNWELL else ""

    def restart(self) -> None:
        """Begin it again, at longer and longer intervals.

        Raises:
            ServingError: It fails again and again.
        """
        self.failures = 1 if time.monotonic() - self.since > _STEADY_S else self.failures + 1
        if self.failures > _ATTEMPTS:
            raise ServingError(f"{self.service.name} failed {_ATTEMPTS} times in a row: {self._told()}")
        self.stop()
        time.sleep(2.0 ** (self.failures - 1) - 1)
        self._unanswered = 0
        self._start()

    def stop(self) -> None:
        """Ask it to end, wait, and end what is left of it."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        try:
            os.killpg(self.process.pid, signal.SIGKILL)  # what it started and left
        except ProcessLookupError:
            return

    def _told(self) -> str:
        lines = self.service.log.read_text(errors="replace").splitlines()
        last = " | ".join(line.strip() for line in lines[-_TAIL:] if line.strip())
        return f"{last or 'it said nothing'} ({self.service.log})"


def supervise(
    services: Sequence[Service],
    *,
    on_ready: Callable[[], None],
    on_trouble: Callable[[str], None],
) -> None:
    """Run services until SIGTERM or Ctrl-C, then stop them, last one first.

    Args:
        services: In the order of their start: each begins when the one before answers.
        on_ready: Called once, when all answer.
        on_trouble: Called with what went wrong and what is done about it.

    Raises:
        ServingError: One does not start, or fails again and again.
    """
    stopping = False

    def stop(*_: object) -> None:
        nonlocal stopping
        stopping = True

    running: list[Running] = []
    before = [(number, signal.signal(number, stop)) for number in (signal.SIGTERM, signal.SIGINT)]
    try:
        for service in services:
            with progress.step(service.name):
                running.append(Running(service))
                running[-1].wait()
            if stopping:
                return
        on_ready()
        while not stopping:
            time.sleep(_LOOK_S)
            for one in running:
                if not stopping and (problem := one.problem()):
                    on_trouble(f"{one.service.name} {problem}: begun again ({one.service.log})")
                    one.restart()
    finally:
        with progress.step("stop"):
            for one in reversed(running):
                one.stop()
        for number, handler in before:
            signal.signal(number, handler)
