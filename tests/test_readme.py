"""The README's commands are run, in their order, and print what it shows."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tasks.records import ValidationReport
from tests.conftest import ROOT
from tests.pages import Terminal, blocks

README = (ROOT / "README.md").read_text()
BLOCKS = blocks(ROOT / "README.md")
# what runs this test, and what measures for minutes
NOT_RUN = ("make test",)


@pytest.mark.slow
def test_every_command_prints_what_the_readme_shows_and_its_python_runs(seeded: Path, tmp_path: Path) -> None:
    commands = [block for block in BLOCKS if block.kind == "console"]
    assert len(commands) >= 6
    with Terminal(tmp_path) as terminal:
        for block in commands:
            if block.command not in NOT_RUN:
                terminal.run(block)
        for block in BLOCKS:
            if block.kind == "python":
                env = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
                command = [sys.executable, "-c", terminal.here(block.text)]
                done = subprocess.run(command, cwd=seeded, env=env, capture_output=True, text=True, check=False)
                assert done.returncode == 0, done.stderr
                assert "Paris" in done.stdout

    (found,) = (seeded / "mlruns" / "artifacts").rglob("report.json")
    metrics = ValidationReport.model_validate_json(found.read_bytes()).metrics
    assert (metrics["prompts"], metrics["prompts_passed_share"]) == (16, 1)
    assert 0.17 < metrics["text_kl_mean"] < 0.20  # measured: 0.182
    assert metrics["noise_floor_kl_mean"] < 1e-8


def test_files_and_targets_that_the_readme_names_exist() -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).exists(), target
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"`make (\w+)`", README):
        assert f"\n{target}:" in makefile
