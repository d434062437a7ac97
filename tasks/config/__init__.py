"""Recipes: what one YAML file in configs/ says about one model. `tasks.recipe_file` reads them."""

from tasks.config.batch import Batch
from tasks.config.batch import Kind as BatchKind
from tasks.config.export import Export
from tasks.config.recipe import AliasPolicy, Recipe, Registry, alias_name
from tasks.config.serving import Serving, keys_from_environment
from tasks.config.source import COMMIT, HubSource, LocalSource, Source, WheelSource
from tasks.config.validation import Expectation, Gate, Message, ReferencePrompt, Validation, one_device

__all__ = [
    "COMMIT",
    "AliasPolicy",
    "Batch",
    "BatchKind",
    "Expectation",
    "Export",
    "Gate",
    "HubSource",
    "LocalSource",
    "Message",
    "Recipe",
    "ReferencePrompt",
    "Registry",
    "Serving",
    "Source",
    "Validation",
    "WheelSource",
    "alias_name",
    "keys_from_environment",
    "one_device",
]
