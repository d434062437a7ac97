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


@pytest.mark.slow
def test_every_command_prints_what_the_readme_shows_and_its_python_runs(seeded: Path) -> None:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    assert len(BLOCKS) >= 6
    for command, shown in BLOCKS:
        if command in NOT_RUN:
            continue
        done = subprocess.run(
            command,
            shell=True,
            cwd=ROOT,
            env={**os.environ, "PATH": path},
            capture_output=True,
            text=True,
            timeout=900,
            check=False,
        )
        refused = shown.startswith("error:")
        assert done.returncode == (1 if refused else 0), f"{command}\n{done.stdout}\n{done.stderr}"
        printed = words(done.stderr + done.stdout)
        for line in words(re.sub(r"^✓.*\n", "", shown, flags=re.MULTILINE)):
            assert line in printed or any(line in other for other in printed), f"{command} did not print: {line}"
        assert steps(done.stderr) <= steps(shown) or not steps(shown) or command == "make run"
    (code,) = PYTHON
    env = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
    command = [sys.executable, "-c", code]
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
