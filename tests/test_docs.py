"""The site is built without a warning and is whole; docs/serving.md names settings, metrics and commands that exist."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest
from pydantic import BaseModel

from tasks.config import Batch, Recipe, Serving
from tasks.metrics import METRICS
from tasks.serving.observe import Observer
from tests.conftest import ROOT, Vinoflow
from tests.servers import BIN

PAGE = (ROOT / "docs" / "serving.md").read_text()
QUOTED = re.findall(r"`([^`\n]+)`", PAGE)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [BIN / "mkdocs", "build", "--strict", "--site-dir", folder],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return folder


def code(site: Path, page: str) -> set[str]:
    """What a page has in code."""
    return set(re.findall(r"<code[^>]*>([^<]+)</code>", (site / "reference" / page).read_text()))


def test_the_site_asks_nothing_of_other_hosts(site: Path) -> None:
    pages = [path.read_text() for path in site.rglob("*.html")]
    assert len(pages) > 15
    loaded = {
        target
        for page in pages
        for tag in re.findall(r"<(?:script|link|img|iframe|source)\b[^>]*>", page)
        for target in re.findall(r'(?:src|href)="([^"]+)"', tag)
    }
    assert len(loaded) > 5
    assert not [target for target in loaded if re.match(r"(?:\w+:)?//", target)]


def test_the_reference_has_every_command_with_its_options(site: Path, vinoflow: Vinoflow) -> None:
    page = (site / "reference" / "cli.html").read_text()
    commands = re.findall(
        r"^  ([a-z-]+)(?: |$)", vinoflow("--help").stdout.partition("Commands:")[2], flags=re.MULTILINE
    )
    assert "export-and-validate" in commands
    assert not [name for name in commands if f"vinoflow {name}" not in page]
    options = re.findall(r"(--[a-z-]+)", vinoflow("batch", "--help").stdout)
    assert {"--runner", "--set"} <= set(options)
    assert not [option for option in options if option != "--help" and option not in page]


@pytest.mark.parametrize(("page", "model"), [("recipe", Recipe), ("serve", Serving), ("batch", Batch)])
def test_the_reference_has_every_setting(site: Path, page: str, model: type[BaseModel]) -> None:
    schema = model.model_json_schema()
    named = {key for part in (schema, *schema.get("$defs", {}).values()) for key in part.get("properties", {})}
    assert len(named) > 15
    assert named <= code(site, f"{page}.html")


def test_the_reference_has_every_metric_and_where_its_definition_is_from(site: Path) -> None:
    assert METRICS.keys() <= code(site, "metrics.html")
    for name, metric in METRICS.items():
        assert metric.source and metric.definition.endswith("."), name
        assert not metric.source.startswith("tasks/") or (ROOT / metric.source).is_file(), name
        units = {"_ms": "ms", "_tokens_per_s": "tokens/s", "_bytes": "bytes", "_share": "share"}
        assert all(metric.unit == unit for suffix, unit in units.items() if name.endswith(suffix)), name


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
