"""The README's commands are run, in their order, and print what it shows."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from tasks.records import ValidationReport
from tests.conftest import ROOT
from tests.servers import free_port, running

PATH = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```console\n\$ (.+?)\n(.*?)```", README, flags=re.DOTALL)
PYTHON = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
# what runs this test, and what measures for minutes
NOT_RUN = ("make test",)
# figures, times and digests differ from run to run
VARYING = re.compile(r"\S*mlruns/|[0-9a-f]{12,}|\d+(\.\d+)?")


def words(text: str) -> list[str]:
    """Return a text's lines without what varies and without layout."""
    return [" ".join(VARYING.sub("#", line).split()) for line in text.splitlines() if line.strip()]


def steps(text: str) -> set[str]:
    return {line.split()[1] for line in text.splitlines() if line.startswith("✓")}


PORT = re.compile(r"127\.0\.0\.1:8000")


@pytest.mark.slow
def test_every_command_prints_what_the_readme_shows_and_its_python_runs(seeded: Path, tmp_path: Path) -> None:
    assert len(BLOCKS) >= 6
    port = _port()
    clone = tmp_path / "clone"  # in which commands may leave files
    clone.mkdir()
    for entry in ROOT.iterdir():
        (clone / entry.name).symlink_to(entry)
    with ExitStack() as servers:
        for command, shown in BLOCKS:
            if command.startswith("vinoflow serve"):
                log = tmp_path / "serve.log"
                option = [] if port == 8000 else ["--port", str(port)]
                servers.enter_context(
                    running([*command.split(), *option], f"http://127.0.0.1:{port}/health/ready", log=log, PATH=PATH)
                )
                while "Ctrl-C" not in log.read_text():  # the last line, just behind the first answer
                    time.sleep(0.1)
                printed, told = words(log.read_text()), steps(log.read_text())
            elif command not in NOT_RUN:
                done = subprocess.run(
                    PORT.sub(f"127.0.0.1:{port}", command),
                    shell=True,
                    cwd=clone,
                    env={**os.environ, "PATH": PATH},
                    capture_output=True,
                    text=True,
                    timeout=900,
                    check=False,
                )
                wanted = 1 if shown.startswith("error:") else 0
                assert done.returncode == wanted, f"{command}\n{done.stdout}\n{done.stderr}"
                printed, told = words(done.stderr + done.stdout), steps(done.stderr)
            else:
                continue
            for line in words(re.sub(r"^✓.*\n", "", shown, flags=re.MULTILINE)):
                assert line in printed or any(line in other for other in printed), f"{command} did not print: {line}"
            assert told <= steps(shown) or not steps(shown) or command == "make run"
        for code in PYTHON:
            env = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
            command = [sys.executable, "-c", PORT.sub(f"127.0.0.1:{port}", code)]
            done = subprocess.run(command, cwd=seeded, env=env, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr
            assert "Paris" in done.stdout

    (found,) = (seeded / "mlruns" / "artifacts").rglob("report.json")
    metrics = ValidationReport.model_validate_json(found.read_bytes()).metrics
    assert (metrics["prompts"], metrics["prompts_passed_share"]) == (16, 1)
    assert 0.17 < metrics["text_kl_mean"] < 0.20  # measured: 0.182
    assert metrics["noise_floor_kl_mean"] < 1e-8


def _port() -> int:
    """Return the README's port, or another one where that is taken."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", 8000))
        except OSError:
            return free_port()
    return 8000


def test_files_and_targets_that_the_readme_names_exist() -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).exists(), target
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"`make (\w+)`", README):
        assert f"\n{target}:" in makefile
