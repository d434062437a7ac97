"""Benches are `bench_*.py`: collected here, and run by `make bench` only."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.benchmarks.table import machine


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> pytest.Module | None:
    named = parent.session.isinitpath(file_path)  # on the command line: pytest takes such a file anyway
    is_bench = file_path.suffix == ".py" and file_path.name.startswith("bench_") and not named
    return pytest.Module.from_parent(parent, path=file_path) if is_bench else None


@pytest.fixture(scope="session", autouse=True)
def stated_machine() -> None:
    print(f"\n{machine()}")
