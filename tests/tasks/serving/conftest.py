"""Servers that tests share: of the real model, and of a tiny one whose answers are noise."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tasks.config import Recipe
from tasks.records import ExportedModel
from tests import small
from tests.serving import EXACT, Served, give, home_of, register_version, serving


@pytest.fixture(scope="session")
def real_home(smollm2_export: ExportedModel, recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home whose champion is the real model."""
    folder = tmp_path_factory.mktemp("served")
    with home_of(folder):
        give(register_version(smollm2_export, recipe, folder))
    return folder


@pytest.fixture(scope="session")
def served(real_home: Path, recipe: Recipe) -> Iterator[Served]:
    """The real model behind `vinoflow serve`."""
    with home_of(real_home), serving(f"{recipe.name}@champion", real_home) as server:
        yield server


@pytest.fixture(scope="session")
def tiny_home(tiny_export: ExportedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home whose champion is the tiny model."""
    folder = tmp_path_factory.mktemp("tiny-served")
    with home_of(folder):
        give(register_version(tiny_export, small.recipe("tiny"), folder, ov_config=EXACT))
    return folder


@pytest.fixture(scope="session")
def tiny_served(tiny_home: Path) -> Iterator[Served]:
    """The tiny model behind `vinoflow serve`: fast, and its answers are noise."""
    with home_of(tiny_home), serving("tiny@champion", tiny_home) as server:
        yield server
