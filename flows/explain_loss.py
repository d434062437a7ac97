"""Where an export's loss comes from: a recipe's model, with one thing changed at a time."""

from __future__ import annotations

from collections.abc import Sequence

from flows.check import check_checkpoint
from tasks.config import Recipe
from tasks.download import download
from tasks.errors import RecipeError
from tasks.export import UNCOMPRESSED, export
from tasks.validate import Factor, attribute


def explain_loss(recipe: Recipe) -> list[Factor]:
    """Export a recipe's model as it says and uncompressed, and measure what each change costs on its text.

    Raises:
        RecipeError: The recipe has no text, or names no source model to compare with.
    """
    for field, given in (("text", recipe.validation.text), ("reference", recipe.validation.reference != "none")):
        if not given:
            raise RecipeError(f"explain-loss compares {recipe.name} with its source model: set validation.{field}")
    checkpoint = download(recipe.source, code=recipe.export.trust_remote_code)
    check_checkpoint(checkpoint, recipe.export)
    return attribute(checkpoint, export(checkpoint, recipe.export), export(checkpoint, UNCOMPRESSED), recipe)


def rows(factors: Sequence[Factor]) -> list[tuple[str, ...]]:
    """Return the factors as a table, header first."""
    header = ("factor", "mean KL (95 %)", "same top", "perplexity ratio (95 %)", "what was run")
    return [header, *(_row(factor) for factor in factors)]


def _row(factor: Factor) -> tuple[str, ...]:
    def spread(name: str, digits: int) -> str:
        value = f"{factor.metrics[name]:.{digits}f}"
        if name not in factor.intervals:
            return value
        low, high = factor.intervals[name]
        return f"{value} ({low:.{digits}f} to {high:.{digits}f})"

    same_top = f"{100 * factor.metrics['same_top_share']:.1f} %"
    return factor.name, spread("kl_mean", 6), same_top, spread("perplexity_ratio", 4), factor.settings
