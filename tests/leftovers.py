"""What killed processes leave, and locks that others hold."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml

from tasks import locations
from tests import small
from tests.killed import Point

ROOT = Path(__file__).parents[1]


def stores() -> set[str]:
    """Return the logged models whose files lie in the store."""
    return {path.name for path in (locations.home() / "mlruns" / "artifacts" / "models").glob("*")}


def killed_registration(folder: Path, point: Point) -> None:
    """Begin to register a small version, and be killed at a point."""
    made_by = small.recipe()
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(made_by.model_dump(mode="json", exclude_defaults=True)))
    model = small.exported(folder / "killed", "killed")
    report = small.report(model, made_by)
    command = [sys.executable, "-m", "tests.killed", point.model_dump_json(), "register_stage", str(path)]
    done = subprocess.run(
        [*command, model.model_dump_json(), report.model_dump_json()],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == -9, done.stderr


@contextmanager
def held(lock: Path) -> Iterator[None]:
    """Have another process hold a lock."""
    code = "import sys, filelock\nwith filelock.FileLock(sys.argv[1]):\n    print(flush=True)\n    input()"
    lock.parent.mkdir(parents=True, exist_ok=True)
    with subprocess.Popen(
        [sys.executable, "-c", code, str(lock)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout and holder.stdout.readline()
        try:
            yield
        finally:
            holder.communicate("\n")
