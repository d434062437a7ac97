"""The commands of the how-tos are run, in their order, and print what the pages show."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from s3fs import S3FileSystem

from tasks.config import HubSource, Recipe
from tasks.preflight import Structure
from tasks.recipe_file import load_recipe
from tasks.records import Checkpoint, ExportedModel
from tests import servers, small
from tests.conftest import ROOT, Vinoflow, link_tree, write_tiny_recipe
from tests.hub_server import FakeHub
from tests.pages import Terminal, blocks
from tests.serving import give, register_version
from tests.tasks.test_preflight import phi3_mini

DOCS = ROOT / "docs"
PAGES = [DOCS / "tutorial.md", DOCS / "batch.md", *sorted((DOCS / "how-to").glob("*.md"))]
NAME = "smollm2-135m-instruct"


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Terminal]:
    with Terminal(tmp_path) as opened:
        yield opened


def test_a_model_of_ones_own(
    seeded: Path, smollm2: Checkpoint, recipe: Recipe, tmp_path: Path, terminal: Terminal
) -> None:
    """The folder is the real model's, so its export is there: what is kept goes by digests, not by where files lie."""
    link_tree(smollm2.path, terminal.clone / "my-model")
    (terminal.clone / "my-text.txt").write_text(recipe.validation.text)
    exports = tmp_path / "cache" / "exports"
    kept = {*exports.glob("*.json")}
    terminal.follow(DOCS / "how-to" / "own-model.md")
    assert {*exports.glob("*.json")} == kept


@pytest.mark.slow
def test_promote_and_roll_back(home: Path, with_store: None, tmp_path: Path, terminal: Terminal) -> None:
    for content, kl in (("a", 0.2), ("b", 0.18), ("c", 0.35)):
        small.version(tmp_path, content, kl=kl, made_by=small.recipe(NAME))
    terminal.follow(DOCS / "how-to" / "promote-and-roll-back.md")


@pytest.mark.slow
def test_batches(
    home: Path,
    with_store: None,
    tmp_path: Path,
    tiny_checkpoint: Path,
    tiny_export: ExportedModel,
    terminal: Terminal,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A tiny model in the name of the one that the pages have: its answers are noise, the rest is as they show it."""
    recipe = load_recipe(write_tiny_recipe(tmp_path, tiny_checkpoint, name=NAME))
    give(register_version(tiny_export, recipe, tmp_path))
    with servers.s3(tmp_path / "s3") as where:
        for variable, value in where.items():
            monkeypatch.setenv(variable, value)
        S3FileSystem(skip_instance_cache=True).put(str(DOCS / "questions.jsonl"), "bucket/in/questions.jsonl")
        terminal.follow(DOCS / "how-to" / "batch-on-ray.md")
    terminal.follow(DOCS / "batch.md")


@pytest.mark.slow
def test_phi_3(home: Path, terminal: Terminal, gpu: pytest.MonkeyPatch) -> None:
    """A hub on loopback states the layers that Phi-3-mini has, and holds no weights; the GPU is a CPU by that name."""
    source = load_recipe(ROOT / "configs" / "phi-3-mini-4k-instruct.yaml").source
    assert isinstance(source, HubSource)
    with FakeHub() as hub:
        hub.commits[source.repository, source.revision] = headers(phi3_mini())
        gpu.setenv("HF_ENDPOINT", hub.url)
        terminal.follow(DOCS / "how-to" / "phi-3-on-an-intel-gpu.md")


def headers(structure: Structure) -> dict[str, bytes]:
    """Return the files of a checkpoint that `check` reads: the config, and weights that end where their header does."""
    tensors, end = {}, 0
    for name, (kind, shape) in structure.tensors.items():
        begin, end = end, end + 2 * math.prod(shape)
        tensors[name] = {"dtype": kind, "shape": shape, "data_offsets": [begin, end]}
    header = json.dumps(tensors).encode()
    weights = len(header).to_bytes(8, "little") + header
    return {"config.json": json.dumps(structure.config).encode(), "model.safetensors": weights}


def test_commands_that_cannot_be_run_here_exist(vinoflow: Vinoflow) -> None:
    commands = [block.command for page in PAGES for block in blocks(page) if block.reason and block.kind == "console"]
    asked = re.findall(r"(?<![\w/])vinoflow ([a-z-]+)([^&|]*)", " && ".join(commands))
    assert len(asked) >= 5
    for name, arguments in asked:
        known = vinoflow(name, "--help").stdout
        for option in re.findall(r"--[a-z-]+", arguments):
            assert f"{option} " in known, f"vinoflow {name} has no {option}"


def test_every_command_is_run_or_says_why_not() -> None:
    for page in PAGES:
        found = blocks(page)
        assert len([block for block in found if block.kind == "console"]) == page.read_text().count("\n$ "), page
        assert any(block.kind == "console" and not block.reason for block in found), page
