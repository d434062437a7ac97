"""Pages that show commands: they are run in their order, and print what the page shows."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from flows.promotion import whoami
from tests.conftest import ROOT
from tests.servers import free_port, running

PATH = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
# figures, times, digests and folders differ from run to run
VARYING = re.compile(r"\S*mlruns/|(?<![\w.:/])/(?:[\w.+-]+/)+|[0-9a-f]{12,}|\d+(\.\d+)?")
PORT = re.compile(r"127\.0\.0\.1:8000")
LEFT_OUT = "..."  # a line that stands for others
_BLOCK = re.compile(
    r"(?:^\*Not run by the tests: (?P<reason>[^*]+)\*\n\n)?"
    r'^```(?P<kind>console|csv|python|yaml)(?: title="(?P<title>[^"]+)")?\n(?P<text>.*?)^```$',
    flags=re.DOTALL | re.MULTILINE,
)


@dataclass(frozen=True)
class Block:
    """What a page shows: a command and what it prints, a file to write (`title`), or Python."""

    kind: str
    title: str
    text: str
    reason: str  # why it cannot be run where the tests run, which the page says; empty: it is run

    @property
    def command(self) -> str:
        assert self.text.startswith("$ "), self.text
        return self.text.partition("\n")[0].removeprefix("$ ")

    @property
    def shown(self) -> str:
        return self.text.partition("\n")[2]


def blocks(page: Path) -> list[Block]:
    """Return the blocks of a page that say what they are, in order."""
    return [
        Block(kind=found["kind"], title=found["title"] or "", text=found["text"], reason=found["reason"] or "")
        for found in _BLOCK.finditer(page.read_text())
    ]


def words(text: str) -> list[str]:
    """Return a text's lines without what varies and without layout."""
    text = text.replace(whoami(), "root@vm")  # as the pages have it
    return [" ".join(VARYING.sub("#", line).split()) for line in text.splitlines() if line.strip()]


def steps(text: str) -> set[str]:
    return {line.split()[1] for line in text.splitlines() if line.startswith("✓")}


class Terminal:
    """A shell in something like a clone, in which commands may leave files; servers end with it."""

    def __init__(self, folder: Path) -> None:
        self.clone = folder / "clone"
        self.clone.mkdir()
        for entry in ROOT.iterdir():
            (self.clone / entry.name).symlink_to(entry)
        self._port = _port(8000)
        self._servers = ExitStack()
        self._logs = folder

    def __enter__(self) -> Terminal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._servers.close()

    def follow(self, page: Path) -> None:
        """Write a page's files and run its commands, in order, but those of which it says that they are not run."""
        for block in blocks(page):
            if block.reason:
                continue
            if block.kind == "console":
                if block.command.startswith("rm "):
                    self._servers.close()  # which the page says before it cleans up
                self.run(block)
            elif block.title:
                (self.clone / block.title).write_text(block.text)

    def run(self, block: Block) -> None:
        """Run a command; it must print what is shown, in any order, and have no steps but those shown."""
        if block.command.startswith(("vinoflow serve", "vinoflow up")):
            printed = told = self._serve(block.command)
        else:
            done = subprocess.run(
                self.here(block.command),
                shell=True,
                cwd=self.clone,
                env={**os.environ, "PATH": PATH},
                capture_output=True,
                text=True,
                timeout=900,
                check=False,
            )
            told, printed = done.stderr, f"{done.stderr}\n{done.stdout}"
            refused = re.search(r"^error:", block.shown, flags=re.MULTILINE)
            assert done.returncode in ((1, 3) if refused else (0,)), f"{block.command}\n{printed}"
        lines = words(printed)
        for line in words(re.sub(r"^✓.*\n", "", block.shown, flags=re.MULTILINE)):
            if line != LEFT_OUT:
                assert any(line in other for other in lines), f"{block.command} did not print: {line}\n{printed}"
        assert steps(told) <= steps(block.shown) or not steps(block.shown), f"{block.command} has other steps\n{told}"

    def here(self, text: str) -> str:
        """Return a command or code with the port that is free here."""
        return PORT.sub(f"127.0.0.1:{self._port}", text)

    def _serve(self, command: str) -> str:
        what = command.split()[1]
        if what == "serve":
            ports, path = {"--port": self._port}, "/health/ready"
        else:
            ports, path = {"--mlflow-port": _port(5000), "--prefect-port": _port(4200)}, "/api/health"
        options = [word for option, port in ports.items() if str(port) not in command for word in (option, str(port))]
        health = f"http://127.0.0.1:{[*ports.values()][-1]}{path}"
        log = self._logs / f"{what}.log"
        self._servers.enter_context(running([*command.split(), *options], health, log=log, PATH=PATH))
        while "Ctrl-C" not in log.read_text():  # the last line, just behind the first answer
            time.sleep(0.1)
        return log.read_text()


def _port(wanted: int) -> int:
    """Return a page's port, or another one where that is taken."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", wanted))
        except OSError:
            return free_port()
    return wanted
