"""Our export stage against bare optimum-cli: same checkpoint, same options, interleaved rounds."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from statistics import median

import pytest

from tasks.config import Recipe
from tasks.manifest import sha256_file
from tasks.records import Checkpoint
from tests.benchmarks.measure import Run, run
from tests.benchmarks.table import bar, breakdown, ratio, ratios, show

pytestmark = [pytest.mark.bench, pytest.mark.timeout(1800)]
ROUNDS = 3
RECIPE = Path(__file__).parents[2] / "configs" / "smollm2-135m-instruct.yaml"
# What the optimum-cli script runs; openvino's and nncf's telemetry knows no switch, so it is hidden as ours hides it.
OPTIMUM_CLI = """
import sys
sys.modules["openvino_telemetry"] = None
from optimum.commands.optimum_cli import main
main()
"""
OPTIONS = [
    "--task",
    "text-generation-with-past",
    "--weight-format",
    "int4",
    "--group-size",
    "64",
    "--ratio",
    "0.6",
    "--sym",
]
PHASES = {  # what begins it -> what it is
    "": "start Python, import",
    "imported": "check the checkpoint's SHA-256",
    "export began": "start the child, import optimum",
    "export: converting": "convert (optimum)",
    "export: compressing weights": "compress (optimum, nncf), end the child",
    "export ended": "read the IR, hash, publish",
    "returned": "exit",
}


def test_export_against_optimum_cli(smollm2: Checkpoint, recipe: Recipe, tmp_path: Path) -> None:
    ours: list[Run] = []
    theirs: list[Run] = []
    bins = set()
    for number in range(ROUNDS):
        pair = [(ours, _ours), (theirs, _theirs)]
        for runs, measure in pair if number % 2 == 0 else reversed(pair):
            folder = tmp_path / "round"
            (folder / "tmp").mkdir(parents=True)
            done, model = measure(smollm2, folder)
            runs.append(done)
            bins.add((model.stat().st_size, sha256_file(model)))
            shutil.rmtree(folder)
    assert len(bins) == 1, f"the exports differ: {bins}"
    show(
        f"Export to int4: our stage against optimum-cli ({ROUNDS} rounds; {next(iter(bins))[0]} equal bytes)",
        ("measure", "ours", "optimum-cli", "ratio (span)", "bar"),
        [
            _row("wall time, s", [done.wall_s for done in ours], [done.wall_s for done in theirs], limit=1.1),
            _row("CPU time, s", [done.cpu_s for done in ours], [done.cpu_s for done in theirs]),
            _row("peak RSS, biggest process, MB", *([r.biggest_mb for r in s] for s in (ours, theirs)), limit=1.1),
            _row("peak RSS, whole tree, MB", *([r.tree_mb for r in s] for s in (ours, theirs)), limit=1.1),
        ],
    )
    show("Where our stage's time goes (medians)", ("phase", "s"), breakdown(ours, PHASES))


def _ours(checkpoint: Checkpoint, folder: Path) -> tuple[Run, Path]:
    given = folder / "checkpoint.json"
    given.write_text(checkpoint.model_dump_json())
    command = [sys.executable, "-m", "tests.benchmarks.stages", "export", given, RECIPE]
    done = run(command, env={"VINOFLOW_CACHE": str(folder / "cache")})
    return done, Path(json.loads(done.stdout)["folder"]) / "openvino_model.bin"


def _theirs(checkpoint: Checkpoint, folder: Path) -> tuple[Run, Path]:
    arguments = ["export", "openvino", "--model", checkpoint.path, *OPTIONS, folder / "out"]
    done = run([sys.executable, "-c", OPTIMUM_CLI, *arguments], env={"TMPDIR": str(folder / "tmp")})
    return done, folder / "out" / "openvino_model.bin"


def _row(name: str, ours: list[float], theirs: list[float], *, limit: float | None = None) -> tuple[str, ...]:
    verdict = bar(ratio(ours, theirs), limit) if limit else ""
    return (name, f"{median(ours):.1f}", f"{median(theirs):.1f}", ratios(ours, theirs), verdict)
