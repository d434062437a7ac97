"""Recipes: what one YAML file in configs/ says about one model. `tasks.recipe_file` reads them."""

from tasks.config.export import Export
from tasks.config.recipe import AliasPolicy, Recipe, Registry, alias_name
from tasks.config.source import COMMIT, HubSource, LocalSource, Source, WheelSource
from tasks.config.validation import Expectation, Gate, Message, ReferencePrompt, Validation, one_device

__all__ = [
    "COMMIT",
    "AliasPolicy",
    "Expectation",
    "Export",
    "Gate",
    "HubSource",
    "LocalSource",
    "Message",
    "Recipe",
    "ReferencePrompt",
    "Registry",
    "Source",
    "Validation",
    "WheelSource",
    "alias_name",
    "one_device",
]
