"""The tutorial's commands are run, in their order, and print what the page shows."""

from __future__ import annotations

from pathlib import Path

from tasks.records import ExportedModel
from tests.conftest import ROOT, link_tree
from tests.pages import Terminal


def test_the_tutorial(smollm2_int8: ExportedModel, seeded: Path, tmp_path: Path) -> None:
    link_tree(smollm2_int8.path, tmp_path / "cache" / "models" / smollm2_int8.digest)
    with Terminal(tmp_path) as terminal:
        terminal.follow(ROOT / "docs" / "tutorial.md")
    assert not seeded.exists()  # its last command
