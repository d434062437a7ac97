"""The README's commands are run, in their order, and print what it shows."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tasks.records import ValidationReport
from tests.conftest import ROOT, Vinoflow
from tests.pages import Terminal, blocks

README = (ROOT / "README.md").read_text()
BLOCKS = blocks(ROOT / "README.md")
# what runs this test, and what measures for minutes
NOT_RUN = ("make test",)


@pytest.mark.slow
def test_every_command_prints_what_the_readme_shows_and_its_python_runs(
    seeded: Path, tmp_path: Path, vinoflow: Vinoflow
) -> None:
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
    assert "PASSED" in found.with_name("report.html").read_text()
    drawn = {path.name for path in (found.parent / "plots").iterdir()}
    assert drawn == {"divergence.png", "kl-by-position.png", "kl-histogram.png", "latency.png"}
    report = ValidationReport.model_validate_json(found.read_bytes())
    metrics = report.metrics
    assert report.intervals["text_kl_mean"][0] < metrics["text_kl_mean"] < report.intervals["text_kl_mean"][1]
    assert (metrics["prompts"], metrics["prompts_passed_share"]) == (16, 1)
    assert 0.17 < metrics["text_kl_mean"] < 0.20  # measured: 0.182
    assert metrics["noise_floor_kl_mean"] < 1e-8
    _ask_as_it_is_and_damaged(seeded, vinoflow)


def _ask_as_it_is_and_damaged(seeded: Path, vinoflow: Vinoflow) -> None:
    """A raw prompt goes to the model as it is; a file that was changed in the store is not loaded."""
    prompt = "<|im_start|>user\nWhat is the capital of Japan?<|im_end|>\n<|im_start|>assistant\n"
    raw = vinoflow("ask", prompt, "--raw", "--json", "--model", "smollm2-135m-instruct/1")
    given = json.loads(raw.stdout)
    assert "Tokyo" in given["text"] and given["finish_reason"] == "stop"
    (stored,) = (seeded / "mlruns" / "artifacts").rglob("openvino_detokenizer.xml")
    content = bytearray(stored.read_bytes())
    content[100] ^= 0x01
    stored.write_bytes(content)
    refused = vinoflow("ask", "Hello", "--model", "smollm2-135m-instruct@latest", expect=1)
    assert "openvino_detokenizer.xml is damaged" in refused.stderr
    assert refused.stdout == ""


def test_files_and_targets_that_the_readme_names_exist() -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).exists(), target
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"`make (\w+)`", README):
        assert f"\n{target}:" in makefile
