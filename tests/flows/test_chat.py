from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from tasks.records import ExportedModel, ModelVersion
from tests import small
from tests.conftest import ROOT, Vinoflow
from tests.terminal import CTRL_C, CTRL_D, Terminal


@pytest.fixture
def tiny(home: Path, tmp_path: Path, tiny_export: ExportedModel) -> ModelVersion:
    return registered("tiny", tiny_export, tmp_path)


@pytest.fixture
def real(home: Path, tmp_path: Path, smollm2_export: ExportedModel) -> ModelVersion:
    return registered("smollm2", smollm2_export, tmp_path)


def registered(name: str, model: ExportedModel, folder: Path) -> ModelVersion:
    recipe = small.recipe(name)
    found = small.report(model, recipe)
    return small.registered(recipe, model, found, inputs=name, evidence=folder / "evidence")


def piped(*arguments: str, lines: str | bytes) -> subprocess.CompletedProcess[str]:
    text = lines if isinstance(lines, bytes) else lines.encode()
    command = [sys.executable, "-m", "flows.cli", "chat", *arguments]
    done = subprocess.run(command, input=text, cwd=ROOT, capture_output=True, check=False)
    return subprocess.CompletedProcess(command, done.returncode, done.stdout.decode(), done.stderr.decode())


def test_wrong_usage(vinoflow: Vinoflow) -> None:
    assert "either REF" in vinoflow("chat", expect=2).stderr
    assert "either REF" in vinoflow("chat", "a@b", "--url", "http://127.0.0.1:1", expect=2).stderr
    assert "--device" in vinoflow("chat", "--url", "http://127.0.0.1:1", "--device", "CPU", expect=2).stderr
    assert "vinoflow serve" in vinoflow("chat", "--url", "http://127.0.0.1:1", expect=1).stderr
    assert "http" in vinoflow("chat", "--url", "nonsense", expect=1).stderr


@pytest.mark.slow
def test_lines_in_answers_out(real: ModelVersion) -> None:
    lines = "What is the capital \\\nof France?\n\n/version\nAnd of Spain?\n/retry\n/nonsense\n/help\n/exit\nNever\n"
    done = piped("smollm2@latest", "--max-new-tokens", "24", lines=lines)
    assert done.returncode == 0, done.stderr
    first, *others = done.stdout.splitlines()
    assert "Paris" in first
    assert "The capital of Spain is Madrid" in others[-1], "it knows what was asked before"
    assert done.stderr.count(" tokens, the first after ") == 3
    assert done.stderr.count("smollm2/1: ") == 3
    assert f"smollm2/1 {real.digest} on CPU" in done.stderr
    assert "/nonsense is no command" in done.stderr
    assert "Ctrl-C stops" in done.stderr
    assert "tokens" not in done.stdout
    assert ">" not in done.stdout


@pytest.mark.slow
def test_system_and_reset(real: ModelVersion) -> None:
    lines = (
        "What is the capital of France?\n/system\n/system Answer in French.\n/system -\n/reset\n/retry\nAnd of Spain?"
    )
    done = piped("smollm2@latest", "--max-new-tokens", "24", lines=lines)
    assert done.returncode == 0, done.stderr
    told = [line for line in done.stderr.splitlines() if "system" in line or "nothing" in line]
    assert told == [
        "there is no system message",
        "system: Answer in French.",
        "there is no system message",
        "nothing was asked yet",
    ]
    assert "Madrid" not in done.stdout.splitlines()[-1]


@pytest.mark.slow
def test_a_full_context_is_told(tiny: ModelVersion) -> None:
    done = piped("tiny/1", lines="many words " * 300 + "\nHello\n")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error: ")
    assert "the model's context holds 256" in done.stderr
    assert "/reset" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


@pytest.mark.slow
def test_any_bytes_are_read(tiny: ModelVersion) -> None:
    done = piped("tiny/1", "--max-new-tokens", "4", "--temperature", "0.8", lines=b"\xff\xfe caf\xe9 \x00\r\n" + b"x\\")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("tiny/1: 4 tokens") == 2
    assert "cut at the limit" in done.stderr


@pytest.mark.slow
def test_ctrl_c_stops_the_answer_and_not_the_chat(real: ModelVersion) -> None:
    with Terminal("chat", "smollm2/1", "--max-new-tokens", "4000") as terminal:
        assert real.digest[:12] in terminal.wait_for("/help for commands")
        terminal.wait_for("> ")
        terminal.type("half a thought")
        terminal.wait_for("thought")
        time.sleep(3)  # readline does not see a Ctrl-C that comes before it waits for keys: no person is as quick
        terminal.type(CTRL_C)
        terminal.wait_for("> ")
        terminal.type("Write a very long story about a fox.\n")
        terminal.wait_for("\n")
        terminal.wait_for("fox")
        terminal.type(CTRL_C)
        assert "tokens" not in terminal.wait_for("stopped\n"), "it ended by itself"
        terminal.wait_for("> ")
        terminal.type("/system Answer in one short sentence.\n/reset\nWhat is the capital of France?\n")
        terminal.wait_for("a new conversation")
        assert "Paris" in terminal.wait_for(" tokens/s")
        terminal.wait_for("> ")
        terminal.type(CTRL_D)
        assert terminal.end() == 0


@pytest.mark.slow
def test_errors_are_told_and_the_chat_goes_on(tiny: ModelVersion) -> None:
    with Terminal("chat", "tiny/1", "--max-new-tokens", "200") as terminal:
        terminal.wait_for("> ")
        for _ in range(6):
            terminal.type("many more words " * 8 + "\n")
            terminal.wait_for("\n")
            if "/reset begins" in terminal.wait_for("> "):
                break
        else:
            pytest.fail("the context never filled")
        terminal.type("/reset\n")
        terminal.wait_for("a new conversation")
        terminal.type("Hello\n")
        terminal.wait_for(" tokens, the first after ")
        terminal.type("/exit\n")
        assert terminal.end() == 0
