"""Whether a Prefect server is set: asked in processes of their own, since Prefect reads its settings on import."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from flows.promotion import consider, promote
from tests import small
from tests.conftest import ROOT

pytestmark = pytest.mark.slow
ASKS = "import sys; from flows.environment import prefect_api; print(prefect_api(), 'prefect' in sys.modules)"
RUNS = """
import sys
from flows.cli import main
try:
    main()
finally:
    assert "prefect" not in sys.modules
"""
URL = "http://127.0.0.1:4200/api"
PROFILES = f'active = "%s"\n[profiles.here]\n[profiles.there]\nPREFECT_API_URL = "{URL}"\n'


def run(folder: Path, code: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    known = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    known |= {"PREFECT_HOME": str(folder), "PYTHONPATH": str(ROOT), **environment}
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, cwd=folder, env=known, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("profiles.toml", PROFILES % "there", f"{URL} True"),
        ("profiles.toml", PROFILES % "here", " True"),
        ("profiles.toml", 'active = "here"\n[profiles.here]\n', " False"),
        (".env", f"PREFECT_API_URL={URL}\n", f"{URL} True"),
        ("prefect.toml", f'[api]\nurl = "{URL}"\n', f"{URL} True"),
        ("pyproject.toml", f'[tool.prefect.api]\nurl = "{URL}"\n', f"{URL} True"),
        ("pyproject.toml", '[project]\ndependencies = ["prefect"]\n', " False"),
    ],
)
def test_a_server_is_found_where_prefect_looks(tmp_path: Path, name: str, content: str, told: str) -> None:
    (tmp_path / name).write_text(content)
    assert run(tmp_path, ASKS).stdout == f"{told}\n"


def test_the_environment_decides_before_any_file(tmp_path: Path) -> None:
    (tmp_path / "profiles.toml").write_text(PROFILES % "here")
    assert run(tmp_path, ASKS, PREFECT_API_URL="http://127.0.0.1:1/api").stdout == "http://127.0.0.1:1/api False\n"
    assert run(tmp_path, ASKS, PREFECT_PROFILE="there").stdout == f"{URL} True\n"


def test_without_server_and_approval_prefect_is_not_imported(home: Path, tmp_path: Path) -> None:
    manual = small.recipe("guarded", aliases={"champion": {"approval": "manual"}})
    for content, made_by in (("a", small.recipe()), ("b", small.recipe()), ("c", manual)):
        small.version(tmp_path, content, made_by=made_by)
    promote(consider("small/1", alias="champion"))
    for command in (
        ("promote", "small/2"),
        ("rollback", "small"),
        ("promote", "guarded/1", "--dry-run"),
        ("ledger", "small"),
    ):
        done = run(tmp_path, RUNS, *command)
        assert done.returncode == 0, done.stderr
