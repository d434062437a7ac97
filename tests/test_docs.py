"""docs/serving.md names settings, metrics and commands that exist."""

from __future__ import annotations

import re

from tasks.config import Serving
from tasks.serving.observe import Observer
from tests.conftest import ROOT, Vinoflow

PAGE = (ROOT / "docs" / "serving.md").read_text()
QUOTED = re.findall(r"`([^`\n]+)`", PAGE)


def test_settings_exist() -> None:
    named = {word for word in QUOTED if re.fullmatch(r"[a-z]+(_[a-z]+)+", word) and not word.startswith("vinoflow_")}
    assert named - {"system_fingerprint"} <= set(Serving.model_fields)
    assert "drain_s" in named


def test_metrics_exist() -> None:
    registry = Observer(log_prompts=False, trace_share=0).registry
    known = {family.name for family in registry.collect()}
    named = set(re.findall(r"vinoflow_\w+", PAGE))
    assert {re.sub(r"_(total|bucket)$", "", name) for name in named} <= known
    assert len(named) > 5


def test_commands_exist(vinoflow: Vinoflow) -> None:
    commands = set(re.findall(r"^  ([a-z-]+) ", vinoflow("--help").stdout, flags=re.MULTILINE))
    named = set(re.findall(r"(?<![\w/-])vinoflow ([a-z][a-z-]*)", PAGE))
    assert named <= commands
    assert "export-ovms" in named


def test_links_lead_to_headings() -> None:
    headings = {
        re.sub(r"[^a-z -]", "", line.lower()).replace(" ", "-") for line in re.findall(r"^#+ (.+)$", PAGE, re.M)
    }
    assert set(re.findall(r"\]\(#([^)]+)\)", PAGE)) <= headings
