"""What a user waits for at the command line, beside what the work itself needs."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import pytest

from tasks import locations
from tasks.manifest import read_manifest, verify
from tests.benchmarks.measure import Command, Run, run
from tests.benchmarks.table import bar, breakdown, ratios, show

pytestmark = [pytest.mark.bench, pytest.mark.timeout(1800)]
ROUNDS = 3
VINOFLOW = Path(sys.executable).with_name("vinoflow")
RECIPE = Path(__file__).parents[2] / "configs" / "smollm2-135m-instruct.yaml"
REFERENCE = "smollm2-135m-instruct@latest"
QUESTION = "What is the capital of France?"
TOKENS = "8"
PHASES = {  # what begins it -> what it is
    "": "start Python, import",
    "imported": "import mlflow, open the registry, resolve, link",
    "verify began": "verify every file's SHA-256",
    "load began": "start the engine, import, load, compile",
    "load ended": "first text",
    "first text": "the other tokens, end the engine",
    "returned": "exit",
}
BARE = """
import sys, openvino_genai
pipeline = openvino_genai.LLMPipeline(sys.argv[1], "CPU", PERFORMANCE_HINT="LATENCY", NUM_STREAMS="1", CACHE_DIR="")
history = openvino_genai.ChatHistory([{"role": "user", "content": sys.argv[2]}])
pipeline.generate(history, max_new_tokens=int(sys.argv[3]), do_sample=False, streamer=lambda text: print(text, end=""))
"""


def test_help_and_check(seeded: Path) -> None:
    bare, shown = _rounds(20, [sys.executable, "-c", "pass"], [VINOFLOW, "--help"])
    checked = _rounds(ROUNDS, [VINOFLOW, "check", RECIPE, "--json"])[0]
    assert "export-and-validate" in shown[0].stdout
    assert json.loads(checked[0].stdout)["preflight"]["bin_bytes"] > 0
    show(
        "Commands that load no model (medians)",
        ("command", "s", "CPU-s", "bar"),
        [
            (*_medians("python -c pass", bare), ""),
            (*_medians("vinoflow --help", shown), bar(median(done.wall_s for done in shown), 0.5)),
            (*_medians("vinoflow check, checkpoint here", checked), bar(median(done.wall_s for done in checked), 2)),
        ],
    )


def test_a_registered_version(seeded: Path) -> None:
    command = [VINOFLOW, "export-and-validate", RECIPE, "--json"]
    first = run(command)
    again = _rounds(ROUNDS, command)[0]
    assert not json.loads(first.stdout)["reused"]
    assert all(json.loads(done.stdout)["reused"] for done in again)
    folder = locations.cache() / "models" / json.loads(first.stdout)["digest"]

    ask: Command = [VINOFLOW, "ask", QUESTION, "--model", REFERENCE, "--max-new-tokens", TOKENS]
    staged: Command = [sys.executable, "-m", "tests.benchmarks.stages", "ask", REFERENCE, QUESTION, TOKENS]
    asked, parts, bare = _rounds(ROUNDS, ask, staged, [sys.executable, "-c", BARE, folder, QUESTION, TOKENS])
    assert all("Paris" in done.stdout for done in asked + bare)
    assert {json.loads(done.stdout)["tokens"] for done in parts} <= set(range(1, int(TOKENS) + 1))
    show(
        "Commands around a registered version (medians)",
        ("command", "s", "CPU-s", "peak MB"),
        [
            _with_memory("export-and-validate, export at hand (1 run)", [first]),
            _with_memory("export-and-validate again, same inputs", again),
            _with_memory(f"ask, cold, at most {TOKENS} tokens", asked),
            _with_memory("bare LLMPipeline: load and answer the same", bare),
        ],
    )
    show(
        f"ask against bare LLMPipeline: wall {ratios([r.wall_s for r in asked], [r.wall_s for r in bare])}; its parts",
        ("phase", "s"),
        breakdown(parts, PHASES),
    )
    _show_verify(folder)


def _show_verify(folder: Path) -> None:
    """Our check of a pulled version against sha256sum of the same files."""
    manifest = read_manifest(folder)
    files = [str(folder / entry.name) for entry in manifest.files]
    sha256sum = shutil.which("sha256sum")
    assert sha256sum
    ways: list[tuple[str, Callable[[], object]]] = [
        ("ours: tasks.manifest.verify", lambda: verify(folder, manifest)),
        ("sha256sum", lambda: subprocess.run([sha256sum, *files], check=True, stdout=subprocess.DEVNULL)),
        ("hashlib, one thread", lambda: [hashlib.sha256(Path(file).read_bytes()) for file in files]),
    ]
    seconds: dict[str, list[float]] = {name: [] for name, _ in ways}
    for _ in range(7):
        for name, way in ways:
            started = time.perf_counter()
            way()
            seconds[name].append(time.perf_counter() - started)
    show(
        f"Verifying {manifest.size_bytes / 1e6:.0f} MB in {len(files)} files",
        ("way", "MB/s", "time against sha256sum (span)"),
        [
            (name, f"{manifest.size_bytes / 1e6 / median(took):.0f}", ratios(took, seconds["sha256sum"]))
            for name, took in seconds.items()
        ],
    )


def _rounds(count: int, *commands: Command) -> list[list[Run]]:
    """Run commands in turn, round after round; return each command's runs."""
    runs: list[list[Run]] = [[] for _ in commands]
    for _ in range(count):
        for command, done in zip(commands, runs, strict=True):
            done.append(run(command))
    return runs


def _medians(name: str, runs: list[Run]) -> tuple[str, str, str]:
    return (name, f"{median(done.wall_s for done in runs):.2f}", f"{median(done.cpu_s for done in runs):.2f}")


def _with_memory(name: str, runs: list[Run]) -> tuple[str, ...]:
    return (*_medians(name, runs), f"{median(done.tree_mb for done in runs):.0f}")
