"""From a recipe to a version."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from flows.commands.options import AsJson, RecipePath


def export_and_validate(recipe: RecipePath, as_json: AsJson = False) -> None:
    """Download, export, validate on the device, and register: a recipe becomes a model version.

    Inputs that are already registered are recognised; then nothing is exported. Exit code 3: a gate failed.
    """
    from flows.console import live_progress, say, show_table
    from flows.environment import prepare_prefect
    from flows.outcome import find_known
    from tasks.progress import step
    from tasks.recipe_file import load_recipe
    from tasks.registry import evidence_uri
    from tasks.summary import summarise

    loaded = load_recipe(recipe)
    with live_progress():
        outcome = find_known(loaded)  # nothing to orchestrate then: Prefect is not even started
        if outcome is None:
            with step("start"):
                prepare_prefect()
                from flows.export_and_validate import export_and_validate as flow
            outcome = flow(loaded)
    version = outcome.version
    if outcome.reused:
        say(f"the same inputs are registered as {version.reference}: nothing was exported")
    if as_json:
        typer.echo(
            json.dumps({**version.model_dump(mode="json"), "metrics": outcome.metrics, "reused": outcome.reused})
        )
        return
    report = f"{evidence_uri(version.run_id)}/report.html".removeprefix(f"{Path.cwd()}/")
    show_table([*summarise(version, outcome.metrics), ("report", report)])
    typer.echo("\nnext:")
    typer.echo(f'  vinoflow ask "What is the capital of France?" --model {version.name}@latest')
    typer.echo(f"  vinoflow promote {version.name}@latest")


def check(recipe: RecipePath, as_json: AsJson = False) -> None:
    """Check a recipe, and predict from the checkpoint's headers what its export will be. Loads no weights."""
    from flows.check import check_recipe
    from flows.console import live_progress, say, show_table
    from tasks.errors import PreflightError
    from tasks.recipe_file import load_recipe

    loaded = load_recipe(recipe)
    with live_progress():
        found = check_recipe(loaded)
    if as_json:
        typer.echo(json.dumps({"recipe": loaded.name, "preflight": found.model_dump(mode="json") if found else None}))
    elif found:
        rows = [(finding.level, finding.message) for finding in found.findings if finding.level != "error"]
        show_table([("ok", f"recipe {loaded.name} is valid"), *rows])
    else:
        show_table([("ok", f"recipe {loaded.name} is valid")])
        say("the checkpoint is not here yet: its layers are checked when export-and-validate has fetched it")
    if found and found.errors:
        raise PreflightError(f"recipe {recipe}: {'; '.join(found.errors)}")


def explain_loss(recipe: RecipePath, as_json: AsJson = False) -> None:
    """Measure where an export's loss comes from: conversion, weights, KV cache, activations, arithmetic, one at a time.

    Runs on the CPU; needs the source model's fp32 export, which is made once and kept in the cache.
    """
    from flows.console import live_progress, show_table
    from flows.explain_loss import explain_loss as explain
    from flows.explain_loss import rows
    from tasks.recipe_file import load_recipe

    with live_progress():
        factors = explain(load_recipe(recipe))
    if as_json:
        typer.echo(json.dumps([factor.model_dump(mode="json") for factor in factors]))
    else:
        show_table(rows(factors))


def schema(
    what: Annotated[
        Literal["recipe", "serve", "batch"], typer.Argument(help="A recipe, or the settings of serve or batch.")
    ] = "recipe",
) -> None:
    """Print a JSON schema, for an editor to complete and check by."""
    from tasks.config import Batch, Recipe, Serving
    from tasks.config.base import Config

    described: dict[str, type[Config]] = {"recipe": Recipe, "serve": Serving, "batch": Batch}
    typer.echo(json.dumps(described[what].model_json_schema(), indent=2))
