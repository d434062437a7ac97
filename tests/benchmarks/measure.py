"""Runs a command to its end and tells what it took."""

from __future__ import annotations

import os
import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from tasks import telemetry

ROOT = Path(__file__).parents[2]
Command = Sequence[object]  # texts and paths
STARTED = "BENCH_STARTED"  # when the command was started, on the clock that all processes share


@dataclass(frozen=True)
class Run:
    """What one command took, from its start to its end."""

    wall_s: float
    cpu_s: float  # user and system, of the command and all its children
    biggest_mb: float  # peak of the biggest process in the tree, as the kernel counted it
    tree_mb: float  # peak of all processes together, polled; what they share counts twice
    stdout: str
    stderr: str


def run(command: Command, *, env: Mapping[str, str] | None = None) -> Run:
    """Run a command with telemetry and the hub off; it must succeed."""
    offline = {"HF_HUB_OFFLINE": "1", **telemetry.SWITCHES}
    started = time.monotonic()
    with tempfile.TemporaryFile("w+") as stdout, tempfile.TemporaryFile("w+") as stderr:
        environment = {**os.environ, **offline, **(env or {}), STARTED: repr(started)}
        process = subprocess.Popen(list(map(str, command)), cwd=ROOT, env=environment, stdout=stdout, stderr=stderr)
        poll = _Poll(process.pid)
        poll.start()
        try:
            _, status, usage = os.wait4(process.pid, 0)
        except BaseException:
            process.kill()
            process.wait()
            raise
        wall = time.monotonic() - started
        process.returncode = os.waitstatus_to_exitcode(status)  # Popen did not see it end
        poll.stop()
        for file in (stdout, stderr):
            file.seek(0)
        output, errors = stdout.read(), stderr.read()
    assert process.returncode == 0, f"{command} ended with {process.returncode}:\n{output[-1000:]}\n{errors[-4000:]}"
    return Run(
        wall_s=wall,
        cpu_s=usage.ru_utime + usage.ru_stime,
        biggest_mb=usage.ru_maxrss / 1024,
        tree_mb=poll.peak / 2**20,
        stdout=output,
        stderr=errors,
    )


def tree_cpu_s() -> float:
    """Return the CPU-seconds so far of this process and its living children."""
    me = psutil.Process()
    times = [process.cpu_times() for process in (me, *me.children(recursive=True))]
    return sum(used.user + used.system for used in times)


class _Poll(threading.Thread):
    """Watches the resident memory of a process and its children."""

    def __init__(self, pid: int, *, every_s: float = 0.1) -> None:
        super().__init__(daemon=True)
        self._root = psutil.Process(pid)
        self._every_s = every_s
        self._done = threading.Event()
        self.peak = 0

    def run(self) -> None:
        while not self._done.wait(self._every_s):
            try:
                tree = (self._root, *self._root.children(recursive=True))
                self.peak = max(self.peak, sum(process.memory_info().rss for process in tree))
            except psutil.Error:  # one of them has just ended
                continue

    def stop(self) -> None:
        self._done.set()
        self.join()
