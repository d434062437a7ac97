"""Commands in processes of their own that start at once: each is forked from one that has imported everything.

`python -m tests.forked` takes a JSON line a command, and answers with its exit code when it has ended.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.killed import Point

ROOT = Path(__file__).parents[1]
_TIMEOUT_S = 240


@dataclass
class Done:
    """A command that has ended."""

    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The one line of its error, or all that it said where there is none, or a traceback."""
        lines = [line for line in self.err.splitlines() if line.startswith("error: ")]
        return lines[0] if len(lines) == 1 and "Traceback" not in self.err else self.err


class Forker:
    """Runs commands in processes that are forked from one."""

    def __init__(self, process: subprocess.Popen[str], folder: Path, environment: dict[str, str]) -> None:
        """Take that one, a folder for what commands say, and the variables that it was started with."""
        self._process = process
        self._folder = folder
        self._environment = environment

    def run(
        self, *command: str | Path, stage: str = "vinoflow", point: Point | None = None, **environment: str
    ) -> Done:
        """Run a stage of `tests.killed`, mostly vinoflow itself, struck at a point; an empty variable is none."""
        assert self._process.stdin and self._process.stdout
        variables = {**os.environ, **self._environment, **environment}
        asked = {
            "stage": stage,
            "point": point.model_dump_json() if point else "",
            "command": list(map(str, command)),
            "environment": {name: value for name, value in variables.items() if value},
            "out": str(self._folder / "out"),
            "err": str(self._folder / "err"),
        }
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        code = int(self._process.stdout.readline())
        return Done(code, Path(asked["out"]).read_text(), Path(asked["err"]).read_text())


@contextmanager
def forker(folder: Path, **environment: str) -> Iterator[Forker]:
    """Have everything imported until the block ends; what is read on import is as `environment` says."""
    folder.mkdir()
    with subprocess.Popen(
        [sys.executable, "-m", "tests.forked"],
        cwd=ROOT,
        env={**os.environ, **environment},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        yield Forker(process, folder, environment)


def main() -> None:
    """Fork a process a line, and wait for it."""
    from tasks import telemetry

    telemetry.turn_off()
    import flows.batch_inference
    import flows.cli
    import flows.export_and_validate
    import flows.promote  # noqa: F401 - all that commands import later
    from tests import killed, stub_engine

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import mlflow.store.model_registry.sqlalchemy_store
        import mlflow.store.tracking.sqlalchemy_store  # noqa: F401

    patch = pytest.MonkeyPatch()
    gc.freeze()  # no child copies what none changes
    for line in sys.stdin:
        asked = json.loads(line)
        pid = os.fork()
        if pid == 0:
            _become(asked)
            stub_engine.in_place(patch)
            if asked["point"]:
                Point.model_validate_json(asked["point"]).arm()
            getattr(killed, asked["stage"])(*asked["command"])
            return
        sys.stdout.write(f"{_code_of(pid)}\n")
        sys.stdout.flush()


def _become(asked: dict[str, object]) -> None:
    """Take a command's environment and files in place of one's own."""
    for name, descriptor in (("out", 1), ("err", 2)):
        file = os.open(str(asked[name]), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, descriptor)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.environ.clear()
    os.environ.update(asked["environment"])  # type: ignore[call-overload]
    from prefect.context import refresh_global_settings_context

    refresh_global_settings_context()


def _code_of(pid: int) -> int:
    """Return how a process ended; one that hangs is killed."""

    def kill(*_: object) -> None:
        os.kill(pid, signal.SIGKILL)

    signal.signal(signal.SIGALRM, kill)
    signal.alarm(_TIMEOUT_S)
    _, status = os.waitpid(pid, 0)
    signal.alarm(0)
    return os.waitstatus_to_exitcode(status)


if __name__ == "__main__":
    main()
