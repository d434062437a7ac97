"""Batches by real engines that are killed, on one machine, Dask and Ray: every row once, equal to a run of its own."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from tasks.config import Recipe
from tasks.recipe_file import load_recipe
from tasks.records import ExportedModel, ModelVersion
from tests.conftest import ROOT, Vinoflow, write_tiny_recipe
from tests.serving import give, register_version

pytestmark = pytest.mark.slow
ROWS = 400
SETTINGS = ("--set", "exact=true", "--set", "part_rows=8", "--set", "window=16", "--max-tokens", "24")


@pytest.fixture
def recipe_of_tiny(tmp_path: Path, tiny_checkpoint: Path) -> Recipe:
    return load_recipe(write_tiny_recipe(tmp_path, tiny_checkpoint))


@pytest.fixture
def version(home: Path, tmp_path: Path, tiny_export: ExportedModel, recipe_of_tiny: Recipe) -> ModelVersion:
    found = register_version(tiny_export, recipe_of_tiny, tmp_path)
    give(found)
    return found


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "in.jsonl"
    chance = random.Random(5)
    words = ["many", "small", "words", "that", "go", "to", "a", "tiny", "model"]
    lines = [
        json.dumps({"n": number, "prompt": " ".join(chance.choices(words, k=1 + number % 20))})
        for number in range(ROWS)
    ]
    path.write_text("\n".join([*lines[:100], "rubbish", *lines[100:], ""]))
    return path


@pytest.fixture
def uninterrupted(version: ModelVersion, rows: Path, tmp_path: Path, vinoflow: Vinoflow) -> list[dict[str, Any]]:
    """What the rows are answered when nothing happens."""
    output = tmp_path / "uninterrupted.jsonl"
    vinoflow("batch", rows, output, "--model", "tiny@champion", *SETTINGS)
    found = answered(output)
    assert [row["n"] for row in found] == list(range(ROWS))
    assert len({row["answer"] for row in found}) > ROWS / 4
    return found


def answered(output: Path) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in output.read_text().splitlines()]
    return [{name: value for name, value in row.items() if name != "latency_s"} for row in found]


def command(rows: Path, output: Path, *more: str) -> list[str]:
    asked = ["batch", str(rows), str(output), "--model", "tiny@champion", *SETTINGS, *more]
    return [sys.executable, "-m", "flows.cli", *asked]


def parts(output: Path) -> int:
    return len(list(output.with_name(f"{output.name}.parts").glob("part-*")))


def wait_for_parts(output: Path, count: int, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 240
    while parts(output) < count:
        assert process.poll() is None, log.read_text()[-3000:]
        assert time.monotonic() < deadline, log.read_text()[-3000:]
        time.sleep(0.005)


def engines(home: Path) -> list[psutil.Process]:
    """The processes in which engines of this test run."""
    found = []
    for process in psutil.process_iter():
        try:
            ours = process.environ().get("VINOFLOW_HOME") == str(home)
            if ours and "tasks.engine.worker" in process.cmdline():
                found.append(process)
        except psutil.Error:
            continue
    return found


def test_killed_five_times(
    uninterrupted: list[dict[str, Any]], rows: Path, tmp_path: Path, vinoflow: Vinoflow, home: Path
) -> None:
    output, log, chance = tmp_path / "killed.jsonl", tmp_path / "log", random.Random()
    for kill in range(5):
        with log.open("wb") as told:
            process = subprocess.Popen(command(rows, output), cwd=ROOT, stdout=told, stderr=told)
            wait_for_parts(output, parts(output) + chance.randint(0 if kill else 1, 6), process, log)
            time.sleep(chance.random() / 5)
            process.kill()
            process.wait()
    told = vinoflow("batch", rows, output, "--model", "tiny@champion", *SETTINGS)
    assert answered(output) == uninterrupted
    assert f"{ROWS + 1}: {ROWS} answered, 0 not answered, 1 rejected" in told.stdout
    assert not [path for path in tmp_path.iterdir() if "partial" in path.name or path.name.endswith(".parts")]
    assert not engines(home)


@pytest.mark.parametrize("runner", ["dask", "ray"])
def test_workers_engines_and_commands_of_a_cluster_are_killed(
    uninterrupted: list[dict[str, Any]], rows: Path, tmp_path: Path, vinoflow: Vinoflow, home: Path, runner: str
) -> None:
    output, log, chance = tmp_path / "killed.jsonl", tmp_path / "log", random.Random()
    for killed in (("worker", "command"), ("engine", "worker", "command")):
        with log.open("wb") as told:
            process = subprocess.Popen(command(rows, output, "--runner", runner), cwd=ROOT, stdout=told, stderr=told)
            for what in killed:
                wait_for_parts(output, parts(output) + chance.randint(1, 4), process, log)
                if what == "command":
                    process.kill()
                    continue
                engine = chance.choice(engines(home))
                (engine if what == "engine" else engine.parent() or engine).kill()
            process.wait()
        assert parts(output) < ROWS / 8
    told = vinoflow("batch", rows, output, "--model", "tiny@champion", *SETTINGS, "--runner", runner)
    assert answered(output) == uninterrupted
    assert f"{ROWS + 1}: {ROWS} answered, 0 not answered, 1 rejected" in told.stdout
