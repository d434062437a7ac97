"""A command on a terminal of its own: what it prints, what is typed, Ctrl-C."""

from __future__ import annotations

import os
import pty
import select
import signal
import sys
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from tests.conftest import ROOT

CTRL_C, CTRL_D = "\x03", "\x04"


class Terminal:
    def __init__(
        self, *arguments: str, program: Sequence[str] = (sys.executable, "-m", "flows.cli"), **environment: str
    ) -> None:
        command = [*program, *arguments]
        env = {**os.environ, "TERM": "dumb", "COLUMNS": "200", **environment}
        self.pid, self._screen = pty.fork()
        if self.pid == 0:
            os.chdir(ROOT)
            for one in (signal.SIGINT, signal.SIGTERM):  # tests may run where a shell ignores them
                signal.signal(one, signal.SIG_DFL)
            os.execvpe(command[0], command, env)
        self.shown = ""

    def type(self, text: str) -> None:
        os.write(self._screen, text.encode())

    def wait_for(self, text: str, *, timeout_s: float = 120) -> str:
        """Return what was shown until a text, and forget it."""
        deadline = time.monotonic() + timeout_s
        while text not in self.shown:
            assert self._read(deadline), f"{text!r} was not shown: {self.shown!r}"
        before, _, self.shown = self.shown.partition(text)
        return before

    def end(self, *, timeout_s: float = 60) -> int:
        """Return the exit code."""
        deadline = time.monotonic() + timeout_s
        while self._read(deadline):
            pass
        code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        self.pid = 0
        return code

    def _read(self, deadline: float) -> bool:
        assert select.select([self._screen], [], [], max(0.0, deadline - time.monotonic()))[0], repr(self.shown)
        try:
            block = os.read(self._screen, 1 << 16)
        except OSError:  # nobody has the terminal open any more
            return False
        self.shown += block.decode(errors="replace").replace("\r\n", "\n")
        return bool(block)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.pid:
            os.kill(self.pid, 9)
            os.waitpid(self.pid, 0)
        os.close(self._screen)
