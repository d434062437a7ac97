"""Processes that promote at once: each move is made on what was seen, none is lost, all are in the ledger."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tasks.registry import aliases_of, entries, verify_ledgers
from tests import small
from tests.postgres import postgres
from tests.servers import BIN, free_port, running

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[3]
RACERS = 8


@pytest.fixture
def on_postgres(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """MLflow's server, its database in PostgreSQL."""
    port = free_port()
    with postgres() as database:
        command = [str(BIN / "mlflow"), "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "2"]
        command += ["--backend-store-uri", database, "--artifacts-destination", str(tmp_path / "artifacts")]
        url, log = f"http://127.0.0.1:{port}", tmp_path / "log"
        switches = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_TRACKING_URI": ""}
        with running(command, f"{url}/health", log=log, **switches):
            monkeypatch.setenv("MLFLOW_TRACKING_URI", url)
            yield


def race(tmp_path: Path, *, times: int) -> None:
    """Have each racer try so many times."""
    for content in "abcde":
        small.version(tmp_path, content)
    command = [sys.executable, "-W", "ignore", "-m", "tests.racing", "small", str(times)]
    told = []
    with ExitStack() as ends:
        racers = [
            ends.enter_context(
                subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            )
            for _ in range(RACERS)
        ]
        for racer in racers:
            ends.callback(racer.kill)  # where one has failed
        for racer in racers:
            out, errors = racer.communicate(timeout=800)
            assert racer.returncode == 0, errors
            told.append(json.loads(out))
    made = [digest for one in told for digest in one["moves"]]
    kept = [noted.entry for noted in entries("small")]
    conflicts = sum(one["conflicts"] for one in told)
    assert len(made) > RACERS and conflicts > RACERS
    assert sorted(made) == sorted(entry.digest for entry in kept)
    assert [entry.sequence for entry in kept] == list(range(len(made), 0, -1))
    assert all(newer.from_version == older.to_version for newer, older in itertools.pairwise(kept))
    assert verify_ledgers("small") == ({"small": len(made)}, {"small": []})
    assert aliases_of("small")[0] == {"champion": kept[0].to_version}
    print(f"{len(made)} moves, {conflicts} conflicts")


def test_eight_processes_on_sqlite(home: Path, tmp_path: Path) -> None:
    race(tmp_path, times=25)  # 200 together


def test_eight_processes_on_a_server_with_postgresql(on_postgres: None, tmp_path: Path) -> None:
    race(tmp_path, times=12)
