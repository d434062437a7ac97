"""What the registry's commands take with 2,000 versions of one name: their own work, after the imports."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from statistics import median

import pytest

from flows.promotion import consider, promote
from tasks.registry import connect, resolve
from tests import small
from tests.benchmarks.measure import run
from tests.benchmarks.table import bar, show

pytestmark = [pytest.mark.bench, pytest.mark.timeout(1800)]
VERSIONS, MOVES, ROUNDS = 2000, 50, 3
TIMED = """
import contextlib, io, json, sys, time
import flows.cli, mlflow, mlflow.artifacts, mlflow.store.model_registry.sqlalchemy_store
import mlflow.store.tracking.sqlalchemy_store, flows.console, flows.diff, flows.promotion, tasks.registry
started = time.perf_counter()
tasks.registry.connect()
opened = time.perf_counter()
said = io.StringIO()
with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
    flows.cli.app(sys.argv[1:])
print(json.dumps([opened - started, time.perf_counter() - opened, len(said.getvalue().splitlines())]))
"""


@pytest.fixture
def many(home: Path, tmp_path: Path) -> str:
    """2,000 versions of one name: each with a logged model of its own, the newest with files and a report."""
    first = small.version(tmp_path, "first")
    client = connect()
    experiment = client.get_experiment_by_name("vinoflow").experiment_id
    for number in range(2, VERSIONS):
        tags = first.tags | {"vinoflow.inputs": f"inputs-{number}", "vinoflow.digest": f"{number:064}"}
        model = client.create_logged_model(experiment, name=first.name, source_run_id=first.run_id, tags=tags)
        client.finalize_logged_model(model.model_id, "READY")
        source = f"models:/{model.model_id}"
        client.create_model_version(first.name, source, run_id=first.run_id, model_id=model.model_id, tags=tags)
    small.version(tmp_path, "newest", kl=0.19)
    return first.name


def test_two_thousand_versions(many: str) -> None:
    assert resolve(f"{many}@latest").version == VERSIONS
    for number in range(MOVES):
        promote(consider(f"{many}/{(1, VERSIONS)[number % 2]}", alias="champion"))
    commands = [
        ["list"],
        ["list", "--all"],
        ["show", f"{many}@latest"],
        ["diff", f"{many}/1", f"{many}@latest"],
        ["promote", f"{many}/1", "--dry-run"],
        ["promote", f"{many}/1"],
        ["rollback", many],
        ["ledger", many],
        ["gc", "--older-than", "0"],
        ["doctor"],
    ]
    seconds: dict[str, list[tuple[float, float]]] = {" ".join(command): [] for command in commands}
    for number in range(ROUNDS):
        for command in commands[: None if number == 0 else -2]:
            done = run([sys.executable, "-c", TIMED, *command])
            opened, worked, lines = json.loads(done.stdout.splitlines()[-1])
            assert lines > 0
            seconds[" ".join(command)].append((opened, worked))
    show(
        f"Own work with {VERSIONS} versions of one name and {MOVES} moves (medians of {ROUNDS}; gc and doctor once)",
        ("command", "open the store, s", "then the command, s", "bar"),
        [
            (
                name,
                f"{median(opened for opened, _ in took):.2f}",
                f"{median(worked for _, worked in took):.2f}",
                bar(median(map(sum, took)), 1) if name.split()[0] not in ("gc", "doctor") else "-",
            )
            for name, took in seconds.items()
        ],
    )
