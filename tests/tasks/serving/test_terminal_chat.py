"""`vinoflow chat --url`: the terminal's chat with a running server."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from tasks.records import ExportedModel
from tests import small
from tests.conftest import ROOT
from tests.serving import Served, give, register_version, serving, variant
from tests.terminal import CTRL_C, CTRL_D, Terminal

pytestmark = pytest.mark.slow


def piped(*arguments: str, lines: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "flows.cli", "chat", *arguments]
    return subprocess.run(command, input=lines, cwd=ROOT, capture_output=True, text=True, check=False)


def running(served: Served) -> int:
    return int(httpx.get(f"{served.url}/health/ready").json()["running"])


def test_lines_in_answers_out(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    lines = (
        "What is the capital of France?\n/version\nAnd of Spain?\n/retry\n/system Answer in French.\n/reset\nHello\n"
    )
    done = piped("--url", f"{served.url}/v1/", "--max-new-tokens", "24", lines=lines)
    assert done.returncode == 0, done.stderr
    first, *others = done.stdout.splitlines()
    assert "Paris" in first
    assert sum("The capital of Spain is Madrid" in line for line in others) == 2, done.stdout
    assert f"{served.ready['version']} {served.ready['digest']} on CPU" in done.stderr
    assert done.stderr.count(f"{served.ready['version']}: ") == 4
    assert done.stderr.count(" tokens, the first after ") == 4
    assert done.stderr.count(" tokens/s") == 4


def test_sampling_and_the_servers_own_limit(tiny_served: Served) -> None:
    lines = "Hello\n/retry\n"
    one, same, other = (
        piped("--url", tiny_served.url, "--temperature", "1", "--seed", seed, lines=lines) for seed in ("3", "3", "9")
    )
    assert one.returncode == 0, one.stderr
    assert one.stdout == same.stdout != other.stdout


def test_a_full_context_names_the_way_out(tiny_served: Served) -> None:
    done = piped("--url", tiny_served.url, lines="many words " * 300 + "\n")
    assert done.returncode == 1
    assert "256" in done.stderr.splitlines()[-1]
    assert "/reset begins a new conversation" in done.stderr.splitlines()[-1]


def test_ctrl_c_stops_the_answer_at_the_server_too(served: Served) -> None:
    with Terminal("chat", "--url", served.url, "--max-new-tokens", "4000") as terminal:
        assert served.ready["digest"][:12] in terminal.wait_for("/help for commands")
        terminal.wait_for("> ")
        terminal.type("Write a very long story about a fox.\n")
        terminal.wait_for("\n")
        terminal.wait_for("fox")
        assert running(served) == 1
        terminal.type(CTRL_C)
        assert "tokens" not in terminal.wait_for("stopped\n"), "it ended by itself"
        deadline = time.monotonic() + 30
        while running(served):
            assert time.monotonic() < deadline, "the server goes on"
        terminal.type("/reset\nWhat is the capital of France?\n")
        terminal.wait_for("a new conversation")
        assert "Paris" in terminal.wait_for(" tokens/s")
        terminal.wait_for("> ")
        terminal.type(CTRL_D)
        assert terminal.end() == 0


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VINOFLOW_HOME", str(tmp_path))
    monkeypatch.setenv("VINOFLOW_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    return tmp_path


def test_a_swap_in_between_is_told_and_a_lost_server_too(tiny_export: ExportedModel, folder: Path) -> None:
    recipe = small.recipe("tiny")
    first = register_version(tiny_export, recipe, folder)
    second = register_version(variant(tiny_export, folder / "variant", 1), recipe, folder)
    give(first)
    with (
        serving("tiny@champion", folder) as served,
        Terminal("chat", "--url", served.url, "--max-new-tokens", "8") as terminal,
    ):
        terminal.wait_for("> ")
        terminal.type("Hello\n")
        assert "answers now" not in terminal.wait_for("tiny/1: 8 tokens")
        give(second)
        deadline = time.monotonic() + 60
        while httpx.get(f"{served.url}/v1/models").json()["data"][0]["version"] != 2:
            assert time.monotonic() < deadline
            time.sleep(0.2)
        terminal.type("Hello\n")
        now = f"tiny/2 {second.digest[:12]} on CPU answers now, no longer tiny/1 {first.digest[:12]} on CPU"
        terminal.wait_for(now)
        terminal.wait_for("tiny/2: 8 tokens")
        terminal.type("/version\n")
        assert "answers now" not in terminal.wait_for(f"tiny/2 {second.digest} on CPU")
        served.process.send_signal(signal.SIGKILL)
        served.process.wait()
        terminal.type("Hello\n")
        terminal.wait_for("does not answer")
        terminal.wait_for("/retry asks again")
        terminal.type("/version\n")
        terminal.wait_for("does not answer")
        terminal.type("/exit\n")
        assert terminal.end() == 0


def test_a_key_comes_from_the_environment(
    tiny_export: ExportedModel, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    give(register_version(tiny_export, small.recipe("tiny"), folder))
    command = [sys.executable, "-m", "flows.cli", "api-key", "ada", "--json"]
    made = json.loads(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout)
    with serving("tiny@champion", folder, environment={"VINOFLOW_API_KEYS": f"ada:{made['sha256']}"}) as served:
        refused = piped("--url", served.url, lines="Hello\n")
        assert refused.returncode == 1
        assert "VINOFLOW_API_KEY" in refused.stderr
        monkeypatch.setenv("VINOFLOW_API_KEY", made["key"])
        done = piped("--url", served.url, "--max-new-tokens", "4", lines="Hello\n")
        assert done.returncode == 0, done.stderr
