"""Servers that tests share: of the real model, and of a tiny one whose answers are noise."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tasks.config import Recipe
from tasks.records import ExportedModel
from tests import small
from tests.serving import EXACT, Served, give, register_version, serving


@pytest.fixture(scope="session")
def served(smollm2_export: ExportedModel, recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The real model behind `vinoflow serve`."""
    folder = tmp_path_factory.mktemp("served")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VINOFLOW_HOME", str(folder))
        patch.setenv("VINOFLOW_CACHE", str(folder / "cache"))
        patch.setenv("MLFLOW_TRACKING_URI", "")
        give(register_version(smollm2_export, recipe, folder))
        with serving(f"{recipe.name}@champion", folder) as server:
            yield server


@pytest.fixture(scope="session")
def tiny_served(tiny_export: ExportedModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The tiny model behind `vinoflow serve`: fast, and its answers are noise."""
    folder = tmp_path_factory.mktemp("tiny-served")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VINOFLOW_HOME", str(folder))
        patch.setenv("VINOFLOW_CACHE", str(folder / "cache"))
        patch.setenv("MLFLOW_TRACKING_URI", "")
        give(register_version(tiny_export, small.recipe("tiny"), folder, ov_config=EXACT))
        with serving("tiny@champion", folder) as server:
            yield server
