"""The `vinoflow` command. Heavy imports happen inside the commands, so that `--help` is instant."""

from __future__ import annotations

import errno
import json
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tasks import locations, telemetry
from tasks.errors import DiskFullError, VinoflowError

if TYPE_CHECKING:
    from tasks.serve import Answered

app = typer.Typer(
    name="vinoflow",
    help="Export language models to OpenVINO, prove on the device that they answer well, register and serve them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

RecipePath = Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe, for instance configs/NAME.yaml.")]
_NO_ROOM_BYTES = 1 << 20  # less is none: a database's next page does not fit
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for machines.")]


@app.command()
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
    typer.echo("  vinoflow list")


@app.command()
def ask(
    prompt: Annotated[str, typer.Argument(help="What to ask; - reads it from standard input.")],
    model: Annotated[str, typer.Option("--model", metavar="REF", help="NAME/VERSION, NAME@ALIAS or NAME@latest.")],
    system: Annotated[str, typer.Option(help="A system message to go before it.")] = "",
    raw: Annotated[bool, typer.Option(help="Send the prompt as it is, without the chat template.")] = False,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Tokens of the answer at most.")] = 512,
    device: Annotated[str | None, typer.Option(help="Where to run; default: where the version was validated.")] = None,
    as_json: AsJson = False,
) -> None:
    """Ask a registered model; the answer is streamed.

    The version's files are fetched and each is checked against its SHA-256 before anything is loaded.
    """
    from flows.console import live_progress, say
    from tasks.config import Message
    from tasks.engine import Request
    from tasks.serve import answer

    text = sys.stdin.read() if prompt == "-" else prompt
    messages = ([Message(role="system", content=system)] if system else []) + [Message(role="user", content=text)]
    request = Request(
        messages=() if raw else tuple(messages), prompt=text if raw else "", max_new_tokens=max_new_tokens
    )

    def show(_: int, piece: str) -> None:
        if not as_json:
            sys.stdout.write(piece)
            sys.stdout.flush()

    with live_progress():
        answered = answer(model, [request], device=device, on_text=show)
    if as_json:
        given = answered.completions[0].answer.model_dump(mode="json")
        names = {"model": answered.version.reference, "digest": answered.version.digest, "device": answered.device}
        typer.echo(json.dumps(names | given))
    else:
        typer.echo()
        say(_how_it_went(answered, max_new_tokens=max_new_tokens))


def _how_it_went(answered: Answered, *, max_new_tokens: int) -> str:
    given = answered.completions[0].answer
    speed = f", then {1000 / given.tpot_ms:.0f} tokens/s" if given.tpot_ms else ""
    cut = f"; cut at --max-new-tokens {max_new_tokens}" if given.finish_reason == "length" else ""
    return (
        f"{answered.version.reference} {answered.version.digest[:12]} on {answered.device}: "
        f"{len(given.token_ids)} tokens, the first after {given.ttft_ms:.0f} ms{speed}{cut}"
    )


@app.command()
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


@app.command()
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


@app.command()
def schema() -> None:
    """Print the JSON schema of a recipe, for an editor to complete and check by."""
    from tasks.config import Recipe

    typer.echo(json.dumps(Recipe.model_json_schema(), indent=2))


@app.command("list")
def list_(
    name: Annotated[str | None, typer.Argument(help="Only this model's versions.")] = None, as_json: AsJson = False
) -> None:
    """List the registered versions, newest first."""
    from flows.console import say, show_table
    from tasks.registry import list_versions

    versions = list_versions(name)
    if as_json:
        fields = {"name", "version", "aliases", "digest"}
        typer.echo(json.dumps([version.model_dump(mode="json", include=fields) for version in versions]))
    elif versions:
        header = ("version", "aliases", "digest", "device", "bit mix")
        rows = [
            (
                version.reference,
                ", ".join(version.aliases) or "-",
                version.digest[:12] or "-",
                version.tags.get("vinoflow.device", "-"),
                version.tags.get("vinoflow.bit_mix", "-"),
            )
            for version in versions
        ]
        show_table([header, *rows])
    else:
        say("nothing is registered yet: vinoflow export-and-validate configs/smollm2-135m-instruct.yaml")


def main() -> None:
    """Run the command; our own errors are one line and an exit code, bugs keep their traceback."""
    telemetry.turn_off()
    try:
        app()
    except VinoflowError as error:
        _fail(error)
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        sys.exit(130)
    except Exception as error:
        full = _full_disk(error)
        if full is None:
            raise
        _fail(full)


def _full_disk(error: Exception) -> DiskFullError | None:
    """Return what to say where a full disk is behind an error, which Prefect says in many ways; None: it is not."""
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return DiskFullError(f"the disk is full: {error.filename or error}; free some room and run again")
    for folder in (locations.home(), locations.cache()):
        if folder.is_dir() and shutil.disk_usage(folder).free < _NO_ROOM_BYTES:
            return DiskFullError(f"the disk is full: {folder} has no room ({error}); free some and run again")
    return None


def _fail(error: VinoflowError) -> None:
    sys.stderr.write(f"error: {error}\n")
    sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
