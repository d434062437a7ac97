"""Files of prompts, and where an answer comes from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from flows.commands.options import AsJson

if TYPE_CHECKING:
    from flows.batching import Batched, Wanted
    from flows.lineage import Chain
    from tasks.batch import Estimate

_INPUT = "A file, folder or pattern: .jsonl, .csv, .tsv, .parquet, or OpenAI's batch file; also s3://..."
_OUTPUT = "The file to write, of any of these kinds."
_SET = "Any other setting, for instance columns.prompt=question or settings.temperature=0.7."
_RUNNER = "Where to answer: here, or on the workers of a cluster."

_REASONS = 5  # that are told


def batch(
    source: Annotated[str, typer.Argument(metavar="INPUT", help=_INPUT)],
    output: Annotated[str, typer.Argument(metavar="OUTPUT", help=_OUTPUT)],
    model: Annotated[str, typer.Option("--model", metavar="REF", help="NAME@ALIAS, NAME@latest or NAME/VERSION.")],
    config: Annotated[Path | None, typer.Option(help="A YAML file of settings: `vinoflow schema batch`.")] = None,
    settings: Annotated[list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help=_SET)] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Of each answer; default 512.")] = None,
    runner: Annotated[Literal["local", "dask", "ray"] | None, typer.Option(help=_RUNNER)] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Of a cluster that is started here; default 2.")] = None,
    strict: Annotated[bool | None, typer.Option("--strict", help="One bad row ends it before it begins.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Write over an output that is there.")] = False,
    restart: Annotated[bool, typer.Option("--restart", help="Throw away what an unfinished run has answered.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Count rows and tokens, predict the time.")] = False,
    as_json: AsJson = False,
) -> None:
    """Answer a file of prompts by a registered version: every row once, however often it is stopped and begun again.

    A run that was stopped goes on where it was when the same command is given again, with the version that it began
    with, wherever the alias points by then. Rows that are none go to OUTPUT.rejects.jsonl, with line and reason.
    """
    from flows.batching import Wanted, in_words, predict
    from flows.console import live_progress, say, show_table
    from tasks.batch import Estimate, refuse_secrets
    from tasks.recipe_file import load_batch

    refuse_secrets(source, output)  # before anything is told to Prefect
    given = {"runner": runner, "workers": workers, "strict": strict, "settings.max_tokens": max_tokens}
    wanted = Wanted(
        source=source,
        output=output,
        reference=model,
        settings=load_batch(config, assignments=settings or [], **given),
        overwrite=overwrite,
        restart=restart,
    )
    with live_progress():
        found = predict(wanted) if dry_run else _run(wanted)
    if as_json:
        typer.echo(found.model_dump_json())
    elif isinstance(found, Estimate):
        show_table(_predicted(found))
    else:
        if found.reused:
            say(in_words(found))
        show_table(_done(found))


def _run(wanted: Wanted) -> Batched:
    """Answer as a flow where a Prefect server is to know of it or a cluster is to do it; else without Prefect."""
    from flows.batching import answer_here, run_batch
    from flows.environment import prefect_api, prepare_prefect
    from tasks.progress import step

    if wanted.settings.runner == "local" and not prefect_api():
        return run_batch(wanted, answer=answer_here)
    with step("start"):
        prepare_prefect()
        from flows.batch_inference import batch_inference
    return batch_inference(
        wanted.source,
        wanted.output,
        wanted.reference,
        wanted.settings,
        overwrite=wanted.overwrite,
        restart=wanted.restart,
    )


def _done(done: Batched) -> list[tuple[str, str]]:
    run = done.run
    answered = run.rows - run.rejected - run.errors
    rows = [
        ("output", _short(run.output)),
        ("rows", f"{run.rows}: {answered} answered, {run.errors} not answered, {run.rejected} rejected"),
        ("version", f"{run.version} {run.digest[:12]} on {run.device}"),
    ]
    if done.rejects:
        rows.append(("rejects", _short(done.rejects)))
    if done.tokens_per_s:
        rows.append(("speed", f"{done.tokens_per_s:.0f} tokens/s"))
    return rows


def _predicted(found: Estimate) -> list[tuple[str, str]]:
    rejected = sum(found.rejected.values())
    most = sorted(found.rejected.items(), key=lambda item: -item[1])[:_REASONS]
    asked = max(1, found.rows - rejected)
    return [
        ("rows", f"{found.rows}: {found.rows - rejected} to answer, {rejected} to reject"),
        *(("", f"{count} because a row {reason}") for reason, count in most),
        (
            "prompts",
            f"{found.prompt_tokens} tokens, {found.prompt_tokens / asked:.0f} a row, {found.longest_prompt} at most",
        ),
        (
            "answers",
            f"{found.completion_tokens} tokens, if they are as long as those to the reference prompts; "
            f"at most {found.most_completion_tokens}",
        ),
        ("time", _time(found)),
    ]


def _time(found: Estimate) -> str:
    if found.seconds is None:
        return "not predicted: this version's speed was not measured"
    return f"{_duration(found.seconds)} at {found.tokens_per_s:.0f} tokens/s (measured by {found.measured})"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def lineage(
    what: Annotated[
        str,
        typer.Argument(
            metavar="WHAT", help="An output of batch, NAME/VERSION or NAME@ALIAS, or a checkpoint's revision."
        ),
    ],
    as_json: AsJson = False,
) -> None:
    """Tell where answers come from, and what came of a version or a checkpoint.

    An output is known by its SHA-256, wherever it lies now.
    """
    from flows.console import say, show_table
    from flows.lineage import trace

    chains = trace(what)
    if as_json:
        typer.echo(json.dumps([chain.model_dump(mode="json") for chain in chains]))
        return
    for number, chain in enumerate(chains):
        if number:
            say("")
        show_table(_links(chain))


def _links(chain: Chain) -> list[tuple[str, str]]:
    rows = [
        ("checkpoint", f"{chain.source} {chain.source_revision}, digest {chain.checkpoint_digest[:12]}"),
        ("version", f"{chain.version} {chain.digest[:12]}{f', now {chain.aliases}' * bool(chain.aliases)}"),
    ]
    if chain.bit_mix:
        rows.append(("exported as", f"{chain.bit_mix}; recipe {chain.recipe_digest[:12]}, MLflow run {chain.run_id}"))
    else:
        rows.append(("exported as", "the version is not registered any more"))
    for run in chain.outputs:
        about = f"{run.rows} rows, {run.ended_at:%Y-%m-%d %H:%M}, {run.device}"
        rows.append(("output", f"{_short(run.output)} {run.output_sha256[:12]}, {about}"))
        inputs = ", ".join(sha256[:12] for sha256 in run.input_sha256[:_REASONS])
        rows.append(("  of", f"{_short(run.input)} {inputs}, MLflow run {run.run_id}"))
    return rows


def _short(path: str) -> str:
    """Return a path from here, where it lies below."""
    return path.removeprefix(f"{Path.cwd()}/")
